package datapath

import (
	"errors"
	"testing"
	"time"

	"podseal.io/podseal/test/bench/load"
)

// A profile counts when it has as many samples as the CPU time of its load makes
// likely, about, and enough to tell anything.
func TestEnoughSamples(t *testing.T) {
	s := sampling{rate: 2000, window: 2 * time.Second, fewest: 500}
	for _, c := range []struct {
		name    string
		samples int
		cpu     float64 // of the proxies, in seconds, in a load of 3
		enough  bool
	}{
		{"a core that was busy", 3900, 3, true},
		{"perf has seen two thirds of it", 2600, 3, true},
		{"perf has seen a third of it", 1300, 3, false},
		{"perf has seen nothing of the load", 8, 3, false},
		{"a load that takes little", 580, 0.45, true},
		{"the machine was busy with something else", 8, 0.006, false},
		{"what was measured of the CPU time is wrong", 3900, 0, true},
		{"nothing", 0, 0, false},
	} {
		err := s.judge(c.samples, load.Result{Seconds: 3, ProxyCPU: c.cpu})
		if (err == nil) != c.enough || err != nil && !errors.Is(err, errFewSamples) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	busy := load.Result{Seconds: 4, ProxyCPU: 0.2}
	if few, many := edgesSampling().judge(999, busy), edgesSampling().judge(1000, busy); few == nil || many != nil {
		t.Errorf("of edge accounting: %v, %v", few, many)
	}
	if err := s.judge(8, load.Result{}); !errors.Is(err, errFewSamples) {
		t.Errorf("a load that was not measured: %v", err)
	}
}
