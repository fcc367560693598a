package datapath

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// Where things listen: the application, the port that Podseal is told to be
// HTTP, and the two ports that capture redirects to.
const (
	appPort      = 7000
	httpPort     = 7001
	outboundPort = 15001
	inboundPort  = 15006
)

const (
	suite = "TLS_AES_128_GCM_SHA256"
	group = "X25519"
)

// site is what a proxy's configuration is written for.
type site struct {
	client bool   // the proxy of the client's pod
	dir    string // for its files
	files
	target string // where its connections go
	cores  int
	conns  int // that it must be able to have
}

// peer is a proxy that is measured. Its two processes differ in their site only.
type peer struct {
	name    string // as chosen by -peers
	title   string
	find    func(o Options) (string, error) // its program; an error says why it can't take part
	command func(program string, s site) (program, error)
	podseal bool // its proxies need a control plane
	mlkem   bool // it keeps its own choice of key exchange
	wide    bool // it has the lo that Podseal's capture makes, and not the kernel's
	port    int  // of the application that the client calls; 0 is appPort
	chain   string
	only    string // the one group of scenarios that it takes part in; "" is all
	silent  bool   // nobody misses it
	aside   string // why it is not among those that ratios are taken to; "" if it is
}

// inPath finds a program of Debian.
func inPath(name, pkg string) func(Options) (string, error) {
	return func(Options) (string, error) {
		for _, dir := range []string{"", "/usr/sbin/", "/usr/local/sbin/"} {
			if path, err := exec.LookPath(dir + name); err == nil {
				return filepath.Abs(path)
			}
		}
		return "", fmt.Errorf("not installed: apt-get install %s", pkg)
	}
}

// given finds a program whose path was given.
func given(name string) func(Options) (string, error) {
	return func(o Options) (string, error) {
		if path := o.Given[name]; path != "" {
			return exec.LookPath(path)
		}
		return "", fmt.Errorf("takes part when its path is given: %s=…", strings.ToUpper(strings.ReplaceAll(name, "-", "_")))
	}
}

// unable is a peer that this bench has no way to run.
func unable(name, why string) func(Options) (string, error) {
	return func(o Options) (string, error) {
		if o.Given[name] == "" {
			return "", fmt.Errorf("not measured: %s", why)
		}
		return "", fmt.Errorf("%s was given, but can't be measured here: %s", o.Given[name], why)
	}
}

// asideWide is said of peers that are given what Podseal does for its own pods.
const asideWide = "larger segments on lo are Podseal's doing"

// peers are all that could be measured, in the order of the tables.
func peers() []peer {
	return []peer{
		{name: "direct", title: "direct, no proxies", aside: "it has no proxies"},
		{name: "haproxy", title: "HAProxy", find: inPath("haproxy", "haproxy"), command: haproxy(false)},
		{name: "haproxy-resume", title: "HAProxy, sessions resumed", find: inPath("haproxy", "haproxy"), command: haproxy(true), only: "connect"},
		{name: "nginx", title: "nginx stream", find: inPath("nginx", "nginx-light libnginx-mod-stream"), command: nginx},
		{name: "stunnel", title: "stunnel", find: inPath("stunnel4", "stunnel4"), command: stunnel},
		{name: "ghostunnel", title: "ghostunnel", find: ghostunnelProgram, command: ghostunnel},
		{name: "plaingo", title: "plain Go (io.Copy over crypto/tls)", find: built("plaingo"), command: plainGo},
		{name: "envoy", title: "Envoy", find: given("envoy"), command: envoy(false)},
		{name: "envoy-http", title: "Envoy, HTTP inbound", find: given("envoy"), command: envoy(true), only: "http", aside: "it inspects HTTP"},
		{name: "ztunnel", title: "ztunnel", find: unable("ztunnel", "it needs a node's namespaces, or a local configuration that nobody has tried here")},
		{name: "linkerd2-proxy", title: "linkerd2-proxy", find: unable("linkerd2-proxy", "it takes identity, destinations and policy from Linkerd's own control plane only")},
		{name: "haproxy-wide", title: "HAProxy, lo as in Podseal's pods", find: inPath("haproxy", "haproxy"), command: haproxy(false), wide: true, only: groupBulk, aside: asideWide},
		{name: "nginx-wide", title: "nginx stream, lo as in Podseal's pods", find: inPath("nginx", "nginx-light libnginx-mod-stream"), command: nginx, wide: true, only: groupBulk, aside: asideWide},
		{name: "podseal", title: "**Podseal**", find: podsealProgram, command: podseal, podseal: true},
		{name: "podseal-http", title: "**Podseal**, HTTP inspected", find: podsealProgram, command: podseal, podseal: true, port: httpPort, chain: "podseal", only: "http"},
		{name: "podseal-default", title: "**Podseal**, X25519MLKEM768", find: podsealProgram, command: podseal, podseal: true, mlkem: true, aside: "another key exchange"},
		{name: "podseal-before", title: "Podseal, another build", find: given("podseal-before"), command: podseal, podseal: true, silent: true, aside: "another build"},
		{name: "podseal-http-before", title: "Podseal, another build, HTTP inspected", find: given("podseal-before"), command: podseal, podseal: true, port: httpPort, chain: "podseal-before", only: "http", silent: true, aside: "another build"},
	}
}

