package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/meshtest"
	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/workload"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// nextPod gives every pod of every test an address of its own.
var nextPod atomic.Uint32

func podAddr() netip.Addr {
	n := nextPod.Add(1)
	return netip.AddrFrom4([4]byte{127, 10, byte(n >> 8), byte(n)})
}

// testMesh is a mesh in this process: proxies, pods and what they are told.
type testMesh struct {
	t     testing.TB
	net   *meshtest.Network
	ca    *meshtest.CA
	world *meshtest.World

	mu      sync.Mutex
	proxies []*proxy
}

func newTestMesh(t testing.TB) *testMesh {
	ca := meshtest.NewCA(t, time.Now())
	return &testMesh{t: t, net: meshtest.NewNetwork(), ca: ca, world: meshtest.NewWorld(ca.PEM())}
}

// pod adds a pod of the mesh to the world.
func (m *testMesh) pod(name string) *workload.Workload {
	return m.world.Pod("shop", name, podAddr())
}

// outsider is the address of a pod without a proxy.
func (m *testMesh) outsider() netip.Addr { return podAddr() }

// start runs the proxy of a pod until the test ends.
func (m *testMesh) start(pod *workload.Workload, change ...func(*Config)) *proxy {
	m.t.Helper()
	p, stop := m.startStoppable(pod, change...)
	m.t.Cleanup(stop)
	return p
}

func (m *testMesh) startStoppable(pod *workload.Workload, change ...func(*Config)) (*proxy, func()) {
	m.t.Helper()
	at := addrOf(pod.Addresses[0], 0).String() // another pod's application may have the same port
	cfg := Config{
		Log: slog.New(slog.DiscardHandler), Namespace: pod.Namespace, Pod: pod.Name, Addresses: pod.Addresses, Cluster: "Kubernetes",
		Listen:      Listen{Outbound: at, Inbound: at, Health: "127.0.0.1:0", Metrics: "127.0.0.1:0", Stats: "127.0.0.1:0", Admin: "127.0.0.1:0"},
		OriginalDst: m.net.OriginalDst, Dial: m.net.Dial(pod.Addresses[0]), Random: rand.IntN,
	}
	for _, f := range change {
		f(&cfg)
	}
	p, err := newProxy(cfg)
	if err != nil {
		m.t.Fatal(err)
	}
	if err := p.bind(m.t.Context()); err != nil {
		m.t.Fatal(err)
	}
	m.certify(p, pod.Identity)
	m.mu.Lock()
	m.proxies = append(m.proxies, p)
	m.mu.Unlock()
	m.tell()
	m.net.Capture(pod.Addresses[0], addrPort(p.sockets.outbound[0].Addr()), addrPort(p.sockets.inbound[0].Addr()))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := p.run(ctx); err != nil {
			m.t.Error(err)
		}
	}()
	m.t.Cleanup(func() {
		if !m.t.Failed() {
			return
		}
		for _, r := range p.records.last() {
			m.t.Logf("%s recorded %+v", pod.Name, r)
		}
	})
	return p, func() { cancel(); <-done }
}

func (m *testMesh) certify(p *proxy, id identity.ID) {
	m.t.Helper()
	now := time.Now()
	p.creds.renewed(m.ca.Issue(m.t, id, now.Add(-time.Hour), now.Add(time.Hour)), m.ca.Bundle(m.t))
}

// tell puts the world in force at every proxy.
func (m *testMesh) tell() {
	m.t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.proxies {
		m.world.Tell(m.t, p.worlds.handle)
	}
}

// mode gives a pod another mode and tells everybody.
func (m *testMesh) mode(pod *workload.Workload, mode policy.Mode) {
	m.t.Helper()
	pod.Modes = policy.Modes{Default: mode}
	m.tell()
}

// connect is what an application in a pod does.
func (m *testMesh) connect(from netip.Addr, to netip.AddrPort) *net.TCPConn {
	m.t.Helper()
	c, err := m.net.Connect(m.t.Context(), from, to)
	if err != nil {
		m.t.Fatal(err)
	}
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { c.Close() })
	return c
}

// meshTLS is a client that talks mutual TLS itself, with these ALPN names; a
// zero identity presents no certificate.
func (m *testMesh) meshTLS(raw net.Conn, id identity.ID, alpn ...string) *tls.Conn {
	m.t.Helper()
	cfg := &tls.Config{InsecureSkipVerify: true, NextProtos: alpn, ServerName: "outbound_.80_._.web.shop.svc.cluster.local"}
	if !id.IsZero() {
		now := time.Now()
		cfg.Certificates = []tls.Certificate{*m.ca.Issue(m.t, id, now.Add(-time.Hour), now.Add(time.Hour)).TLS()}
	}
	return tls.Client(raw, cfg)
}

// record waits for a finished connection that is as wanted.
func record(t testing.TB, p *proxy, want func(Record) bool) Record {
	t.Helper()
	var found Record
	eventually(t, func() bool {
		for _, r := range p.records.last() {
			if want(r) {
				found = r
				return true
			}
		}
		return false
	})
	return found
}

func withReason(reason policy.Reason) func(Record) bool {
	return func(r Record) bool { return r.Reason == reason }
}

func anyRecord(Record) bool { return true }

// eventually waits for a condition.
func eventually(t testing.TB, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatal("it did not become true")
		}
	}
}

// exchange writes and reads back as much.
func exchange(t testing.TB, c io.ReadWriter, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	expect(t, c, text)
}

// expect reads exactly this text.
func expect(t testing.TB, c io.Reader, text string) {
	t.Helper()
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil {
		t.Fatalf("read: %v (got %q)", err, bytes.TrimRight(got, "\x00"))
	}
	if string(got) != text {
		t.Fatalf("got %q, want %q", got, text)
	}
}

// ends fails the test unless the connection ends; it returns the error that is
// not EOF.
func ends(t testing.TB, c io.Reader) error {
	t.Helper()
	_, err := io.Copy(io.Discard, c)
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		t.Fatal("the connection is still open")
	}
	return err
}

// get asks one of the proxy's own ports; i counts Health, Metrics, Stats, Admin.
func get(t testing.TB, p *proxy, i int, method, path string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+p.sockets.servers[i].listener.Addr().String()+path, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true}}
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(body)
}

func addrOf(addr netip.Addr, port int) netip.AddrPort {
	return netip.MustParseAddrPort(net.JoinHostPort(addr.String(), strconv.Itoa(port)))
}

// vip is a cluster address of a test.
func vip(port int) netip.AddrPort { return addrOf(netip.MustParseAddr("10.96.0.1"), port) }
