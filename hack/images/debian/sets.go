package debian

import "maps"

const site = `server {
	listen 80 default_server;
	listen [::]:80 default_server;
	root /usr/share/nginx/html;
	index index.html;
	server_name _;
	location / {
		try_files $uri $uri/ =404;
	}
}
`

const (
	hosts    = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
	nsswitch = "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nnetworks: files\nprotocols: files\nservices: files\n"
)

const broker = "mosquitto" //nolint:misspell // the program is called so

// AllInOne is a web server, HTTP clients, tcpdump and a shell.
func AllInOne() Set {
	s := common()
	s.Roots = append(s.Roots, "netcat-openbsd", "nginx", "tcpdump", "wget")
	// tcpdump refuses to run as root without the user that its package makes.
	s.Passwd = "tcpdump:x:100:100::/nonexistent:/usr/sbin/nologin\n"
	s.Group = "tcpdump:x:100:\n"
	s.Unwanted = append(s.Unwanted, "perl-base", "libpam0g")
	maps.Copy(s.Texts, map[string]string{"etc/nginx/sites-enabled/default": site})
	maps.Copy(s.Links, map[string]string{
		"usr/bin/nc":               "nc.openbsd",
		"var/log/nginx/access.log": "/dev/stdout",
		"var/log/nginx/error.log":  "/dev/stderr",
	})
	maps.Copy(s.Dirs, map[string]int64{"var/lib/nginx": 0o755, "var/log/nginx": 0o755})
	s.Must = []string{"usr/share/nginx/html/index.html"}
	return s
}

// Protocols is a server and a client of each protocol that end-to-end tests let talk
// through the mesh, and Python for those that have none.
func Protocols() Set {
	s := common()
	s.Roots = append(s.Roots,
		"postgresql-15", "postgresql-client-15", "mariadb-server-core", "mariadb-client-core", "redis-server", "redis-tools",
		"memcached", "libmemcached-tools", broker, broker+"-clients", "openssh-server", "openssh-client", "vsftpd", "nginx",
		"openssl", "python3-aiosmtpd", "python3-websockets", "python3-grpcio", "tzdata")
	s.Unwanted = append(s.Unwanted,
		// what PostgreSQL compiles queries with, and what it is managed with
		"libllvm14", "libz3-4", "postgresql-common", "postgresql-client-common", "ssl-cert", "locales", "libc-l10n", "libperl5.36", "perl",
		"perl-base", "perl-modules-5.36", "libjson-perl", "ucf", "logrotate", "procps",
		// pages of documentation
		"fonts-lato", "fonts-font-awesome", "sphinx-rtd-theme-common", "libjs-jquery", "libjs-sphinxdoc", "libjs-underscore",
	)
	s.Passwd = "sshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n"
	maps.Copy(s.Dirs, map[string]int64{"run/sshd": 0o755, "var/lib/nginx": 0o755, "var/log/nginx": 0o755})
	s.Must = []string{
		"usr/lib/postgresql/15/bin/initdb", "usr/lib/postgresql/15/bin/psql", "usr/sbin/mariadbd", "usr/bin/mariadb", "usr/bin/redis-server", "usr/bin/redis-cli",
		"usr/bin/memcached", "usr/bin/memccat", "usr/sbin/" + broker, "usr/bin/" + broker + "_sub", "usr/sbin/sshd", "usr/bin/ssh",
		"usr/sbin/vsftpd", "usr/sbin/nginx", "usr/bin/python3", "usr/bin/curl",
	}
	return s
}

// common is what every image has: a shell and its tools, curl, and the user database.
func common() Set {
	return Set{
		Roots: []string{"base-files", "base-passwd", "coreutils", "curl", "dash", "grep", "libc-bin", "netbase", "sed"},
		Unwanted: []string{
			"adduser", "debconf", "debianutils", "dpkg", "init-system-helpers", "install-info", "iproute2", "libdb5.3", "mawk",
			"passwd", "libdebconfclient0", "libcap2-bin", "libpam-modules", "libpam-modules-bin",
			"libpam-runtime", "libsemanage-common", "libsemanage2", "libsepol2", "login", "tar", "gcc-12-base",
			"sysvinit-utils", "libbpf1", "libelf1", "libmnl0", "libxtables12",
		},
		Texts: map[string]string{"etc/hosts": hosts, "etc/nsswitch.conf": nsswitch},
		Links: map[string]string{
			"bin":        "usr/bin",
			"lib":        "usr/lib",
			"lib64":      "usr/lib64",
			"sbin":       "usr/sbin",
			"usr/bin/sh": "dash",
			// /var/run is a link to /run in base-files or made by its script.
			"var/run": "/run",
		},
		Dirs: map[string]int64{"dev": 0o755, "proc": 0o755, "run": 0o755, "sys": 0o755, "root": 0o700, "tmp": 0o1777, "var/tmp": 0o1777},
	}
}
