package netns

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/vishvananda/netlink"

	"podseal.io/podseal/internal/ca"
	"podseal.io/podseal/internal/meshtest"
	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/proof"
	"podseal.io/podseal/internal/wire"
	"podseal.io/podseal/internal/xds"
)

const (
	page     = "<title>Welcome to nginx!</title>"
	greeting = "220 mail.shop.test ESMTP\r\n"
	// what must never be on the wire between two pods of the mesh
	get, welcome, esmtp = "GET / HTTP", "Welcome to nginx", "ESMTP"
)

// mesh is a control plane, and pods whose proxies are processes of podseal-proxy.
type mesh struct {
	node
	dir     string // readable by everybody
	program string
	world   *meshtest.World
	store   *xds.Store
	proxies map[string]*exec.Cmd // that were started last, by the name of the pod

	issuer  *ca.Issuer
	serving tls.Certificate
	// restart takes the control plane away and starts another; one at a time
	restart func(meanwhile func())
}

// newMesh starts the control plane on the node.
func newMesh(t *testing.T) *mesh {
	t.Helper()
	m := &mesh{node: newNode(t), dir: t.TempDir(), store: xds.NewStore(), proxies: map[string]*exec.Cmd{}}
	if err := os.Chmod(filepath.Dir(m.dir), 0o755); err != nil { // the proxies are another user
		t.Fatal(err)
	}
	m.program = filepath.Join(m.dir, "podseal-proxy")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", m.program, "podseal.io/podseal/cmd/podseal-proxy")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build podseal-proxy: %v\n%s", err, out)
	}
	now := time.Now()
	issuer, err := ca.NewSelfSigned(meshtest.TrustDomain, now, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serving, err := issuer.ServingCertificate([]string{"istiod.d8-istio.svc"}, 24*time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	root := issuer.Bundle().PEM()
	m.world = meshtest.NewWorld(root)
	m.write(t, "root-cert.pem", root)

	m.issuer, m.serving = issuer, serving
	stop := m.control(t)
	t.Cleanup(func() { stop() })
	m.restart = func(meanwhile func()) {
		stop()
		meanwhile()
		stop = m.control(t)
	}
	return m
}

// control starts a control plane and returns what ends it.
func (m *mesh) control(t *testing.T) (stop func()) {
	t.Helper()
	g := grpc.NewServer(append(xds.ServerOptions(), grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{m.serving}})))...)
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	ca.NewServer(ca.ServerConfig{
		Issuer:      func() (*ca.Issuer, error) { return m.issuer, nil },
		Review:      review,
		TrustDomain: func() string { return meshtest.TrustDomain },
		Now:         time.Now, Log: log,
	}).Register(g)
	server := xds.NewServer(xds.ServerConfig{
		Store: m.store, Authenticate: func(context.Context) (string, error) { return "a proxy", nil }, Log: log,
	})
	server.Register(g)
	l := m.listen(t, ":15012")
	done := make(chan error, 1)
	go func() { done <- g.Serve(l) }()
	return func() {
		server.Shutdown()
		g.Stop()
		server.Wait()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// review takes the token for the name of the pod, and that for its account's.
func review(_ context.Context, token string) (ca.Caller, error) {
	namespace, name, ok := strings.Cut(token, "/")
	if !ok {
		return ca.Caller{}, errors.New("not a token of this test")
	}
	return ca.Caller{Namespace: namespace, ServiceAccount: name, Pod: name}, nil
}

func (m *mesh) write(t testing.TB, name string, b []byte) string {
	t.Helper()
	file := filepath.Join(m.dir, name)
	if err := os.WriteFile(file, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// tell puts the world in force.
func (m *mesh) tell(t testing.TB) {
	t.Helper()
	all := map[string]map[string][]byte{}
	for _, typeURL := range wire.Types() {
		all[typeURL] = map[string][]byte{}
	}
	m.world.Tell(t, func(typeURL string, upserts []xds.Resource, _ []string) map[string]error {
		for _, r := range upserts {
			all[typeURL][r.Name] = r.Body
		}
		return nil
	})
	for typeURL, resources := range all {
		m.store.Replace(typeURL, resources)
	}
}

// redirect moves the pod's traffic into its proxy as its init container does.
func (m *mesh) redirect(t *testing.T, p *pod) {
	t.Helper()
	p.root(t, func() error {
		init := exec.CommandContext(t.Context(), m.program, "capture", "-p", "15001", "-z", "15006", "-u", "1337",
			"-m", "REDIRECT", "-i", "*", "-x", "", "-b", "*", "-d", "15090,15021,15020")
		if out, err := init.CombinedOutput(); err != nil {
			return fmt.Errorf("capture: %w\n%s", err, out)
		}
		return nil
	})
}

// inject captures the pod's traffic and runs its proxy, as the two containers do. It
// returns the proxy's process.
func (m *mesh) inject(t *testing.T, p *pod, name string, env ...string) int {
	t.Helper()
	m.redirect(t, p)
	return m.launch(t, p, name, env...)
}

// launch runs the proxy of a pod until it is ended or the test is over.
func (m *mesh) launch(t *testing.T, p *pod, name string, env ...string) int {
	t.Helper()
	token := m.write(t, "token-"+name, []byte("shop/"+name))
	run := exec.Command(m.program, "proxy", "sidecar", "--ca-address", net.JoinHostPort(m.near(p).String(), "15012"), "--ca-server-name", "istiod.d8-istio.svc",
		"--root-file", filepath.Join(m.dir, "root-cert.pem"), "--token-file", token, "--drain", "100ms")
	run.Env = append([]string{"POD_NAME=" + name, "POD_NAMESPACE=shop", "INSTANCE_IPS=" + ips(p)}, env...)
	run.Stdout, run.Stderr = t.Output(), t.Output()
	run.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1337, Gid: 1337}}
	p.root(t, run.Start)
	m.proxies[name] = run
	t.Cleanup(func() {
		if run.ProcessState != nil {
			return // the test has ended it
		}
		if err := run.Process.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		if err := run.Wait(); err != nil {
			t.Errorf("proxy of %s: %v", name, err)
		}
	})
	eventually(t, name+" is ready", func() error {
		res, body, err := fetchPath(p, net.JoinHostPort(p.addresses()[0].String(), "15021"), "/healthz/ready")
		if err == nil && res.StatusCode != http.StatusOK {
			err = fmt.Errorf("status %s: %s", res.Status, body)
		}
		return err
	})
	return run.Process.Pid
}

// link takes the server's pod off the network, or puts it back.
func (m *mesh) link(t *testing.T, up bool) {
	if err := m.try(identity{}, func() error {
		l, err := netlink.LinkByName("veth-server")
		if err != nil {
			return err
		}
		if up {
			return netlink.LinkSetUp(l)
		}
		return netlink.LinkSetDown(l)
	}); err != nil {
		t.Error(err)
	}
}

// near is the node's address of the first family that a pod has.
func (m *mesh) near(p *pod) netip.Addr {
	if p.v4.IsValid() {
		return m.v4
	}
	return m.v6
}

func ips(p *pod) string {
	var all []string
	for _, a := range p.addresses() {
		all = append(all, a.String())
	}
	return strings.Join(all, ",")
}

// eventually waits until f succeeds.
func eventually(t testing.TB, what string, f func() error) {
	t.Helper()
	end := time.NewTimer(30 * time.Second)
	defer end.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-end.C:
			t.Fatalf("%s: %v", what, err)
		case <-tick.C:
		}
	}
}

