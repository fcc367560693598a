package datapath

import (
	"fmt"
	"time"

	"podseal.io/podseal/test/bench/load"
)

// Groups of scenarios.
const (
	groupBulk    = "bulk"
	groupConnect = "connect"
	groupHTTP    = "http"
	groupLatency = "latency"
	groupIdle    = "idle"
	groupMix     = "mix"
)

// scenario is something to measure through each chain.
type scenario struct {
	name  string
	group string
	title string
	core  bool // the figures that Podseal is judged by: in every round
	jobs  []load.Job
	share float64 // of the rate of the best peer; of the first job
	idle  int     // connections that rest
}

// metric is one figure of a scenario.
type metric struct {
	name, unit string
	more       bool // is better
	value      func(load.Result) float64
}

func perCPU(per float64, of func(load.JobResult) float64) func(load.Result) float64 {
	return func(r load.Result) float64 {
		if n := of(r.Jobs[0]); n > 0 {
			return r.ProxyCPU / n * per
		}
		return 0
	}
}

func count(j load.JobResult) float64 { return j.Count }
func moved(j load.JobResult) float64 { return j.Bytes }

func perSecond(of func(load.JobResult) float64, scale float64) func(load.Result) float64 {
	return func(r load.Result) float64 { return of(r.Jobs[0]) / r.Seconds * scale }
}

func quantile(name string, of func(load.JobResult) float64) metric {
	return metric{name, "µs", false, func(r load.Result) float64 { return of(r.Jobs[0]) }}
}

func p50(j load.JobResult) float64  { return j.P50 }
func p99(j load.JobResult) float64  { return j.P99 }
func p999(j load.JobResult) float64 { return j.P999 }

// Names of metrics that figures are made of.
const (
	metricCPU   = "CPU"
	metricRate  = "rate"
	metricP50   = "p50"
	metricP99   = "p99"
	metricEach  = "each"
	metricStart = "start"
)

// metrics are the figures of a scenario.
func (s scenario) metrics() []metric {
	switch s.group {
	case groupBulk:
		return []metric{
			{metricRate, "GB/s", true, perSecond(moved, 1e-9)},
			{metricCPU, "CPU s/GB", false, perCPU(1e9, moved)},
		}
	case groupConnect:
		return []metric{
			{metricRate, "conn/s", true, perSecond(count, 1)},
			{metricCPU, "CPU ms/1,000", false, perCPU(1e6, count)},
			quantile(metricP50, p50), quantile(metricP99, p99),
		}
	case groupHTTP:
		return []metric{
			{metricRate, "req/s", true, perSecond(count, 1)},
			{metricCPU, "CPU ms/1,000", false, perCPU(1e6, count)},
			quantile(metricP50, p50), quantile(metricP99, p99),
		}
	case groupLatency:
		return []metric{quantile(metricP50, p50), quantile(metricP99, p99), quantile("p99.9", p999)}
	case groupMix:
		return []metric{
			{metricCPU, "CPU ms/s", false, func(r load.Result) float64 { return r.ProxyCPU / r.Seconds * 1e3 }},
			quantile(metricP50, p50), quantile(metricP99, p99),
		}
	case groupIdle:
		return []metric{
			{metricStart, "MB at start", false, nil},
			{metricEach, "kB each", false, nil},
		}
	}
	return nil
}

// fill is the additional time that a scenario takes until it is steady: bulk fills
// the buffers of each connection first, and of new connections the first of each
// client is a handshake also where others are used again.
func (s scenario) fill() time.Duration {
	if s.group != groupBulk && s.group != groupConnect {
		return 0
	}
	return time.Duration(s.jobs[0].Conns) * 15 * time.Millisecond
}

