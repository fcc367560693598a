package policy

import (
	"math/rand/v2"
	"testing"
)

// With everything known Foresee says what Judge does; with less it never says
// yes or no where an attempt that has the known part in common is judged
// otherwise. The rules that decide are of the same kind.
func TestForeseeAgreesWithJudge(t *testing.T) { // contract 6.4, 6.5, 6.8, 6.42
	for seed := range uint64(4000) {
		r := rand.New(rand.NewPCG(seed, 11))
		trustDomains := []string{"td-a", "td-b"}
		a, err := NewAccess(randomPolicies(r), nil, trustDomains)
		if err != nil {
			t.Fatal(err)
		}
		for range 8 {
			x := randomAttempt(r)
			j := a.Judge(x)
			o := a.Foresee(x, func(Attribute) bool { return true })
			if (o.Allowed == Always) != j.Allowed || o.Allowed == Sometimes || (o.Rule == "") != (j.Rule == "") || (o.Audited == "") != (j.Audited == "") {
				t.Fatalf("seed %d: foreseen %+v, judged %+v", seed, o, j)
			}
			if (o.DryRun != nil) != j.DryRun.Judged || (o.DryRun != nil && (o.DryRun.Allowed == Always) != j.DryRun.Allowed) {
				t.Fatalf("seed %d: dry run foreseen %+v, judged %+v", seed, o.DryRun, j.DryRun)
			}
			if x.Request == nil {
				continue
			}
			o = a.Foresee(x, func(on Attribute) bool { return !on.HTTPOnly() && on != RemoteIP })
			for range 8 {
				y := randomAttempt(r)
				if y.Request == nil {
					continue
				}
				y.Peer, y.Source, y.Destination, y.SNI = x.Peer, x.Source, x.Destination, x.SNI
				if j := a.Judge(y); (o.Allowed == Always && !j.Allowed) || (o.Allowed == Never && j.Allowed) {
					t.Fatalf("seed %d: foreseen %+v, but one is judged %+v", seed, o, j)
				}
			}
		}
	}
}

func TestForesee(t *testing.T) {
	connection := func(on Attribute) bool { return !on.HTTPOnly() }
	paths := ap(Allow, when(is(SourceNamespace, "shop"), is(RequestPath, "/orders")))
	for name, tc := range map[string]struct {
		policies []*AuthorizationPolicy
		missing  []string
		want     Certainty
		rule     string
		on       Attribute
		missed   Attribute
	}{
		"nothing restricts":           {nil, nil, Always, "", 0, 0},
		"a policy that isn't known":   {nil, []string{"shop/x"}, Never, "shop/x", 0, 0},
		"some paths":                  {[]*AuthorizationPolicy{paths}, nil, Sometimes, "ns[shop]-policy[allow]-rule[0]", RequestPath, 0},
		"another namespace":           {[]*AuthorizationPolicy{ap(Allow, when(is(SourceNamespace, "db"), is(RequestPath, "/orders")))}, nil, Never, "", 0, SourceNamespace},
		"all but some":                {[]*AuthorizationPolicy{ap(Deny, when(is(RequestMethod, "POST")))}, nil, Sometimes, "ns[shop]-policy[deny]-rule[0]", RequestMethod, 0},
		"denied whatever is asked":    {[]*AuthorizationPolicy{paths, ap(Deny, when(is(SourceNamespace, "shop")))}, nil, Never, "ns[shop]-policy[deny]-rule[0]", 0, 0},
		"one rule is enough":          {[]*AuthorizationPolicy{ap(Allow, when(is(RequestPath, "/")), when(is(SourceNamespace, "shop")))}, nil, Always, "ns[shop]-policy[allow]-rule[1]", 0, 0},
		"no rules":                    {[]*AuthorizationPolicy{ap(Allow)}, nil, Never, "", 0, 0},
		"one of several sources does": {[]*AuthorizationPolicy{ap(Allow, Rule{From: [][]Match{{is(SourceNamespace, "db")}, {is(SourceNamespace, "shop")}}})}, nil, Always, "ns[shop]-policy[allow]-rule[0]", 0, 0},
	} {
		a, err := NewAccess(tc.policies, tc.missing, []string{"cluster.local"})
		if err != nil {
			t.Fatal(err)
		}
		o := a.Foresee(web(), connection)
		missed, on := Attribute(0), Attribute(0)
		if len(o.Misses) > 0 {
			missed = o.Misses[0].On
		}
		if len(o.On) > 0 {
			on = o.On[0]
		}
		if o.Allowed != tc.want || o.Rule != tc.rule || on != tc.on || missed != tc.missed || o.Pending != (tc.missing != nil) {
			t.Errorf("%s: %+v", name, o)
		}
	}
}
