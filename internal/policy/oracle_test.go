package policy

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"podseal.io/podseal/internal/identity"
)

// What random policies and attempts are made of: few words, so that they meet.
var (
	words = map[Attribute][]string{
		SourcePrincipal: {
			"cluster.local/ns/shop/sa/web", "td-a/ns/shop/sa/web", "td-b/ns/db/sa/pg", "other/ns/shop/sa/web", "*/ns/shop/sa/web", "*sa/web",
			"cluster.local/ns/shop/sa/*", "cluster.local*", "*", "td-*", "nonsense",
		},
		SourceNamespace:      {"shop", "db", "s*", "*p", "*", "s*p", "ns", "sa"},
		SourceServiceAccount: {"web", "shop/web", "db/pg", "pg"},
		SourceTrustDomain:    {"td-a", "other", "*", "td-*", "t*-b", "cluster.local"},
		SourceIP:             {"10.0.0.1", "10.0.0.0/8", "fd00::/8", "192.168.1.0/24"},
		RemoteIP:             {"10.0.0.1", "203.0.113.7", "203.0.113.0/24", "fd00::9"},
		DestinationIP:        {"10.0.0.2", "10.0.0.0/30", "fd00::2"},
		DestinationPort:      {"80", "8080", "0"},
		ConnectionSNI:        {"web.shop", "outbound*", "*shop", "*"},
		RequestHost:          {"web.shop", "WEB.shop:80", "*.shop", "web*", "*"},
		RequestMethod:        {"GET", "P*", "*T", "*"},
		RequestPath:          {"/", "/admin", "/admin*", "*.html", "/a/{*}/c", "/a/{**}", "/a/{**}/c", "/{*}", "*"},
		RequestHeader:        {"x", "x*", "*y", "*", "x,y"},
		RequestPrincipal:     {"iss/sub", "*", "iss/*", "*/sub", "https://iss/sub"},
		RequestAudiences:     {"a", "b*", "*"},
		RequestPresenter:     {"p", "*"},
		RequestClaim:         {"x", "x*"},
	}
	someIDs = []identity.ID{
		{},
		identity.MustNew("cluster.local", "shop", "web"), identity.MustNew("td-a", "shop", "web"), identity.MustNew("td-b", "db", "pg"),
		identity.MustNew("other", "shop", "web"), identity.MustNew("td-a", "ns", "sa"),
	}
	someAddrs = []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("192.168.1.9"), netip.MustParseAddr("fd00::2")}
)

// fields is a Header for tests.
type fields map[string]string

func (f fields) Field(name string) ([]byte, bool) { v, ok := f[name]; return []byte(v), ok }

func pick[T any](r *rand.Rand, from []T) T { return from[r.IntN(len(from))] }

func randomMatches(r *rand.Rand, most int) []Match {
	var out []Match
	for range r.IntN(most + 1) {
		m := Match{On: Attribute(1 + r.IntN(int(RequestClaim)))}
		if m.On == RequestHeader {
			m.Key = []string{pick(r, []string{"x-a", "x-b", "x-forwarded-for"})}
		}
		if m.On == RequestClaim {
			m.Key = pick(r, [][]string{{"group"}, {"realm", "roles"}, {"realm"}, {"group", "x"}})
		}
		for range r.IntN(3) {
			m.Values = append(m.Values, pick(r, words[m.On]))
		}
		for range r.IntN(2) {
			m.NotValues = append(m.NotValues, pick(r, words[m.On]))
		}
		if len(m.Values)+len(m.NotValues) > 0 {
			out = append(out, m)
		}
	}
	return out
}

