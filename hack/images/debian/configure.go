package debian

import (
	"archive/tar"
	"fmt"
	"slices"

	"podseal.io/hack/images/archive"
)

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

// configure adds what the packages' scripts would have made.
func configure(files map[string]archive.Entry) error {
	for from, to := range map[string]struct{ path, more string }{
		// tcpdump refuses to run as root without the user that its package makes.
		"usr/share/base-passwd/passwd.master": {"etc/passwd", "tcpdump:x:100:100::/nonexistent:/usr/sbin/nologin\n"},
		"usr/share/base-passwd/group.master":  {"etc/group", "tcpdump:x:100:\n"},
	} {
		e, ok := files[from]
		if !ok {
			return fmt.Errorf("package base-passwd lacks %s", from)
		}
		e.Path, e.Content = to.path, append(slices.Clone(e.Content), to.more...)
		files[to.path] = e
	}
	if _, ok := files["usr/share/nginx/html/index.html"]; !ok {
		return fmt.Errorf("package nginx-common lacks its index page")
	}
	for name, content := range map[string]string{
		"etc/hosts":                       hosts,
		"etc/nsswitch.conf":               nsswitch,
		"etc/nginx/sites-enabled/default": site,
	} {
		files[name] = archive.Entry{Path: name, Type: tar.TypeReg, Mode: 0o644, Content: []byte(content)}
	}
	for name, target := range map[string]string{
		"bin":                      "usr/bin",
		"lib":                      "usr/lib",
		"lib64":                    "usr/lib64",
		"sbin":                     "usr/sbin",
		"usr/bin/nc":               "nc.openbsd",
		"usr/bin/sh":               "dash",
		"var/log/nginx/access.log": "/dev/stdout",
		"var/log/nginx/error.log":  "/dev/stderr",
	} {
		files[name] = archive.Entry{Path: name, Type: tar.TypeSymlink, Mode: 0o777, Link: target}
	}
	for name, mode := range map[string]int64{
		"dev": 0o755, "proc": 0o755, "run": 0o755, "sys": 0o755, "root": 0o700, "tmp": 0o1777,
		"var/lib/nginx": 0o755, "var/log/nginx": 0o755, "var/tmp": 0o1777,
	} {
		files[name] = archive.Entry{Path: name, Type: tar.TypeDir, Mode: mode}
	}
	// /var/run is a link to /run in base-files or made by its script.
	files["var/run"] = archive.Entry{Path: "var/run", Type: tar.TypeSymlink, Mode: 0o777, Link: "/run"}
	return nil
}