// fetch asks for the page as an application of p.
func fetch(p *pod, address string) (*http.Response, string, error) { return fetchPath(p, address, "/") }

// fetchPath does so without http.Client, which would dial on another thread and so
// in another namespace.
func fetchPath(p *pod, address, path string) (*http.Response, string, error) {
	var res *http.Response
	var body []byte
	err := p.try(app, func() error {
		c, err := net.DialTimeout("tcp", address, deadline)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(deadline)); err != nil {
			return err
		}
		if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: webserver\r\nConnection: close\r\n\r\n", path); err != nil {
			return err
		}
		if res, err = http.ReadResponse(bufio.NewReader(c), nil); err != nil {
			return err
		}
		defer res.Body.Close()
		body, err = io.ReadAll(res.Body)
		return err
	})
	return res, string(body), err
}

// greet talks to a server that speaks first, and returns its greeting and its echo.
func greet(p *pod, address string) (string, error) {
	var said []byte
	err := p.try(app, func() error {
		c, err := net.DialTimeout("tcp", address, deadline)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(deadline)); err != nil {
			return err
		}
		said = make([]byte, len(greeting))
		if _, err := io.ReadFull(c, said); err != nil {
			return err
		}
		if _, err := io.WriteString(c, "QUIT"); err != nil {
			return err
		}
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			return err
		}
		rest, err := io.ReadAll(c)
		said = append(said, rest...)
		return err
	})
	return string(said), err
}