func randomPolicies(r *rand.Rand) []*AuthorizationPolicy {
	var out []*AuthorizationPolicy
	for range r.IntN(5) {
		p := &AuthorizationPolicy{Namespace: pick(r, []string{"shop", root}), Name: pick(r, []string{"a", "b"}), Effect: Effect(r.IntN(4)), DryRun: r.IntN(4) == 0}
		for range r.IntN(3) {
			rule := Rule{When: randomMatches(r, 1), Never: r.IntN(20) == 0}
			for range r.IntN(3) {
				rule.From = append(rule.From, randomMatches(r, 2))
			}
			for range r.IntN(3) {
				rule.To = append(rule.To, randomMatches(r, 2))
			}
			p.Rules = append(p.Rules, rule)
		}
		out = append(out, p)
	}
	return out
}

func randomAttempt(r *rand.Rand) *Attempt {
	t := &Attempt{
		Peer: NewPeer(pick(r, someIDs)), Source: pick(r, someAddrs), SNI: []byte(pick(r, []string{"", "web.shop", "outbound_.80_._.web.shop"})),
		Destination: netip.AddrPortFrom(pick(r, someAddrs), pick(r, []uint16{80, 8080, 9})),
	}
	if r.IntN(3) == 0 {
		return t
	}
	header := fields{}
	for _, name := range []string{"x-a", "x-b"} {
		if r.IntN(2) == 0 {
			header[name] = pick(r, []string{"", "x", "xy", "x,y"})
		}
	}
	if r.IntN(2) == 0 {
		header["x-forwarded-for"] = pick(r, []string{"10.0.0.1", "1.1.1.1, 203.0.113.7", "203.0.113.7,", "fd00::9", "203.0.113.7:80", "junk"})
	}
	t.Request = &Request{
		Method: []byte(pick(r, []string{"GET", "POST", "PUT"})), Host: []byte(pick(r, []string{"web.shop", "Web.Shop:80", "", "x"})), Header: header,
		Path: []byte(pick(r, []string{"/", "/admin", "/admin/x?q=1", "/a/b/c", "/a/", "/a//c", "/a", "/a/b/c/c", "/index.html?x"})),
	}
	if r.IntN(2) == 0 {
		t.Request.Token = &Token{
			Issuer: pick(r, []string{"iss", "https://iss"}), Subject: pick(r, []string{"sub", "bus"}), Audiences: []string{pick(r, []string{"a", "bc"})}, Presenter: "p",
			Claims: map[string]any{
				"group": pick(r, []any{"x", "xyz", 7, nil, []any{"y", "x"}, []any{7, true}, map[string]any{"x": "x"}}),
				"realm": map[string]any{"roles": pick(r, []any{"x", []any{}, []any{"a", "xy"}, map[string]any{}})},
			},
		}
	}
	return t
}

// TestAccessAgreesWithNaive compares Access with the naive evaluator on random
// policies and attempts, in force and dry.
func TestAccessAgreesWithNaive(t *testing.T) {
	outcomes := map[bool]int{}
	for seed := range uint64(20_000) {
		r := rand.New(rand.NewPCG(seed, 1))
		n := naive{randomPolicies(r), pick(r, [][]string{{"cluster.local"}, {"td-a", "td-b"}, {"td-b"}})}
		access, err := NewAccess(n.policies, nil, n.trustDomains)
		if err != nil {
			t.Fatal(err)
		}
		for range 5 {
			a := randomAttempt(r)
			got := access.Judge(a)
			if want := n.judge(a, false); got.Allowed != want {
				t.Fatalf("seed %d: %+v, the naive evaluator says %v\npolicies %+v\nattempt %+v %+v", seed, got, want, n.policies, a, a.Request)
			}
			if want := n.audited(a); (got.Audited != "") != want {
				t.Fatalf("seed %d: audited by %q, the naive evaluator says %v", seed, got.Audited, want)
			}
			if want := n.judge(a, true); got.DryRun.Judged && got.DryRun.Allowed != want {
				t.Fatalf("seed %d: with dry-run policies %+v, the naive evaluator says %v", seed, got.DryRun, want)
			}
			outcomes[got.Allowed]++
		}
	}
	if outcomes[true] < 10_000 || outcomes[false] < 10_000 {
		t.Errorf("outcomes %v: the random policies say nothing", outcomes)
	}
}
