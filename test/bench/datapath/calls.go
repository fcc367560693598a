package datapath

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"podseal.io/podseal/test/bench/load"
)

// Figures of system calls come from perf, in the middle of a load.
const (
	callsWarmup = 300 * time.Millisecond
	callsLength = 1200 * time.Millisecond
	callsWindow = "0.7"
)

// countCalls counts system calls where perf can: in a measurement of its own, as
// counting costs. It does so once, where things are pinned.
func (b *bench) countCalls(ctx context.Context, place placement, work []scenario, taking []contender, chains map[string]*chain) error {
	if place.name != "pinned" {
		return nil
	}
	if err := canCount(ctx); err != nil {
		b.say("system calls are not counted: %v", err)
		b.report.Calls = err.Error()
		return nil
	}
	for _, s := range work {
		if !s.core || s.group != groupBulk && s.group != groupConnect && s.group != groupHTTP {
			continue
		}
		var said []string
		for _, p := range taking {
			if p.command == nil || !p.takesPart(s.group) {
				continue
			}
			n, err := callsOnce(ctx, s, p, chains[p.key()])
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err != nil {
				b.say("system calls of %s through %s: %v", s.name, p.name, err)
				continue
			}
			b.report.calls(place, s, p.peer, n)
			said = append(said, fmt.Sprintf("%s %s", p.name, number(n)))
		}
		b.say("system calls, %s: %s", s.name, strings.Join(said, ", "))
	}
	return nil
}

// canCount reports why perf can't count system calls here.
func canCount(ctx context.Context) error {
	if _, err := exec.LookPath("perf"); err != nil {
		return errors.New("perf is not installed (apt-get install linux-perf)")
	}
	if _, err := perf(ctx, "--", "true"); err != nil {
		return fmt.Errorf("perf can't count them here: %w", err)
	}
	return nil
}

// perf counts system calls and returns how many there were.
func perf(ctx context.Context, args ...string) (float64, error) {
	cmd := exec.CommandContext(ctx, "perf", append([]string{"stat", "-x", ";", "-e", "raw_syscalls:sys_enter"}, args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out)))
	}
	for line := range strings.Lines(string(out)) {
		if f := strings.Split(line, ";"); len(f) > 2 && f[2] == "raw_syscalls:sys_enter" {
			if f[0] == "<not counted>" { // there were none
				return 0, nil
			}
			return strconv.ParseFloat(f[0], 64)
		}
	}
	return 0, fmt.Errorf("perf said %q", out)
}

// callsOnce is how many system calls both proxies make for one unit: an MB, a
// connection, a request.
func callsOnce(ctx context.Context, s scenario, p contender, c *chain) (float64, error) {
	var pids []string
	for _, pid := range c.pids() {
		pids = append(pids, strconv.Itoa(pid))
	}
	counted := make(chan struct {
		n   float64
		err error
	}, 1)
	go func() {
		select {
		case <-time.After(callsWarmup + (callsLength-700*time.Millisecond)/2):
		case <-ctx.Done():
		}
		n, err := perf(ctx, "-p", strings.Join(pids, ","), "--", "sleep", callsWindow)
		counted <- struct {
			n   float64
			err error
		}{n, err}
	}()
	r, err := c.drive(ctx, p.peer, s.jobs, callsWarmup, callsLength)
	got := <-counted
	if err := errors.Join(err, got.err); err != nil {
		return 0, err
	}
	window, err := strconv.ParseFloat(callsWindow, 64)
	if err != nil {
		return 0, err
	}
	n := done(s, r)
	if n == 0 || got.n == 0 {
		return 0, errors.New("nothing was completed")
	}
	return got.n / window / (n / r.Seconds), nil
}

func done(s scenario, r load.Result) float64 {
	if s.group == groupBulk {
		return r.Jobs[0].Bytes / 1e6
	}
	return r.Jobs[0].Count
}
