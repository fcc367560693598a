// Package proxy is the data plane: it stands beside an application in its pod
// and carries the application's TCP.
//
// Outbound, a connection is accepted, its original destination read, and
// [route] says where it goes: passed on, or over mutual TLS to one identity, or
// nowhere. Inbound, the first bytes and the mode of the port say what happens
// ([policy.Decide]): mutual TLS ends here, foreign TLS and plaintext are passed
// on where they may, and HTTP is relayed by one that knows it. Each connection
// leaves one [Record].
//
// Invariants:
//
//   - What a connection is allowed is decided from two immutable values, the world
//     and the credentials, each with one writer; every open connection is decided
//     again when one of them changes, and what is now forbidden is cut.
//   - A connection is registered for those changes before it is decided.
//   - A destination that is in the mesh is never spoken to in plaintext, whatever
//     fails.
//   - Every goroutine is waited for before Run returns.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"podseal.io/podseal/internal/edges"
	"podseal.io/podseal/internal/h2"
	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/metrics"
	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/tlsconn"
	"podseal.io/podseal/internal/workload"
	"podseal.io/podseal/internal/xds"
)

// Defaults of Config.
const (
	DefaultMaxConnections = 65536
	DefaultDrain          = 5 * time.Second // contract 5.46
	DefaultLinger         = 5 * time.Second // contract 5.46: the least time to drain
	defaultIdle           = time.Hour       // contract 2.36
	worldTimeout          = 10 * time.Second
	acceptPause           = 10 * time.Millisecond
	maxRecordBuffers      = 32 << 20 // bytes in large buffers; less where memory is limited
)

// Listen says where the sockets are; "" leaves one out. A host of "" is every
// address of both families.
type Listen struct {
	Outbound string // captured from the application
	Inbound  string // captured on the way to it
	Health   string // GET /healthz/ready
	Metrics  string // metrics, probes of the application, drain
	Stats    string // GET /stats/prometheus
	Admin    string // for people in the pod
}

// DefaultListen has the ports that users of Istio know (contract 5.35).
func DefaultListen() Listen {
	return Listen{Outbound: ":15001", Inbound: ":15006", Health: ":15021", Metrics: ":15020", Stats: ":15090", Admin: "127.0.0.1:15000"}
}

// AppMetrics says where the application's own metrics are; Port 0 is nowhere.
type AppMetrics struct {
	Port uint16
	Path string
}

// Config is all that a proxy is told.
type Config struct {
	Log       *slog.Logger
	Version   string
	Namespace string // of the pod
	Pod       string
	Addresses []netip.Addr // of the pod
	Cluster   string       // its name, for metrics
	Metadata  map[string]string

	Listen         Listen
	MaxConnections int           // 0 is DefaultMaxConnections
	Drain          time.Duration // how long open connections may finish
	Linger         time.Duration // how long, within Drain, new connections are still taken
	Probers        []byte        // JSON of ISTIO_KUBE_APP_PROBERS (contract 5.37), or empty
	AppMetrics     AppMetrics    // merged with the proxy's own (contract 5.49)

	API     API     // where Secrets are read that DestinationRules name
	Control Control // Address "" runs without a control plane (tests, World)

	// Prove shows that the pod is captured, and returns what else has arrived at the
	// inbound sockets meanwhile. nil is no proof: somebody else has seen to it.
	Prove func(ctx context.Context, inbound []*net.TCPListener) ([]*net.TCPConn, error)
	// OriginalDst tells where a captured connection was going.
	OriginalDst func(*net.TCPConn) (netip.AddrPort, error)
	// Dial connects; from is the source address, or invalid for any. Of ctx it must
	// look at Deadline as well as at Done, as package net does. nil is the kernel's.
	Dial func(ctx context.Context, from netip.Addr, to netip.AddrPort) (*net.TCPConn, error)
	// Lookup resolves a host of a ServiceEntry. nil is the pod's resolver.
	Lookup func(ctx context.Context, host string) ([]netip.Addr, error)
	// Random returns a number from 0 to below n; it must be safe for concurrent use.
	Random func(n int) int
	// OnIdle is called with what can be given back: when the proxy has become
	// ready, then every half a minute in which it carries nothing, connections or
	// not, and after a burst of new connections. nil is nothing.
	OnIdle func(Spare)
	// LoopbackSegment is how much TCP hands over lo in one piece at most, in bytes;
	// 0 is unknown. It is only reported.
	LoopbackSegment int
	// RecordLog is where records go that Log would write, in the same words, if its
	// handler is slog's for JSON and writes there too. One Write is one line. nil has
	// Log write them.
	RecordLog io.Writer
	// AccessLog is where the access log goes, one Write for each line. nil is nowhere.
	AccessLog io.Writer
	// Now is the time that certificates are checked against. nil is time.Now.
	Now func() time.Time
}

