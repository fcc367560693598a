package datapath

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"podseal.io/podseal/test/bench/load"
)

const (
	clientAddress = "10.77.0.1"
	serverAddress = "10.77.0.2"
)

// placement says on which cores things run.
type placement struct {
	name    string
	apps    []int // the client and the application
	proxies []int
}

// placements are the two that are measured: one core for each end and all that
// it does, so that nobody hides behind another's core; and as the kernel likes.
func placements(o Options) []placement {
	all := make([]int, o.Machine.Cores)
	for i := range all {
		all[i] = i
	}
	return []placement{
		{"pinned", []int{o.Cores[0]}, []int{o.Cores[1]}},
		{"unpinned", all, all},
	}
}

// chain is client → proxy → proxy → application, in two pods of its own.
type chain struct {
	peer           peer
	program        string
	options        Options
	place          placement
	dir            string
	client, server *pod
	control        *controlPlane
	app            *running
	proxies        []*running // of the client's pod, of the server's
}

// newChain starts one. What fails is taken down again.
func newChain(ctx context.Context, o Options, p peer, program string, place placement) (c *chain, err error) {
	c = &chain{peer: p, program: program, options: o, place: place}
	defer func() {
		if err != nil {
			c.stop()
			c, err = nil, fmt.Errorf("start %s: %w", p.name, err)
		}
	}()
	if c.dir, err = os.MkdirTemp("", "podseal-bench-"); err != nil {
		return c, err
	}
	if err := os.Chmod(c.dir, 0o755); err != nil { // the proxies are another user
		return c, err
	}
	if c.client, c.server, err = newPods(o.Congestion); err != nil {
		return c, err
	}
	c.client.nice, c.server.nice = o.Nice, o.Nice
	if err := load.NewCounter(c.counter()); err != nil {
		return c, err
	}
	c.app, err = c.server.start(place.apps, c.loadgen("app", strconv.Itoa(appPort), strconv.Itoa(threads(place.apps)), c.counter()))
	if err != nil {
		return c, err
	}
	if p.command == nil {
		return c, c.wait(ctx)
	}
	if err := c.captureBoth(ctx); err != nil {
		return c, err
	}
	if p.podseal {
		if c.control, err = newControlPlane(c.client, c.server); err != nil {
			return c, err
		}
	}
	return c, c.startProxies(ctx)
}

// threads is how many a load generator has: it shares the machine.
func threads(cpus []int) int { return max(1, len(cpus)/4) }

func (c *chain) loadgen(args ...string) program {
	return program{name: filepath.Join(c.options.dir, "loadgen"), args: args, user: appUser}
}

// captureBoth redirects both pods' traffic as Podseal's init container does: the
// rules are the same for every proxy. Another build of Podseal brings its own. What
// that container does besides, for Podseal's speed, others don't get: no mesh of
// theirs would do it.
func (c *chain) captureBoth(ctx context.Context) error {
	g := program{name: filepath.Join(c.options.Bin, "podseal-proxy")}
	if c.peer.podseal {
		g.name = c.program
	}
	g.args = []string{
		"capture", "-p", strconv.Itoa(outboundPort), "-z", strconv.Itoa(inboundPort), "-u", strconv.Itoa(proxyUser),
		"-m", "REDIRECT", "-i", "*", "-x", "", "-b", "*", "-d", "15090,15021,15020",
	}
	for _, p := range []*pod{c.client, c.server} {
		if _, err := p.run(ctx, nil, g); err != nil {
			return err
		}
		if err := p.do(nil, p.tune); err != nil {
			return err
		}
		if c.peer.podseal || c.peer.wide {
			continue
		}
		if err := p.do(nil, narrow); err != nil {
			return err
		}
	}
	return nil
}

// startProxies starts both. Each has a copy of its program, so that what it has
// in memory is its own.
func (c *chain) startProxies(ctx context.Context) error {
	clientFiles, serverFiles, err := certificates(c.dir, time.Now())
	if err != nil {
		return err
	}
	for _, s := range []site{
		{client: true, files: clientFiles, target: net.JoinHostPort(serverAddress, strconv.Itoa(appPort))},
		{files: serverFiles, target: net.JoinHostPort("127.0.0.1", strconv.Itoa(appPort))},
	} {
		s.cores, s.conns, s.dir = len(c.place.proxies), c.options.most, s.files.dir
		if c.control != nil {
			if err := os.WriteFile(s.root, c.control.root, 0o644); err != nil {
				return err
			}
		}
		if err := os.Chown(s.dir, proxyUser, proxyUser); err != nil {
			return err
		}
		own := filepath.Join(s.dir, filepath.Base(c.program))
		if err := copyProgram(own, c.program); err != nil {
			return err
		}
		g, err := c.peer.command(own, s)
		if err != nil {
			return err
		}
		if c.peer.podseal && !c.peer.mlkem {
			g.env = append(g.env, "GODEBUG=tlsmlkem=0")
		}
		p := c.server
		if s.client {
			p = c.client
		}
		r, err := p.start(c.place.proxies, g)
		if err != nil {
			return err
		}
		c.proxies = append(c.proxies, r)
	}
	return c.wait(ctx)
}

