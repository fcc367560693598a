// Package strict says whether a workload can be given mode STRICT: who still
// talks to it without the mesh's mutual TLS, what each of them needs, and whether
// it was watched for long enough to say so.
//
// [Judge] is pure: pods and what the proxies saw in, a [Report] out. The window is
// both how far back a caller counts and how long a port must have been observed:
// who calls once a day isn't seen in an hour.
package strict

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"podseal.io/podseal/internal/edges"
)

// Verdict says whether STRICT breaks somebody.
type Verdict string

// The verdicts, the worst last.
const (
	Strict Verdict = "strict" // it is STRICT already
	Go     Verdict = "go"
	Except Verdict = "except" // go, if this port stays PERMISSIVE for who can't have a proxy
	Wait   Verdict = "wait"   // nobody was seen, but not for long enough
	NoGo   Verdict = "no-go"
)

var order = []Verdict{Strict, Go, Except, Wait, NoGo}

func worse(a, b Verdict) Verdict {
	return order[max(slices.Index(order, a), slices.Index(order, b))]
}

// Pod is one pod of a workload, as far as it matters.
type Pod struct {
	Namespace, Name, Workload string
	Mesh                      bool              // it has a proxy
	Reports                   bool              // its proxy tells what it sees
	Since                     time.Time         // when its proxy was started
	Created                   time.Time         //
	Mode                      string            // of ports without one of their own
	PortModes                 map[uint16]string //
	Ports                     []uint16          // that services lead to
	Probed                    []uint16          // that kubelet's probes go to, not rewritten
	Hooks                     []uint16          // that the API server calls, by a webhook or aggregated API
	Labels                    map[string]string
}

func (p *Pod) mode(port uint16) string {
	if m, ok := p.PortModes[port]; ok {
		return m
	}
	return p.Mode
}

// Input is what Judge looks at.
type Input struct {
	Now    time.Time
	Window time.Duration
	// Pods are all that are known, also those that only call.
	Pods []Pod
	// Injected are the namespaces whose new pods get a proxy.
	Injected map[string]bool
	Graph    edges.Graph
}

// Report is about the workloads that were asked for.
type Report struct {
	Verdict   Verdict       `json:"verdict"` // the worst of them; "" without any
	Window    time.Duration `json:"window_ns"`
	Now       time.Time     `json:"time"`
	Workloads []Workload    `json:"workloads"`
}

// Workload is what is to be said of one.
type Workload struct {
	Namespace string  `json:"namespace"`
	Name      string  `json:"name"`
	Verdict   Verdict `json:"verdict"`
	Because   string  `json:"because"`
	Pods      int     `json:"pods"` // with a proxy
	// Blind are pods whose proxy doesn't report: what they see isn't known.
	Blind []string `json:"blind,omitempty"`
	// Outside are pods without a proxy: STRICT has no effect there.
	Outside  []string      `json:"outside,omitempty"`
	Since    time.Time     `json:"observed_since,omitzero"` // of the pod that was observed the shortest
	Observed time.Duration `json:"observed_ns"`
	Ports    []Port        `json:"ports"`
}

// Port is one of its ports: one that a service leads to, or where somebody was seen.
type Port struct {
	Port    uint16   `json:"port"` // of the pod; 0 is all that aren't named
	Mode    string   `json:"mode"` // now
	Verdict Verdict  `json:"verdict"`
	Because string   `json:"because"`
	Callers []Caller `json:"callers"` // without mutual TLS
	Mutual  uint64   `json:"mutual_tls_connections"`
}

// Caller is somebody who talks to a port without the mesh's mutual TLS.
type Caller struct {
	Peer        edges.Peer        `json:"peer"`
	What        string            `json:"what"` // plaintext, TLS of its own, refused
	Connections uint64            `json:"connections"`
	Refusals    map[string]uint64 `json:"refusals,omitempty"`
	First       time.Time         `json:"first_seen"`
	Last        time.Time         `json:"last_seen"`
	// Recognised is what of Kubernetes or its tools it is, "" if it is neither.
	Recognised string `json:"recognised,omitempty"`
	Blocks     bool   `json:"blocks"`
	Needs      string `json:"needs"`
}

