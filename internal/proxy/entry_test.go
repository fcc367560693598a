package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"podseal.io/podseal/internal/meshtest"
	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/workload"
)

// helloFor is a ClientHello with this SNI.
func helloFor(t testing.TB, sni string) []byte {
	t.Helper()
	client, server := net.Pipe()
	defer server.Close()
	go func() {
		_ = tls.Client(client, &tls.Config{ServerName: sni, InsecureSkipVerify: true}).Handshake()
	}()
	b := make([]byte, 64<<10)
	n, err := server.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	client.Close()
	return b[:n]
}

func TestNameIn(t *testing.T) {
	hello := helloFor(t, "API.example.com")
	for _, tt := range []struct {
		bytes, name string
		more        bool
	}{
		{string(hello), "api.example.com", false},
		{string(hello[:40]), "", true},
		{string(helloFor(t, "192.0.2.1")), "", false},
		{"GET / HTTP/1.1\r\nHost: API.example.com:8080\r\n\r\n", "api.example.com", false},
		{"GET / HTTP/1.1\r\nHost: api.example.com.\r\nA: b\r\n\r\nbody", "api.example.com", false},
		{"GET http://api.example.com/ HTTP/1.1\r\nHost: other\r\n\r\n", "api.example.com", false},
		{"GET / HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n\r\n", "", false},
		{"GET / HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n", "", false},
		{"GET / HTTP/1.1\r\nHost: api.exam", "", true},
		{"GE", "", true},
		{"GET / HTTP/1.0\r\n\r\n", "", false},
		{"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "", false},
		{"SSH-2.0-x\r\n", "", false},
		{"\x00\x01", "", false},
	} {
		if name, more := nameIn([]byte(tt.bytes)); name != tt.name || more != tt.more {
			t.Errorf("%.40q: %q, %v", tt.bytes, name, more)
		}
	}
}

// FuzzNameIn: whatever comes, it has an answer, which is a plain name, and bytes
// that follow don't change it.
func FuzzNameIn(f *testing.F) {
	f.Add(helloFor(f, "a.example"))
	f.Add([]byte("GET / HTTP/1.1\r\nHost: a.example:80\r\n\r\n"))
	f.Add([]byte("GET / HTTP/1.1\r\nHost: [::1%25x]:80\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		name, more := nameIn(b)
		if (more && name != "") || name != strings.ToLower(name) {
			t.Errorf("%q, %v", name, more)
		}
		if name == "" {
			return
		}
		if again, more := nameIn(append(slices.Clone(b), "xyz"...)); again != name || more {
			t.Errorf("%q, then %q", name, again)
		}
	})
}

// TestResolver: names are asked for when they are old, keep what they had when
// nobody answers, and are bounded.
func TestResolver(t *testing.T) {
	now := time.Unix(0, 0)
	var asked atomic.Int32
	var fail error
	r := newResolver(func(_ context.Context, host string) ([]netip.Addr, error) {
		asked.Add(1)
		var all []netip.Addr
		for i := range 100 {
			all = append(all, netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}))
		}
		if host == "none" {
			return nil, nil
		}
		return all, fail
	}, func() time.Time { return now })
	expect := func(n int32, want int) {
		t.Helper()
		got := r.addresses(t.Context(), []string{"a", "none"})
		if asked.Swap(0) != n || len(got) != 2 || len(got["a"]) != want || len(got["none"]) != 0 {
			t.Errorf("%s: %d addresses", now.Sub(time.Unix(0, 0)), len(got["a"]))
		}
	}
	expect(2, maxAddresses)
	expect(0, maxAddresses)
	now = now.Add(resolveFresh)
	fail = errors.New("no answer")
	expect(2, maxAddresses)
	now = now.Add(resolveRetry)
	fail = nil
	expect(1, maxAddresses)
	for i := range 2 * maxNames {
		r.one(t.Context(), fmt.Sprint(i))
	}
	if len(r.kept) != maxNames {
		t.Errorf("%d names are kept", len(r.kept))
	}
}

// outside is a client pod, and a server outside of the cluster that an entry names.
type outside struct {
	*testMesh
	client *workload.Workload
	proxy  *proxy
	entry  *workload.Entry
	addr   netip.AddrPort
	names  map[string][]netip.Addr
}

func newOutside(t *testing.T, naming workload.Naming, serve func(*net.TCPConn)) *outside {
	t.Helper()
	m := newTestMesh(t)
	o := &outside{testMesh: m, client: m.pod("client"), names: map[string][]netip.Addr{}}
	o.addr = meshtest.Serve(t, m.outsider(), serve)
	o.names["api.example"] = []netip.Addr{o.addr.Addr()}
	o.entry = &workload.Entry{
		Namespace: "shop", Name: "api", Hosts: []string{"api.example"}, External: true, Resolution: workload.ResolveDNS, ExportTo: []string{"*"}, Created: time.Unix(0, 0),
		Ports: []workload.EntryPort{{Port: 80, Target: o.addr.Port(), Protocol: policy.HTTP, Naming: naming}},
	}
	m.world.Entries = append(m.world.Entries, o.entry)
	m.world.Mesh.Outbound = workload.RegistryOnly
	o.proxy = m.start(o.client, func(cfg *Config) {
		cfg.Lookup = func(_ context.Context, host string) ([]netip.Addr, error) { return o.names[host], nil }
	})
	return o
}

