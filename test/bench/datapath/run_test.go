package datapath

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// programs builds what a run needs.
func programs(t *testing.T) string {
	t.Helper()
	bin := t.TempDir()
	for out, pkg := range map[string]string{
		"podseal-proxy": "podseal.io/podseal/cmd/podseal-proxy", "bench/loadgen": "podseal.io/podseal/test/bench/loadgen", "bench/plaingo": "podseal.io/podseal/test/bench/plaingo",
	} {
		build := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(bin, out), pkg)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if b, err := build.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", pkg, err, b)
		}
	}
	return bin
}

// TestRun is a run in small, as root, of what make bench BENCH=quick leaves out: two
// proxies of each kind in namespaces with real capture, and no connection that fails.
func TestRun(t *testing.T) {
	names := []string{"direct", "plaingo", "podseal", "podseal-http", "podseal-default", "ztunnel"}
	work := []string{"bulk-both-8", "http1-32-0.2k", "http2-32-10k", "mix"}
	r, err := Run(t.Context(), Options{
		Bin: programs(t), Machine: Machine{Cores: 2}, Peers: names, Scenarios: work, Placements: []string{"pinned", "unpinned"},
		Rounds: 1, WideRounds: 1, Length: 200 * time.Millisecond, Warmup: 50 * time.Millisecond, Cores: [2]int{0, 1},
		Log: t.Output(), Load: func() string { return "?" },
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, fault := range r.Faults {
		if !strings.Contains(fault, "nothing was completed") { // a machine that is busy elsewhere
			t.Error(fault)
		}
	}
	for _, p := range r.Peers {
		if seen := p.Name == "ztunnel"; (p.Missing != "") != seen {
			t.Errorf("%s: %q", p.Name, p.Missing)
		}
		wire := map[string]string{
			"plaingo": "TLS 1.3, TLS_AES_128_GCM_SHA256, X25519", "podseal": "TLS 1.3, TLS_AES_128_GCM_SHA256, X25519", "podseal-default": "TLS 1.3, TLS_AES_128_GCM_SHA256, X25519MLKEM768",
		}
		if p.Wire != wire[p.Name] {
			t.Errorf("%s: on the wire %q", p.Name, p.Wire)
		}
	}
	if s := r.find("pinned", httpMany, ourselvesHTTP, metricCPU); s == nil || s.Median <= 0 || s.Ratio <= 0 {
		t.Errorf("HTTP: %+v", s)
	}
}

func TestNoSuchNames(t *testing.T) {
	for _, o := range []Options{{Peers: []string{"nobody"}}, {Scenarios: []string{"nothing"}}} {
		b := &bench{Options: o, report: newReport(Options{Load: func() string { return "" }}, time.Now())}
		b.Log = io.Discard
		_, err1 := b.find()
		_, err2 := b.selected()
		if (err1 == nil) == (err2 == nil) {
			t.Errorf("%v, %v", err1, err2)
		}
	}
}

func TestScenarios(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range scenarios() {
		if seen[s.name] {
			t.Errorf("two scenarios are %s", s.name)
		}
		seen[s.name] = true
		if len(s.metrics()) < 2 {
			t.Errorf("%s has no figures", s.name)
		}
	}
	for _, g := range goals() {
		i := slices.IndexFunc(scenarios(), func(s scenario) bool { return s.name == g.scenario })
		apart := g.metric == metricEdges || g.metric == metricCalls // measured by perf
		if i < 0 || !scenarios()[i].core || !apart && !slices.ContainsFunc(scenarios()[i].metrics(), func(m metric) bool { return m.name == g.metric }) {
			t.Errorf("%q is judged by what is not measured in each round", g.name)
		}
	}
}
