package proxy

import (
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"podseal.io/podseal/internal/workload"
)

// asked is an application that answers every request with answer.
func asked(t *testing.T, pod *workload.Workload, answer http.HandlerFunc) uint16 {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", netip.AddrPortFrom(pod.Addresses[0], 0).String())
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(answer)
	s.Listener.Close()
	s.Listener = l
	s.Start()
	t.Cleanup(s.Close)
	return addrPort(l.Addr()).Port()
}

// The ports that anybody may connect to don't wait for ever, neither for a request
// whose body never comes nor for somebody who doesn't read the answer.
func TestOwnPortsAreBounded(t *testing.T) {
	if s := httpServer(nil, slog.New(slog.DiscardHandler)); s.ReadTimeout <= 0 || s.WriteTimeout <= 0 || s.ReadHeaderTimeout <= 0 || s.IdleTimeout <= 0 {
		t.Errorf("%+v", s)
	}
}

// Connections from outside inherit what asks whether their client is still there.
func TestKeepAliveIsInherited(t *testing.T) {
	for _, local := range []bool{false, true} {
		l, err := bindCapture(t.Context(), "127.0.0.1:0", local)
		if err != nil {
			t.Fatal(err)
		}
		defer l.close()
		client, err := net.Dial("tcp", l[0].Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		c, err := l[0].AcceptTCP()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		raw, err := c.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		err = raw.Control(func(fd uintptr) {
			on, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE)
			if err != nil || (on == 1) == local {
				t.Errorf("local %v: keep-alive is %d, %v", local, on, err)
			}
			idle, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPIDLE)
			if err != nil || (idle == 15) == local {
				t.Errorf("local %v: after %d s, %v", local, idle, err)
			}
			now, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NODELAY)
			if err != nil || now != 1 {
				t.Errorf("local %v: small pieces wait (%d), %v", local, now, err)
			}
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// A port of the application is not the proxy's own because its number is the same:
// a socket at another address is another one.
func TestOwnSocket(t *testing.T) { // contract 2.32
	listening := func(addr string) listeners {
		l, err := bindCapture(t.Context(), addr, true)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(l.close)
		return l
	}
	one, every := listening("127.0.0.1:0"), listening("0.0.0.0:0")
	port := func(l listeners) uint16 { return addrPort(l[0].Addr()).Port() }
	for at, want := range map[netip.AddrPort]bool{
		netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port(one)):        true,
		netip.AddrPortFrom(netip.MustParseAddr("::ffff:127.0.0.1"), port(one)): true,
		netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), port(one)):        false,
		netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port(one)+1):      false,
	} {
		if one.at(at) != want {
			t.Errorf("%s: %v", at, !want)
		}
	}
	for _, addr := range []string{"127.0.0.1", "10.0.0.1", "0.0.0.0"} {
		if !every.at(netip.AddrPortFrom(netip.MustParseAddr(addr), port(every))) {
			t.Errorf("%s: not its own", addr)
		}
	}
}

// A program that prefers Multipath TCP is served over TCP: of the former the kernel
// tells no original destination (contract B5).
func TestMultipathIsDeclined(t *testing.T) {
	l, err := bindCapture(t.Context(), "127.0.0.1:0", true)
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	var d net.Dialer
	d.SetMultipathTCP(true)
	c, err := d.DialContext(t.Context(), "tcp", l[0].Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if multi, err := c.(*net.TCPConn).MultipathTCP(); err != nil || multi {
		t.Errorf("it speaks Multipath TCP, %v", err)
	}
}

// A probe may take as long as its pod says, and brings no proof of identity that
// nobody has checked (contract 5.38, 2.47).
func TestSlowProbe(t *testing.T) {
	m := newTestMesh(t)
	pod := m.pod("web")
	port := asked(t, pod, func(w http.ResponseWriter, r *http.Request) {
		slow := time.NewTimer(200 * time.Millisecond)
		defer slow.Stop()
		select {
		case <-slow.C:
		case <-r.Context().Done():
		}
		_, _ = io.WriteString(w, r.Header.Get("X-Probe")+r.Header.Get("X-Forwarded-Client-Cert"))
	})
	text, err := json.Marshal(map[string]any{"/app-health/web/readyz": map[string]any{"httpGet": map[string]any{"path": "/", "port": port}, "timeoutSeconds": 10}})
	if err != nil {
		t.Fatal(err)
	}
	p := m.start(pod, func(c *Config) { c.Probers = text })
	s := httptest.NewUnstartedServer(nil)
	s.Config = httpServer(p.metricsHandler(), slog.New(slog.DiscardHandler))
	s.Config.ReadTimeout, s.Config.WriteTimeout = 20*time.Millisecond, 20*time.Millisecond
	s.Start()
	defer s.Close()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+"/app-health/web/readyz", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Probe", "yes")
	req.Header.Set("X-Forwarded-Client-Cert", "URI=spiffe://cluster.local/ns/shop/sa/admin")
	res, err := s.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if body, err := io.ReadAll(res.Body); err != nil || res.StatusCode != http.StatusOK || string(body) != "yes" {
		t.Errorf("%d %q, %v", res.StatusCode, body, err)
	}
}

// However many ask for metrics, few answers of the application are held at a time.
func TestScrapesAreBounded(t *testing.T) {
	m := newTestMesh(t)
	pod := m.pod("web")
	var now, most atomic.Int32
	port := asked(t, pod, func(http.ResponseWriter, *http.Request) {
		most.Store(max(most.Load(), now.Add(1)))
		defer now.Add(-1)
		slow := time.NewTimer(5 * time.Millisecond)
		defer slow.Stop()
		<-slow.C
	})
	p := m.start(pod, func(c *Config) { c.AppMetrics = AppMetrics{Port: port, Path: "/metrics"} })
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			w := httptest.NewRecorder()
			p.metricsHandler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", http.NoBody))
			if w.Code != http.StatusOK {
				t.Errorf("%d", w.Code)
			}
		})
	}
	all.Wait()
	if n := most.Load(); n < 1 || n > maxScrapes {
		t.Errorf("%d at a time", n)
	}
}