// TestRegistryOnly: what no entry names is closed, with the reason in the record
// (contract 3.11-3.13); what one names goes to where the name is, and no byte is lost.
func TestRegistryOnly(t *testing.T) {
	o := newOutside(t, workload.NamedByHost, meshtest.Echo)
	for _, sends := range []string{"GET / HTTP/1.1\r\nHost: other.example\r\n\r\n", "HELO x\r\n", string(helloFor(t, "other.example"))} {
		c := o.connect(o.client.Addresses[0], netip.MustParseAddrPort("192.0.2.1:80"))
		_, _ = io.WriteString(c, sends)
		if got, _ := io.ReadAll(c); len(got) > 0 {
			t.Errorf("%.20q was answered with %q", sends, got)
		}
	}
	eventually(t, func() bool { return len(o.proxy.records.last()) == 3 })
	for _, r := range o.proxy.records.last() {
		if r.Reason != policy.RegistryOnly || r.BytesSent+r.BytesReceived > 0 {
			t.Errorf("record %+v", r)
		}
	}
	c := o.connect(o.client.Addresses[0], netip.MustParseAddrPort("192.0.2.1:80"))
	head := "GET / HTTP/1.1\r\nHost: api.example\r\nA: " + strings.Repeat("b", 20_000) + "\r\n\r\n"
	for _, part := range []string{head[:5], head[5:5000], head[5000:]} { // as it comes
		if _, err := io.WriteString(c, part); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, c, head)
	exchange(t, c, "GET /2 HTTP/1.1\r\nHost: api.example\r\n\r\n")
	_ = c.CloseWrite()
	_ = ends(t, c)
	if r := record(t, o.proxy, withReason(policy.None)); r.Service != "api.example:80" || r.Endpoint != o.addr || r.Security != securityPlaintext {
		t.Errorf("record %+v", r)
	}
	// the entry goes: what is open under it is cut
	c = o.connect(o.client.Addresses[0], netip.MustParseAddrPort("192.0.2.1:80"))
	exchange(t, c, "GET / HTTP/1.1\r\nHost: api.example\r\n\r\n")
	o.entry.ExportTo = []string{"bank"}
	o.tell()
	_ = ends(t, c)
	record(t, o.proxy, withReason(policy.PolicyChanged))
}

// TestEntryOriginates: plaintext HTTP of the application leaves as TLS, for the host
// that the request names (contract 3.35).
func TestEntryOriginates(t *testing.T) {
	ca := newOutsideCA(t)
	cert := ca.issue(t, "api.example")
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	o := newOutside(t, workload.NamedByHost, func(c *net.TCPConn) {
		s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}})
		if s.Handshake() == nil {
			_, _ = io.Copy(s, s)
		}
	})
	o.world.Rules = append(o.world.Rules, &workload.DestinationRule{
		Namespace: "shop", Name: "r", Host: "*.example", ExportTo: []string{"*"}, Created: time.Unix(0, 0),
		Policy: &workload.TrafficPolicy{TLS: &workload.ClientTLS{Mode: workload.TLSSimple, CACertificates: ca.file("ca.pem")}},
	})
	o.tell()
	c := o.connect(o.client.Addresses[0], netip.MustParseAddrPort("192.0.2.1:80"))
	exchange(t, c, "GET / HTTP/1.1\r\nHost: api.example\r\n\r\n")
	c.Close()
	if r := record(t, o.proxy, anyRecord); r.Security != securityTLS || r.SNI != "api.example" || r.Rule != "shop/r" {
		t.Errorf("record %+v", r)
	}
}

// TestPeekGivesUp: an application that is silent is waited for no longer than so
// long, and one that hangs up not at all.
func TestPeekGivesUp(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	pair := func() (client, server *net.TCPConn) {
		c, err := net.DialTCP("tcp", nil, l.Addr().(*net.TCPAddr))
		if err != nil {
			t.Fatal(err)
		}
		s, err := l.AcceptTCP()
		if err != nil {
			t.Fatal(err)
		}
		return c, s
	}
	client, server := pair()
	client.Close()
	if name, err := peekName(ctx, server); name != "" || err != nil {
		t.Errorf("who hung up: %q, %v", name, err)
	}
	client, server = pair()
	defer client.Close()
	cancel()
	if _, err := peekName(ctx, server); !errors.Is(err, context.Canceled) {
		t.Errorf("a proxy that ends: %v", err)
	}
	client, server = pair()
	defer client.Close()
	defer server.Close()
	if _, err := client.Write(bytes.Repeat([]byte("GET / HTTP/1.1\r\nA: "), 1)); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if name, err := peekName(t.Context(), server); name != "" || err != nil || time.Since(began) < peekTimeout/2 {
		t.Errorf("half a head: %q, %v after %s", name, err, time.Since(began))
	}
	got := make([]byte, 3)
	if _, err := io.ReadFull(server, got); err != nil || string(got) != "GET" {
		t.Errorf("the bytes are gone: %q, %v", got, err)
	}
}
