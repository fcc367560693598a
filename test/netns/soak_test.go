package netns

import (
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/proxy"
	"podseal.io/podseal/internal/workload"
)

var soakFor = flag.Duration("soak", 8*time.Second, "how long TestSoak lasts; make soak takes an hour")

// soak is a mesh with traffic of all kinds, some of it hostile, in which things fail.
type soak struct {
	*mesh
	client, server, outside *pod
	webserver               *workload.Workload
	proxies                 map[string]*subject
	errands                 []*errand
}

// errand is what one caller does again and again.
type errand struct {
	name  string
	from  *pod
	pause time.Duration // about as long, between two
	// what it does; an error of an honest one fails the test, that of another is what
	// it has deserved
	do     func(r *rand.Rand) error
	honest bool
	// whether it fails and succeeds in turn
	sometimes bool

	done, failed atomic.Int64
}

// subject is a proxy that must end as it began.
type subject struct {
	pid int
	pod *pod

	mu     sync.Mutex
	broken []proxy.Record // connections that ended with an error, the last mostRecalled of them
}

// usage is what a proxy holds.
type usage struct {
	goroutines, files int
	kB                int // of its own: anonymous memory
}

func (u usage) String() string {
	return fmt.Sprintf("%d goroutines, %d descriptors, %d kB", u.goroutines, u.files, u.kB)
}

const (
	soakVIP  = "10.96.0.10"
	soakAddr = "10.88.0.12"
	soakEcho = "7000"
)

// TestSoak: mixed traffic, hostile callers, certificates that live two minutes, a
// policy that changes, a control plane and a network that go away. No honest
// exchange is disturbed by any of it, and the proxies end with the goroutines,
// descriptors and memory that they began with.
func TestSoak(t *testing.T) {
	t.Parallel()
	s := newSoak(t)
	began := s.atRest(t)
	// what is built once, and kept, is there after a while of the same traffic
	s.run(t, min(*soakFor/4, 2*time.Minute))
	warm := s.settle(t, began, nil)
	s.run(t, *soakFor)
	ended := s.settle(t, began, warm)
	for name := range s.proxies {
		t.Logf("%s: began with %s; warm: %s; ended with %s", name, began[name], warm[name], ended[name])
	}
	for _, e := range s.errands {
		t.Logf("%-22s %8d done, %d ended with an error", e.name, e.done.Load(), e.failed.Load())
		if e.done.Load() == 0 {
			t.Errorf("%s: never done", e.name)
		}
		if passed := e.done.Load() - e.failed.Load(); e.sometimes && (passed == 0 || e.failed.Load() == 0) {
			t.Errorf("%s: %d of %d passed; some must, and some must not", e.name, passed, e.done.Load())
		}
	}
}

