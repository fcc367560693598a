package netns

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/proof"
	"podseal.io/podseal/internal/workload"
)

const (
	// quiet is longer than every time-out of a proxy but that for idle connections,
	// which is an hour: 10 s to connect, for a handshake, for a request's first line;
	// 3 s in which a greeting is held back.
	quiet = 11 * time.Second
	// large is what is sent in one piece.
	large = 100 << 20
	// many is how many connections are open at once.
	many = 1000
	// echoPort is that of a server that sends back what it gets.
	echoPort = 7007
)

// bazaar is a pod with a server of each protocol, and two clients: one in the mesh.
type bazaar struct {
	*mesh
	sites           []*site
	client, outside *pod
	server          *pod
	pods            []*workload.Workload // client, server
	idle            []net.Conn
	used            time.Time // when the youngest of them was used last
}

// TestProtocols: what people run, by the programs that they run it with, through two
// proxies: PERMISSIVE and STRICT, on ports that a Service declares and on others, and
// from a client outside of the mesh under PERMISSIVE. Between the two pods there is
// nothing on the wire but mutual TLS.
// Contract 2.7, 2.13.
func TestProtocols(t *testing.T) {
	t.Parallel()
	b := newBazaar(t)
	for _, mode := range []policy.Mode{policy.Permissive, policy.Strict} {
		for _, declared := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, declared %t", mode, declared), func(t *testing.T) { b.phase(t, mode, declared) })
		}
	}
	t.Run("idle", b.stillThere)
}

func newBazaar(t *testing.T) *bazaar {
	t.Helper()
	m := newMesh(t)
	b := &bazaar{
		mesh: m, client: m.attach(t, "client", "10.88.0.11", "fd88::11"),
		server: m.attach(t, "server", "10.88.0.12", "fd88::12"), outside: m.attach(t, "outside", "10.88.0.13", "fd88::13"),
	}
	b.pods = []*workload.Workload{m.world.Pod("shop", "client", b.client.v4), m.world.Pod("shop", "bazaar", b.server.v4)}
	m.tell(t)
	for _, p := range protocols() {
		dir := filepath.Join(m.dir, fmt.Sprint(p.port))
		if err := errors.Join(os.Mkdir(dir, 0o777), os.Chmod(dir, 0o777)); err != nil {
			t.Fatal(err)
		}
		b.sites = append(b.sites, &site{mesh: m, pod: b.server, protocol: p, dir: dir})
	}
	m.inject(t, b.client, "client")
	m.inject(t, b.server, "bazaar")
	b.echo(t)
	var all sync.WaitGroup
	for _, s := range b.sites {
		all.Go(func() { s.start(t, s) })
	}
	all.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return b
}

// echo serves the port that has no protocol.
func (b *bazaar) echo(t *testing.T) {
	t.Helper()
	l := b.server.listen(t, fmt.Sprintf("0.0.0.0:%d", echoPort))
	done := make(chan struct{})
	go func() {
		defer close(done)
		var talks sync.WaitGroup
		defer talks.Wait()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			talks.Go(func() {
				defer c.Close()
				io.Copy(c, c)
			})
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
}

// phase puts a mode in force, and services or none, and lets every client talk.
func (b *bazaar) phase(t *testing.T, mode policy.Mode, declared bool) {
	b.world.Services = nil
	for _, w := range b.pods {
		w.Ports, w.Modes.Default = nil, mode
	}
	at := map[*site]netip.AddrPort{}
	for i, s := range b.sites {
		at[s] = netip.AddrPortFrom(b.server.v4, s.port)
		if !declared {
			continue
		}
		vip := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 96, 1, byte(i + 1)}), s.port)
		b.world.Service(fmt.Sprintf("s%d", s.port), vip, s.declared, s.port, b.pods[1])
		if !s.byAddress {
			at[s] = vip
		}
	}
	b.tell(t)
	for _, p := range []*pod{b.client, b.server} {
		b.told(t, p, mode, len(b.world.Services))
	}
	c := b.capture(t)
	t.Run("mesh client", func(t *testing.T) {
		for _, s := range b.sites {
			t.Run(s.name, func(t *testing.T) {
				t.Parallel()
				s.conversation(t, b.client, at[s])
			})
		}
	})
	t.Run("idle", b.openIdle)
	needles := []string{secret}
	for _, s := range b.sites {
		needles = append(needles, s.needle)
	}
	b.sealed(t, c.end(t, needles...))
	t.Run("a thousand", b.aThousand)
	if declared == (mode == policy.Strict) { // each way of carrying HTTP once, and bytes in between
		t.Run("large file", func(t *testing.T) { b.largeFile(t, at) })
	} else {
		t.Run("large stream", b.largeStream)
	}
	if mode == policy.Permissive {
		t.Run("client outside", func(t *testing.T) {
			for _, s := range b.sites {
				t.Run(s.name, func(t *testing.T) {
					t.Parallel()
					s.conversation(t, b.outside, netip.AddrPortFrom(b.server.v4, s.port))
				})
			}
		})
	}
}

