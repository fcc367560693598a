package proxy

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/meshtest"
	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/workload"
)

// Garbage on the captured ports: connections that were not redirected, or whose
// destination is the proxy itself, end without a byte (contract 2.32, 3.3).
func TestConnectionsToTheProxyItself(t *testing.T) {
	p := newPair(t, policy.TCP, meshtest.Echo)
	for _, port := range []netip.AddrPort{addrPort(p.inside.sockets.inbound[0].Addr()), addrPort(p.inside.sockets.outbound[0].Addr())} {
		for _, to := range []netip.AddrPort{{}, port, netip.AddrPortFrom(p.server.Addresses[0], port.Port())} {
			c, err := p.net.Redirect(t.Context(), p.outsider(), port, to)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.WriteString(c, "\x16\x03\x01garbage")
			if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
				t.Errorf("%s to %s: got an answer", port, to)
			}
			c.Close()
		}
	}
	eventually(t, func() bool { return len(p.inside.records.last()) == 6 })
	for _, r := range p.inside.records.last() {
		if r.Reason != policy.NoDestination {
			t.Errorf("record %+v", r)
		}
	}
}

// A ClientHello that is cut at any byte ends cleanly: nothing hangs, nothing
// leaks, nothing reaches the application, and others are not disturbed.
func TestClientHelloCutAtEveryByte(t *testing.T) {
	reached := make(chan struct{}, 4096)
	p := newPair(t, policy.TCP, func(c *net.TCPConn) {
		if b, _ := io.ReadAll(c); len(b) > 0 {
			reached <- struct{}{}
		}
	})
	p.mode(p.server, policy.Strict)
	hello := captureHello(t, p.meshTLS)
	for cut := 1; cut < len(hello); cut++ {
		c := p.connect(p.outsider(), p.app)
		_, _ = c.Write(hello[:cut])
		_ = c.CloseWrite()
		ends(t, c)
		c.Close()
	}
	eventually(t, func() bool { return len(p.inside.conns.all()) == 0 })
	for _, r := range p.inside.records.last() {
		if r.Reason != policy.HandshakeFailed || r.Error != errCutHello.Error() {
			t.Fatalf("record %+v", r)
		}
	}
	if len(reached) > 0 {
		t.Error("bytes reached the application")
	}
	p.mode(p.server, policy.Permissive)
	for cut := 1; cut < len(hello); cut++ {
		c := p.connect(p.outsider(), p.app)
		_, _ = c.Write(hello[:cut])
		_ = c.CloseWrite()
		ends(t, c)
		c.Close()
	}
}

func captureHello(t *testing.T, client func(net.Conn, identity.ID, ...string) *tls.Conn) []byte {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = client(a, identity.ID{}, "istio").Handshake()
	}()
	buf := make([]byte, 4096)
	n, err := b.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	b.Close()
	<-done
	return buf[:n]
}

// More connections than allowed are refused, and those that are open are not
// disturbed.
// Contract 3.74.
func TestConnectionsAreBounded(t *testing.T) {
	m := newTestMesh(t)
	web := m.pod("web")
	app := meshtest.Serve(t, web.Addresses[0], meshtest.Echo)
	p := m.start(web, func(c *Config) { c.MaxConnections = 2 })
	from := m.outsider()
	first, second := m.connect(from, app), m.connect(from, app)
	exchange(t, first, "1")
	exchange(t, second, "2")
	third, err := m.net.Connect(t.Context(), from, app)
	if err == nil {
		ends(t, third)
		third.Close()
	}
	record(t, p, withReason(policy.Overloaded))
	exchange(t, first, "still")
	elsewhere := meshtest.Serve(t, from, meshtest.Echo)
	exchange(t, m.connect(web.Addresses[0], elsewhere), "who comes in keeps nobody from going out")
	first.Close()
	eventually(t, func() bool { return len(p.conns.all()) == 2 })
	exchange(t, m.connect(from, app), "room again")
}