// Validate reports all that is missing or wrong.
func (c *Config) Validate() error {
	var faults []error
	need := func(ok bool, fault string) {
		if !ok {
			faults = append(faults, errors.New(fault))
		}
	}
	need(c.Log != nil, "no logger")
	need(c.Namespace != "", "no namespace: POD_NAMESPACE is not set")
	need(c.Pod != "", "no pod name: POD_NAME is not set")
	need(c.OriginalDst != nil, "no way to read original destinations")
	need(c.Random != nil, "no source of chance")
	need(c.MaxConnections >= 0, "the maximum of connections is negative")
	need(c.Drain >= 0, "the drain time is negative")
	need(c.Linger >= 0, "the time to linger is negative")
	return errors.Join(faults...)
}

// proxy is one running proxy.
type proxy struct {
	cfg         Config
	log         *slog.Logger
	worlds      *worldStore
	creds       *credentialStore
	conns       *conns
	calls       *conns // of this proxy's own
	authorizers authorizers
	balance     *balancer
	pick        picker                    // the balancer's; made once, as is own
	own         func(netip.AddrPort) bool // isOwn
	secrets     *secrets
	resolver    *resolver
	tunnels     tunnels // to other proxies
	lobby       lobby   // from other proxies
	unsaid      unsaid  // what clients have begun to say
	tls         tlsconn.Pool
	httpBuffers httpBuffers
	h2Buffers   h2.Buffers
	metrics     *metrics.Set
	records     ring
	recordLog   recordLog
	accessLog   accessLog
	edges       *edges.Table
	edgeNames   edgeNames
	matches     *matches
	told        atomic.Pointer[told]
	started     time.Time
	probers     probers
	scrapes     chan struct{}              // one element for each scrape of the application that is under way
	control     atomic.Pointer[xds.Client] // nil without a control plane

	sockets  sockets
	early    []*net.TCPConn // arrived before run
	handlers sync.WaitGroup
	setup    workers       // who set connections up, with deep stacks,
	second   workers       // and who carry their second direction
	draining atomic.Bool   // POST /drain was called, or the proxy is ending
	ready    atomic.Bool   // was ready once (contract 5.44)
	quit     chan struct{} // closed by POST /quitquitquit
	quitOnce sync.Once
}

// newProxy makes a proxy that listens nowhere yet.
func newProxy(cfg Config) (*proxy, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("proxy settings: %w", err)
	}
	if cfg.MaxConnections == 0 {
		cfg.MaxConnections = DefaultMaxConnections
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Lookup == nil {
		cfg.Lookup = lookupHost
	}
	if cfg.Dial == nil {
		cfg.Dial = dialKernel
	}
	p := &proxy{
		cfg: cfg, log: cfg.Log, conns: newConns(cfg.MaxConnections), balance: newBalancer(cfg.Random, time.Now),
		metrics: metrics.New(cfg.Version, cfg.Now), scrapes: make(chan struct{}, maxScrapes), quit: make(chan struct{}),
		edges: edges.NewTable(edges.MaxEdges), matches: newMatches(), started: time.Now(), unsaid: unsaid{most: maxUnsaid},
	}
	p.setup.owner, p.second.owner = &p.handlers, &p.handlers
	p.pick, p.own = p.balance.pick, p.isOwn
	p.accessLog.out, p.accessLog.hostname = cfg.AccessLog, cfg.Pod
	var err error
	if p.probers, err = parseProbers(cfg.Probers); err != nil {
		return nil, err
	}
	p.secrets = newSecrets(cfg.API, cfg.Namespace, time.Now)
	p.resolver = newResolver(cfg.Lookup, time.Now)
	p.tls.Limit = min(maxRecordBuffers, debug.SetMemoryLimit(-1)/4) // reads GOMEMLIMIT
	p.creds = newCredentials(cfg.Now, func(snap *identity.Snapshot) {
		p.conns.recheck(p.worlds.world(), snap)
		p.calls.recheck(p.worlds.world(), snap)
	})
	p.calls = newConns(maxCalls)
	p.authorizers.call = p.call
	p.worlds = newWorldStore(cfg.Namespace+"/"+cfg.Pod, p.worldChanged)
	return p, nil
}

// worldChanged follows every swap of the world: whom we trust first, then every
// open connection.
func (p *proxy) worldChanged(w *workload.World) {
	if err := p.creds.trust(w.Mesh.BundlePEM, w.Mesh.RevokedPEM, w.Mesh.TrustDomains); err != nil {
		p.log.Error("whom to trust can't be read, what was in force stays", slog.String("error", err.Error()))
	}
	p.accessLog.set(w.Mesh.AccessLog, p.log)
	p.conns.recheck(w, p.creds.current.Load())
	p.calls.recheck(w, p.creds.current.Load())
	p.dismiss()
}