// shop is the mesh of the tests: a client and a webserver in it, and an outsider.
type shop struct {
	*mesh
	client, server, outside *pod
	peers                   chan string // who the webserver was called by
	refused                 chan string // and by whom for what must not reach it
}

func newShop(t *testing.T) *shop {
	t.Helper()
	m := newMesh(t)
	s := &shop{
		mesh: m, peers: make(chan string, 100), refused: make(chan string, 100),
		client:  m.attach(t, "client", "10.88.0.11", "fd88::11"),
		server:  m.attach(t, "server", "10.88.0.12", "fd88::12"),
		outside: m.attach(t, "outside", "10.88.0.13", "fd88::13"),
	}
	w := m.world.Pod("shop", "webserver", s.server.v4)
	w.Addresses = append(w.Addresses, s.server.v6)
	c := m.world.Pod("shop", "client", s.client.v4)
	c.Addresses = append(c.Addresses, s.client.v6)
	m.world.Service("webserver", netip.MustParseAddrPort("10.96.0.10:80"), policy.HTTP, 80, w)
	m.world.Service("mail", netip.MustParseAddrPort("10.96.0.11:25"), policy.Auto, 25, w)
	m.tell(t)
	s.serve(t)
	m.inject(t, s.client, "client")
	m.inject(t, s.server, "webserver")
	return s
}

// serve runs the applications of the webserver's pod: HTTP on 80, and a protocol in
// which the server speaks first on 25.
func (s *shop) serve(t *testing.T) {
	t.Helper()
	web := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/refused" {
			s.refused <- r.RemoteAddr
		} else {
			s.peers <- r.RemoteAddr
		}
		io.WriteString(w, page)
	})}
	l, mail := s.server.listen(t, ":80"), s.server.listen(t, ":25")
	done := make(chan struct{}, 2)
	var talks sync.WaitGroup
	go func() { web.Serve(l); done <- struct{}{} }()
	go func() {
		defer func() { done <- struct{}{} }()
		for {
			c, err := mail.Accept()
			if err != nil {
				return
			}
			talks.Go(func() {
				defer c.Close()
				io.WriteString(c, greeting)
				io.Copy(c, c)
			})
		}
	}()
	t.Cleanup(func() { web.Close(); mail.Close(); <-done; <-done; talks.Wait() })
}

// TestMesh is the walkthrough in small: capture and proxies as in a pod, and what
// was on the wire at each step.
// Contract 2.1, 2.17, 3.29.
func TestMesh(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	t.Run("mesh client", s.meshClient)
	t.Run("outside client, permissive", s.outsideClient)
	t.Run("server first", s.serverFirst)
	t.Run("3.69 own service", s.ownService)
	t.Run("strict", s.strict)
}

