package datapath

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"podseal.io/podseal/test/bench/load"
)

// Report is a run's outcome.
type Report struct {
	Began      time.Time         `json:"began"`
	Seconds    float64           `json:"seconds"`
	Machine    Machine           `json:"machine"`
	LoadBefore string            `json:"load_average_before"`
	LoadAfter  string            `json:"load_average_after"`
	Length     string            `json:"length"`               // of one measurement
	Congestion string            `json:"congestion,omitempty"` // TCP's congestion control
	Peers      []PeerReport      `json:"peers"`
	Series     []*Series         `json:"series"`
	Figures    []Figure          `json:"figures"`
	Profiles   []Profile         `json:"profiles,omitempty"`
	HalfRate   map[string]string `json:"half_rate,omitempty"`
	Calls      string            `json:"system_calls,omitempty"` // why they were not counted
	Notes      []string          `json:"notes,omitempty"`
	Faults     []string          `json:"faults,omitempty"`
}

// PeerReport says who took part.
type PeerReport struct {
	Name    string `json:"name"`
	Title   string `json:"title"`
	Wire    string `json:"wire,omitempty"`    // what was seen there
	Missing string `json:"missing,omitempty"` // why it was not measured
	Aside   string `json:"aside,omitempty"`   // why no ratio is taken to it
}

// Series are the values of one figure, in the order of the rounds.
type Series struct {
	Placement string    `json:"placement"`
	Scenario  string    `json:"scenario"`
	Peer      string    `json:"peer"`
	Metric    string    `json:"metric"`
	Unit      string    `json:"unit"`
	More      bool      `json:"more_is_better"`
	Median    float64   `json:"median"`
	Spread    float64   `json:"spread"` // half of the way from the least to the greatest, as a part of the median
	Best      string    `json:"best_peer,omitempty"`
	Ratio     float64   `json:"ratio_to_best_peer,omitempty"`
	Values    []float64 `json:"values"`
	Loads     []Busy    `json:"cores,omitempty"`
}

// Busy says how many cores were busy with what.
type Busy struct {
	Ends    float64 `json:"ends"`
	Proxies float64 `json:"proxies"`
}

const metricCalls = "system calls"

func newReport(o Options, began time.Time) *Report {
	r := &Report{
		Began: began.UTC().Truncate(time.Second), Machine: o.Machine, LoadBefore: o.Load(), Length: o.Length.String(), Congestion: o.Congestion,
		HalfRate: map[string]string{},
	}
	for _, p := range peers() {
		if len(o.Peers) == 0 || slices.Contains(o.Peers, p.name) {
			r.Peers = append(r.Peers, PeerReport{Name: p.name, Title: p.title, Aside: p.aside})
		}
	}
	return r
}

func (r *Report) peer(name string) *PeerReport {
	for i := range r.Peers {
		if r.Peers[i].Name == name {
			return &r.Peers[i]
		}
	}
	return &PeerReport{}
}

func (r *Report) missing(p peer, err error) { r.peer(p.name).Missing = err.Error() }

// forget leaves a peer out that was not asked for.
func (r *Report) forget(p peer) {
	r.Peers = slices.DeleteFunc(r.Peers, func(o PeerReport) bool { return o.Name == p.name })
}

func (r *Report) wire(_ placement, p peer, seen string) { r.peer(p.name).Wire = seen }

// fault notes what went wrong, once.
func (r *Report) fault(place placement, s scenario, p peer, err error) {
	text := fmt.Sprintf("%s, %s, %s: %v", place.name, s.name, p.name, err)
	if !slices.Contains(r.Faults, text) {
		r.Faults = append(r.Faults, text)
	}
}

// note says something of the run, once.
func (r *Report) note(text string) {
	if !slices.Contains(r.Notes, text) {
		r.Notes = append(r.Notes, text)
	}
}

// series finds one, or begins it.
func (r *Report) series(place, scenario, peer string, m metric) *Series {
	if s := r.find(place, scenario, peer, m.name); s != nil {
		return s
	}
	s := &Series{Placement: place, Scenario: scenario, Peer: peer, Metric: m.name, Unit: m.unit, More: m.more}
	r.Series = append(r.Series, s)
	return s
}

func (r *Report) find(place, scenario, peer, metric string) *Series {
	for _, s := range r.Series {
		if s.Placement == place && s.Scenario == scenario && s.Peer == peer && s.Metric == metric {
			return s
		}
	}
	return nil
}

func (r *Report) add(place placement, s scenario, p peer, name string, v float64) {
	for _, m := range s.metrics() {
		if m.name == name {
			own := r.series(place.name, s.name, p.name, m)
			own.Values = append(own.Values, v)
		}
	}
}

func (r *Report) calls(place placement, s scenario, p peer, n float64) {
	unit := map[string]string{groupBulk: "calls/MB", groupConnect: "calls/connection", groupHTTP: "calls/request"}[s.group]
	own := r.series(place.name, s.name, p.name, metric{name: metricCalls, unit: unit})
	own.Values = append(own.Values, n)
}

// busy notes how many cores worked, to tell what limited a measurement.
func (r *Report) busy(place placement, s scenario, p peer, res load.Result) {
	own := r.series(place.name, s.name, p.name, s.metrics()[0])
	own.Loads = append(own.Loads, Busy{Ends: (res.ClientCPU + res.ServerCPU) / res.Seconds, Proxies: res.ProxyCPU / res.Seconds})
}

// halfRate is a share of what the best peer reached with 32 connections, rounded
// so that it is the same number in each round.
func (r *Report) halfRate(place placement, share float64) float64 {
	const otherwise = 8000 // where that was not measured
	best := 0.0
	for _, s := range r.Series {
		if s.Placement == place.name && s.Scenario == httpMany && s.Metric == metricRate && r.counts(s.Peer) {
			best = max(best, median(s.Values))
		}
	}
	rate := float64(otherwise)
	if best > 0 {
		rate = float64(int(best*share/100)) * 100
	}
	r.HalfRate[place.name] = fmt.Sprintf("%.0f requests/s", rate)
	return rate
}

// counts reports whether ratios are taken to a peer.
func (r *Report) counts(name string) bool {
	p := r.peer(name)
	return p.Name != "" && p.Aside == "" && !isPodseal(name)
}

func isPodseal(name string) bool { return strings.HasPrefix(name, ourselves) }

// finish computes what follows from the values.
func (r *Report) finish() {
	for _, s := range r.Series {
		if len(s.Values) == 0 {
			continue
		}
		s.Median = median(s.Values)
		if s.Median != 0 {
			s.Spread = (slices.Max(s.Values) - slices.Min(s.Values)) / 2 / s.Median
		}
	}
	for _, s := range r.Series {
		if best := r.best(s); best != nil && best.Median != 0 {
			s.Best, s.Ratio = best.Peer, s.Median/best.Median
		}
	}
	r.Figures = figures(r)
}

// best is the best peer in the same scenario and metric.
func (r *Report) best(of *Series) *Series {
	var best *Series
	for _, s := range r.Series {
		if s.Placement != of.Placement || s.Scenario != of.Scenario || s.Metric != of.Metric || !r.counts(s.Peer) || len(s.Values) == 0 {
			continue
		}
		if best == nil || s.More && s.Median > best.Median || !s.More && s.Median < best.Median {
			best = s
		}
	}
	return best
}

func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(values))
	n := len(s)
	return (s[(n-1)/2] + s[n/2]) / 2
}
