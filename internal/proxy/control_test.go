package proxy

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	"podseal.io/podseal/internal/ca"
	"podseal.io/podseal/internal/edges"
	"podseal.io/podseal/internal/meshtest"
	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/report"
	"podseal.io/podseal/internal/wire"
	"podseal.io/podseal/internal/xds"
)

// controlPlane is a control plane in this process: the real xDS and CA servers
// over TLS, with tokens of the form "<namespace>/<service account>".
type controlPlane struct {
	addr   string
	issuer *ca.Issuer
	store  *xds.Store
	report *report.Server
	stop   func()
}

func startControlPlane(t *testing.T, issuer *ca.Issuer, addr string) *controlPlane {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	serving, err := issuer.ServingCertificate([]string{"istiod.d8-istio.svc"}, time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	cp := &controlPlane{issuer: issuer, store: xds.NewStore()}
	g := grpc.NewServer(append(xds.ServerOptions(), grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{serving}, MinVersion: tls.VersionTLS12})))...)
	ca.NewServer(ca.ServerConfig{
		Issuer: func() (*ca.Issuer, error) { return issuer, nil }, TrustDomain: func() string { return meshtest.TrustDomain }, Now: time.Now, Log: log,
		Review: func(_ context.Context, token string) (ca.Caller, error) {
			ns, sa, ok := strings.Cut(token, "/")
			if !ok {
				return ca.Caller{}, errors.New("no such token")
			}
			return ca.Caller{Namespace: ns, ServiceAccount: sa}, nil
		},
	}).Register(g)
	xs := xds.NewServer(xds.ServerConfig{Store: cp.store, Log: log, Authenticate: func(ctx context.Context) (string, error) {
		md, _ := metadata.FromIncomingContext(ctx)
		if got := md.Get("authorization"); len(got) == 1 && strings.HasPrefix(got[0], "Bearer shop/") {
			return got[0], nil
		}
		return "", errors.New("no token")
	}})
	xs.Register(g)
	cp.report = report.NewServer(report.ServerConfig{Log: log, Authenticate: func(ctx context.Context) (report.Pod, error) {
		md, _ := metadata.FromIncomingContext(ctx)
		name, ok := strings.CutPrefix(strings.Join(md.Get("authorization"), ""), "Bearer shop/")
		if !ok {
			return report.Pod{}, errors.New("no token")
		}
		return report.Pod{Namespace: "shop", Name: name}, nil
	}})
	cp.report.Register(g)
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	cp.addr = l.Addr().String()
	served := make(chan struct{})
	go func() { defer close(served); _ = g.Serve(l) }()
	cp.stop = sync.OnceFunc(func() {
		xs.Shutdown()
		cp.report.Shutdown()
		g.Stop()
		<-served
		xs.Wait()
		cp.report.Wait()
	})
	t.Cleanup(cp.stop)
	return cp
}

// publish puts a world into the store.
func (cp *controlPlane) publish(t *testing.T, w *meshtest.World) {
	t.Helper()
	w.Mesh.BundlePEM = cp.issuer.Bundle().PEM()
	all := map[string]map[string][]byte{}
	for _, typeURL := range wire.Types() {
		all[typeURL] = map[string][]byte{}
	}
	put := func(typeURL, name string, body []byte, err error) {
		if err != nil {
			t.Fatal(err)
		}
		all[typeURL][name] = body
	}
	body, err := wire.AppendMesh(nil, &w.Mesh)
	put(wire.TypeMesh, "mesh", body, err)
	for _, s := range w.Services {
		body, err := wire.AppendService(nil, s)
		put(wire.TypeService, s.Namespace+"/"+s.Name, body, err)
	}
	for _, x := range w.Workloads {
		body, err := wire.AppendWorkload(nil, x)
		put(wire.TypeWorkload, x.UID, body, err)
	}
	for typeURL, resources := range all {
		cp.store.Replace(typeURL, resources)
	}
}

// startControlled runs the proxy of a pod that knows nothing but its files.
func startControlled(t *testing.T, m *testMesh, cp *controlPlane, i int) *proxy {
	t.Helper()
	p, stop := startControlledStoppable(t, m, cp, i)
	t.Cleanup(stop)
	return p
}

