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

// sampling is how perf looks at both proxies in the middle of a load.
type sampling struct {
	rate                   int           // samples in a second of CPU time
	warmup, length, window time.Duration // of the load; of it, what perf sees
	fewest                 int           // samples that tell anything
	more                   []string      // arguments of perf
}

// take has perf write what it sees of a scenario into a file.
func (s sampling) take(ctx context.Context, work scenario, p contender, c *chain, file string) (load.Result, error) {
	var pids []string
	for _, pid := range c.pids() {
		pids = append(pids, strconv.Itoa(pid))
	}
	args := append([]string{"record", "-q", "-o", file, "-F", strconv.Itoa(s.rate), "-p", strings.Join(pids, ",")}, s.more...)
	args = append(args, "--", "sleep", fmt.Sprint(s.window.Seconds()))
	recorded := make(chan error, 1)
	go func() {
		select {
		case <-time.After(s.warmup + work.fill() + (s.length-s.window)/2):
		case <-ctx.Done():
		}
		out, err := exec.CommandContext(ctx, "perf", args...).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("perf record: %w: %s", err, strings.TrimSpace(string(out)))
		}
		recorded <- err
	}()
	r, err := c.drive(ctx, p.peer, work.jobs, s.warmup+work.fill(), s.length)
	return r, errors.Join(err, <-recorded)
}

// errFewSamples says that shares of what was sampled would tell nothing.
var errFewSamples = errors.New("too few samples")

// samplingTries is how often something is sampled before it is left out.
const samplingTries = 3

// patiently samples again while there are too few samples.
func patiently[T any](once func() (T, error)) (got T, err error) {
	for range samplingTries {
		if got, err = once(); !errors.Is(err, errFewSamples) {
			break
		}
	}
	return got, err
}

// judge says whether there are enough samples. perf takes one each time the proxies
// have used 1/rate of a second: where there are less than half of those that the CPU
// time of the whole load makes likely, perf didn't see the load as it was, or hardly
// any of it. And a few tell nothing, however little CPU time there was.
func (s sampling) judge(samples int, r load.Result) error {
	due := 0.0
	if r.Seconds > 0 {
		due = float64(s.rate) * s.window.Seconds() * r.ProxyCPU / r.Seconds
	}
	if least := max(float64(s.fewest), due/2); float64(samples) < least {
		return fmt.Errorf("%w: %d, where the CPU time that the proxies used makes %.0f likely and %.0f are needed", errFewSamples, samples, due, least)
	}
	return nil
}