// Name is how people see the caller.
func (c *Caller) Name() string {
	if c.Peer.Namespace != "" {
		return c.Peer.Namespace + "/" + c.Peer.String()
	}
	return c.Peer.String()
}

// Judge reports on the workloads that want is true for.
func Judge(in Input, want func(namespace, workload string) bool) Report {
	r := Report{Window: in.Window, Now: in.Now, Workloads: []Workload{}}
	j := judge{Input: in, callers: map[string]*caller{}}
	targets := map[string][]*Pod{}
	for i := range in.Pods {
		p := &in.Pods[i]
		key := p.Namespace + "/" + p.Workload
		j.caller(key).add(p)
		if want(p.Namespace, p.Workload) {
			targets[key] = append(targets[key], p)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(targets)) {
		w := j.workload(targets[key])
		r.Workloads = append(r.Workloads, w)
		if r.Verdict == "" {
			r.Verdict = w.Verdict
		}
		r.Verdict = worse(r.Verdict, w.Verdict)
	}
	return r
}

type judge struct {
	Input
	callers map[string]*caller // by "<namespace>/<workload>"
}

// caller is a workload as one that calls.
type caller struct {
	pods, meshed int
	oldest       time.Time // creation of the pod that is there the longest
	labels       map[string]string
}

func (j *judge) caller(key string) *caller {
	if j.callers[key] == nil {
		j.callers[key] = &caller{}
	}
	return j.callers[key]
}

func (c *caller) add(p *Pod) {
	c.pods++
	if p.Mesh {
		c.meshed++
	}
	if c.oldest.IsZero() || p.Created.Before(c.oldest) {
		c.oldest = p.Created
	}
	c.labels = p.Labels
}

func (j *judge) workload(pods []*Pod) Workload {
	w := Workload{Namespace: pods[0].Namespace, Name: pods[0].Workload, Verdict: Strict, Ports: []Port{}}
	ports := map[uint16]*Port{}
	var meshed []*Pod
	for _, p := range pods {
		name := p.Namespace + "/" + p.Name
		if !p.Mesh {
			w.Outside = append(w.Outside, name)
			continue
		}
		meshed = append(meshed, p)
		if !p.Reports {
			w.Blind = append(w.Blind, name)
		} else if p.Since.After(w.Since) {
			w.Since = p.Since
		}
		for _, n := range p.Ports {
			if ports[n] == nil {
				ports[n] = &Port{Port: n}
			}
		}
	}
	w.Pods = len(meshed)
	if w.Pods == 0 {
		w.Verdict, w.Because = NoGo, "it has no proxy: STRICT has no effect there (`podseal check` says which pods must be restarted)"
		return w
	}
	if !w.Since.IsZero() {
		w.Observed = max(j.Now.Sub(w.Since), 0)
	}
	for i := range j.Graph {
		j.see(&j.Graph[i], &w, ports)
	}
	if len(ports) == 0 {
		ports[0] = &Port{}
	}
	for _, n := range slices.Sorted(maps.Keys(ports)) {
		p := ports[n]
		j.port(p, &w, meshed)
		w.Ports = append(w.Ports, *p)
		w.Verdict = worse(w.Verdict, p.Verdict)
	}
	w.Because = j.because(&w)
	return w
}

// see notes who a link says talks to the workload.
func (j *judge) see(l *edges.Link, w *Workload, ports map[uint16]*Port) {
	if l.Destination.Kind != edges.KindWorkload || l.Destination.Namespace != w.Namespace || l.Destination.Name != w.Name || uncaptured(l.Port) {
		return
	}
	p := ports[l.Port]
	if p == nil {
		p = &Port{Port: l.Port}
		ports[l.Port] = p
	}
	c := Caller{Peer: l.Source, Refusals: map[string]uint64{}}
	for i := range l.Shares {
		c.share(&l.Shares[i], p, j.Now.Add(-j.Window))
	}
	if c.Connections > 0 || len(c.Refusals) > 0 {
		p.Callers = append(p.Callers, c)
	}
}

// refusing are the reasons for which STRICT refuses, or cuts what was open.
var refusing = []string{"plaintext_refused", "foreign_tls_refused", "policy_changed"}

func (c *Caller) share(s *edges.Share, p *Port, after time.Time) {
	if s.Last.Before(after) {
		return
	}
	carried, what := s.Connections, ""
	switch s.Security {
	case edges.MutualTLS:
		p.Mutual += s.Connections
		return
	case edges.Plaintext:
		what = "plaintext"
	case edges.ForeignTLS:
		what = "TLS of its own"
	case edges.NotObserved: // nothing was sent, as by a TCP probe: STRICT refuses nothing of it
		carried = 0
	}
	for _, reason := range refusing {
		if n := s.Refusals[reason]; n > 0 {
			c.Refusals[reason] += n
		}
	}
	if carried == 0 && len(c.Refusals) == 0 {
		return
	}
	if carried > 0 {
		c.What = cmp.Or(c.What, what)
	}
	c.What = cmp.Or(c.What, "refused")
	c.Connections += carried
	if c.First.IsZero() || s.First.Before(c.First) {
		c.First = s.First
	}
	if s.Last.After(c.Last) {
		c.Last = s.Last
	}
}

// uncaptured are the ports of contract 5.35, where STRICT changes nothing.
func uncaptured(port uint16) bool { return port == 15020 || port == 15021 || port == 15090 }

func (j *judge) port(p *Port, w *Workload, pods []*Pod) {
	p.Mode = pods[0].mode(p.Port)
	for _, pod := range pods {
		if pod.mode(p.Port) != p.Mode {
			p.Mode = "mixed"
		}
	}
	if p.Mode == "STRICT" {
		p.Verdict = Strict
		p.Because = "it is STRICT"
		if len(p.Callers) > 0 {
			p.Because = "it is STRICT, and refuses who is listed"
		}
		for i := range p.Callers {
			p.Callers[i].Needs = j.needs(&p.Callers[i], p, pods)
		}
		return
	}
	excepted := 0
	for i := range p.Callers {
		c := &p.Callers[i]
		c.Needs = j.needs(c, p, pods)
		if c.Blocks {
			p.Verdict = NoGo
		} else if c.Recognised != "" {
			excepted++
		}
	}
	switch {
	case p.Verdict == NoGo:
		p.Because = "somebody talks to it without the mesh's mutual TLS"
	case len(w.Blind) > 0:
		p.Verdict, p.Because = Wait, fmt.Sprintf("%d of %d pods don't tell what they see", len(w.Blind), w.Pods)
	case w.Observed < j.Window:
		p.Verdict, p.Because = Wait, fmt.Sprintf("nobody was seen, but it was observed for %s of %s only", short(w.Observed), short(j.Window))
	case excepted > 0:
		p.Verdict, p.Because = Except, "only who can't have a proxy talks to it without mutual TLS: let this port stay PERMISSIVE"
	default:
		p.Verdict, p.Because = Go, fmt.Sprintf("all that was seen in %s was mutual TLS", short(j.Window))
		if p.Mutual == 0 {
			p.Because = "nobody was seen in " + short(j.Window)
		}
	}
}

func (j *judge) because(w *Workload) string {
	count := map[Verdict]int{}
	for i := range w.Ports {
		count[w.Ports[i].Verdict]++
	}
	text := map[Verdict]string{
		Strict: "it is STRICT", Go: "nobody would be refused", Except: fmt.Sprintf("nobody would be refused if %d of its ports stay PERMISSIVE", count[Except]),
		Wait: "it was not observed for long enough", NoGo: fmt.Sprintf("somebody would be refused at %d of its ports", count[NoGo]),
	}[w.Verdict]
	if w.Verdict == Wait && len(w.Blind) > 0 {
		text = "some of its proxies don't report"
	}
	if len(w.Outside) > 0 {
		text += fmt.Sprintf("; %d of its pods have no proxy, and STRICT has no effect there", len(w.Outside))
	}
	return text
}

// short is a duration for people.
func short(d time.Duration) string {
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	default:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
}
