// Package datapath measures what proxies of mutual TLS cost: client → proxy →
// mutual TLS → proxy → application, each chain in two network namespaces with
// Podseal's capture, on this machine, Podseal and its peers in turn.
//
// A run is made of rounds. In each, every scenario is measured through every
// chain, one after the other in random order, so that what disturbs the machine
// disturbs all of them; a figure is the median of the rounds. Figures are to be
// read as ratios within a run. It needs root.
package datapath

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Machine is what the figures were measured on.
type Machine struct {
	Podseal string `json:"podseal"`
	Cores   int    `json:"cores"`
	CPU     string `json:"cpu"`
	Kernel  string `json:"kernel"`
	Go      string `json:"go"`
}

// Options say what is measured and how often.
type Options struct {
	Bin        string            // folder with podseal-proxy and what `make bench` builds
	Given      map[string]string // paths of programs, by the peer's name
	Machine    Machine
	Peers      []string // names, or nil for all
	Scenarios  []string // names, groups, or nil for all
	Placements []string
	Quick      bool          // the scenarios of the figures only
	Profile    bool          // where Podseal's CPU time goes, and nothing else; its program must have symbols
	Rounds     int           // of the scenarios of the figures
	Again      int           // how often they are measured once more, as many rounds, for figures that are off
	WideRounds int           // of the others
	Length     time.Duration // of one measurement
	Warmup     time.Duration // before it
	Nice       int           // priority of what is measured
	Congestion string        // TCP's congestion control, of all pods; "" is the machine's
	Cores      [2]int        // of the ends and of the proxies, where they are pinned
	Log        io.Writer
	Load       func() string // load average

	dir  string // for what a run makes
	most int    // connections that a proxy can have
}

// descriptors is how many files a process of the run should be allowed to have
// open: a proxy has two for each connection.
const descriptors = 100_000

// allow raises the limit of open files as far as it goes, for all that is started
// from here, and returns it.
func allow() (int, error) {
	err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: descriptors, Max: descriptors})
	if err == nil {
		return descriptors, nil
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("read the limit of open files: %w", err)
	}
	limit.Cur = limit.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("raise the limit of open files: %w", err)
	}
	return int(limit.Max), nil
}

// wait waits until no other run is under way on this machine: two of them would
// measure each other. The returned function lets the next one go on.
func wait(ctx context.Context, log io.Writer) (func(), error) {
	lock, err := os.OpenFile(filepath.Join(os.TempDir(), "podseal-bench.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	said := false
	for {
		err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { lock.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("lock: %w", err), lock.Close())
		}
		if !said {
			fmt.Fprintln(log, "waiting for the end of another run on this machine")
			said = true
		}
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
			return nil, errors.Join(context.Cause(ctx), lock.Close())
		}
	}
}

// bench is a run under way.
type bench struct {
	Options
	report *Report
	began  time.Time
	half   map[string]float64 // rate of the half-load scenario, by placement
}

// Run measures.
func Run(ctx context.Context, o Options) (*Report, error) {
	if os.Getuid() != 0 {
		return nil, errors.New("it makes network namespaces, which needs root")
	}
	files, err := allow()
	if err != nil {
		return nil, err
	}
	alone, err := wait(ctx, o.Log)
	if err != nil {
		return nil, err
	}
	defer alone()
	defer hurry(o.Nice)()
	o.most = (files - 1000) / 2
	if o.dir, err = os.MkdirTemp("", "podseal-bench-"); err != nil {
		return nil, err
	}
	defer os.RemoveAll(o.dir)
	if err := os.Chmod(o.dir, 0o755); err != nil { // programs of other users run in it
		return nil, err
	}
	if err := copyProgram(filepath.Join(o.dir, "loadgen"), filepath.Join(o.Bin, "bench", "loadgen")); err != nil {
		return nil, fmt.Errorf("the load generator (make bench-programs builds it): %w", err)
	}
	b := &bench{Options: o, began: time.Now(), half: map[string]float64{}}
	b.report = newReport(o, b.began)
	found, err := b.find()
	if err != nil {
		return nil, err
	}
	work, err := b.selected()
	if err != nil {
		return nil, err
	}
	for _, place := range placements(o) {
		if !slices.Contains(o.Placements, place.name) {
			continue
		}
		if err := b.place(ctx, place, found, work); err != nil {
			return nil, err
		}
	}
	b.report.LoadAfter = o.Load()
	b.report.Seconds = time.Since(b.began).Seconds()
	b.report.finish()
	return b.report, nil
}