func newSoak(t *testing.T) *soak {
	t.Helper()
	m := newMesh(t)
	s := &soak{
		mesh: m, client: m.attach(t, "client", "10.88.0.11", "fd88::11"), server: m.attach(t, "server", soakAddr, "fd88::12"),
		outside: m.attach(t, "outside", "10.88.0.13", "fd88::13"),
	}
	m.world.Pod("shop", "client", s.client.v4)
	s.webserver = m.world.Pod("shop", "webserver", s.server.v4)
	m.world.Service("webserver", netip.MustParseAddrPort(soakVIP+":80"), policy.HTTP, 80, s.webserver)
	m.world.Service("echo", netip.MustParseAddrPort(soakVIP+":"+soakEcho), policy.TCP, 7000, s.webserver)
	m.world.Service("mail", netip.MustParseAddrPort(soakVIP+":25"), policy.Auto, 25, s.webserver)
	m.tell(t)
	s.serve(t)
	env := []string{"SECRET_TTL=2m", "PODSEAL_LOG_LEVEL=warn"} // a line for each connection would be a gigabyte
	s.proxies = map[string]*subject{
		"client":    {pid: m.inject(t, s.client, "client", env...), pod: s.client},
		"webserver": {pid: m.inject(t, s.server, "webserver", env...), pod: s.server},
	}
	s.errands = []*errand{
		{name: "pages, kept alive", from: s.client, pause: 20 * time.Millisecond, honest: true, do: s.pages},
		{name: "echo", from: s.client, pause: 10 * time.Millisecond, honest: true, do: s.echo(64 << 10)},
		{name: "echo, bulk", from: s.client, pause: 400 * time.Millisecond, honest: true, do: s.echo(16 << 20)},
		{name: "the server speaks first", from: s.client, pause: 50 * time.Millisecond, honest: true, do: s.mail},
		{name: "connections at rest", from: s.client, pause: time.Second, honest: true, do: s.parked},
		{name: "plaintext from outside", from: s.outside, pause: 50 * time.Millisecond, sometimes: true, do: s.plaintext},
		{name: "reset in the middle", from: s.client, pause: 50 * time.Millisecond, do: s.reset},
		{name: "reads slowly", from: s.client, pause: 200 * time.Millisecond, do: s.slow},
		{name: "half a ClientHello", from: s.outside, pause: 100 * time.Millisecond, do: s.halfHello},
		{name: "garbage", from: s.outside, pause: 50 * time.Millisecond, do: s.garbage},
		{name: "TLS without a name", from: s.outside, pause: 100 * time.Millisecond, do: s.nameless},
		{name: "HTTP that smuggles", from: s.client, pause: 100 * time.Millisecond, do: s.smuggler},
		{name: "nobody listens", from: s.client, pause: 200 * time.Millisecond, do: s.nobody},
	}
	return s
}

// serve runs the applications: pages on 80, an echo on 7000, mail on 25.
func (s *soak) serve(t *testing.T) {
	t.Helper()
	web := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		io.WriteString(w, page)
	})}
	pages, echo, mail := s.server.listen(t, ":80"), s.server.listen(t, ":"+soakEcho), s.server.listen(t, ":25")
	var all sync.WaitGroup
	all.Go(func() { web.Serve(pages) })
	answer := func(l net.Listener, greeting string) {
		var talks sync.WaitGroup
		defer talks.Wait()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			talks.Go(func() {
				defer c.Close()
				io.WriteString(c, greeting)
				io.Copy(c, c)
			})
		}
	}
	all.Go(func() { answer(echo, "") })
	all.Go(func() { answer(mail, greeting) })
	t.Cleanup(func() { web.Close(); echo.Close(); mail.Close(); all.Wait() })
}

// run lets everything happen for a while, until all of it has ended.
func (s *soak) run(t *testing.T, d time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	var all sync.WaitGroup
	for i, e := range s.errands {
		all.Go(func() {
			if err := e.from.try(app, func() error {
				e.repeat(ctx, rand.New(rand.NewPCG(uint64(i), uint64(d))), func(err error) { s.disturbed(t, e, err) })
				return nil
			}); err != nil {
				t.Errorf("%s: %v", e.name, err)
			}
		})
	}
	for name, p := range s.proxies {
		all.Go(func() {
			if err := p.follow(ctx); err != nil && ctx.Err() == nil {
				t.Errorf("records of %s: %v", name, err)
			}
		})
	}
	all.Go(func() { s.trouble(ctx, t) })
	all.Go(func() { s.watch(ctx, t) })
	all.Wait()
}

// repeat does an errand until the time is over, and tells what went wrong with an
// honest one.
func (e *errand) repeat(ctx context.Context, r *rand.Rand, wrong func(error)) {
	for {
		err := e.do(r)
		e.done.Add(1)
		if err != nil {
			e.failed.Add(1)
			if e.honest {
				wrong(err)
			}
		}
		if !rest(ctx, e.pause/2+rand.N(e.pause)) {
			return
		}
	}
}

