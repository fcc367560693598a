package datapath

import (
	"context"
	"debug/elf"
	"debug/gosym"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The share of edge accounting comes from perf, in the middle of a load, as a share of
// all samples of both proxies, in the kernel and outside.
const (
	edgesWarmup = 500 * time.Millisecond
	edgesLength = 4 * time.Second
	edgesWindow = 3 * time.Second
	edgesRate   = "4999" // samples a second
)

// metricEdges is what counting who talks to whom, and reporting it, takes.
const metricEdges = "edge accounting"

// accounting are the functions that do nothing else; what they call is theirs, too.
var accounting = []string{
	"podseal.io/podseal/internal/edges.", "podseal.io/podseal/internal/report.",
	"proxy.(*proxy).countOpen", "proxy.(*proxy).countEnd", "proxy.(*proxy).sweep", "proxy.edgeKey", "proxy.edgeAbout", "proxy.(*proxy).report", "proxy.(*ownConn)",
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
			share, err := b.edgeShare(ctx, s, p, chains[p.key()])
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
	var pids []string
	for _, pid := range c.pids() {
		pids = append(pids, strconv.Itoa(pid))
	}
	file := filepath.Join(b.dir, "edges.perf")
	recorded := make(chan error, 1)
	go func() {
		select {
		case <-time.After(edgesWarmup + s.fill() + (edgesLength-edgesWindow)/2):
		case <-ctx.Done():
		}
		out, err := exec.CommandContext(ctx, "perf", "record", "-q", "-o", file, "-F", edgesRate, "--call-graph", "fp", "-p", strings.Join(pids, ","),
			"--", "sleep", fmt.Sprint(edgesWindow.Seconds())).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("perf record: %w: %s", err, strings.TrimSpace(string(out)))
		}
		recorded <- err
	}()
	_, err = c.drive(ctx, p.peer, s.jobs, edgesWarmup+s.fill(), edgesLength)
	if err := errors.Join(err, <-recorded); err != nil {
		return 0, err
	}
	out, err := exec.CommandContext(ctx, "perf", "script", "-i", file, "-F", "ip").Output()
	if err != nil {
		return 0, fmt.Errorf("perf script: %w", err)
	}
	return accountingShare(string(out), names)
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

// fewestSamples is what a share of one per cent takes to be told.
const fewestSamples = 1000

// accountingShare reads call chains, one address in each line and an empty line after
// each chain, and returns the share of those in which something is accounting. perf
// gives a program's addresses as they are in its file, or as they are run.
func accountingShare(chains string, names *functions) (float64, error) {
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
				return 0, fmt.Errorf("perf said %q", line)
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
	if len(all) < fewestSamples || known < len(all)/3 {
		return 0, fmt.Errorf("%d samples, %d of them in known functions: too few", len(all), known)
	}
	return float64(counted) / float64(len(all)), nil
}

func isAccounting(function string) bool {
	return slices.ContainsFunc(accounting, func(part string) bool { return strings.Contains(function, part) })
}