// key is the name of the chain that the peer runs in.
func (p peer) key() string {
	if p.chain != "" {
		return p.chain
	}
	return p.name
}

// takesPart reports whether a peer is measured in a group of scenarios.
func (p peer) takesPart(group string) bool { return p.only == "" || p.only == group }

// write puts a configuration into a site's folder.
func (s site) write(name, text string) (string, error) {
	file := filepath.Join(s.dir, name)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return "", fmt.Errorf("write the configuration: %w", err)
	}
	return file, nil
}

func (s site) listen() string {
	if s.client {
		return ":" + strconv.Itoa(outboundPort)
	}
	return ":" + strconv.Itoa(inboundPort)
}

// haproxy: one thread per core, buffers of several records, which gain a tenth in
// bulk, and timeouts out of the way. Without resumption each connection's
// certificates are verified, as with all the others; with a server name in the
// handshake it resumes none.
func haproxy(resume bool) func(string, site) (program, error) {
	return func(path string, s site) (program, error) {
		text := fmt.Sprintf(`global
  nbthread %d
  maxconn %d
  tune.bufsize 65536
  tune.ssl.cachesize %d
  ssl-default-bind-options ssl-min-ver TLSv1.3 %s
  ssl-default-bind-ciphersuites %s
  ssl-default-bind-curves %s
  ssl-default-server-ciphersuites %s
  ssl-default-server-options ssl-min-ver TLSv1.3 %s
defaults
  mode tcp
  timeout connect 10s
  timeout client 1h
  timeout server 1h
`, s.cores, s.conns, map[bool]int{true: 20000, false: 0}[resume], unless(resume, " no-tls-tickets"), suite, group, suite, unless(resume, " no-tls-tickets"))
		if s.client {
			text += fmt.Sprintf(`frontend outbound
  bind %s
  default_backend mesh
backend mesh
  server s %s ssl crt %s ca-file %s verify required verifyhost %s %s
`, s.listen(), s.target, s.both, s.root, serverName, unless(resume, "sni str("+serverName+") no-ssl-reuse"))
		} else {
			text += fmt.Sprintf(`frontend inbound
  bind %s ssl crt %s ca-file %s verify required
  default_backend app
backend app
  server s %s
`, s.listen(), s.both, s.root, s.target)
		}
		file, err := s.write("haproxy.cfg", text)
		return program{name: path, args: []string{"-db", "-f", file}, user: proxyUser}, err
	}
}

// unless is an option that is there when sessions are not resumed.
func unless(resume bool, option string) string {
	if resume {
		return ""
	}
	return option
}