// Contract 5.46: what is open finishes, new connections are refused, and then it ends.
func TestDrainLetsConnectionsFinish(t *testing.T) {
	m := newTestMesh(t)
	web := m.pod("web")
	app := meshtest.Serve(t, web.Addresses[0], meshtest.Echo)
	p, stop := m.startStoppable(web, func(c *Config) { c.Drain = time.Minute })
	from := m.outsider()
	c := m.connect(from, app)
	exchange(t, c, "before")
	ended := make(chan struct{})
	go func() { stop(); close(ended) }()
	eventually(t, p.draining.Load)
	exchange(t, c, "while draining")
	eventually(t, func() bool {
		refused, err := m.net.Connect(t.Context(), from, app)
		if err == nil {
			refused.Close()
		}
		return errors.Is(err, syscall.ECONNREFUSED)
	})
	if code, body := get(t, p, 0, "GET", "/healthz/ready"); code != http.StatusServiceUnavailable || !strings.Contains(body, "terminating") {
		t.Errorf("ready while terminating: %d %s", code, body)
	}
	c.Close()
	<-ended
	if r := record(t, p, anyRecord); r.Reason != policy.None {
		t.Errorf("record %+v", r)
	}
}

// Contract 5.46: for a while after the pod began to end, clients that have not
// heard of it are served.
func TestDrainLingers(t *testing.T) {
	m := newTestMesh(t)
	web := m.pod("web")
	app := meshtest.Serve(t, web.Addresses[0], meshtest.Echo)
	p, stop := m.startStoppable(web, func(c *Config) { c.Drain, c.Linger = time.Hour, time.Hour })
	ended := make(chan struct{})
	go func() { stop(); close(ended) }()
	eventually(t, p.draining.Load)
	c := m.connect(m.outsider(), app)
	exchange(t, c, "new while draining")
	c.Close()
	eventually(t, func() bool { return len(p.conns.all()) == 0 })
	select {
	case <-ended:
		t.Fatal("ended while clients may still come")
	default:
	}
	exchange(t, m.connect(m.outsider(), app), "after there was none")
	if code, _ := get(t, p, 1, "POST", "/quitquitquit"); code != http.StatusOK {
		t.Errorf("quit: %d", code)
	}
	<-ended
}

func TestDrainTimeEnds(t *testing.T) {
	m := newTestMesh(t)
	web := m.pod("web")
	app := meshtest.Serve(t, web.Addresses[0], meshtest.Echo)
	p, stop := m.startStoppable(web, func(c *Config) { c.Drain = 50 * time.Millisecond })
	c := m.connect(m.outsider(), app)
	exchange(t, c, "before")
	stop()
	if err := ends(t, c); err == nil {
		t.Error("the connection ended in an orderly way, want a reset")
	}
	record(t, p, withReason(policy.Draining))
}

// Contract 5.47, 5.48: POST from the pod only; after /drain everything goes on,
// and ends at once when told to.
func TestDrainAndQuitRequests(t *testing.T) {
	p := newPair(t, policy.TCP, meshtest.Echo)
	for _, path := range []string{"/drain", "/quitquitquit"} {
		if code, _ := get(t, p.clientSide, 1, "GET", path); code != http.StatusMethodNotAllowed {
			t.Errorf("GET %s: %d", path, code)
		}
		for _, from := range []string{"10.0.0.9:1234", "127.0.0.6:1234", "[::6]:1234"} { // the last two are how others come in by this proxy
			w := httptest.NewRecorder()
			r := httptest.NewRequest(http.MethodPost, path, nil)
			r.RemoteAddr = from
			p.clientSide.metricsHandler().ServeHTTP(w, r)
			if w.Code != http.StatusForbidden {
				t.Errorf("POST %s from %s: %d", path, from, w.Code)
			}
		}
	}
	if code, _ := get(t, p.clientSide, 1, "POST", "/drain"); code != http.StatusOK {
		t.Errorf("drain: %d", code)
	}
	exchange(t, p.dial(), "outbound goes on after drain")
	if code, _ := get(t, p.clientSide, 0, "GET", "/healthz/ready"); code != http.StatusServiceUnavailable {
		t.Errorf("readiness while draining: %d", code)
	}
	c := p.dial()
	exchange(t, c, "x")
	if code, body := get(t, p.clientSide, 1, "POST", "/quitquitquit"); code != http.StatusOK || body != "ok\n" {
		t.Errorf("quit: %d %q", code, body)
	}
	ends(t, c)
}

