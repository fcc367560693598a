#!/bin/sh
# Talks to the servers of serve.sh on HOST, all at once, with the clients that people
# use: talk.sh HOST. Prints a line for each: its name, ok or FAIL, milliseconds, and
# what the client said if it is not what the server should have answered.
export LC_ALL=C
here=$(dirname "$0") host=$1
secret=what-nobody-else-may-read
work=$(mktemp -d) && cd "$work" || exit 1

talk() { # talk NAME COMMAND...: a conversation, in the background
  (
    name=$1 && shift && mkdir "$name" && cd "$name" || exit 1
    start=$(date +%s%N)
    "$@" >out 2>&1 && grep -q "$secret" out && state=ok || state=FAIL
    took=$((($(date +%s%N) - start) / 1000000))
    printf '%s\t%s\t%d\t' "$name" "$state" "$took" >line
    [ $state = ok ] || head -c 300 out | tr '\n\t' '  ' >>line
    echo >>line
  ) &
}

postgres() { timeout 60 /usr/lib/postgresql/15/bin/psql -X -h "$host" -p 15432 -U postgres -Atc "select '$secret'"; }
mariadb() { timeout 60 /usr/bin/mariadb --no-defaults -h "$host" -P 13306 -u root -Ne "select '$secret'"; }
redis() { timeout 60 redis-cli -h "$host" -p 16379 set "$work" $secret && timeout 60 redis-cli -h "$host" -p 16379 get "$work"; }
memcached() { printf $secret >file && timeout 60 memccp --servers="$host:11311" file && timeout 60 memccat --servers="$host:11311" file; }
smtp() { # the letter is looked for in the server's mailbox afterwards
  printf 'Subject: hello\r\n\r\n%s\r\n' $secret | curl -sSm 60 "smtp://$host:1025" --mail-from a@a.example --mail-rcpt b@b.example --upload-file - && echo $secret
}
ssh() {
  echo $secret | timeout 60 /usr/bin/ssh -F none -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o BatchMode=yes -p 1022 "root@$host" cat
}
mqtt() { # under a topic of its own, as clients of several runs are there at once
  timeout 60 mosquitto_pub -h "$host" -p 11883 -r -q 1 -t "$work" -m $secret && timeout 60 mosquitto_sub -h "$host" -p 11883 -C 1 -t "$work"
}
ftp() { curl -sSm 60 --ftp-pasv "ftp://$host:1021/file"; }
http1() { curl -sSfm 60 "http://$host:8080/page"; }
http2() { curl -sSfm 60 --http2-prior-knowledge "http://$host:8082/page"; }
own() {
  curl -sSfm 60 -o cert.pem "http://$host:8080/cert.pem" && curl -sSfm 60 --cacert cert.pem --connect-to "own.example:443:$host:8443" https://own.example/page
}
websocket() { timeout 60 python3 "$here/websocket.py" "ws://$host:8088" $secret; }
grpc() { timeout 60 python3 "$here/grpc_echo.py" "$host:8090" $secret; }
large() { # 4 MB there and back, over HTTP/1.1 and HTTP/2
  head -c 4000000 /dev/urandom >file
  for how in "--http1.1 http://$host:8080" "--http2-prior-knowledge http://$host:8082"; do
    curl -sSfm 60 -T file $how/files/$(basename "$work") && curl -sSfm 60 -o back $how/files/$(basename "$work") && [ "$(sha256sum <file)" = "$(sha256sum <back)" ] || return 1
  done
  echo $secret
}

talk PostgreSQL postgres
talk MariaDB mariadb
talk Redis redis
talk memcached memcached
talk SMTP smtp
talk SSH ssh
talk MQTT mqtt
talk FTP ftp
talk HTTP-1.1 http1
talk HTTP-2 http2
talk TLS-of-its-own own
talk WebSocket websocket
talk gRPC grpc
talk 4-MB large
wait
cat ./*/line
rm -rf "$work"