func (s *site) conversation(t *testing.T, p *pod, at netip.AddrPort) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := s.talk(ctx, s, p, at); err != nil {
		t.Errorf("%s: %v", at, err)
	}
}

// told waits until the proxy of a pod knows what it was told.
func (b *bazaar) told(t *testing.T, p *pod, mode policy.Mode, services int) {
	t.Helper()
	eventually(t, "the mode is in force", func() error {
		return p.proxyStatus(func(r io.Reader) error {
			var s struct {
				Mode     string
				Services int
			}
			if err := json.NewDecoder(r).Decode(&s); err != nil {
				return err
			}
			if s.Mode != mode.String() || s.Services != services {
				return fmt.Errorf("%+v", s)
			}
			return nil
		})
	})
}

// sealed fails unless all between client and server is mutual TLS of the mesh.
func (b *bazaar) sealed(t *testing.T, sum proof.Summary) {
	t.Helper()
	if found := sum.Needles(); len(found) != 0 {
		t.Errorf("on the wire: %v\n%s", found, sum)
	}
	ports := map[uint16]bool{}
	for _, f := range sum.Flows {
		if f.Client.Addr() != b.client.v4 || f.Server.Addr() != b.server.v4 || f.Kind == proof.Empty {
			continue
		}
		if f.Kind == proof.UnknownTLS && f.PlainBytes() == 0 {
			continue // of before this capture; its end may fall into it
		}
		ports[f.Server.Port()] = true
		if f.Kind != proof.MeshTLS || f.PlainBytes() != 0 || !f.Complete() {
			t.Errorf("not sealed:\n%s", sum)
			return
		}
	}
	for _, s := range b.sites {
		if !ports[s.port] {
			t.Errorf("%s: nothing on the wire to port %d\n%s", s.name, s.port, sum)
		}
	}
}

// dial connects from a pod.
func (p *pod) dial(at string) (c net.Conn, err error) {
	return c, p.try(app, func() error {
		c, err = net.DialTimeout("tcp", at, deadline)
		return err
	})
}

// ping sends a text over a connection to the echo server and wants it back.
func ping(c net.Conn, text string) error {
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return err
	}
	return talk{c}.echo(text)
}

// echoAddress is where the echo server is.
func (b *bazaar) echoAddress() string {
	return netip.AddrPortFrom(b.server.v4, echoPort).String()
}

// openIdle opens connections that will be left alone: one that was used, and one on
// which nobody has said anything.
func (b *bazaar) openIdle(t *testing.T) {
	for _, text := range []string{secret, ""} {
		c, err := b.client.dial(b.echoAddress())
		if err != nil {
			t.Fatal(err)
		}
		b.idle = append(b.idle, c)
		if err := ping(c, text); err != nil {
			t.Fatal(err)
		}
	}
	b.used = time.Now()
}

// stillThere uses them after longer than the proxies wait for anything.
func (b *bazaar) stillThere(t *testing.T) {
	defer func() {
		for _, c := range b.idle {
			c.Close()
		}
	}()
	<-time.After(time.Until(b.used.Add(quiet)))
	for i, c := range b.idle {
		if err := ping(c, secret); err != nil {
			t.Errorf("connection %d: %v", i, err)
		}
	}
}