// Contract 5.44: ready once world and certificate are there; then for good.
func TestReadiness(t *testing.T) {
	m := newTestMesh(t)
	pod := m.pod("web")
	p, err := newProxy(Config{
		Log: slog.New(slog.DiscardHandler), Namespace: "shop", Pod: "web", OriginalDst: m.net.OriginalDst, Random: func(int) int { return 0 },
	})
	if err != nil {
		t.Fatal(err)
	}
	ask := func() (int, string) {
		w := httptest.NewRecorder()
		p.metricsHandler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/healthz/ready", nil))
		why := w.Body.String()
		if code, body := askReady(t, p.notReady, "GET /healthz/ready HTTP/1.1\r\nHost: x\r\n\r\n"); code != w.Code || body != why {
			t.Errorf("the kubelet's port says %d %q, the agent's %d %q", code, body, w.Code, why)
		}
		return w.Code, why
	}
	if code, body := ask(); code != 503 || !strings.Contains(body, "control plane") || !strings.Contains(body, "certificate") {
		t.Errorf("%d %s", code, body)
	}
	m.certify(p, pod.Identity)
	if code, body := ask(); code != 503 || strings.Contains(body, "certificate") {
		t.Errorf("%d %s", code, body)
	}
	m.world.Tell(t, p.worlds.handle)
	if code, _ := ask(); code != 200 {
		t.Errorf("%d", code)
	}
	// the control plane says that the pod is gone: it keeps its policy (design D16)
	p.worlds.handle("type.googleapis.com/podseal.mesh.v1.Workload", nil, []string{"shop/web"})
	if _, ok := p.worlds.own(); !ok {
		t.Error("the own workload was forgotten")
	}
	if code, _ := ask(); code != 200 {
		t.Errorf("%d after the control plane forgot the pod", code)
	}
}

// A port that is taken is an error that names it and says what to do.
func TestTakenPort(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	m := newTestMesh(t)
	cfg := Config{Log: slog.New(slog.DiscardHandler), Namespace: "a", Pod: "b", OriginalDst: m.net.OriginalDst, Random: func(int) int { return 0 }}
	cfg.Listen.Outbound = "127.0.0.1:0"
	cfg.Listen.Inbound = l.Addr().String()
	err = Run(t.Context(), cfg)
	_, port, _ := net.SplitHostPort(l.Addr().String())
	if err == nil || !strings.Contains(err.Error(), "port "+port+" is taken") {
		t.Errorf("got %v", err)
	}
	if err := Run(t.Context(), Config{}); err == nil || !strings.Contains(err.Error(), "POD_NAME") || !strings.Contains(err.Error(), "logger") {
		t.Errorf("an empty config: %v", err)
	}
}