// Names of the scenarios that figures are made of.
const (
	bulkUp, bulkDown     = "bulk-up-1", "bulk-down-1"
	connectOne           = "connect-1"
	connectMany          = "connect-64"
	httpOne, httpMany    = "http1-1-0.2k", "http1-32-0.2k"
	latencyHalf          = "latency-half"
	idleFew              = "idle-1000"
	mixed                = "mix"
	latencyLow           = "latency-1000"
	lowRate              = 1000
	stormRate            = 100
	mixRequests, mixConn = 1000, 50
	mixBulk              = 50e6 // bytes per second
	chunk                = 64 << 10
)

// scenarios are all that can be measured.
func scenarios() []scenario {
	var all []scenario
	for _, kind := range []load.Kind{load.Up, load.Down, load.Both} {
		for _, conns := range []int{1, 8, 64} {
			name := fmt.Sprintf("bulk-%s-%d", kind, conns)
			all = append(all, scenario{
				name: name, group: groupBulk, title: fmt.Sprintf("bulk %s, %s", kind, plural(conns, "stream")),
				core: name == bulkUp || name == bulkDown, jobs: []load.Job{{Kind: kind, Conns: conns}},
			})
		}
	}
	for _, conns := range []int{1, 64} {
		all = append(all, scenario{
			name: fmt.Sprintf("connect-%d", conns), group: groupConnect, title: "connect, exchange, close; " + plural(conns, "client"),
			core: true, jobs: []load.Job{{Kind: load.Connect, Conns: conns}},
		})
	}
	for _, kind := range []load.Kind{load.HTTP1, load.HTTP2} {
		for _, conns := range []int{1, 32, 256} {
			for _, size := range []struct {
				name  string
				bytes int
			}{{"0.2k", 200}, {"10k", 10_000}, {"100k", 100_000}} {
				name := fmt.Sprintf("%s-%d-%s", kind, conns, size.name)
				all = append(all, scenario{
					name: name, group: groupHTTP, title: fmt.Sprintf("HTTP/%s, %s, %sB", map[load.Kind]string{load.HTTP1: "1.1", load.HTTP2: "2"}[kind], plural(conns, "connection"), size.name),
					core: name == httpOne || name == httpMany, jobs: []load.Job{{Kind: kind, Conns: conns, Size: size.bytes}},
				})
			}
		}
	}
	return append(all,
		scenario{
			name: latencyLow, group: groupLatency, title: "1,000 requests/s on 32 connections",
			jobs: []load.Job{{Kind: load.HTTP1, Conns: 32, Size: 200, Rate: lowRate}},
		},
		scenario{
			name: latencyHalf, group: groupLatency, title: "half the best peer's rate, 32 connections", core: true, share: 0.5,
			jobs: []load.Job{{Kind: load.HTTP1, Conns: 32, Size: 200}},
		},
		scenario{
			name: "latency-storm", group: groupLatency, title: "100 requests/s on 32 connections while 256 clients connect, exchange, close",
			jobs: []load.Job{{Kind: load.HTTP1, Conns: 32, Size: 200, Rate: stormRate}, {Kind: load.Connect, Conns: 256}},
		},
		scenario{
			name: mixed, group: groupMix, title: "1,000 requests/s of 10 kB, 50 new connections/s, 50 MB/s up", core: true,
			jobs: []load.Job{
				{Kind: load.HTTP1, Conns: 32, Size: 10_000, Rate: mixRequests},
				{Kind: load.Connect, Conns: 64, Rate: mixConn},
				{Kind: load.Up, Conns: 4, Rate: mixBulk / chunk},
			},
		},
		scenario{name: idleFew, group: groupIdle, title: "1,000 idle connections", core: true, idle: 1000},
		scenario{name: "idle-10000", group: groupIdle, title: "10,000 idle connections", idle: 10_000},
	)
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// ScenarioNames are the groups, and in each its scenarios.
func ScenarioNames() []string {
	var all []string
	last := ""
	for _, s := range scenarios() {
		if s.group != last {
			all = append(all, s.group)
			last = s.group
		}
		if s.name != s.group {
			all = append(all, s.name)
		}
	}
	return all
}