// copyProgram copies a file that already may be there.
func copyProgram(to, from string) error {
	if _, err := os.Stat(to); err == nil {
		return nil
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		return errors.Join(err, out.Close())
	}
	return out.Close()
}

// wait waits until bytes go through.
func (c *chain) wait(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		err := c.try()
		if err == nil {
			return nil
		}
		for _, r := range slices.Concat(c.proxies, []*running{c.app}) {
			if ended := r.ended(); ended != nil {
				return ended
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("nothing goes through: %w", err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (c *chain) try() error {
	if c.control != nil {
		for _, p := range []*pod{c.client, c.server} {
			if err := ready(p); err != nil {
				return err
			}
		}
	}
	return c.exchange(c.peer)
}

// exchange sends bytes to and fro, once.
func (c *chain) exchange(p peer) error {
	conn, err := c.hold(p)
	if conn != nil {
		conn.Close()
	}
	return err
}

// hold is exchange on a connection that the caller closes.
func (c *chain) hold(p peer) (conn net.Conn, err error) {
	err = c.client.do(nil, func() error {
		conn, err = load.Exchange(address(p))
		return err
	})
	return conn, err
}

// address is what the client of a peer calls.
func address(p peer) string {
	port := p.port
	if port == 0 {
		port = appPort
	}
	return net.JoinHostPort(serverAddress, strconv.Itoa(port))
}

// restart starts the proxies afresh.
func (c *chain) restart(ctx context.Context) error {
	for _, r := range c.proxies {
		r.stop()
	}
	c.proxies = nil
	return c.startProxies(ctx)
}

func (c *chain) stop() {
	for _, r := range slices.Concat(c.proxies, []*running{c.app}) {
		if r != nil {
			r.stop()
		}
	}
	if c.control != nil {
		c.control.stop()
	}
	for _, p := range []*pod{c.client, c.server} {
		if p != nil {
			p.ns.Close()
		}
	}
	_ = os.RemoveAll(c.dir) // below the folder for what is temporary
}

// counter is the file in which the application counts.
func (c *chain) counter() string { return filepath.Join(c.dir, "counter") }

func (c *chain) pids() []int {
	var all []int
	for _, r := range c.proxies {
		all = append(all, r.pids()...)
	}
	return all
}

// drive does jobs through the chain as a peer's client.
func (c *chain) drive(ctx context.Context, p peer, jobs []load.Job, warmup, length time.Duration) (load.Result, error) {
	spec := load.Spec{
		Address: address(p), Jobs: jobs, Warmup: warmup, Length: length, Threads: threads(c.place.apps),
		Proxies: c.pids(), Server: c.app.pids(), Counter: c.counter(),
	}
	text, err := json.Marshal(spec)
	if err != nil {
		return load.Result{}, fmt.Errorf("encode the specification: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, warmup+length+40*time.Second)
	defer cancel()
	out, err := c.client.run(ctx, c.place.apps, c.loadgen("drive", string(text)))
	if err != nil {
		return load.Result{}, err
	}
	var r load.Result
	if err := json.Unmarshal(out, &r); err != nil {
		return r, fmt.Errorf("the load generator said %q: %w", out, err)
	}
	return r, nil
}

// idleFigures are what a proxy has in memory, in bytes: at start, and for each
// open connection that rests.
type idleFigures struct{ start, each float64 }

// settle is how long memory is left alone before it is read.
const settle = 1500 * time.Millisecond

// idle starts the proxies afresh and holds connections open.
func (c *chain) idle(ctx context.Context, conns int) (f idleFigures, err error) {
	if err := c.restart(ctx); err != nil {
		return f, err
	}
	before, err := c.memory(ctx)
	if err != nil {
		return f, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	g := c.loadgen("hold", address(c.peer), strconv.Itoa(conns))
	ready, release := make(chan error, 1), make(chan struct{})
	holder, err := c.client.hold(ctx, c.place.apps, g, ready, release)
	if err != nil {
		return f, err
	}
	if err = <-ready; err == nil {
		var after held
		if after, err = c.memory(ctx); err == nil {
			n := float64(len(c.proxies))
			// Pages of the program come and go, with connections and without.
			f = idleFigures{before.all / n, (after.anonymous - before.anonymous) / n / float64(conns)}
		}
	}
	close(release)
	return f, errors.Join(err, <-holder)
}

// memory is that of both proxies when they have settled.
func (c *chain) memory(ctx context.Context) (held, error) {
	select {
	case <-time.After(settle):
	case <-ctx.Done():
		return held{}, context.Cause(ctx)
	}
	return memory(c.pids())
}