// carried are the connections between two ends that had content: an earlier one may
// end meanwhile.
func carried(sum proof.Summary, from netip.Addr, to netip.AddrPort) []proof.Flow {
	return sum.Between(from, to).Select(func(f proof.Flow) bool { return f.Kind != proof.Empty }).Flows
}

// isKind reports whether a flow is of a kind. One of the mesh may have been made
// before, and be used again.
func isKind(f proof.Flow, kind proof.Kind) bool {
	return f.Kind == kind || kind == proof.MeshTLS && f.Kind == proof.UnknownTLS && f.PlainBytes() == 0 && f.Complete() && f.TLSBytes() > 0
}

// sealed fails unless all flows to this port are mutual TLS of the mesh, and
// nothing else is on the wire.
func sealed(t *testing.T, sum proof.Summary, from *pod, to ...netip.AddrPort) {
	t.Helper()
	if found := sum.Needles(); len(found) != 0 {
		t.Errorf("on the wire: %v\n%s", found, sum)
	}
	for _, dst := range to {
		src := from.v4
		if dst.Addr().Is6() {
			src = from.v6
		}
		flows := carried(sum, src, dst)
		if len(flows) == 0 {
			t.Errorf("no connection from %s to %s\n%s", src, dst, sum)
		}
		for _, f := range flows {
			if f.Kind == proof.UnknownTLS && isKind(f, proof.MeshTLS) {
				continue // it was made earlier and is used again, or has ended
			}
			if f.Kind != proof.MeshTLS || f.PlainBytes() != 0 || !f.Complete() || f.TLSVersion != tls.VersionTLS13 || f.Group != tls.X25519MLKEM768 {
				t.Errorf("not sealed:\n%s", sum)
			}
			if f.Records()[proof.ApplicationData] == 0 {
				t.Errorf("no data in it:\n%s", sum)
			}
		}
	}
}

// meshClient calls by service address, by pod address and by IPv6 (design D5, D6, D10).
func (s *shop) meshClient(t *testing.T) {
	c := s.capture(t)
	for _, address := range []string{"10.96.0.10:80", "10.88.0.12:80", "[fd88::12]:80"} {
		res, body, err := fetch(s.client, address)
		if err != nil || res.StatusCode != http.StatusOK || body != page {
			t.Fatalf("%s: %v, %q, %v", address, res, body, err)
		}
		if peer := <-s.peers; !strings.HasPrefix(peer, "127.0.0.6:") && !strings.HasPrefix(peer, "[::6]:") { // contract 2.29
			t.Errorf("%s: the application was called by %s", address, peer)
		}
	}
	sum := c.end(t, get, welcome, "webserver\r\n")
	sealed(t, sum, s.client, netip.AddrPortFrom(s.server.v4, 80), netip.AddrPortFrom(s.server.v6, 80))
	for _, f := range sum.Between(s.client.v4, netip.AddrPortFrom(s.server.v4, 80)).Flows {
		if want := "outbound_.80_._.webserver.shop.svc.cluster.local"; f.SNI != want { // contract 3.47
			t.Errorf("server name %q, want %q", f.SNI, want)
		}
	}
}

// outsideClient: plaintext passes under PERMISSIVE, and the capture sees it.
func (s *shop) outsideClient(t *testing.T) {
	c := s.capture(t)
	res, body, err := fetch(s.outside, "10.88.0.12:80")
	if err != nil || res.StatusCode != http.StatusOK || body != page {
		t.Fatalf("%v, %q, %v", res, body, err)
	}
	<-s.peers
	if got := res.Header.Get("Server"); got != "istio-envoy" {
		t.Errorf("server: %q", got)
	}
	if got := res.Header.Get("X-Envoy-Decorator-Operation"); got != "webserver.shop.svc.cluster.local:80/*" {
		t.Errorf("x-envoy-decorator-operation: %q", got)
	}
	sum := c.end(t, get, welcome)
	flows := sum.Between(s.outside.v4, netip.AddrPortFrom(s.server.v4, 80)).Flows
	if len(flows) != 1 || flows[0].Kind != proof.Plaintext || flows[0].TLSBytes() != 0 || flows[0].Protocol != "HTTP/1.1" {
		t.Errorf("%s", sum)
	}
	if n := sum.Needles(); n[get] != 1 || n[welcome] != 1 {
		t.Errorf("found %v: each packet passes several interfaces and must count once", n)
	}
}

