#!/bin/sh
# Starts a server of each protocol, on ports that aren't theirs by number, and waits.
# What they write is in /srv/PORT.log.
export LC_ALL=C
here=$(dirname "$0")
secret=what-nobody-else-may-read

site() { # site PORT COMMAND...: runs a server in a folder of its own
  port=$1 && shift
  mkdir -p "/srv/$port" && chmod 777 "/srv/$port"
  (cd "/srv/$port" && "$@" >"/srv/$port.log" 2>&1) &
}
nobody() { exec chroot --userspec=65534:65534 / "$@"; }

postgres() {
  nobody sh -c "/usr/lib/postgresql/15/bin/initdb -D /srv/15432/data -U postgres -A trust --no-sync --no-instructions &&
    echo 'host all all all trust' >/srv/15432/data/pg_hba.conf &&
    exec /usr/lib/postgresql/15/bin/postgres -D /srv/15432/data -p 15432 -c listen_addresses='*' -c unix_socket_directories= -c fsync=off"
}
mariadb() {
  mkdir data && chown 65534:65534 data
  nobody /usr/sbin/mariadbd --no-defaults --skip-grant-tables --skip-networking=0 --skip-name-resolve --bind-address='*' --port=13306 \
    --datadir=/srv/13306/data --socket=/srv/13306/data/socket --pid-file=/srv/13306/data/pid --innodb-log-file-size=4M --skip-log-bin
}
ssh() { # root has no password, and nobody gets a shell
  sed -i 's#^root:.*#root::0:0:root:/root:/bin/sh#' /etc/passwd
  ssh-keygen -q -t ed25519 -N '' -f host
  printf '%s\n' 'Port 1022' 'HostKey /srv/1022/host' 'PermitRootLogin yes' 'PermitEmptyPasswords yes' 'UsePAM no' 'PidFile none' 'ForceCommand /bin/cat' >conf
  exec /usr/sbin/sshd -D -e -f /srv/1022/conf
}
mqtt() {
  printf '%s\n' 'listener 11883' 'allow_anonymous true' 'user root' >conf
  exec /usr/sbin/mosquitto -c conf
}
ftp() {
  mkdir -m 755 root empty && echo "$secret" >root/file
  printf '%s\n' listen=NO listen_ipv6=YES background=NO listen_port=1021 anonymous_enable=YES no_anon_password=YES anon_root=/srv/1021/root secure_chroot_dir=/srv/1021/empty \
    ftp_username=daemon seccomp_sandbox=NO pasv_min_port=30000 pasv_max_port=30003 >conf
  exec /usr/sbin/vsftpd /srv/1021/conf
}
web() { # web PORT OPTIONS: a page, and files under /files/
  [ "$2" = "ssl http2" ] && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key.pem -out /srv/cert.pem -days 2 -subj /CN=own.example -addext subjectAltName=DNS:own.example &&
    own="ssl_certificate /srv/cert.pem; ssl_certificate_key key.pem;"
  cat >conf <<END
daemon off; pid $PWD/pid; user root; worker_processes 1;
events { worker_connections 1000; }
http {
  access_log off; client_max_body_size 0;
  proxy_temp_path $PWD/t1; client_body_temp_path $PWD/t2; fastcgi_temp_path $PWD/t3; uwsgi_temp_path $PWD/t4; scgi_temp_path $PWD/t5;
  server {
    listen [::]:$1 $2 ipv6only=off; $own
    location /page { return 200 "$secret"; }
    location /cert.pem { root /srv; }
    location /files/ { root $PWD; dav_methods PUT; create_full_put_path on; }
  }
}
END
  exec nginx -e stderr -c "$PWD/conf"
}

site 15432 postgres
site 13306 mariadb
site 16379 redis-server --port 16379 --bind '*' --protected-mode no --save ''
site 11311 memcached -u nobody -p 11311
site 1025 python3 -m aiosmtpd -n -l 0.0.0.0:1025 -c aiosmtpd.handlers.Mailbox /srv/1025/mail
site 1022 ssh
site 11883 mqtt
site 1021 ftp
site 8080 web 8080
site 8082 web 8082 http2
site 8443 web 8443 "ssl http2"
site 8088 python3 "$here/websocket.py" 8088
site 8090 python3 "$here/grpc_echo.py" 8090
wait