func startControlledStoppable(t *testing.T, m *testMesh, cp *controlPlane, i int, change ...func(*Config)) (*proxy, func()) {
	t.Helper()
	pod := m.world.Workloads[i]
	dir := t.TempDir()
	for file, content := range map[string][]byte{"token": []byte("shop/" + pod.Name + "\n"), "root": cp.issuer.Bundle().PEM()} {
		if err := os.WriteFile(filepath.Join(dir, file), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cfg := Config{
		Log: slog.New(slog.DiscardHandler), Namespace: pod.Namespace, Pod: pod.Name, Addresses: pod.Addresses, Cluster: "Kubernetes",
		Listen:      Listen{Outbound: "127.0.0.1:0", Inbound: "127.0.0.1:0", Health: "127.0.0.1:0"},
		OriginalDst: m.net.OriginalDst, Dial: m.net.Dial(pod.Addresses[0]), Random: func(int) int { return 0 },
		Control: Control{Address: cp.addr, ServerName: "istiod.d8-istio.svc", RootFile: filepath.Join(dir, "root"), TokenFile: filepath.Join(dir, "token"), TTL: time.Hour},
	}
	for _, f := range change {
		f(&cfg)
	}
	p, err := newProxy(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.bind(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.net.Capture(pod.Addresses[0], addrPort(p.sockets.outbound[0].Addr()), addrPort(p.sockets.inbound[0].Addr()))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = p.run(ctx) }()
	return p, func() { cancel(); <-done }
}

// All of it together: certificates by token, the world by xDS, a policy that
// changes at run time, and a control plane that goes away and comes back.
func TestUnderAControlPlane(t *testing.T) {
	issuer, err := ca.NewSelfSigned(meshtest.TrustDomain, time.Now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cp := startControlPlane(t, issuer, "127.0.0.1:0")
	m := newTestMesh(t)
	client, web := m.pod("client"), m.pod("web")
	app := meshtest.Serve(t, web.Addresses[0], meshtest.Echo)
	m.world.Service("web", vip(80), policy.Auto, app.Port(), web)
	clientSide, inside := startControlled(t, m, cp, 0), startControlled(t, m, cp, 1)
	early := m.connect(client.Addresses[0], vip(80)) // before anything is known: it waits, and goes out encrypted
	cp.publish(t, m.world)
	exchange(t, early, "\x00early")
	for _, p := range []*proxy{clientSide, inside} {
		eventually(t, func() bool { return p.notReady() == "" })
	}
	c := m.connect(client.Addresses[0], vip(80))
	exchange(t, c, "\x00hello")
	plain := m.connect(m.outsider(), app)
	exchange(t, plain, "\x00plain")
	began := time.Now()
	eventually(t, func() bool { return cp.told(edges.Plaintext) })
	t.Logf("the plaintext caller was reported after %s", time.Since(began))

	web.Modes.Default = policy.Strict
	began = time.Now()
	cp.publish(t, m.world)
	ends(t, plain)
	t.Logf("the policy was in force after %s", time.Since(began))
	record(t, inside, withReason(policy.PolicyChanged))
	exchange(t, c, "\x00still")
	r := record2(t, inside, "inbound")
	if r.SourceIdentity != "cluster.local/ns/shop/sa/client" || r.TLSVersion != "TLS 1.3" {
		t.Errorf("record %+v", r)
	}

	cp.stop() // design D16: what was last known stays in force
	exchange(t, c, "\x00without")
	exchange(t, m.connect(client.Addresses[0], vip(80)), "\x00new without")
	cp = startControlPlane(t, issuer, cp.addr)
	web.Modes.Default = policy.Permissive
	cp.publish(t, m.world)
	eventually(t, func() bool { own, ok := inside.worlds.own(); return ok && own.Modes.Default == policy.Permissive })
	exchange(t, m.connect(m.outsider(), app), "\x00plain again")
	eventually(t, func() bool { return cp.told(edges.MutualTLS) }) // of before: the proxy holds it (design D15)
}

// told reports whether the pod web has reported an edge of such security with
// something carried.
func (cp *controlPlane) told(security edges.Security) bool {
	for _, r := range cp.report.Reports() {
		for _, e := range r.Edges {
			if r.Pod.Name == "web" && r.Proxy.GetSerial() != "" && e.Key.Security == security && e.Counts.BytesReceived > 0 {
				return true
			}
		}
	}
	return false
}

// A control plane whose certificate is of another root is not listened to.
func TestControlPlaneIsVerified(t *testing.T) {
	issuer, err := ca.NewSelfSigned(meshtest.TrustDomain, time.Now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := ca.NewSelfSigned(meshtest.TrustDomain, time.Now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cp := startControlPlane(t, stranger, "127.0.0.1:0")
	m := newTestMesh(t)
	m.pod("web")
	cp.publish(t, m.world)
	honest := *cp
	honest.issuer = issuer
	p := startControlled(t, m, &honest, 0)
	eventually(t, func() bool {
		c := p.control.Load()
		return c != nil && strings.Contains(c.Status().LastError, "certificate signed by unknown authority")
	})
	if p.notReady() == "" {
		t.Error("the proxy is ready")
	}
	root := p.cfg.Control.RootFile
	if err := os.WriteFile(root, stranger.Bundle().PEM(), 0o600); err != nil { // it is read anew for each connection
		t.Fatal(err)
	}
	eventually(t, func() bool { return p.notReady() == "" })
}

// TestRootIsExchanged: a control plane that has lost its root comes back with
// another. Proxies listen to it only when the mounted root says so, and then
// have new certificates at once, without a restart (contract 4.30, 4.37).
func TestRootIsExchanged(t *testing.T) {
	newIssuer := func() *ca.Issuer {
		issuer, err := ca.NewSelfSigned(meshtest.TrustDomain, time.Now(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return issuer
	}
	cp := startControlPlane(t, newIssuer(), "127.0.0.1:0")
	m := newTestMesh(t)
	client, web := m.pod("client"), m.pod("web")
	web.Modes.Default = policy.Strict
	app := meshtest.Serve(t, web.Addresses[0], meshtest.Echo)
	m.world.Service("web", vip(80), policy.Auto, app.Port(), web)
	proxies := [2]*proxy{startControlled(t, m, cp, 0), startControlled(t, m, cp, 1)}
	cp.publish(t, m.world)
	for _, p := range proxies {
		eventually(t, func() bool { return p.notReady() == "" })
	}
	open := m.connect(client.Addresses[0], vip(80))
	exchange(t, open, "\x00before")

	cp.stop()
	cp = startControlPlane(t, newIssuer(), cp.addr)
	cp.publish(t, m.world)
	for _, p := range proxies {
		eventually(t, func() bool { return strings.Contains(p.control.Load().Status().LastError, "unknown authority") })
	}
	exchange(t, open, "\x00not authenticated, so not listened to")
	exchange(t, m.connect(client.Addresses[0], vip(80)), "\x00so what was known holds")

	began := time.Now()
	for _, p := range proxies {
		if err := os.WriteFile(p.cfg.Control.RootFile, cp.issuer.Bundle().PEM(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range proxies {
		eventually(t, func() bool {
			snap, err := p.creds.Snapshot()
			return err == nil && snap.Bundle.Hash() == cp.issuer.Bundle().Hash() && snap.Credential.Leaf.CheckSignatureFrom(cp.issuer.Certificate()) == nil
		})
	}
	t.Logf("the new root was in force after %s", time.Since(began))
	ends(t, open) // its peers proved themselves by a root that is no longer trusted
	exchange(t, m.connect(client.Addresses[0], vip(80)), "\x00after")
}

func TestReadToken(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "token")
	if _, err := readToken(file); err == nil {
		t.Error("a missing token is no error")
	}
	for content, want := range map[string]string{" abc\n": "abc", "": "", "\n": "", strings.Repeat("x", maxToken+1): ""} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := readToken(file); got != want || (err == nil) != (want != "") {
			t.Errorf("got %q, %v", got, err)
		}
	}
}