// Contract 5.37-5.40: the application's own probes, from 127.0.0.6, under STRICT.
func TestProbes(t *testing.T) {
	m := newTestMesh(t)
	pod := m.pod("web")
	pod.Modes.Default = policy.Strict
	web := httpApp(t, pod, false)
	tlsWeb := httpApp(t, pod, true)
	gl, err := net.Listen("tcp", netip.AddrPortFrom(pod.Addresses[0], 0).String())
	if err != nil {
		t.Fatal(err)
	}
	gs := grpc.NewServer()
	hs := health.NewServer()
	hs.SetServingStatus("sick", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	grpc_health_v1.RegisterHealthServer(gs, hs)
	served := make(chan struct{})
	go func() { defer close(served); _ = gs.Serve(gl) }()
	t.Cleanup(func() { gs.Stop(); <-served })
	type m1 = map[string]any
	probes := m1{
		"/app-health/web/readyz":        m1{"httpGet": m1{"path": "/ok", "port": web.Port(), "scheme": "HTTP", "httpHeaders": []m1{{"name": "X-Probe", "value": "yes"}, {"name": "Host", "value": "shop.example"}}}, "timeoutSeconds": 5},
		"/app-health/web/livez":         m1{"httpGet": m1{"path": "broken", "port": web.Port()}, "timeoutSeconds": 5},
		"/app-health/web/startupz":      m1{"httpGet": m1{"path": "/moved", "port": tlsWeb.Port(), "scheme": "HTTPS"}, "timeoutSeconds": 5},
		"/app-health/tcp/readyz":        m1{"tcpSocket": m1{"port": web.Port()}, "timeoutSeconds": 5},
		"/app-health/tcp/livez":         m1{"tcpSocket": m1{"port": 1}, "timeoutSeconds": 5},
		"/app-health/grpc/readyz":       m1{"grpc": m1{"port": addrPort(gl.Addr()).Port(), "service": nil}, "timeoutSeconds": 5},
		"/app-health/grpc/livez":        m1{"grpc": m1{"port": addrPort(gl.Addr()).Port(), "service": "sick"}, "timeoutSeconds": 5},
		"/app-lifecycle/web/poststartz": m1{"httpGet": m1{"path": "/ok", "port": strconv.Itoa(int(web.Port()))}, "timeoutSeconds": 5},
		"/app-health/late/readyz":       m1{"httpGet": m1{"path": "/hang", "port": web.Port()}, "timeoutSeconds": 1},
	}
	text, err := json.Marshal(probes)
	if err != nil {
		t.Fatal(err)
	}
	p := m.start(pod, func(c *Config) { c.Probers = text })
	for path, want := range map[string]int{
		"/app-health/web/readyz": 200, "/app-health/web/livez": 418, "/app-health/web/startupz": 200,
		"/app-health/tcp/readyz": 200, "/app-health/tcp/livez": 500,
		"/app-health/grpc/readyz": 200, "/app-health/grpc/livez": 500,
		"/app-lifecycle/web/poststartz": 200, "/app-health/late/readyz": 500,
		"/app-health/web/nothing": 400, "/app-health/": 400,
	} {
		code, body := get(t, p, 1, "GET", path)
		if code != want {
			t.Errorf("%s: %d %s, want %d", path, code, body, want)
		}
		if path == "/app-health/web/readyz" && body != "127.0.0.6 yes shop.example" {
			t.Errorf("the application saw %q", body)
		}
	}
}

func httpApp(t *testing.T, pod *workload.Workload, encrypted bool) netip.AddrPort {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("/ok", func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		_, _ = io.WriteString(w, host+" "+r.Header.Get("X-Probe")+" "+r.Host+r.Header.Get("Accept-Encoding")) // the kubelet sends none
	})
	mux.HandleFunc("/broken", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })
	mux.HandleFunc("/moved", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusFound) })
	mux.HandleFunc("/metrics", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "app_answers 42\n") })
	mux.HandleFunc("/hang", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	s := httptest.NewUnstartedServer(mux)
	s.Listener.Close()
	l, err := net.Listen("tcp", netip.AddrPortFrom(pod.Addresses[0], 0).String())
	if err != nil {
		t.Fatal(err)
	}
	s.Listener = l
	if encrypted {
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	return addrPort(l.Addr())
}

// Contract 5.49: :15020 has the metrics of proxy and application.
// Contract 7.1.
func TestMergedMetrics(t *testing.T) {
	m := newTestMesh(t)
	pod := m.pod("web")
	web := httpApp(t, pod, false)
	p := m.start(pod, func(c *Config) { c.AppMetrics = AppMetrics{Port: web.Port(), Path: "/metrics"} })
	for i, want := range map[int]bool{1: true, 2: false} {
		_, body := get(t, p, i, "GET", "/stats/prometheus")
		if !strings.Contains(body, "istio_build") || strings.Contains(body, "app_answers 42") != want {
			t.Errorf("server %d: %s", i, body)
		}
	}
}

func TestParseProbersRefuses(t *testing.T) {
	for text, want := range map[string]string{
		`{`:                           "unexpected end",
		`{"/app-health/a/readyz":{}}`: "0 kinds",
		`{"/app-health/a/readyz":{"httpGet":{"port":80},"tcpSocket":{"port":80}}}`: "2 kinds",
		`{"/elsewhere":{"tcpSocket":{"port":80}}}`:                                 "neither",
		`{"/app-health/a/readyz":{"tcpSocket":{"port":"web"}}}`:                    "not a number",
		`{"/app-health/a/readyz":{"tcpSocket":{"port":0}}}`:                        "not a number",
		`{"/app-health/a/readyz":{"tcpSocket":{"port":65536}}}`:                    "not a number",
	} {
		if _, err := parseProbers([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func FuzzParseProbers(f *testing.F) {
	f.Add([]byte(`{"/app-health/a/readyz":{"httpGet":{"path":"/x","port":80,"httpHeaders":[{"name":"a","value":"b"}]},"timeoutSeconds":1}}`))
	f.Add([]byte(`{"/app-health/a/readyz":{"grpc":{"port":"80","service":null}}}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, b []byte) {
		all, err := parseProbers(b)
		if err != nil {
			return
		}
		for path, p := range all {
			if p.HTTPGet == nil && p.TCPSocket == nil && p.GRPC == nil {
				t.Errorf("%s has no kind", path)
			}
		}
	})
}

// The admin port shows who this is, what is open and what was.
func TestAdmin(t *testing.T) {
	p := newPair(t, policy.TCP, meshtest.Echo)
	p.server.Modes = policy.Modes{Default: policy.Strict, Ports: map[uint16]policy.Mode{9: policy.Disable}}
	p.tell()
	c := p.dial()
	exchange(t, c, "x")
	var open []Record
	_, body := get(t, p.inside, 3, "GET", "/connections")
	if err := json.Unmarshal([]byte(body), &open); err != nil || len(open) != 1 || open[0].SourceIdentity != "cluster.local/ns/shop/sa/client" || open[0].BytesSent != 1 {
		t.Errorf("%v %s", err, body)
	}
	var s Status
	_, body = get(t, p.inside, 3, "GET", "/status")
	if err := json.Unmarshal([]byte(body), &s); err != nil || s.Workload != "shop/web" || s.Mode != "STRICT" || s.PortModes[9] != "DISABLE" || s.Identity != "cluster.local/ns/shop/sa/web" || s.Connections != 1 || s.Workloads != 2 || s.Services != 1 || s.NotAfter.IsZero() {
		t.Errorf("%v %s", err, body)
	}
	c.Close()
	record(t, p.inside, anyRecord)
	var done []Record
	_, body = get(t, p.inside, 3, "GET", "/records")
	if err := json.Unmarshal([]byte(body), &done); err != nil || len(done) != 1 {
		t.Errorf("%v %s", err, body)
	}
	if code, _ := get(t, p.inside, 3, "GET", "/"); code != 200 {
		t.Error("no index")
	}
}

func TestRingKeepsTheLast(t *testing.T) {
	var g ring
	for i := range keptRecords + 5 {
		g.add(Record{BytesSent: int64(i)})
	}
	got := g.last()
	if len(got) != keptRecords || got[0].BytesSent != 5 || got[len(got)-1].BytesSent != keptRecords+4 {
		t.Errorf("%d records from %d to %d", len(got), got[0].BytesSent, got[len(got)-1].BytesSent)
	}
}

// An idle connection is cut, one that is used in one direction only is not.
// Contract 2.36.
func TestIdleTimeout(t *testing.T) {
	p := newPair(t, policy.TCP, func(c *net.TCPConn) {
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		first := make([]byte, 1)
		if _, err := c.Read(first); err != nil {
			return
		}
		if first[0] == 'q' { // quiet
			_, _ = io.Copy(io.Discard, c)
			return
		}
		for range 10 {
			<-tick.C
			if _, err := c.Write(first); err != nil {
				return
			}
		}
	})
	p.world.Mesh.IdleTimeout = time.Second
	for _, mode := range []policy.Mode{policy.Strict, policy.Disable} {
		p.mode(p.server, mode)
		busy, quiet := p.dial(), p.dial()
		_, _ = io.WriteString(quiet, "q")
		_, _ = io.WriteString(busy, "b")
		if b, err := io.ReadAll(busy); err != nil || len(b) != 10 {
			t.Errorf("%s: the busy connection gave %d bytes and %v", mode, len(b), err)
		}
		ends(t, quiet)
	}
	record(t, p.clientSide, withReason(policy.IdleTimeout))
}
