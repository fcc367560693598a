package policy

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
)

func taken(a *Access) string {
	var out []string
	a.Matched(func(key string, rule int, o Outcome) { out = append(out, fmt.Sprintf("%s[%d] %s", key, rule, o)) })
	slices.Sort(out)
	return strings.Join(slices.Compact(out), ", ")
}

// Each rule says what became of what it matched since it was asked last, once.
func TestMatched(t *testing.T) { // contract 6.4, 6.5, 6.42, 6.44
	admin := func(r *Request) { r.Path = []byte("/admin/x") }
	custom := ap(Custom, when(is(RequestPath, "/admin*")))
	custom.Authorizer = "opa"
	all := []*AuthorizationPolicy{
		ap(Allow, when(is(RequestPath, "/nothing")), when(is(SourceNamespace, "shop"))), ap(Deny, when(is(RequestMethod, "DELETE"))), ap(Audit, when(is(RequestPath, "/orders*"))),
		dryRun(ap(Deny, when(is(RequestPath, "/orders*")))),
	}
	build := func(policies ...*AuthorizationPolicy) *Access {
		a, err := NewAccess(policies, nil, []string{"cluster.local"})
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	a := build(all...)
	for _, tc := range []struct {
		name string
		do   func()
		want string
	}{
		{"nothing yet", func() {}, ""},
		{"allowed", func() { a.Judge(web()); a.Judge(web()) }, "shop/allow[1] allowed, shop/audit[0] audited, shop/deny-dry[0] dry_run"},
		{"once", func() {}, ""},
		{"denied", func() { a.Judge(with(func(r *Request) { r.Method = []byte("DELETE"); r.Path = []byte("/") })) }, "shop/deny[0] denied"},
		{"by no rule", func() {
			a.Judge(&Attempt{Peer: plain().Peer, Request: &Request{Path: []byte("/"), Method: []byte("GET")}})
		}, "shop/allow[-1] denied"},
		{"still allowed", func() { a.Still(web()) }, "shop/allow[1] allowed, shop/audit[0] audited, shop/deny-dry[0] dry_run"},
		{"cut", func() { a.Still(&Attempt{Request: &Request{Path: []byte("/"), Method: []byte("GET")}}) }, "shop/allow[-1] cut"},
	} {
		tc.do()
		if got := taken(a); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
	}
	a = build(custom)
	a.Consult(with(admin))
	if got := taken(a); got != "shop/custom[0] asked" {
		t.Error(got)
	}
	a.Judge(with(admin))
	if got := taken(a); got != "shop/custom[0] denied" {
		t.Error(got)
	}
	var none *Access
	if taken(none) != "" || !none.Still(web()) {
		t.Error("nothing restricts, and something matched")
	}
	if pending, err := NewAccess(nil, []string{"shop/x"}, nil); err != nil || pending.Still(web()) || taken(pending) != "" {
		t.Error("what isn't known matched")
	}
	if Outcome(0).String() != "unknown" || Outcome(99).String() != "unknown" {
		t.Error("outcomes that are none have names")
	}
}

// Many may judge while somebody takes: nothing is lost, and nothing comes twice.
func TestMatchedTogether(t *testing.T) {
	a := benchmarkAccess(t)
	at := web()
	at.Request.Header = &someFields{[]byte("blue"), []byte("203.0.113.7")}
	var judging sync.WaitGroup
	for range 4 {
		judging.Go(func() {
			for range 1000 {
				a.Judge(at)
			}
		})
	}
	n := 0
	count := func(string, int, Outcome) { n++ }
	for range 100 {
		a.Matched(count)
	}
	judging.Wait()
	if a.Matched(count); n == 0 {
		t.Error("nothing has matched")
	}
	n = 0
	if a.Matched(count); n != 0 {
		t.Errorf("%d matched, and nobody asked", n)
	}
}

// What a match costs who judges, while it was noted already.
func BenchmarkNote(b *testing.B) {
	var h hits
	b.ReportAllocs()
	for b.Loop() {
		h.note(OutcomeAllowed)
	}
}
