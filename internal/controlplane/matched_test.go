package controlplane

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"podseal.io/podseal/internal/discovery"
	"podseal.io/podseal/internal/edges"
	"podseal.io/podseal/internal/report"
)

// apiReport is what shop/api's proxy says: who came, and what its policy did.
func apiReport(at time.Time) report.Report {
	seen := func(port uint16, s edges.Security, protocol string, at time.Time, refused string) edges.Edge {
		e := edges.Edge{Key: edges.Key{Direction: edges.Inbound, Security: s, Protocol: protocol, Port: port}, Last: at}
		if refused != "" {
			e.Counts.Refusals = map[string]uint64{refused: 1}
		}
		return e
	}
	outbound := seen(8080, edges.Plaintext, "http", at.Add(time.Hour), "")
	outbound.Key.Direction = edges.Outbound
	return report.Report{
		Pod: report.Pod{Namespace: "shop", Name: "api"},
		Edges: []edges.Edge{
			seen(8080, edges.MutualTLS, "http", at, ""), seen(8080, edges.MutualTLS, "http", at.Add(-time.Hour), ""), seen(8080, edges.Plaintext, "", at.Add(-time.Minute), "plaintext_refused"),
			seen(8080, edges.NotObserved, "", at.Add(time.Hour), "peer_unverified"), seen(15020, edges.Plaintext, "http", at.Add(time.Hour), ""), outbound,
			seen(9090, edges.ForeignTLS, "tcp", at.Add(-2*time.Minute), ""), seen(8080, edges.NotObserved, "tcp", at.Add(time.Hour), ""),
		},
		Matches: []edges.Match{{MatchKey: edges.MatchKey{Kind: discovery.KindAuthorizationPolicy, Object: "shop/from-web", Rule: 0, Outcome: "allowed"}, Last: at}},
	}
}

func said(all []edges.Match) string {
	var out []string
	for _, m := range all {
		out = append(out, m.Kind+" "+m.Object+" "+m.Outcome+" "+m.Last.Sub(epoch).String())
	}
	return strings.Join(out, ", ")
}

// A PeerAuthentication mattered where it sets the mode of the port, as edges show;
// one of the mesh doesn't where the namespace's does.
func TestMatchesOf(t *testing.T) { // contract 1.7, 1.13
	r := apiReport(epoch)
	origin := discovery.Origin{Policies: []discovery.OriginPolicy{
		{Key: discovery.Key{Namespace: testNamespace, Name: "mesh"}, Scope: "mesh"},
		{Key: discovery.Key{Namespace: "shop", Name: "strict"}, Scope: "namespace", SetsDefault: true},
		{Key: discovery.Key{Namespace: "shop", Name: "port"}, Scope: "selector", Ports: []uint16{9090}},
	}}
	want := "AuthorizationPolicy shop/from-web allowed 0s, PeerAuthentication shop/port plaintext -2m0s, PeerAuthentication shop/strict mutual_tls 0s, PeerAuthentication shop/strict refused -1m0s"
	if got := said(matchesOf(&r, &origin)); got != want {
		t.Errorf("%s", got)
	}
	if got := said(matchesOf(&r, &discovery.Origin{})); got != "AuthorizationPolicy shop/from-web allowed 0s" {
		t.Errorf("of nobody: %s", got)
	}
}

// The answer about a pod has it, whichever replica its proxy is connected to.
func TestExplainMatched(t *testing.T) {
	rs := newTestReplicas(t, "web", "api")
	rs.all["api"].all.answers.reports = func(pods []string) []report.Report { return []report.Report{apiReport(epoch)} }
	for _, r := range rs.all {
		a, err := r.all.explain(t.Context(), &ExplainRequest{Pods: []string{"shop/web", "shop/api"}})
		if err != nil {
			t.Fatal(err)
		}
		if len(a.Pods[0].Matched) != 0 || !strings.Contains(said(a.Pods[1].Matched), "PeerAuthentication shop/strict mutual_tls 0s") {
			t.Errorf("%s: %+v", r.name, a.Pods)
		}
	}
}

