package datapath

import (
	"fmt"
	"slices"
	"strings"
)

// Names of what is judged.
const (
	ourselves     = "podseal"
	ourselvesHTTP = "podseal-http"
)

// Figure is one that Podseal is judged by: a ratio to the best peer, or a value
// of its own. What is not measured has no value.
type Figure struct {
	Name     string  `json:"name"`
	Unit     string  `json:"unit,omitempty"` // of a value; a ratio has none
	AtLeast  bool    `json:"at_least,omitempty"`
	Must     float64 `json:"must"`
	Aim      float64 `json:"aim,omitempty"`
	Measured float64 `json:"measured"`
	Known    bool    `json:"known"`
	Ours     string  `json:"ours,omitempty"`
	Theirs   string  `json:"theirs,omitempty"`

	scenario string
	limit    float64 // see Off
}

// goal is a figure before it was measured: of one of ourselves, in one scenario
// and metric, to the best peer or to a certain one.
type goal struct {
	name, unit       string
	atLeast          bool
	must, aim        float64
	who              string
	scenario, metric string
	versus           string // "" is the best peer
}

// goals are those of the project. They are judged where things are pinned.
func goals() []goal {
	return []goal{
		{name: "CPU-seconds per GB, one stream up", must: 0.5, aim: 0.4, scenario: bulkUp, metric: metricCPU},
		{name: "CPU-seconds per GB, one stream down", must: 0.5, aim: 0.4, scenario: bulkDown, metric: metricCPU},
		{name: "new connections per second, 64 clients", atLeast: true, must: 7, aim: 15, scenario: connectMany, metric: metricRate},
		{name: "CPU per 1,000 new connections, 64 clients", must: 0.15, aim: 0.08, scenario: connectMany, metric: metricCPU},
		{name: "system calls of a new connection, 64 clients", unit: "calls", must: 33, scenario: connectMany, metric: metricCalls},
		{name: "CPU per 1,000 HTTP/1.1 requests, 32 connections", must: 0.9, aim: 0.5, scenario: httpMany, metric: metricCPU},
		{name: "the same, HTTP inspected inbound", must: 1, aim: 0.6, who: ourselvesHTTP, scenario: httpMany, metric: metricCPU},
		{name: "the same, to Envoy with HTTP inbound", must: 0.5, who: ourselvesHTTP, scenario: httpMany, metric: metricCPU, versus: "envoy-http"},
		{name: "p50 of one request on one connection", must: 0.85, aim: 0.75, scenario: httpOne, metric: metricP50},
		{name: "p99 at half the best peer's rate", must: 1, aim: 0.75, scenario: latencyHalf, metric: metricP99},
		{name: "memory per idle connection and proxy", must: 0.8, scenario: idleFew, metric: metricEach},
		{name: "memory per idle connection and proxy", unit: "kB", must: 18, aim: 4, scenario: idleFew, metric: metricEach},
		{name: "edge accounting, of the CPU time of new connections, 64 clients", unit: "%", must: 1, scenario: connectMany, metric: metricEdges},
		{name: "edge accounting, of that of HTTP/1.1 requests, inspected, 32 connections", unit: "%", must: 1, who: ourselvesHTTP, scenario: httpMany, metric: metricEdges},
		{name: "edge accounting, of that of one stream up", unit: "%", must: 1, scenario: bulkUp, metric: metricEdges},
		{name: "idle proxy, PSS", unit: "MB", must: 14, aim: 8, scenario: idleFew, metric: metricStart},
	}
}

// tolerance is by how much a ratio may miss in a quick run before it is a failure.
const tolerance = 4.0 / 3

// limit is where a quick run fails: a third from what must be reached.
func (g goal) limit() float64 {
	if g.atLeast {
		return g.must / tolerance
	}
	return g.must * tolerance
}

// figures judges a report.
func figures(r *Report) []Figure {
	const place = "pinned"
	var all []Figure
	for _, g := range goals() {
		f := Figure{Name: g.name, Unit: g.unit, AtLeast: g.atLeast, Must: g.must, Aim: g.aim, scenario: g.scenario, limit: g.limit()}
		who := g.who
		if who == "" {
			who = ourselves
		}
		own := r.find(place, g.scenario, who, g.metric)
		if own == nil || len(own.Values) == 0 {
			if g.versus == "" {
				all = append(all, f)
			}
			continue
		}
		f.Ours = fmt.Sprintf("%s %s", number(own.Median), own.Unit)
		if g.unit != "" {
			f.Measured, f.Known = own.Median, true
			all = append(all, f)
			continue
		}
		other := r.best(own)
		if g.versus != "" {
			if other = r.find(place, g.scenario, g.versus, g.metric); other == nil {
				continue
			}
		}
		if other != nil && other.Median > 0 {
			f.Measured, f.Known = own.Median/other.Median, true
			f.Theirs = fmt.Sprintf("%s: %s", r.peer(other.Peer).Title, number(other.Median))
		}
		all = append(all, f)
	}
	return all
}

// reaches reports whether the figure is as good as a bound.
func (f Figure) reaches(bound float64) bool {
	if f.AtLeast {
		return f.Measured >= bound
	}
	return f.Measured <= bound
}

// Verdict is in words.
func (f Figure) Verdict() string {
	switch {
	case !f.Known:
		return "not measured"
	case f.Aim > 0 && f.reaches(f.Aim):
		return "aim reached"
	case f.reaches(f.Must):
		return "reached"
	}
	return "**not reached**"
}

// Off returns the figures that miss what they must reach, or where that is not reached
// what is, by more than a third; and connections of ours that failed.
func (r *Report) Off() []string {
	all := slices.DeleteFunc(slices.Clone(r.Faults), func(text string) bool { return !strings.Contains(text, ", "+ourselves) })
	for _, f := range r.off() {
		all = append(all, fmt.Sprintf("%s: %s, must be %s and may be %s", f.Name, number(f.Measured), f.bound(f.Must), f.bound(f.limit)))
	}
	return all
}

func (r *Report) off() []Figure {
	return slices.DeleteFunc(figures(r), func(f Figure) bool { return !f.Known || f.reaches(f.limit) })
}

func (f Figure) bound(v float64) string {
	if v == 0 {
		return ""
	}
	sign := "≤"
	if f.AtLeast {
		sign = "≥"
	}
	return fmt.Sprintf("%s %s", sign, trimmed(v)+unitOf(f.Unit))
}

func unitOf(unit string) string {
	if unit == "" {
		return ""
	}
	return " " + unit
}

// Compare says how our own figures differ from those of an earlier run, as
// ratios to the best peer of each.
func (r *Report) Compare(earlier *Report) []string {
	var all []string
	for _, s := range r.Series {
		if !isPodseal(s.Peer) || s.Ratio == 0 {
			continue
		}
		before := earlier.find(s.Placement, s.Scenario, s.Peer, s.Metric)
		if before == nil || before.Ratio == 0 {
			continue
		}
		change := s.Ratio / before.Ratio
		if change > 0.9 && change < 1.1 {
			continue
		}
		all = append(all, fmt.Sprintf("%s %s %s, %s: ratio %s, was %s (×%.2f)", s.Placement, s.Scenario, s.Peer, s.Metric, number(s.Ratio), number(before.Ratio), change))
	}
	slices.Sort(all)
	return all
}