// serverFirst: design D9, contract 2.6-2.7 without the hang.
func (s *shop) serverFirst(t *testing.T) {
	c := s.capture(t)
	for _, address := range []string{"10.96.0.11:25", "10.88.0.12:25"} {
		if said, err := greet(s.client, address); err != nil || said != greeting+"QUIT" {
			t.Errorf("%s: %q, %v", address, said, err)
		}
	}
	sealed(t, c.end(t, esmtp, "QUIT"), s.client, netip.AddrPortFrom(s.server.v4, 25))
	if said, err := greet(s.outside, "10.88.0.12:25"); err != nil || said != greeting+"QUIT" {
		t.Errorf("outside: %q, %v", said, err)
	}
}

// ownService: a pod that calls its own service goes through its proxy twice.
func (s *shop) ownService(t *testing.T) {
	res, body, err := fetch(s.server, "10.96.0.10:80")
	if err != nil || res.StatusCode != http.StatusOK || body != page {
		t.Fatalf("%v, %q, %v", res, body, err)
	}
	if peer := <-s.peers; !strings.HasPrefix(peer, "127.0.0.6:") {
		t.Errorf("called by %s", peer)
	}
	if _, body, err = fetch(s.server, "10.88.0.12:80"); err != nil || body != page { // contract 3.70
		t.Fatalf("%q, %v", body, err)
	}
	if peer := <-s.peers; !strings.HasPrefix(peer, "10.88.0.12:") {
		t.Errorf("3.70: called by %s", peer)
	}
}

// demand makes every workload STRICT, and waits until plaintext isn't answered.
func (s *shop) demand(t *testing.T) {
	t.Helper()
	for _, w := range s.world.Workloads {
		w.Modes.Default = policy.Strict
	}
	s.tell(t)
	eventually(t, "STRICT is in force", func() error {
		res, _, err := fetch(s.outside, "10.88.0.12:80")
		if err == nil {
			<-s.peers
			return fmt.Errorf("answered with %s", res.Status)
		}
		return nil
	})
}

// strict: plaintext is refused by a reset and never by a status (contract 2.16);
// the mesh client doesn't notice.
func (s *shop) strict(t *testing.T) {
	s.demand(t)
	c := s.capture(t)
	for _, address := range []string{"10.88.0.12:80", "[fd88::12]:80"} {
		if res, _, err := fetchPath(s.outside, address, "/refused"); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: want a reset, got %v, %v", address, res, err)
		}
	}
	if _, _, err := fetch(s.outside, "10.88.0.12:25"); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("another protocol: want a reset, got %v", err)
	}
	if _, body, err := fetch(s.client, "10.96.0.10:80"); err != nil || body != page {
		t.Errorf("mesh client: %q, %v", body, err)
	}
	sum := c.end(t, welcome, esmtp)
	sealed(t, sum, s.client, netip.AddrPortFrom(s.server.v4, 80))
	flows := sum.Between(s.outside.v4, netip.AddrPortFrom(s.server.v4, 80)).Flows
	if len(flows) != 1 || flows[0].ResetBy != "server" || flows[0].Received.PlainBytes != 0 {
		t.Errorf("%s", sum)
	}
	select {
	case peer := <-s.refused:
		t.Errorf("the application was called by %s", peer)
	default:
	}
}
