package main

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"podseal.io/podseal/internal/controlplane"
	"podseal.io/podseal/internal/discovery"
	"podseal.io/podseal/internal/edges"
)

// lastMatched says when an object last mattered at some pods, and what became of it,
// the latest first.
func lastMatched(pods []controlplane.PodPolicies, kind, object string, now time.Time) string {
	last := map[string]time.Time{}
	for i := range pods {
		for _, m := range pods[i].Matched {
			if m.Kind == kind && m.Object == object && m.Last.After(last[m.Outcome]) {
				last[m.Outcome] = m.Last
			}
		}
	}
	var all []edges.Match
	for outcome, at := range last {
		all = append(all, edges.Match{MatchKey: edges.MatchKey{Outcome: outcome}, Last: at})
	}
	slices.SortFunc(all, func(a, b edges.Match) int {
		if c := b.Last.Compare(a.Last); c != 0 {
			return c
		}
		return strings.Compare(a.Outcome, b.Outcome)
	})
	var parts []string
	for _, m := range all {
		parts = append(parts, strings.ReplaceAll(m.Outcome, "_", " ")+" "+age(now, m.Last)+" ago")
	}
	if len(parts) == 0 {
		return "never seen"
	}
	return strings.Join(parts, ", ")
}

// printMatched lists the objects that mattered and that have no line of their own.
func printMatched(s streams, pods []controlplane.PodPolicies, now time.Time) {
	var seen []edges.MatchKey
	for i := range pods {
		for _, m := range pods[i].Matched {
			key := edges.MatchKey{Kind: m.Kind, Object: m.Object}
			if m.Kind != discovery.KindAuthorizationPolicy && m.Kind != discovery.KindPeerAuthentication && !slices.Contains(seen, key) {
				seen = append(seen, key)
			}
		}
	}
	if len(seen) == 0 {
		return
	}
	fmt.Fprintln(s.out, "\nAlso followed:")
	w := tabwriter.NewWriter(s.out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "OBJECT\tLAST_MATCHED")
	for _, key := range seen {
		namespace, name, _ := strings.Cut(key.Object, "/")
		fmt.Fprintf(w, "%s %s.%s\t%s\n", key.Kind, name, namespace, lastMatched(pods, key.Kind, key.Object, now))
	}
	_ = w.Flush() // a closed standard output
}
