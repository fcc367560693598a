package controlplane

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"podseal.io/podseal/internal/discovery"
	"podseal.io/podseal/internal/edges"
	"podseal.io/podseal/internal/report"
)

// What a PeerAuthentication has led to, as edges show it.
const (
	outcomeMutualTLS = "mutual_tls"
	outcomePlaintext = "plaintext" // of TLS that isn't the mesh's too: it was accepted
	outcomeRefused   = "refused"
)

// matchesOf is what a proxy says of when policies last mattered at its pod, and what
// its edges show of the PeerAuthentications that the pod follows.
func matchesOf(r *report.Report, origin *discovery.Origin) []edges.Match {
	out := slices.Clone(r.Matches)
	last := map[edges.MatchKey]time.Time{}
	for i := range r.Edges {
		e := &r.Edges[i]
		if e.Key.Direction != edges.Inbound || e.Key.Rest || edges.OwnPort(e.Key.Port) {
			continue
		}
		by, ok := setsMode(origin, e.Key.Port)
		if !ok {
			continue
		}
		for _, outcome := range outcomesOf(e) {
			key := edges.MatchKey{Kind: discovery.KindPeerAuthentication, Object: by.Namespace + "/" + by.Name, Rule: edges.NoRule, Outcome: outcome}
			if e.Last.After(last[key]) {
				last[key] = e.Last
			}
		}
	}
	for key, at := range last {
		out = append(out, edges.Match{MatchKey: key, Last: at.UTC().Truncate(time.Second)})
	}
	edges.SortMatches(out)
	return out
}

// setsMode is the PeerAuthentication that sets the mode of a pod's port, if any does.
func setsMode(o *discovery.Origin, port uint16) (discovery.Key, bool) {
	var by *discovery.OriginPolicy
	for i := range o.Policies {
		p := &o.Policies[i]
		if slices.Contains(p.Ports, port) && p.Scope == "selector" { // contract 1.13
			return p.Key, true
		}
		if p.SetsDefault {
			by = p
		}
	}
	if by == nil {
		return discovery.Key{}, false
	}
	return by.Key, true
}

// outcomesOf is what an edge shows of the mode of its port.
func outcomesOf(e *edges.Edge) []string {
	if e.Key.Protocol == "" { // nothing was carried
		if e.Counts.Refusals["plaintext_refused"]+e.Counts.Refusals["foreign_tls_refused"] > 0 {
			return []string{outcomeRefused}
		}
		return nil
	}
	switch e.Key.Security {
	case edges.MutualTLS:
		return []string{outcomeMutualTLS}
	case edges.Plaintext, edges.ForeignTLS:
		return []string{outcomePlaintext}
	default:
		return nil
	}
}

// matched is when an object last mattered, by what became of it.
type matched map[discovery.Key]map[string]time.Time

func (m matched) note(key discovery.Key, outcome string, at time.Time) {
	if m[key] == nil {
		m[key] = map[string]time.Time{}
	}
	if at.After(m[key][outcome]) {
		m[key][outcome] = at
	}
}

// objectMatch is one of them, for other replicas.
type objectMatch struct {
	discovery.Key
	Outcome string    `json:"outcome"`
	Last    time.Time `json:"last"`
}

// matchReader reads them from what proxies report to this replica.
type matchReader struct {
	cluster func() *discovery.Cluster
	reports func() []report.Report

	mu      sync.Mutex
	seen    *discovery.Cluster // that origins are of
	origins map[string]podOrigin
}

// read is of all pods together, in no order.
func (r *matchReader) read() []objectMatch {
	c := r.cluster()
	if r.reports == nil || c == nil {
		return nil
	}
	r.mu.Lock()
	if r.seen != c {
		r.seen, r.origins = c, originsOf(*c)
	}
	origins := r.origins
	r.mu.Unlock()
	all := matched{}
	reports := r.reports()
	for i := range reports {
		o := origins[reports[i].Pod.Namespace+"/"+reports[i].Pod.Name]
		for _, m := range matchesOf(&reports[i], &o.Origin) {
			namespace, name, _ := strings.Cut(m.Object, "/")
			all.note(discovery.Key{Kind: m.Kind, Namespace: namespace, Name: name}, m.Outcome, m.Last)
		}
	}
	var out []objectMatch
	for key, outcomes := range all {
		for outcome, at := range outcomes {
			out = append(out, objectMatch{key, outcome, at})
		}
	}
	return out
}

// matchedStep is how exact the status of an object is: what matches all the time
// changes it no oftener.
const matchedStep = 10 * time.Minute

// The reasons of the condition Matched.
const (
	reasonMatched = "Matched"
	reasonNotSeen = "NotSeen"
)

// matchedCondition says when an object last mattered.
func matchedCondition(outcomes map[string]time.Time) condition {
	c := condition{kind: conditionMatched, status: "Unknown", reason: reasonNotSeen, message: "no proxy has seen it match yet"}
	if len(outcomes) == 0 {
		return c
	}
	var parts []string
	for _, outcome := range slices.Sorted(maps.Keys(outcomes)) {
		parts = append(parts, outcome+" "+outcomes[outcome].UTC().Truncate(matchedStep).Format(time.RFC3339))
	}
	c.status, c.reason, c.message = "True", reasonMatched, "last "+strings.Join(parts, ", ")
	return c
}

// maxOutcomes bounds what is read of an earlier condition.
const maxOutcomes = 16

// parseMatched reads the message of such a condition. What isn't one is nothing.
func parseMatched(message string) map[string]time.Time {
	text, ok := strings.CutPrefix(message, "last ")
	parts := strings.SplitN(text, ", ", maxOutcomes+1)
	if !ok || len(parts) > maxOutcomes {
		return nil
	}
	out := map[string]time.Time{}
	for _, part := range parts {
		outcome, when, _ := strings.Cut(part, " ")
		at, err := time.Parse(time.RFC3339, when)
		if err != nil || outcome == "" || strings.ContainsFunc(outcome, func(c rune) bool { return (c < 'a' || c > 'z') && c != '_' }) {
			return nil
		}
		out[outcome] = at
	}
	return out
}

// after takes in what the object has said earlier: the proxies that saw it may be gone.
func (c condition) after(earlier string) condition {
	if c.kind != conditionMatched {
		return c
	}
	before, now := parseMatched(earlier), parseMatched(c.message)
	if len(before) == 0 {
		return c
	}
	for outcome, at := range now {
		if at.After(before[outcome]) {
			before[outcome] = at
		}
	}
	return matchedCondition(before)
}