// nginx: one worker per core, in the stream module.
func nginx(path string, s site) (program, error) {
	text := fmt.Sprintf(`load_module /usr/lib/nginx/modules/ngx_stream_module.so;
daemon off;
pid %[1]s/nginx.pid;
error_log stderr error;
worker_processes %[2]d;
events { worker_connections %[6]d; }
stream {
  tcp_nodelay on;
  proxy_timeout 1h;
  proxy_buffer_size 64k;
  upstream target { server %[3]s; }
  server {
    listen %[4]s%[5]s;
    proxy_pass target;
`, s.dir, s.cores, s.target, strings.TrimPrefix(s.listen(), ":"), map[bool]string{false: " ssl"}[s.client], 2*s.conns+100)
	side := "ssl"
	if s.client {
		side = "proxy_ssl"
		text += fmt.Sprintf("    proxy_ssl on;\n    proxy_ssl_verify on;\n    proxy_ssl_name %s;\n    proxy_ssl_server_name on;\n    proxy_ssl_session_reuse off;\n", serverName)
		text += fmt.Sprintf("    proxy_ssl_trusted_certificate %s;\n    proxy_ssl_conf_command Groups %s;\n", s.root, group)
	} else {
		text += fmt.Sprintf("    ssl_verify_client on;\n    ssl_client_certificate %s;\n    ssl_session_cache off;\n    ssl_session_tickets off;\n    ssl_ecdh_curve %s;\n", s.root, group)
	}
	text += fmt.Sprintf("    %[1]s_certificate %[2]s;\n    %[1]s_certificate_key %[3]s;\n    %[1]s_protocols TLSv1.3;\n    %[1]s_conf_command Ciphersuites %[4]s;\n  }\n}\n", side, s.cert, s.key, suite)
	file, err := s.write("nginx.conf", text)
	return program{name: path, args: []string{"-p", s.dir, "-e", "stderr", "-c", file}, user: proxyUser}, err
}

// stunnel has a thread per connection.
func stunnel(path string, s site) (program, error) {
	text := fmt.Sprintf(`foreground = quiet
debug = err
pid =
socket = l:TCP_NODELAY=1
socket = r:TCP_NODELAY=1
[bench]
client = %s
accept = %s
connect = %s
cert = %s
key = %s
CAfile = %s
verifyChain = yes
sslVersionMin = TLSv1.3
ciphersuites = %s
curves = %s
sessionResume = no
options = NO_TICKET
TIMEOUTidle = 43200
`, map[bool]string{true: "yes", false: "no"}[s.client], strings.TrimPrefix(s.listen(), ":"), s.target, s.cert, s.key, s.root, suite, group)
	if s.client {
		text += "checkHost = " + serverName + "\nsni = " + serverName + "\n"
	} else {
		text += "requireCert = yes\n"
	}
	file, err := s.write("stunnel.conf", text)
	return program{name: path, args: []string{file}, user: proxyUser}, err
}

// built finds a program that `make bench` has built.
func built(name string) func(Options) (string, error) {
	return func(o Options) (string, error) {
		path, err := exec.LookPath(filepath.Join(o.Bin, "bench", name))
		if err != nil {
			return "", fmt.Errorf("not built: %w", err)
		}
		return path, nil
	}
}

// ghostunnelProgram is one that was given, or the one that `make bench` built.
func ghostunnelProgram(o Options) (string, error) {
	if path := o.Given["ghostunnel"]; path != "" {
		return exec.LookPath(path)
	}
	path, err := built("ghostunnel")(o)
	if err != nil {
		return "", errors.New("its Go module could not be had from the module proxy; takes part when its path is given: GHOSTUNNEL=…")
	}
	return path, nil
}

// ghostunnel is a Go program; with X25519MLKEM768 off its key exchange is the others'.
func ghostunnel(path string, s site) (program, error) {
	args := []string{"server", "--listen", "0.0.0.0" + s.listen(), "--allow-uri", clientURI}
	if s.client {
		args = []string{"client", "--listen", "127.0.0.1" + s.listen(), "--verify-uri", serverURI, "--override-server-name", serverName}
	}
	args = append(args, "--target", s.target, "--cert", s.cert, "--key", s.key, "--cacert", s.root, "--quiet", "all")
	return program{name: path, args: args, env: []string{"GODEBUG=tlsmlkem=0"}, user: proxyUser}, nil
}

// plainGo is what a Go proxy costs that does nothing clever (test/bench/plaingo).
func plainGo(path string, s site) (program, error) {
	side := "inbound"
	if s.client {
		side = "outbound"
	}
	return program{name: path, args: []string{side, s.listen(), s.target, s.cert, s.key, s.root}, env: []string{"GODEBUG=tlsmlkem=0"}, user: proxyUser}, nil
}

// PeerNames are all that could be measured.
func PeerNames() []string {
	var all []string
	for _, p := range peers() {
		all = append(all, p.name)
	}
	return all
}