// say prints progress with the time.
func (b *bench) say(format string, args ...any) {
	at := time.Since(b.began)
	fmt.Fprintf(b.Log, "%2d:%02d  %s\n", int(at.Minutes()), int(at.Seconds())%60, fmt.Sprintf(format, args...))
}

// contender is a peer whose program was found.
type contender struct {
	peer
	program string
}

// find looks for the peers' programs. One that is not there is said to be missing
// and is not measured.
func (b *bench) find() ([]contender, error) {
	var found []contender
	known := map[string]bool{}
	for _, p := range peers() {
		known[p.name] = true
		if len(b.Peers) > 0 && !slices.Contains(b.Peers, p.name) {
			continue
		}
		var program string
		if p.find != nil {
			var err error
			if program, err = p.find(b.Options); err != nil && p.silent {
				b.report.forget(p)
				continue
			}
			if err != nil {
				b.say("without %s: %v", p.name, err)
				b.report.missing(p, err)
				continue
			}
		}
		found = append(found, contender{p, program})
	}
	for _, name := range b.Peers {
		if !known[name] {
			return nil, fmt.Errorf("no peer %q", name)
		}
	}
	return found, nil
}

// selected are the scenarios to measure.
func (b *bench) selected() ([]scenario, error) {
	var work []scenario
	matched := map[string]bool{}
	for _, s := range scenarios() {
		if len(b.Scenarios) == 0 && (s.core || !b.Quick && !b.Profile) {
			work = append(work, s)
		}
		for _, name := range b.Scenarios {
			if name == s.name || name == s.group {
				matched[name] = true
				work = append(work, s)
				break
			}
		}
	}
	for _, name := range b.Scenarios {
		if !matched[name] {
			return nil, fmt.Errorf("no scenario or group %q", name)
		}
	}
	return work, nil
}