// The status of an object says when it last mattered at any replica's proxies, to
// ten minutes; what it has said stays when the proxies that saw it are gone.
func TestMatchedStatus(t *testing.T) {
	rs := newTestReplicas(t, "web", "api")
	now, at := epoch, epoch.Add(-time.Minute)
	clock := func() time.Time { return now }
	of := func(r *testReplica, reports func() []report.Report) *matchReader {
		m := &matchReader{cluster: r.states.cluster, reports: reports}
		r.peers.matches = m.read
		return m
	}
	of(rs.all["api"], func() []report.Report { return []report.Report{apiReport(at)} })
	r := rs.all["web"]
	e := &enforcement{
		own: r.states, others: &peerStateReader{peers: r.all.peers, now: clock}, view: r.all.view, now: clock, log: quietLog, peers: r.all.peers,
		matches: of(r, func() []report.Report { return nil }),
	}
	_, verdicts := discovery.Build(*r.states.cluster())
	obj := r.states.cluster().AuthorizationPolicies[0].DeepCopy()
	c := fake.NewClientBuilder().WithScheme(newScheme()).WithObjects(obj).WithStatusSubresource(newPolicy(discovery.KindAuthorizationPolicy)).Build()
	w := &statusWriter{client: c, more: e.conditions, now: clock, log: quietLog, written: map[discovery.Key]writing{}}
	writes := 0
	message := func() string {
		t.Helper()
		before := obj.GetResourceVersion()
		w.writeAll(t.Context(), verdicts)
		if err := c.Get(t.Context(), types.NamespacedName{Namespace: "shop", Name: "from-web"}, obj); err != nil {
			t.Fatal(err)
		}
		if obj.GetResourceVersion() != before {
			writes++
		}
		return conditionOf(t, obj, conditionMatched)
	}
	if got := message(); got != "True Matched last allowed 2026-03-01T11:50:00Z" {
		t.Error(got)
	}
	writes = 0
	for range 30 { // it matches all the time: written once in ten minutes
		now, at = now.Add(time.Minute), at.Add(time.Minute)
		message()
	}
	if got := message(); got != "True Matched last allowed 2026-03-01T12:20:00Z" || writes != 3 {
		t.Errorf("%s after %d writes", got, writes)
	}
	rs.all["api"].address = "127.0.0.1:1" // nobody knows any more
	now = now.Add(time.Hour)
	if got := message(); got != "True Matched last allowed 2026-03-01T12:20:00Z" {
		t.Error(got)
	}
	fresh := matchedCondition(nil)
	if fresh.status != "Unknown" || fresh.after("last week") != fresh || fresh.after("") != fresh {
		t.Errorf("%+v", fresh)
	}
	if (&matchReader{cluster: func() *discovery.Cluster { return nil }}).read() != nil {
		t.Error("matches of nothing")
	}
}

// Whatever stands in a status, it is read as what this program writes, or as nothing.
func FuzzParseMatched(f *testing.F) {
	f.Add("last allowed 2026-03-01T12:20:00Z, denied 2026-03-01T11:50:00Z")
	f.Add("last ,")
	f.Fuzz(func(t *testing.T, text string) {
		got := parseMatched(text)
		if len(got) == 0 {
			return
		}
		for outcome, at := range got { // years that RFC 3339 can't write are no times of ours
			if at.UTC().Year() < 1 || at.UTC().Year() > 9999 {
				delete(got, outcome)
			} else {
				got[outcome] = at.UTC().Truncate(matchedStep)
			}
		}
		if again := parseMatched(matchedCondition(got).message); len(got) > 0 && !maps.EqualFunc(got, again, time.Time.Equal) {
			t.Errorf("%q: %v, then %v", text, got, again)
		}
	})
}

// conditionOf is one of an object's conditions: status, reason and message.
func conditionOf(t *testing.T, obj *unstructured.Unstructured, kind string) string {
	t.Helper()
	all, _, err := unstructured.NestedSlice(obj.Object, "status", "conditions")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range all {
		if m, ok := c.(map[string]any); ok && m["type"] == kind {
			return fmt.Sprint(m["status"], " ", m["reason"], " ", m["message"])
		}
	}
	return ""
}
