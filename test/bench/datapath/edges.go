package datapath

import (
	"context"
	"debug/elf"
	"debug/gosym"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// edgesSampling is how the share of edge accounting is measured: as a share of all
// samples of both proxies, in the kernel and outside. A share of one per cent takes a
// thousand to be told.
func edgesSampling() sampling {
	return sampling{rate: 4999, warmup: 500 * time.Millisecond, length: 4 * time.Second, window: 3 * time.Second, fewest: 1000, more: []string{"--call-graph", "fp"}}
}

// metricEdges is what counting who talks to whom, and reporting it, takes.
const metricEdges = "edge accounting"

// accounting are the functions that do nothing else; what they call is theirs, too.
var accounting = []string{
	"podseal.io/podseal/internal/edges.", "podseal.io/podseal/internal/report.",
	"proxy.(*proxy).countOpen", "proxy.(*proxy).countEnd", "proxy.(*proxy).sweep", "proxy.(*proxy).edgeKey", "proxy.edgeAbout", "proxy.(*proxy).report", "proxy.(*ownConn)",
}

// edgeShares measures it, once, where things are pinned, in the scenarios that there
// are figures for.
func (b *bench) edgeShares(ctx context.Context, place placement, work []scenario, taking []contender, chains map[string]*chain) error {
	if place.name != "pinned" || canCount(ctx) != nil { // which is said
		return nil
	}
	for _, s := range work {
		for _, p := range taking {
			if !slices.ContainsFunc(goals(), func(g goal) bool {
				return g.metric == metricEdges && g.scenario == s.name && (g.who == p.name || g.who == "" && p.name == ourselves)
			}) {
				continue
			}
			share, err := patiently(func() (float64, error) { return b.edgeShare(ctx, s, p, chains[p.key()]) })
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err != nil {
				b.say("edge accounting of %s through %s: %v", s.name, p.name, err)
				continue
			}
			own := b.report.series(place.name, s.name, p.name, metric{name: metricEdges, unit: "%"})
			own.Values = append(own.Values, share*100)
			b.say("edge accounting, %s through %s: %.2f %% of the CPU time", s.name, p.name, share*100)
		}
	}
	return nil
}

func (b *bench) edgeShare(ctx context.Context, s scenario, p contender, c *chain) (float64, error) {
	names, err := symbols(p.program)
	if err != nil {
		return 0, err
	}
	file := filepath.Join(b.dir, "edges.perf")
	r, err := edgesSampling().take(ctx, s, p, c, file)
	if err != nil {
		return 0, err
	}
	out, err := exec.CommandContext(ctx, "perf", "script", "-i", file, "-F", "ip").Output()
	if err != nil {
		return 0, fmt.Errorf("perf script: %w", err)
	}
	share, samples, err := accountingShare(string(out), names)
	if err != nil {
		return 0, err
	}
	return share, edgesSampling().judge(samples, r)
}

// functions are those of a Go program, which has them when it is stripped, too.
type functions struct {
	table  *gosym.Table
	begin  uint64 // of its code, as it is run
	offset uint64 // of its code, in the file
}

func symbols(program string) (*functions, error) {
	f, err := elf.Open(program)
	if err != nil {
		return nil, fmt.Errorf("read the program: %w", err)
	}
	defer f.Close()
	lines, text := f.Section(".gopclntab"), f.Section(".text")
	if lines == nil || text == nil {
		return nil, fmt.Errorf("%s is no Go program", program)
	}
	data, err := lines.Data()
	if err != nil {
		return nil, fmt.Errorf("read the program's functions: %w", err)
	}
	table, err := gosym.NewTable(nil, gosym.NewLineTable(data, text.Addr))
	if err != nil {
		return nil, fmt.Errorf("read the program's functions: %w", err)
	}
	return &functions{table, text.Addr, text.Offset}, nil
}

// name is that of the function at an address, or "".
func (f *functions) name(pc uint64) string {
	if g := f.table.PCToFunc(pc); g != nil {
		return g.Name
	}
	return ""
}

// firstKernel is the first address that is the kernel's.
const firstKernel = 1 << 47

// accountingShare reads call chains, one address in each line and an empty line after
// each chain, and returns the share of those in which something is accounting, and how
// many there are. perf gives a program's addresses as they are in its file, or as they
// are run.
func accountingShare(chains string, names *functions) (share float64, samples int, err error) {
	var all [][]uint64
	inFile := false
	for chain := range strings.SplitSeq(chains, "\n\n") {
		var pcs []uint64
		for line := range strings.Lines(chain) {
			f := strings.Fields(line)
			if len(f) == 0 {
				continue
			}
			pc, err := strconv.ParseUint(f[0], 16, 64)
			if err != nil {
				return 0, 0, fmt.Errorf("perf said %q", line)
			}
			inFile = inFile || pc < names.begin
			pcs = append(pcs, pc)
		}
		if len(pcs) > 0 {
			all = append(all, pcs)
		}
	}
	known, counted := 0, 0
	for _, pcs := range all {
		var called []string
		for _, pc := range pcs {
			if inFile && pc < firstKernel {
				pc += names.begin - names.offset
			}
			called = append(called, names.name(pc))
		}
		if slices.ContainsFunc(called, func(name string) bool { return strings.Contains(name, "podseal.io/podseal/") }) {
			known++
		}
		if slices.ContainsFunc(called, isAccounting) {
			counted++
		}
	}
	if len(all) == 0 || known < len(all)/3 {
		return 0, 0, fmt.Errorf("%d samples, %d of them in known functions: too few", len(all), known)
	}
	return float64(counted) / float64(len(all)), len(all), nil
}

func isAccounting(function string) bool {
	return slices.ContainsFunc(accounting, func(part string) bool { return strings.Contains(function, part) })
}