// aThousand holds many connections open at once, each of which works.
func (b *bazaar) aThousand(t *testing.T) {
	conns, errs := make([]net.Conn, many), make([]error, many)
	each := func(do func(i int) error) {
		t.Helper()
		var all sync.WaitGroup
		for i := range many {
			all.Go(func() { errs[i] = do(i) })
		}
		all.Wait()
		if i := slices.IndexFunc(errs, func(err error) bool { return err != nil }); i >= 0 {
			t.Fatalf("connection %d: %v", i, errs[i])
		}
	}
	defer func() {
		for _, c := range conns {
			if c != nil {
				c.Close()
			}
		}
	}()
	b.client.do(t, app, func() error { // on one thread, which is the pod's
		for i := range many {
			c, err := net.DialTimeout("tcp", b.echoAddress(), deadline)
			if err != nil {
				return fmt.Errorf("connection %d: %w", i, err)
			}
			conns[i] = c
		}
		return nil
	})
	each(func(i int) error { return ping(conns[i], fmt.Sprintf("%d says hello", i)) })
	each(func(i int) error { return ping(conns[i], fmt.Sprintf("%d says it again", i)) })
}

// largeFile uploads a file with one program and downloads it again.
func (b *bazaar) largeFile(t *testing.T, at map[*site]netip.AddrPort) {
	file := filepath.Join(b.dir, "large")
	want := writeLarge(t, file)
	for _, s := range b.sites {
		if s.name != "HTTP/1.1" && s.name != "HTTP/2" && s.name != "TLS of its own" {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			args, base := []string{"-sSfm", "60"}, "http://"+at[s].String()
			switch s.name {
			case "HTTP/2":
				args = append(args, "--http2-prior-knowledge")
			case "TLS of its own":
				base = "https://own.example"
				args = append(args, "--cacert", filepath.Join(s.dir, "cert.pem"), "--connect-to", "own.example:443:"+at[s].String())
			}
			got := filepath.Join(s.dir, "got")
			defer os.Remove(got)
			defer os.RemoveAll(filepath.Join(s.dir, "files"))
			for _, more := range [][]string{{"-T", file, base + "/files/large"}, {"-o", got, base + "/files/large"}} {
				if out, err := b.client.command(t.Context(), "", "curl", slices.Concat(args, more)...); err != nil {
					t.Fatalf("%v\n%s", err, out)
				}
			}
			if sum := sumOf(t, got); sum != want {
				t.Errorf("%x came back, not %x", sum, want)
			}
		})
	}
}

// noise is an endless stream that doesn't repeat, the same for the same seed.
func noise(seed byte) io.Reader {
	block, err := aes.NewCipher(bytes.Repeat([]byte{seed}, 16))
	if err != nil {
		panic(err)
	}
	return cipher.StreamReader{S: cipher.NewCTR(block, make([]byte, aes.BlockSize)), R: zeros{}}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// writeLarge writes a file whose content repeats nowhere near, and returns its sum.
func writeLarge(t *testing.T, name string) [sha256.Size]byte {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.CopyN(f, noise(1), large); err != nil {
		t.Fatal(err)
	}
	return sumOf(t, name)
}

func sumOf(t *testing.T, name string) (sum [sha256.Size]byte) {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// largeStream sends in both directions at once over one connection.
func (b *bazaar) largeStream(t *testing.T) {
	c, err := b.client.dial(b.echoAddress())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	sent := make(chan error, 1)
	want := sha256.New()
	go func() {
		_, err := io.CopyN(io.MultiWriter(c, want), noise(2), large)
		sent <- errors.Join(err, c.(*net.TCPConn).CloseWrite())
	}()
	got := sha256.New()
	n, err := io.Copy(got, c)
	if err := errors.Join(err, <-sent); err != nil {
		t.Error(err)
	}
	if n != large || string(got.Sum(nil)) != string(want.Sum(nil)) {
		t.Errorf("%d bytes came back, not those that were sent", n)
	}
}