// rest reports false when the time is over.
func rest(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// trouble is what happens to a mesh: STRICT comes and goes, the control plane is
// away for some seconds, the network for one.
func (s *soak) trouble(ctx context.Context, t *testing.T) {
	for i := 1; rest(ctx, 1500*time.Millisecond); i++ {
		s.webserver.Modes.Default = policy.Strict
		if i%2 == 0 {
			s.webserver.Modes.Default = policy.Permissive
		}
		s.tell(t)
		switch {
		case i%20 == 3:
			s.restart(func() { rest(ctx, 3*time.Second) })
		case i%10 == 2:
			s.link(t, false)
			rest(ctx, time.Second)
			s.link(t, true)
		}
	}
}

// watch tells what the proxies hold, a few times a run.
func (s *soak) watch(ctx context.Context, t *testing.T) {
	for began := time.Now(); rest(ctx, max(*soakFor/20, time.Second)); {
		for name, p := range s.proxies {
			u, err := p.usage()
			if err != nil {
				t.Errorf("%s: %v", name, err)
				return
			}
			t.Logf("%4.0f s, %s: %s", time.Since(began).Seconds(), name, u)
		}
	}
}

// settle waits until the proxies hold no more goroutines and descriptors than they
// began with, and hardly more memory than when they were warm. What they keep for
// reuse is given up after 40 s. Memory goes back to the system when nothing has been
// carried for half a minute, and what our own looks at the metrics cost at every third
// time after that, so they are left alone for as long before it is read.
func (s *soak) settle(t *testing.T, began, warm map[string]usage) map[string]usage {
	t.Helper()
	s.until(t, 500*time.Millisecond, began, func(u, b, _ usage) bool { return u.goroutines <= b.goroutines && u.files <= b.files }, warm)
	rest(t.Context(), min(*soakFor, 100*time.Second))
	return s.until(t, 10*time.Second, began, func(u, b, w usage) bool {
		return u.goroutines <= b.goroutines && u.files <= b.files && (warm == nil || u.kB <= w.kB+w.kB/10+1024)
	}, warm)
}

// until looks at the proxies every so often until what they hold is as wanted.
func (s *soak) until(t *testing.T, every time.Duration, began map[string]usage, wanted func(now, began, warm usage) bool, warm map[string]usage) map[string]usage {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for {
		now, over := s.usage(t), ""
		for name, b := range began {
			if !wanted(now[name], b, warm[name]) {
				over += fmt.Sprintf("%s: %s; began with %s; warm: %s\n", name, now[name], b, warm[name])
			}
		}
		if over == "" {
			return now
		}
		if !rest(ctx, every) {
			t.Fatalf("after two minutes of rest:\n%s", over)
		}
	}
}

// atRest is what the proxies hold when they have begun and nothing has happened: the
// most of two seconds, in which all streams to the control plane are made.
func (s *soak) atRest(t *testing.T) map[string]usage {
	t.Helper()
	most := s.usage(t)
	for range 20 {
		if !rest(t.Context(), 100*time.Millisecond) {
			break
		}
		for name, u := range s.usage(t) {
			m := most[name]
			most[name] = usage{max(m.goroutines, u.goroutines), max(m.files, u.files), max(m.kB, u.kB)}
		}
	}
	return most
}

func (s *soak) usage(t *testing.T) map[string]usage {
	t.Helper()
	all := map[string]usage{}
	for name, p := range s.proxies {
		u, err := p.usage()
		if err != nil {
			t.Fatal(err)
		}
		all[name] = u
	}
	return all
}

var goroutines = regexp.MustCompile(`(?m)^go_goroutines (\d+)`)

func (p *subject) usage() (usage, error) {
	var u usage
	res, body, err := fetchPath(p.pod, "127.0.0.1:15020", "/stats/prometheus")
	if err != nil {
		return u, err
	}
	found := goroutines.FindStringSubmatch(body)
	if found == nil {
		return u, fmt.Errorf("status %s, and no count of goroutines", res.Status)
	}
	if u.goroutines, err = strconv.Atoi(found[1]); err != nil {
		return u, err
	}
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.pid))
	if err != nil {
		return u, err
	}
	u.files = len(files)
	smaps, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", p.pid))
	if err != nil {
		return u, err
	}
	_, rest, _ := strings.Cut(string(smaps), "Anonymous:")
	_, err = fmt.Sscanf(rest, "%d kB", &u.kB)
	return u, err
}