// place measures everything in one placement.
func (b *bench) place(ctx context.Context, place placement, found []contender, work []scenario) error {
	chains := map[string]*chain{}
	defer func() {
		for _, c := range chains {
			c.stop()
		}
	}()
	var taking []contender
	for _, p := range found {
		if !slices.ContainsFunc(work, func(s scenario) bool { return p.takesPart(s.group) }) {
			continue
		}
		if chains[p.key()] == nil {
			c, err := newChain(ctx, b.Options, b.owner(p), p.program, place)
			if err == nil {
				if err = c.check(ctx, b.report, place); err != nil {
					c.stop()
				}
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err != nil {
				b.say("without %s: %v", p.name, err)
				b.report.missing(p.peer, err)
				continue
			}
			chains[p.key()] = c
		}
		taking = append(taking, p)
	}
	b.say("%s: %d chains are up: %s", place.name, len(chains), strings.Join(names(taking), " "))
	if b.Profile {
		return b.profiles(ctx, work, taking, chains)
	}
	for round := range max(b.Rounds, b.WideRounds) {
		for _, s := range work {
			if round >= b.rounds(place, s) {
				continue
			}
			if err := b.measure(ctx, place, round, s, taking, chains); err != nil {
				return err
			}
		}
	}
	if err := b.again(ctx, place, work, taking, chains); err != nil {
		return err
	}
	if err := b.edgeShares(ctx, place, work, taking, chains); err != nil {
		return err
	}
	return b.countCalls(ctx, place, work, taking, chains)
}

// again measures more rounds of what is off, as that may be a bad moment of the
// machine. They count like those before.
func (b *bench) again(ctx context.Context, place placement, work []scenario, taking []contender, chains map[string]*chain) error {
	for try := range b.Again {
		b.report.finish()
		off := b.report.off()
		for round := range b.Rounds {
			for _, s := range work {
				if !slices.ContainsFunc(off, func(f Figure) bool { return f.scenario == s.name }) {
					continue
				}
				if err := b.measure(ctx, place, (try+1)*b.Rounds+round, s, taking, chains); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// idleRounds is how often memory is measured at most: it hardly differs.
const idleRounds = 2

// rounds is how often a scenario is measured. Memory doesn't depend on where
// things run, and the scenarios that nothing is judged by are not repeated there.
func (b *bench) rounds(place placement, s scenario) int {
	asked := slices.Contains(b.Scenarios, s.name) || slices.Contains(b.Scenarios, s.group)
	if place.name != "pinned" && (s.idle > 0 || !s.core && !asked) {
		return 0
	}
	n := b.WideRounds
	if s.core {
		n = b.Rounds
	}
	if s.idle > 0 {
		n = min(n, idleRounds)
	}
	return n
}

// owner is the peer whose chain a contender uses.
func (b *bench) owner(p contender) peer {
	for _, o := range peers() {
		if o.name == p.key() {
			return o
		}
	}
	return p.peer
}

func names(all []contender) []string {
	var out []string
	for _, p := range all {
		out = append(out, p.name)
	}
	return out
}

// measure measures one scenario through all chains, once.
func (b *bench) measure(ctx context.Context, place placement, round int, s scenario, taking []contender, chains map[string]*chain) error {
	var said []string
	for _, i := range rand.Perm(len(taking)) {
		p := taking[i]
		if !p.takesPart(s.group) || s.idle > 0 && (p.command == nil || p.chain != "") {
			continue
		}
		values, err := b.once(ctx, place, s, p, chains[p.key()])
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			b.say("%s through %s: %v", s.name, p.name, err)
			b.report.fault(place, s, p.peer, err)
			continue
		}
		for m, v := range values {
			b.report.add(place, s, p.peer, m, v)
		}
		text := []string{p.name}
		for _, m := range s.metrics()[:2] {
			if v, ok := values[m.name]; ok {
				text = append(text, number(v))
			}
		}
		said = append(said, strings.Join(text, " "))
	}
	slices.Sort(said)
	b.say("%s, round %d, %s (%s): %s", place.name, round+1, s.name, units(s), strings.Join(said, ", "))
	return nil
}

// once measures one scenario through one chain. The values are by the name of
// their metric.
func (b *bench) once(ctx context.Context, place placement, s scenario, p contender, c *chain) (map[string]float64, error) {
	values := map[string]float64{}
	if s.idle > 0 {
		conns := min(s.idle, b.most)
		if conns < s.idle {
			b.report.note(fmt.Sprintf("%s: %d, as the limit of open files allows no more", s.title, conns))
		}
		f, err := c.idle(ctx, conns)
		if err != nil {
			return nil, err
		}
		values[metricStart], values[metricEach] = f.start/1e6, f.each/1e3
		return values, nil
	}
	jobs := slices.Clone(s.jobs)
	if s.share > 0 {
		if b.half[place.name] == 0 {
			b.half[place.name] = b.report.halfRate(place, s.share)
			b.say("half the best peer's rate is %.0f requests/s", b.half[place.name])
		}
		jobs[0].Rate = b.half[place.name]
	}
	r, err := c.drive(ctx, p.peer, jobs, b.Warmup+s.fill(), b.Length)
	if err != nil {
		return nil, err
	}
	if r.Faults > 0 {
		b.report.fault(place, s, p.peer, fmt.Errorf("%d connections failed: %s", r.Faults, r.Fault))
	}
	if r.Jobs[0].Count == 0 && r.Jobs[0].Bytes == 0 {
		return nil, errors.New("nothing was completed")
	}
	for _, m := range s.metrics() {
		if p.command != nil || m.name != metricCPU {
			values[m.name] = m.value(r)
		}
	}
	b.report.busy(place, s, p.peer, r)
	return values, nil
}

// units are those of what is said of a scenario.
func units(s scenario) string {
	var all []string
	for _, m := range s.metrics()[:2] {
		all = append(all, m.unit)
	}
	return strings.Join(all, ", ")
}