// Run binds every socket, then carries connections until the context ends, and
// then drains. A proxy that ends before it was ready has failed, and the error says
// what it was waiting for.
func Run(ctx context.Context, cfg Config) error {
	p, err := newProxy(cfg)
	if err != nil {
		return err
	}
	if err := p.bind(ctx); err != nil {
		return err
	}
	if err := p.prove(ctx); err != nil {
		p.sockets.close()
		return err
	}
	if err := p.run(ctx); err != nil {
		return err
	}
	if missing := p.missing(); missing != "" && cfg.Control.Address != "" {
		return fmt.Errorf("told to end before it was ready: %s (%s)", missing, cfg.Control.Address)
	}
	return nil
}

// prove returns an error if the pod is not captured (contract 5.14, 5.52). Nothing
// has been served then, and the proxy was never ready.
func (p *proxy) prove(ctx context.Context) error {
	if p.cfg.Prove == nil {
		return nil
	}
	var err error
	if p.early, err = p.cfg.Prove(ctx, p.sockets.inbound); err != nil {
		for _, c := range p.early {
			reset(c)
		}
		return err
	}
	p.log.Info("capture is in place")
	return nil
}

// run serves on the bound sockets until the context ends or the proxy is told
// to quit, and drains.
func (p *proxy) run(ctx context.Context) error {
	p.log.Info("proxy started", slog.String("version", p.cfg.Version), slog.String("workload", p.worlds.self),
		slog.String("outbound", p.sockets.outbound.String()), slog.String("inbound", p.sockets.inbound.String()))
	// Connections outlive ctx: they end by themselves, or are cut when the time
	// to drain is over.
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	var services sync.WaitGroup
	services.Go(func() { p.runControl(work) })
	services.Go(func() { p.announce(work) })
	services.Go(func() { p.sockets.serveHTTP(work, p.log) })
	p.sockets.inbound.accept(&services, p.log, func(c *net.TCPConn) { p.accepted(work, c, directionInbound) })
	p.sockets.outbound.accept(&services, p.log, func(c *net.TCPConn) { p.accepted(work, c, directionOutbound) })
	for _, c := range p.early {
		p.accepted(work, c, directionInbound)
	}

	quit := false
	select {
	case <-ctx.Done():
	case <-p.quit:
		quit = true
	}
	p.drain(quit)
	p.cutAll() // before stop, which would end them without a reason
	stop()
	p.sockets.close()
	services.Wait() // from here on nothing is accepted
	p.cutAll()
	p.setup.close()
	p.second.close()
	late := time.AfterFunc(tunnelLeave, p.resetTunnels)
	p.handlers.Wait()
	late.Stop()
	p.authorizers.close()
	p.cutCalls()
	p.log.Info("proxy stopped")
	return nil
}

// announce says once that the proxy is ready, and from then on when it is idle.
func (p *proxy) announce(ctx context.Context) {
	for _, there := range []<-chan struct{}{p.worlds.known, p.creds.issued} {
		select {
		case <-there:
		case <-ctx.Done():
			return
		}
	}
	p.ready.Store(true)
	p.log.Info("proxy ready")
	if p.cfg.OnIdle != nil {
		p.tellIdle(ctx)
	}
}

// drain lets open connections finish. Nothing is refused at first, since clients
// go on to connect until every node knows that the pod is ending; then the
// inbound side is closed. The outbound side accepts to the end, since an
// application that is ending may still need to speak (contract 5.46). After POST
// /drain the application has had its time already (contract 5.47), and after
// POST /quitquitquit there is nothing to wait for (contract 5.48).
func (p *proxy) drain(quit bool) {
	told := p.startDraining()
	p.tunnels.close()
	p.dismiss()
	if quit || told || p.cfg.Drain == 0 {
		p.sockets.inbound.close()
		p.log.Info("proxy stops at once", slog.Int("connections", len(p.conns.all())), slog.Bool("told_to_quit", quit))
		return
	}
	over, linger := time.NewTimer(p.cfg.Drain), time.NewTimer(min(p.cfg.Linger, p.cfg.Drain))
	defer over.Stop()
	defer linger.Stop()
	select {
	case <-linger.C:
	case <-p.quit:
	}
	p.sockets.inbound.close()
	select {
	case <-p.conns.none():
	case <-over.C:
	case <-p.quit:
	}
	if open := len(p.conns.all()); open > 0 {
		p.log.Warn("proxy drain time is over, cutting what is open", slog.Int("connections", open), slog.Duration("drain", p.cfg.Drain))
		return
	}
	p.log.Info("proxy drained, all connections have finished")
}

// startDraining asks clients to send their next requests elsewhere, and reports
// whether that has been done before.
func (p *proxy) startDraining() bool {
	told := p.draining.Swap(true)
	if !told {
		for _, c := range p.conns.some() {
			c.startDraining()
		}
	}
	return told
}

