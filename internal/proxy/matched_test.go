package proxy

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"podseal.io/podseal/internal/edges"
	"podseal.io/podseal/internal/meshtest"
	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/workload"
)

var matchNoon = time.Unix(1_800_000_000, 0)

func saidOf(m *matches) string {
	var out []string
	for _, x := range m.all() {
		out = append(out, fmt.Sprintf("%s %s[%d] %s +%d", x.Kind, x.Object, x.Rule, x.Outcome, x.Last.Unix()-matchNoon.Unix()))
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// What has matched gets the time of the next look, also what was in force before.
func TestMatchesLook(t *testing.T) {
	build := func(name string) *policy.Access {
		a, err := policy.NewAccess([]*policy.AuthorizationPolicy{{Namespace: "shop", Name: name, Effect: policy.Allow, Rules: []policy.Rule{{}}}}, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	m, before, after := newMatches(), build("before"), build("after")
	w := workload.NewWorld(workload.Mesh{}, nil, nil)
	at := matchNoon
	look := func(a *policy.Access) string {
		w.Access = a
		m.look(w, at)
		at = at.Add(time.Second)
		return saidOf(m)
	}
	if got := look(before); got != "" {
		t.Error(got)
	}
	before.Judge(&policy.Attempt{})
	if got := look(after); got != "AuthorizationPolicy shop/before[0] allowed +1" {
		t.Error(got)
	}
	after.Judge(&policy.Attempt{})
	m.follow(&routing{conduct: workload.Conduct{Rule: "shop/rule"}, entry: workload.EntryRef{Entry: &workload.Entry{Namespace: "shop", Name: "entry"}}})
	m.follow(&routing{})
	want := "AuthorizationPolicy shop/after[0] allowed +2, AuthorizationPolicy shop/before[0] allowed +1, DestinationRule shop/rule[-1] followed +2, ServiceEntry shop/entry[-1] followed +2"
	if got := look(nil); got != want {
		t.Error(got)
	}
	if got := look(nil); got != want {
		t.Error(got)
	}
}

// However much is followed, the table is bounded, and what was last used stays.
func TestMatchesBounds(t *testing.T) {
	m, w := newMatches(), workload.NewWorld(workload.Mesh{}, nil, nil)
	for i := range edges.MaxMatches + 50 {
		m.follow(&routing{conduct: workload.Conduct{Rule: fmt.Sprint("shop/", i)}})
		if i%100 == 0 {
			m.look(w, matchNoon.Add(time.Duration(i)*time.Second))
		}
	}
	m.look(w, matchNoon.Add(time.Hour))
	all := m.all()
	if len(all) != edges.MaxMatches || !slices.ContainsFunc(all, func(x edges.Match) bool { return x.Object == fmt.Sprint("shop/", edges.MaxMatches+49) }) {
		t.Errorf("%d matches", len(all))
	}
	if n := testing.AllocsPerRun(100, func() { m.follow(&routing{conduct: workload.Conduct{Rule: "shop/1"}}) }); n != 0 {
		t.Errorf("%v allocations for a connection", n)
	}
}

// Through a proxy: what it lets in, denies and cuts.
func TestMatchesOfConnections(t *testing.T) {
	p := newPair(t, policy.TCP, meshtest.Echo)
	said := func() string {
		p.inside.matches.look(p.inside.worlds.world(), matchNoon)
		return saidOf(p.inside.matches)
	}
	p.enforce(allow("client", on(policy.SourcePrincipal, clientPrincipal)))
	mesh := p.dial()
	exchange(t, mesh, "x")
	plain := p.connect(p.outsider(), p.app)
	_, _ = io.WriteString(plain, "no identity")
	_ = ends(t, plain)
	if got := said(); got != "AuthorizationPolicy shop/client[-1] denied +0, AuthorizationPolicy shop/client[0] allowed +0" {
		t.Error(got)
	}
	p.enforce(deny("all", policy.Rule{}))
	_ = ends(t, mesh)
	if got := said(); !strings.Contains(got, "AuthorizationPolicy shop/all[0] cut +0") {
		t.Error(got)
	}
}
