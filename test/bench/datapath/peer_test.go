package datapath

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// written is the configuration of one side of a peer, and its arguments.
func written(t *testing.T, p peer, client bool) string {
	t.Helper()
	clientFiles, serverFiles, err := certificates(t.TempDir(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	s := site{client: client, files: clientFiles, target: "10.77.0.2:7000", cores: 2, conns: 1000}
	if !client {
		s.files, s.target = serverFiles, "127.0.0.1:7000"
	}
	s.dir = s.files.dir
	g, err := p.command("/bin/x", s)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Join(append(g.args, g.env...), " ")
	files, err := filepath.Glob(filepath.Join(s.dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if b, err := os.ReadFile(file); err == nil && filepath.Ext(file) != ".pem" {
			text += "\n" + string(b)
		}
	}
	return strings.ReplaceAll(text, s.dir, "DIR")
}

// All have the same TLS and verify the same, as far as a text shows it; the rest
// is seen on the wire.
func TestConfigurations(t *testing.T) {
	for name, want := range map[string][2][]string{
		"haproxy": {
			{"verify required", "verifyhost server.bench", "no-ssl-reuse", "ssl-min-ver TLSv1.3", "TLS_AES_128_GCM_SHA256", "bind :15001", "nbthread 2"},
			{"verify required", "ca-file DIR/root.pem", "no-tls-tickets", "ssl-default-bind-curves X25519", "bind :15006 ssl"},
		},
		"nginx": {
			{"proxy_ssl_verify on", "proxy_ssl_name server.bench", "proxy_ssl_session_reuse off", "proxy_ssl_protocols TLSv1.3", "Ciphersuites TLS_AES_128_GCM_SHA256", "Groups X25519"},
			{"ssl_verify_client on", "ssl_session_tickets off", "ssl_protocols TLSv1.3", "Ciphersuites TLS_AES_128_GCM_SHA256", "ssl_ecdh_curve X25519", "listen 15006 ssl"},
		},
		"stunnel": {
			{"client = yes", "verifyChain = yes", "checkHost = server.bench", "sslVersionMin = TLSv1.3", "ciphersuites = TLS_AES_128_GCM_SHA256", "curves = X25519", "sessionResume = no"},
			{"client = no", "verifyChain = yes", "requireCert = yes", "accept = 15006"},
		},
		"ghostunnel": {{"client --listen 127.0.0.1:15001 --verify-uri spiffe://"}, {"server --listen 0.0.0.0:15006 --allow-uri spiffe://"}},
		"envoy": {
			{`"tls_minimum_protocol_version": "TLSv1_3"`, "UpstreamTlsContext", `"exact": "spiffe://cluster.local/ns/shop/sa/server"`, `"X25519"`, "--concurrency 2"},
			{`"require_client_certificate": true`, "DownstreamTlsContext", `"exact": "spiffe://cluster.local/ns/shop/sa/client"`, "tcp_proxy"},
		},
		"envoy-http": {{"tcp_proxy"}, {"http_connection_manager", "envoy.extensions.filters.http.router"}},
		"podseal":    {{"--token-file DIR/token", "POD_NAME=client"}, {"POD_NAME=server"}},
	} {
		for _, p := range peers() {
			if p.name != name {
				continue
			}
			for i, client := range []bool{true, false} {
				text := written(t, p, client)
				for _, part := range want[i] {
					if !strings.Contains(text, part) {
						t.Errorf("%s, client side: %v: no %q in\n%s", name, client, part, text)
					}
				}
			}
		}
	}
}

func TestEnvoyIsJSON(t *testing.T) {
	text := written(t, peer{command: envoy(true)}, false)
	_, text, _ = strings.Cut(text, "\n")
	if !json.Valid([]byte(text)) {
		t.Errorf("not JSON:\n%s", text)
	}
}

// A path that was given for what can't be driven here is not taken in silence.
func TestUnable(t *testing.T) {
	for _, name := range []string{"ztunnel", "linkerd2-proxy"} {
		for _, p := range peers() {
			if p.name != name {
				continue
			}
			if _, err := p.find(Options{Given: map[string]string{name: "/bin/x"}}); err == nil || !strings.Contains(err.Error(), "/bin/x was given, but can't be measured here") {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}