// cutAll cuts what is open. From then on no tunnel is kept.
func (p *proxy) cutAll() {
	for _, c := range p.conns.all() {
		c.cut(policy.Draining, errDetail("the proxy is shutting down"))
	}
	p.tunnels.end()
	p.lobby.end()
}

// resetTunnels is for those whose other end doesn't close them in time. What was sent
// last over the others has arrived.
func (p *proxy) resetTunnels() {
	for _, t := range append(p.tunnels.all(), p.lobby.all()...) {
		t.close()
		t.mux.Close()
	}
}

// accepted takes over one captured connection.
func (p *proxy) accepted(ctx context.Context, raw *net.TCPConn, direction string) {
	now := time.Now()
	c := &conn{direction: direction, client: raw, started: now}
	c.facts = Record{Start: now, Direction: direction, Source: addrPort(raw.RemoteAddr())}
	p.take(ctx, c)
}

// take has a connection served, unless there are too many.
func (p *proxy) take(ctx context.Context, c *conn) {
	if !p.conns.add(c) {
		c.cut(policy.Overloaded, errDetail("as many connections are open as this proxy allows"))
		p.finish(ctx, c)
		return
	}
	p.metrics.Open(c.direction).Inc()
	p.setup.do(func() { p.serve(ctx, c) })
}

// serve sets a connection up, which takes a deep stack, and leaves it to a new
// goroutine to carry it: a stack that has grown would stay so for as long as the
// connection lasts, and most of what an idle one takes is stacks. Without a
// handshake it is not so deep.
func (p *proxy) serve(ctx context.Context, c *conn) {
	switch {
	case c.direction == directionOutbound:
		p.serveOutbound(ctx, c)
	case c.tunnel != nil:
		p.serveStream(ctx, c)
	default:
		p.serveInbound(ctx, c)
	}
	switch {
	case c.carry == nil:
	case c.reused:
		c.carry()
	default:
		p.handlers.Go(func() {
			c.carry()
			p.over(ctx, c)
		})
		return
	}
	p.over(ctx, c)
}

// over ends what serve has begun.
func (p *proxy) over(ctx context.Context, c *conn) {
	for _, f := range slices.Backward(c.atEnd) {
		f()
	}
	c.close()
	p.conns.remove(c)
	p.metrics.Open(c.direction).Dec()
	p.finish(ctx, c)
}

// finish leaves the connection's record.
func (p *proxy) finish(ctx context.Context, c *conn) {
	r := c.snapshot(time.Now())
	if r.Reason != policy.None {
		p.metrics.Refused(r.Direction, string(r.Reason))
	}
	p.countEnd(c, &r, time.Now())
	p.records.add(r)
	p.recordLog.write(ctx, &r, &p.cfg)
	p.logConnection(c, &r)
}

// ownWorkload waits until the world is known: a proxy that knows no policy yet
// must neither let anything in nor send anything out in plaintext.
func (p *proxy) ownWorkload(ctx context.Context) (*workload.Workload, error) {
	select {
	case <-p.worlds.known:
		own, _ := p.worlds.own()
		return own, nil
	default:
	}
	timer := time.NewTimer(worldTimeout)
	defer timer.Stop()
	select {
	case <-p.worlds.known:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-timer.C:
		return nil, errDetail("the control plane has not told this proxy about its pod yet")
	}
	own, _ := p.worlds.own()
	return own, nil
}

// snapshot is the certificate and roots in force; before the first it waits a
// little, as a pod that is starting may be faster than its certificate.
func (p *proxy) snapshot(ctx context.Context) (*identity.Snapshot, error) {
	snap, err := p.creds.Snapshot()
	if !errors.Is(err, errNoCertificate) {
		return snap, err
	}
	timer := time.NewTimer(worldTimeout)
	defer timer.Stop()
	select {
	case <-p.creds.issued:
	case <-ctx.Done():
	case <-timer.C:
	}
	return p.creds.Snapshot()
}

// idleTimeout is how long a connection may be silent.
func (p *proxy) idleTimeout() time.Duration {
	if d := p.worlds.world().Mesh.IdleTimeout; d > 0 {
		return d
	}
	return defaultIdle
}

// isOwnSocket reports whether a connection to this address of the pod would come to
// one of the capture sockets.
func (p *proxy) isOwnSocket(a netip.AddrPort) bool {
	return p.sockets.outbound.at(a) || p.sockets.inbound.at(a)
}

// isOwn reports whether a capture port of this very pod is meant.
func (p *proxy) isOwn(a netip.AddrPort) bool {
	addr := a.Addr().Unmap()
	return p.isOwnSocket(a) && (addr.IsLoopback() || addr.IsUnspecified() || slices.Contains(p.cfg.Addresses, addr))
}
