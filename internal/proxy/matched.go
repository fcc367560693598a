package proxy

import (
	"context"
	"sync"
	"time"

	"podseal.io/podseal/internal/edges"
	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/workload"
)

// matchEvery is how often it is looked what has matched: as exact are the times.
const matchEvery = 5 * time.Second

// The kinds of objects of which it is known when they last matched.
const (
	kindAuthorizationPolicy   = "AuthorizationPolicy"
	kindRequestAuthentication = "RequestAuthentication"
	kindDestinationRule       = "DestinationRule"
	kindServiceEntry          = "ServiceEntry"
)

// outcomeFollowed is what becomes of a connection that a DestinationRule or a
// ServiceEntry is about.
const outcomeFollowed = "followed"

// matches keeps when what policies say last mattered. Who decides sets a bit in the
// rule (policy.Access, policy.Authentication); here is the clock.
type matches struct {
	mu       sync.Mutex
	last     map[edges.MatchKey]time.Time
	followed map[followedObject]struct{} // since the last look

	// As of the last look: what was in force then may have matched since.
	access         *policy.Access
	authentication *policy.Authentication
}

// followedObject names an object without a new text for each connection.
type followedObject struct{ kind, namespace, name string }

func newMatches() *matches {
	return &matches{last: map[edges.MatchKey]time.Time{}, followed: map[followedObject]struct{}{}}
}

// follow notes that an outbound connection goes as a DestinationRule and a
// ServiceEntry say, if there are such.
func (m *matches) follow(to *routing) {
	if to.conduct.Rule == "" && to.entry.Entry == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.followed) >= edges.MaxMatches {
		return
	}
	if rule := to.conduct.Rule; rule != "" {
		m.followed[followedObject{kind: kindDestinationRule, name: rule}] = struct{}{}
	}
	if e := to.entry.Entry; e != nil {
		m.followed[followedObject{kindServiceEntry, e.Namespace, e.Name}] = struct{}{}
	}
}

// run looks until the context ends.
func (m *matches) run(ctx context.Context, world func() *workload.World) {
	ticker := time.NewTicker(matchEvery)
	defer ticker.Stop()
	for {
		select {
		case now := <-ticker.C:
			m.look(world(), now)
		case <-ctx.Done():
			return
		}
	}
}

// look gives all that has matched since the last time this one's.
func (m *matches) look(w *workload.World, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	access, authentication := m.access, m.authentication
	m.access, m.authentication = w.Access, w.Authentication
	note := func(kind string) func(key string, rule int, o policy.Outcome) {
		return func(key string, rule int, o policy.Outcome) {
			m.note(edges.MatchKey{Kind: kind, Object: key, Rule: rule, Outcome: o.String()}, now)
		}
	}
	access.Matched(note(kindAuthorizationPolicy))
	authentication.Matched(note(kindRequestAuthentication))
	w.Access.Matched(note(kindAuthorizationPolicy))
	w.Authentication.Matched(note(kindRequestAuthentication))
	for f := range m.followed {
		object := f.name // of a DestinationRule with its namespace
		if f.namespace != "" {
			object = f.namespace + "/" + f.name
		}
		m.note(edges.MatchKey{Kind: f.kind, Object: object, Rule: edges.NoRule, Outcome: outcomeFollowed}, now)
	}
	clear(m.followed)
}

// note keeps a match; the one that is longest ago makes room. Callers hold mu.
func (m *matches) note(key edges.MatchKey, now time.Time) {
	if _, there := m.last[key]; !there && len(m.last) >= edges.MaxMatches {
		var oldest edges.MatchKey
		var at time.Time
		for k, t := range m.last {
			if at.IsZero() || t.Before(at) {
				oldest, at = k, t
			}
		}
		delete(m.last, oldest)
	}
	m.last[key] = now
}

// all returns the matches as of the last look, in no order.
func (m *matches) all() []edges.Match {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]edges.Match, 0, len(m.last))
	for key, at := range m.last {
		out = append(out, edges.Match{MatchKey: key, Last: at})
	}
	return out
}
