package datapath

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// profiling is how profiles are taken. The rate is no divisor of the kernel's ticks. Of
// so few samples a share of a tenth is told to 1.3 % of the whole.
func profiling() sampling {
	return sampling{rate: 1999, warmup: time.Second, length: 3 * time.Second, window: 2 * time.Second, fewest: 500}
}

// Profile is where the CPU time of Podseal's two proxies went in one scenario.
type Profile struct {
	Scenario string             `json:"scenario"`
	Title    string             `json:"title"`
	Peer     string             `json:"peer"`
	Samples  int                `json:"samples"`
	Shares   map[string]float64 `json:"shares"`  // of 1, by kind of work
	Hottest  []Hot              `json:"hottest"` // the first functions
}

// Hot is a function and its share of the CPU time, of 1.
type Hot struct {
	Symbol string  `json:"symbol"`
	Share  float64 `json:"share"`
}

const hottest = 25

// Kinds of work, in the order of the table.
const (
	workCipher    = "cipher"
	workHandshake = "handshake"
	workProxy     = "Podseal's code"
	workMemory    = "Go: memory"
	workRuntime   = "Go: scheduler, calls, the rest"
	workCopy      = "kernel: copies"
	workNetwork   = "kernel: network"
	workSwitch    = "kernel: scheduler, wake-ups"
	workIRQ       = "kernel: interrupts on again"
	workKernel    = "kernel: calls, the rest"
)

func kindsOfWork() []string {
	return []string{workCipher, workHandshake, workProxy, workMemory, workRuntime, workCopy, workNetwork, workSwitch, workIRQ, workKernel}
}

// kind is what a function works at. Its name decides: the first rule that has a part
// of it.
func kind(symbol string, kernel bool) string {
	rules := []struct {
		work  string
		parts []string
	}{
		{workCipher, []string{"aes/gcm", "fips140/aes", "gcmAes", "chacha20"}},
		{workHandshake, []string{"crypto/", "math/big", "encoding/asn1", "hash"}},
		{workProxy, []string{"podseal.io/", "main."}},
		{workMemory, []string{"malloc", "gc", "scan", "sweep", "greyobject", "mheap", "mcache", "mcentral", "span", "newobject", "growslice", "memclr", "newstack", "copystack", "stackalloc", "writeBarrier", "wbBuf", "heapBits"}},
	}
	otherwise := workRuntime
	if kernel {
		otherwise = workKernel
		rules = []struct {
			work  string
			parts []string
		}{
			{workIRQ, []string{"_raw_spin_unlock", "handle_softirqs", "irqentry_exit", "local_irq", "_local_bh_enable"}},
			{workCopy, []string{"copy_", "_copy", "memcpy", "rep_movs", "skb_datagram_iter", "csum_partial"}},
			{workSwitch, []string{"sched", "switch", "try_to_wake", "enqueue", "dequeue", "update_curr", "futex", "epoll", "ep_", "wake_up", "poll", "pick_next", "load_avg", "select_task", "ttwu", "halt", "idle"}},
			{workNetwork, []string{"tcp", "ip_", "ip6", "inet", "sock", "skb", "nf_", "nft", "net", "veth", "dev_", "xmit", "sk_", "__sk", "conntrack", "napi", "qdisc", "fib", "rt_", "dst_", "neigh", "loopback", "eth_", "softirq", "page_pool", "frag", "bridge", "br_"}},
		}
	}
	for _, r := range rules {
		if slices.ContainsFunc(r.parts, func(part string) bool { return strings.Contains(symbol, part) }) {
			return r.work
		}
	}
	return otherwise
}

// profiles profiles Podseal in each scenario that has a load of its own.
func (b *bench) profiles(ctx context.Context, work []scenario, taking []contender, chains map[string]*chain) error {
	for _, s := range work {
		for _, p := range taking {
			if s.idle > 0 || s.share > 0 || !isPodseal(p.name) || !p.takesPart(s.group) {
				continue
			}
			got, err := b.profile(ctx, s, p, chains[p.key()])
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			switch {
			case errors.Is(err, errFewSamples): // shares of them would look as if they were known
				b.report.note(fmt.Sprintf("%s, %s: no profile, %d times %v", s.title, p.name, samplingTries, err))
				continue
			case err != nil:
				return fmt.Errorf("profile of %s through %s: %w", s.name, p.name, err)
			}
			b.report.Profiles = append(b.report.Profiles, got)
			b.say("profile, %s, %s, %d samples: %s %.0f%%", s.name, p.name, got.Samples, got.Hottest[0].Symbol, got.Hottest[0].Share*100)
		}
	}
	return nil
}

