package proxy

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"podseal.io/podseal/internal/accesslog"
	"podseal.io/podseal/internal/meshtest"
	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/workload"
)

// lineLog keeps the lines of an access log.
type lineLog struct {
	mu    sync.Mutex
	lines []string
}

func (l *lineLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, string(b))
	return len(b), nil
}

// next waits for the n-th line and reads it.
func (l *lineLog) next(t *testing.T, n int) map[string]any {
	t.Helper()
	var line string
	eventually(t, func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		if len(l.lines) < n {
			return false
		}
		line = l.lines[n-1]
		return true
	})
	var got map[string]any
	if err := json.Unmarshal([]byte(line), &got); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	return got
}

// want compares some of the fields of a line.
func (l *lineLog) want(t *testing.T, n int, want map[string]any) {
	t.Helper()
	got := l.next(t, n)
	for key, value := range want {
		if got[key] != value {
			t.Errorf("line %d: %s is %v, want %v: %v", n, key, got[key], value, got)
		}
	}
}

// logging turns the log on in all of a mesh, and adds some fields to Istio's own.
func (m *testMesh) logging(t *testing.T) {
	t.Helper()
	var fields map[string]string
	if err := json.Unmarshal([]byte(accesslog.Default(true)), &fields); err != nil {
		t.Fatal(err)
	}
	fields["peer"], fields["local"], fields["upstream_peer"], fields["tls"], fields["pod"] = "%DOWNSTREAM_PEER_URI_SAN%", "%DOWNSTREAM_LOCAL_URI_SAN%", "%UPSTREAM_PEER_URI_SAN%", "%DOWNSTREAM_TLS_VERSION%", "%HOSTNAME%"
	fields["secret"], fields["got"] = "%REQ(AUTHORIZATION)%", "%RESP(X-GOT)%"
	b, err := json.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	m.world.Mesh.AccessLog = workload.AccessLog{Format: string(b), JSON: true}
}

// TestAccessLogHTTP: contract 2.31, 6.40, 7.10 and 7.12.
func TestAccessLogHTTP(t *testing.T) {
	var inside, outside lineLog
	p := newPairWith(t, policy.HTTP, func(c *net.TCPConn) {
		buf := make([]byte, 4096)
		for {
			if _, err := c.Read(buf); err != nil {
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 201 Created\r\nX-Got: it\r\nContent-Length: 2\r\n\r\nhi")
		}
	}, func(c *Config) { c.AccessLog = &inside }, func(c *Config) { c.AccessLog = &outside })
	p.world.Access = []*policy.AuthorizationPolicy{{
		Namespace: "shop", Name: "no-admin", Scope: policy.Namespace, Effect: policy.Deny,
		Rules: []policy.Rule{{To: [][]policy.Match{{{On: policy.RequestPath, Values: []string{"/admin"}}}}}},
	}}
	p.logging(t)
	p.tell()
	client := &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return p.dial(), nil }}}
	for _, path := range []string{"/a/../b?token=x&c=d", "/admin"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://web"+path, strings.NewReader("body"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer secret-token")
		req.Header.Set("X-Request-Id", "r-1")
		req.Header.Set("User-Agent", "test")
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, res.Body); err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
	}
	client.CloseIdleConnections()
	inside.want(t, 1, map[string]any{
		"method": "POST", "path": "/b?token=***&c=d", "protocol": "HTTP/1.1", "response_code": 201.0, "response_flags": "-", "response_code_details": "via_upstream",
		"bytes_received": 4.0, "bytes_sent": 2.0, "user_agent": "test", "request_id": "r-1", "authority": "web", "upstream_cluster": "inbound|" + portOf(p.app) + "||",
		"upstream_host": p.app.String(), "downstream_local_address": p.app.String(), "requested_server_name": "outbound_.80_._.web.shop.svc.cluster.local", "route_name": nil,
		"peer": "spiffe://cluster.local/ns/shop/sa/client", "local": "spiffe://cluster.local/ns/shop/sa/web", "tls": "TLSv1.3", "pod": "web", "secret": nil, "got": "it",
		"upstream_service_time": inside.next(t, 1)["upstream_service_time"],
	})
	if got := inside.next(t, 1); got["upstream_service_time"] == nil || !strings.HasPrefix(got["upstream_local_address"].(string), "127.0.0.6:") {
		t.Errorf("%v", got)
	}
	inside.want(t, 2, map[string]any{"path": "/admin", "response_code": 403.0, "response_code_details": "rbac_access_denied_matched_policy[ns[shop]-policy[no-admin]-rule[0]]", "bytes_sent": 19.0})
	outside.want(t, 1, map[string]any{
		"method": nil, "protocol": nil, "response_code": 0.0, "upstream_cluster": "outbound|80||web.shop.svc.cluster.local", "upstream_host": p.app.String(),
		"upstream_peer": "spiffe://cluster.local/ns/shop/sa/web", "pod": "client", "downstream_local_address": p.service.String(),
	})
	record(t, p.inside, anyRecord)
	if len(inside.lines) != 2 {
		t.Errorf("%d lines: the connection has none beside its requests'", len(inside.lines))
	}
	for _, line := range append(inside.lines, outside.lines...) {
		if strings.Contains(line, "secret-token") || strings.Contains(line, "body") || strings.Contains(line, "hi\"") {
			t.Errorf("what nobody may read: %s", line)
		}
	}
}