// profile takes one, and takes it again when it has too few samples.
func (b *bench) profile(ctx context.Context, s scenario, p contender, c *chain) (Profile, error) {
	return patiently(func() (Profile, error) {
		got, err := b.profileOnce(ctx, s, p, c)
		if errors.Is(err, errFewSamples) {
			b.say("profile, %s, %s: %v", s.name, p.name, err)
		}
		return got, err
	})
}

func (b *bench) profileOnce(ctx context.Context, s scenario, p contender, c *chain) (Profile, error) {
	file := filepath.Join(b.dir, "profile")
	r, err := profiling().take(ctx, s, p, c, file)
	if err != nil {
		return Profile{}, err
	}
	out, err := exec.CommandContext(ctx, "perf", "report", "-i", file, "--stdio", "-q", "--no-children", "-F", "overhead,sample,dso,sym", "-t", ";").Output()
	if err != nil {
		return Profile{}, fmt.Errorf("perf report: %w", err)
	}
	got, err := parseProfile(string(out))
	if err != nil {
		return got, err
	}
	got.Scenario, got.Title, got.Peer = s.name, s.title, p.name
	return got, profiling().judge(got.Samples, r)
}

// parseProfile reads lines of a share in per cent, a number of samples, where the
// function is, and the function.
func parseProfile(text string) (Profile, error) {
	got := Profile{Shares: map[string]float64{}}
	for line := range strings.Lines(text) {
		f := strings.SplitN(strings.TrimSpace(line), ";", 4)
		if len(f) < 4 {
			continue
		}
		percent, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(f[0]), "%"), 64)
		samples, err2 := strconv.Atoi(strings.TrimSpace(f[1]))
		if err := errors.Join(err, err2); err != nil {
			return got, fmt.Errorf("perf said %q: %w", line, err)
		}
		symbol := strings.TrimSpace(f[3])
		kernel := strings.HasPrefix(symbol, "[k]")
		symbol = strings.TrimSpace(strings.TrimPrefix(strings.TrimPrefix(symbol, "[k]"), "[.]"))
		if strings.Contains(f[2], "podseal") && strings.HasPrefix(symbol, "0x") {
			return got, errors.New("the program has no symbols: make bench-profile builds one that has")
		}
		got.Samples += samples
		got.Shares[kind(symbol, kernel)] += percent / 100
		if len(got.Hottest) < hottest {
			got.Hottest = append(got.Hottest, Hot{symbol, percent / 100})
		}
	}
	if len(got.Hottest) == 0 {
		return got, fmt.Errorf("%w: perf has seen nothing", errFewSamples)
	}
	return got, nil
}

// ProfileMarkdown is the shares of the profiles, one line each.
func (r *Report) ProfileMarkdown() string {
	var b strings.Builder
	m := r.Machine
	fmt.Fprintf(&b, "\nPodseal %s, %s, on %d cores (%s), Linux %s, %s. Load average %s before%s.\n\n| | samples |",
		m.Podseal, r.Began.Format(time.RFC3339), m.Cores, m.CPU, m.Kernel, m.Go, r.LoadBefore, congestion(r.Congestion))
	for _, k := range kindsOfWork() {
		fmt.Fprintf(&b, " %s |", k)
	}
	b.WriteString("\n| --- |" + strings.Repeat(" ---: |", 1+len(kindsOfWork())) + "\n")
	for _, p := range r.Profiles {
		fmt.Fprintf(&b, "| %s, %s | %d |", p.Title, p.Peer, p.Samples)
		for _, k := range kindsOfWork() {
			fmt.Fprintf(&b, " %.0f %% |", p.Shares[k]*100)
		}
		b.WriteString("\n")
	}
	b.WriteString("\n")
	for _, n := range r.Notes {
		fmt.Fprintf(&b, "- %s.\n", n)
	}
	if len(r.Notes) > 0 {
		b.WriteString("\n")
	}
	return b.String()
}