// TestAccessLogTCP: contract 7.14, and connections that are refused.
func TestAccessLogTCP(t *testing.T) {
	var inside, outside lineLog
	p := newPairWith(t, policy.TCP, meshtest.Echo, func(c *Config) { c.AccessLog = &inside }, func(c *Config) { c.AccessLog = &outside })
	p.logging(t)
	p.mode(p.server, policy.Strict)
	c := p.dial()
	exchange(t, c, "hello")
	c.Close()
	inside.want(t, 1, map[string]any{"bytes_received": 5.0, "bytes_sent": 5.0, "response_code": 0.0, "response_flags": "-", "peer": "spiffe://cluster.local/ns/shop/sa/client"})
	outside.want(t, 1, map[string]any{"bytes_received": 5.0, "bytes_sent": 5.0, "connection_termination_details": nil})

	plain := p.connect(p.outsider(), p.app)
	if _, err := io.WriteString(plain, "hello"); err != nil {
		t.Fatal(err)
	}
	_ = ends(t, plain)
	inside.want(t, 2, map[string]any{"response_flags": "NR", "connection_termination_details": "plaintext_refused", "peer": nil, "downstream_remote_address": plain.LocalAddr().String()})

	p.world.Mesh.AccessLog = workload.AccessLog{}
	p.tell()
	c = p.dial()
	exchange(t, c, "hello")
	c.Close()
	record(t, p.inside, func(r Record) bool { return r.BytesSent == 5 && r.Start.After(p.inside.records.last()[0].Start) })
	if len(inside.lines) != 2 {
		t.Errorf("%d lines, the log is off", len(inside.lines))
	}
}

func portOf(a netip.AddrPort) string { return string(bytes.Split([]byte(a.String()), []byte(":"))[1]) }

// TestAccessLogHTTP2: the same over HTTP/2, contract 6.40, 7.12.
func TestAccessLogHTTP2(t *testing.T) {
	var inside lineLog
	p := newPairWith(t, policy.Auto, http2App(t, echoHead), func(c *Config) { c.AccessLog = &inside }, func(*Config) {})
	p.logging(t)
	p.enforce(deny("admin", on(policy.RequestPath, "/admin")))
	c := p.http2Client(p.client.Addresses[0], p.service)
	send2(t, c, http.MethodGet, "/x/../a?password=x", "Authorization", "Bearer secret-token", "X-Request-Id", "r-2")
	inside.want(t, 1, map[string]any{
		"method": "GET", "path": "/a?password=***", "protocol": "HTTP/2", "response_code": 200.0, "response_code_details": "via_upstream", "response_flags": "-", "authority": "web",
		"request_id": "r-2", "bytes_received": 0.0, "peer": "spiffe://cluster.local/ns/shop/sa/client", "secret": nil, "upstream_host": p.app.String(),
	})
	if got := inside.next(t, 1); got["upstream_service_time"] == nil || got["bytes_sent"] == 0.0 {
		t.Errorf("%v", got)
	}
	send2(t, c, http.MethodGet, "/admin")
	inside.want(t, 2, map[string]any{"path": "/admin", "response_code": 403.0, "response_code_details": "rbac_access_denied_matched_policy[ns[shop]-policy[admin]-rule[0]]", "bytes_sent": 19.0})
}

// TestBlackHole: what RegistryOnly refuses has a name in metrics and in the log.
// Contract 7.6.
func TestBlackHole(t *testing.T) {
	var outside lineLog
	p := newPairWith(t, policy.TCP, meshtest.Echo, func(*Config) {}, func(c *Config) { c.AccessLog = &outside })
	p.world.Mesh.Outbound = workload.RegistryOnly
	p.logging(t)
	p.tell()
	_ = ends(t, p.connect(p.client.Addresses[0], netip.MustParseAddrPort("192.0.2.1:80")))
	outside.want(t, 1, map[string]any{"upstream_cluster": "BlackHoleCluster", "response_flags": "NR", "connection_termination_details": "registry_only", "upstream_host": nil})
	_, metrics := get(t, p.clientSide, 2, "GET", "/stats/prometheus")
	for line := range strings.Lines(metrics) {
		if strings.HasPrefix(line, "istio_tcp_connections_opened_total") && strings.Contains(line, `destination_service_name="BlackHoleCluster"`) && strings.Contains(line, `source_workload="client"`) {
			return
		}
	}
	t.Error("no BlackHoleCluster in the metrics")
}
