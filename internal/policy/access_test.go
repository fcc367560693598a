package policy

import (
	"net/netip"
	"strings"
	"testing"

	"podseal.io/podseal/internal/identity"
)

// is is a Match of values, isnt of notValues.
func is(on Attribute, values ...string) Match   { return Match{On: on, Values: values} }
func isnt(on Attribute, values ...string) Match { return Match{On: on, NotValues: values} }

func header(name string, values ...string) Match {
	return Match{On: RequestHeader, Key: []string{name}, Values: values}
}

func claim(values []string, path ...string) Match {
	return Match{On: RequestClaim, Key: path, Values: values}
}

// when is a rule of conditions only, which any rule can be written as.
func when(m ...Match) Rule { return Rule{When: m} }

func ap(effect Effect, rules ...Rule) *AuthorizationPolicy {
	return &AuthorizationPolicy{Namespace: "shop", Name: strings.ToLower(effect.String()), Effect: effect, Rules: rules}
}

func dryRun(p *AuthorizationPolicy) *AuthorizationPolicy { p.DryRun = true; p.Name += "-dry"; return p }

// web is a request of shop/web by mutual TLS; plain is one without; tcp is a
// connection of shop/web that isn't HTTP.
func web() *Attempt {
	return &Attempt{
		Peer: NewPeer(identity.MustNew("cluster.local", "shop", "web")), Source: netip.MustParseAddr("10.0.0.1"),
		Destination: netip.MustParseAddrPort("10.0.0.2:8080"), SNI: []byte("outbound_.80_._.api.shop.svc.cluster.local"),
		Request: &Request{
			Method: []byte("GET"), Host: []byte("api.shop"), Path: []byte("/orders/7?full=1"),
			Header: fields{"x-team": "blue", "x-many": "a,b", "x-empty": "", "x-forwarded-for": "198.51.100.1, 203.0.113.7"},
		},
	}
}

func plain() *Attempt { a := web(); a.Peer = Peer{}; a.SNI = nil; return a }
func tcp() *Attempt   { a := web(); a.Request = nil; return a }
func with(f func(*Request)) *Attempt {
	a := web()
	f(a.Request)
	return a
}

func path(p string) *Attempt { return with(func(r *Request) { r.Path = []byte(p) }) }
func host(h string) *Attempt { return with(func(r *Request) { r.Host = []byte(h) }) }

// TestJudge is contract 6.4-6.8, 6.11-6.18, 6.20-6.35, 6.37, 6.42-6.44; each
// case has its number in its name.
func TestJudge(t *testing.T) {
	anything := Rule{}
	tests := []struct {
		name     string // with the contract's number
		policies []*AuthorizationPolicy
		attempt  *Attempt
		allowed  bool
		rule     string // the end of the rule's name
	}{
		{"6.5 no policy: allowed", nil, web(), true, ""},
		{"6.5 no ALLOW policy: allowed", []*AuthorizationPolicy{ap(Deny, when(is(RequestMethod, "POST")))}, web(), true, ""},
		{"6.5 an ALLOW policy that doesn't match: denied", []*AuthorizationPolicy{ap(Allow, when(is(RequestMethod, "POST")))}, web(), false, ""},
		{"6.5 one of two ALLOW policies matches", []*AuthorizationPolicy{ap(Allow), ap(Allow, anything)}, web(), true, "policy[allow]-rule[0]"},
		{"6.6 ALLOW without rules denies all", []*AuthorizationPolicy{ap(Allow)}, web(), false, ""},
		{"6.6 an empty rule matches all", []*AuthorizationPolicy{ap(Allow, anything)}, web(), true, "ns[shop]-policy[allow]-rule[0]"},
		{"6.7 DENY without rules never matches", []*AuthorizationPolicy{ap(Deny)}, web(), true, ""},
		{"6.4 DENY over ALLOW", []*AuthorizationPolicy{ap(Allow, anything), ap(Deny, when(is(RequestMethod, "GET")))}, web(), false, "policy[deny]-rule[0]"},
		{"6.4 AUDIT changes nothing", []*AuthorizationPolicy{ap(Audit, anything)}, web(), true, ""},
		{"6.8 6.11 any of the rules, by its number", []*AuthorizationPolicy{ap(Deny, when(is(RequestMethod, "PUT")), when(is(RequestMethod, "GET")))}, web(), false, "policy[deny]-rule[1]"},
		{"6.12 any from", []*AuthorizationPolicy{ap(Allow, Rule{From: [][]Match{{is(SourceNamespace, "x")}, {is(SourceNamespace, "shop")}}})}, web(), true, "rule[0]"},
		{"6.12 from and to", []*AuthorizationPolicy{ap(Allow, Rule{From: [][]Match{{is(SourceNamespace, "shop")}}, To: [][]Match{{is(RequestMethod, "POST")}}})}, web(), false, ""},
		{"6.12 all when", []*AuthorizationPolicy{ap(Allow, when(is(RequestMethod, "GET"), is(DestinationPort, "80")))}, web(), false, ""},
		{"6.13 fields of a source are ANDed", []*AuthorizationPolicy{ap(Allow, Rule{From: [][]Match{{is(SourceNamespace, "shop"), is(SourceIP, "10.9.0.0/16")}}})}, web(), false, ""},
		{"6.13 values and not are ANDed", []*AuthorizationPolicy{ap(Allow, when(Match{On: RequestPath, Values: []string{"/orders*"}, NotValues: []string{"/orders/7"}}))}, web(), false, ""},
		{"6.13 not is none of them", []*AuthorizationPolicy{ap(Allow, when(isnt(RequestMethod, "PUT", "GET")))}, web(), false, ""},
		{"6.16 a rule that can't be understood doesn't allow", []*AuthorizationPolicy{ap(Allow, Rule{Never: true})}, web(), false, ""},

		{"6.17 a star elsewhere is literal", []*AuthorizationPolicy{ap(Allow, when(is(RequestPath, "/or*rs/7")))}, web(), false, ""},
		{"6.17 suffix", []*AuthorizationPolicy{ap(Allow, when(is(RequestPath, "*/7")))}, web(), true, "rule[0]"},
		{"6.17 prefix", []*AuthorizationPolicy{ap(Allow, when(is(RequestPath, "/orders*")))}, web(), true, "rule[0]"},
		{"6.18 exact principal", []*AuthorizationPolicy{ap(Allow, when(is(SourcePrincipal, "cluster.local/ns/shop/sa/web")))}, web(), true, "rule[0]"},
		{"6.18 a longer service account is another one", []*AuthorizationPolicy{ap(Allow, when(is(SourcePrincipal, "cluster.local/ns/shop/sa/we")))}, web(), false, ""},
		{"6.18 prefix of a principal", []*AuthorizationPolicy{ap(Allow, when(is(SourcePrincipal, "cluster.local/ns/shop/*")))}, web(), true, "rule[0]"},
		{"6.18 suffix of a principal", []*AuthorizationPolicy{ap(Allow, when(is(SourcePrincipal, "*/sa/web")))}, web(), true, "rule[0]"},
		{"6.20 principals never match plaintext", []*AuthorizationPolicy{ap(Allow, when(is(SourcePrincipal, "*")))}, plain(), false, ""},
		{"6.20 namespaces never match plaintext", []*AuthorizationPolicy{ap(Allow, when(is(SourceNamespace, "*")))}, plain(), false, ""},
		{"6.20 notPrincipals match plaintext", []*AuthorizationPolicy{ap(Deny, when(isnt(SourcePrincipal, "*")))}, plain(), false, "rule[0]"},
		{"6.20 notPrincipals * lets mutual TLS pass", []*AuthorizationPolicy{ap(Deny, when(isnt(SourcePrincipal, "*")))}, web(), true, ""},
		{"6.20 notNamespaces match plaintext", []*AuthorizationPolicy{ap(Deny, when(isnt(SourceNamespace, "shop")))}, plain(), false, "rule[0]"},
		{"6.21 namespace", []*AuthorizationPolicy{ap(Allow, when(is(SourceNamespace, "shop")))}, web(), true, "rule[0]"},
		{"6.21 every star in a namespace", []*AuthorizationPolicy{ap(Allow, when(is(SourceNamespace, "s*o*")))}, web(), true, "rule[0]"},
		{"6.21 other signs are literal", []*AuthorizationPolicy{ap(Allow, when(is(SourceNamespace, "sho.")))}, web(), false, ""},
		{"6.21 not another part of the identity", []*AuthorizationPolicy{ap(Allow, when(is(SourceNamespace, "*sa", "*local")))}, web(), false, ""},
		{"6.22 service account of the policy's namespace", []*AuthorizationPolicy{ap(Allow, when(is(SourceServiceAccount, "web")))}, web(), true, "rule[0]"},
		{"6.22 service account of another namespace", []*AuthorizationPolicy{ap(Allow, when(is(SourceServiceAccount, "db/web")))}, web(), false, ""},
		{"6.23 trust domain", []*AuthorizationPolicy{ap(Allow, when(is(SourceTrustDomain, "cluster.local")))}, web(), true, "rule[0]"},
		{"6.23 not a part of it", []*AuthorizationPolicy{ap(Allow, when(is(SourceTrustDomain, "cluster")))}, web(), false, ""},
		{"6.23 star inside", []*AuthorizationPolicy{ap(Allow, when(is(SourceTrustDomain, "cl*al")))}, web(), true, "rule[0]"},

		{"6.24 the query is passed over", []*AuthorizationPolicy{ap(Allow, when(is(RequestPath, "/orders/7")))}, web(), true, "rule[0]"},
		{"6.24 paths have case", []*AuthorizationPolicy{ap(Allow, when(is(RequestPath, "/ORDERS/7")))}, web(), false, ""},
		{"6.24 {*} is one segment", []*AuthorizationPolicy{ap(Allow, when(is(RequestPath, "/{*}/7")))}, web(), true, "rule[0]"},
		{"6.24 {*} is not two segments", []*AuthorizationPolicy{ap(Allow, when(is(RequestPath, "/{*}")))}, web(), false, ""},
		{"6.24 {*} is not no segment", []*AuthorizationPolicy{ap(Allow, when(is(RequestPath, "/a/{*}")))}, path("/a/"), false, ""},
		{"6.24 {**} is the rest", []*AuthorizationPolicy{ap(Allow, when(is(RequestPath, "/orders/{**}")))}, path("/orders/a/b/c"), true, "rule[0]"},
		{"6.24 {**} may be nothing", []*AuthorizationPolicy{ap(Allow, when(is(RequestPath, "/orders/{**}")))}, path("/orders/"), true, "rule[0]"},
		{"6.24 {**} and an end", []*AuthorizationPolicy{ap(Allow, when(is(RequestPath, "/orders/{**}/edit")))}, path("/orders/a/b/edit"), true, "rule[0]"},
		{"6.24 {**} and another end", []*AuthorizationPolicy{ap(Allow, when(is(RequestPath, "/orders/{**}/edit")))}, path("/orders/a/b/edit2"), false, ""},
		{"6.25 host without its port", []*AuthorizationPolicy{ap(Allow, when(is(RequestHost, "api.shop")))}, host("api.shop:80"), false, ""},
		{"6.25 hosts have no case", []*AuthorizationPolicy{ap(Allow, when(is(RequestHost, "API.shop")))}, host("Api.Shop"), true, "rule[0]"},
		{"6.25 hosts by suffix", []*AuthorizationPolicy{ap(Allow, when(is(RequestHost, "*.SHOP:80")))}, host("api.shop:80"), true, "rule[0]"},
		{"6.26 methods have case", []*AuthorizationPolicy{ap(Allow, when(is(RequestMethod, "get")))}, web(), false, ""},
		{"6.27 the workload's port", []*AuthorizationPolicy{ap(Allow, when(is(DestinationPort, "8080")))}, web(), true, "rule[0]"},
		{"6.28 the TCP peer", []*AuthorizationPolicy{ap(Allow, when(is(SourceIP, "10.0.0.0/24")))}, web(), true, "rule[0]"},
		{"6.28 the TCP peer is not who is forwarded for", []*AuthorizationPolicy{ap(Allow, when(is(SourceIP, "203.0.113.7")))}, web(), false, ""},
		{"6.28 remote is the last element", []*AuthorizationPolicy{ap(Allow, when(is(RemoteIP, "203.0.113.7")))}, web(), true, "rule[0]"},
		{"6.28 remote is no earlier element", []*AuthorizationPolicy{ap(Allow, when(is(RemoteIP, "198.51.100.1")))}, web(), false, ""},
		{"6.28 remote without XFF is the peer", []*AuthorizationPolicy{ap(Allow, when(is(RemoteIP, "10.0.0.1")))}, tcp(), true, "rule[0]"},
		{"6.29 no token, no request principal", []*AuthorizationPolicy{ap(Allow, when(is(RequestPrincipal, "*")))}, web(), false, ""},
		{"6.29 notRequestPrincipals match without a token", []*AuthorizationPolicy{ap(Deny, when(isnt(RequestPrincipal, "*")))}, web(), false, "rule[0]"},
		{"6.31 header", []*AuthorizationPolicy{ap(Allow, when(header("x-team", "bl*")))}, web(), true, "rule[0]"},
		{"6.31 header that is there but empty", []*AuthorizationPolicy{ap(Allow, when(header("x-empty", "*")))}, web(), true, "rule[0]"},
		{"6.31 header that isn't there", []*AuthorizationPolicy{ap(Allow, when(header("x-none", "*")))}, web(), false, ""},
		{"6.31 several values are one text", []*AuthorizationPolicy{ap(Allow, when(header("x-many", "a")))}, web(), false, ""},
		{"6.15 connection.sni", []*AuthorizationPolicy{ap(Allow, when(is(ConnectionSNI, "outbound_.80*")))}, web(), true, "rule[0]"},
		{"6.15 destination.ip", []*AuthorizationPolicy{ap(Deny, when(is(DestinationIP, "10.0.0.2")))}, web(), false, "rule[0]"},

		{"6.33 an ALLOW rule with HTTP is nothing on TCP, and denies", []*AuthorizationPolicy{ap(Allow, when(is(RequestMethod, "GET"), is(SourceNamespace, "shop")))}, tcp(), false, ""},
		{"6.33 its other rules stay", []*AuthorizationPolicy{ap(Allow, when(is(RequestMethod, "GET")), when(is(SourceNamespace, "shop")))}, tcp(), true, "rule[1]"},
		{"6.33 also a not", []*AuthorizationPolicy{ap(Allow, when(isnt(RequestPath, "/admin")))}, tcp(), false, ""},
		{"6.34 a DENY rule of HTTP alone denies all TCP", []*AuthorizationPolicy{ap(Deny, when(is(RequestMethod, "POST")))}, tcp(), false, "rule[0]"},
		{"6.34 a DENY rule keeps its other parts", []*AuthorizationPolicy{ap(Deny, Rule{To: [][]Match{{is(RequestMethod, "POST"), is(DestinationPort, "9000")}}})}, tcp(), true, ""},
		{"6.34 not-fields vanish too", []*AuthorizationPolicy{ap(Deny, when(isnt(RequestPrincipal, "*"), is(SourceNamespace, "shop")))}, tcp(), false, "rule[0]"},
		{"6.37 nothing proved, as of TLS that isn't ours", []*AuthorizationPolicy{ap(Allow, when(is(SourcePrincipal, "*")))}, &Attempt{SNI: []byte("x")}, false, ""},
		{"6.43 dry-run on AUDIT means nothing", []*AuthorizationPolicy{dryRun(ap(Audit, anything))}, web(), true, ""},
		{"6.43 6.44 dry-run on CUSTOM denies all the same", []*AuthorizationPolicy{dryRun(ap(Custom, anything))}, web(), false, "istio-ext-authz-ns[shop]-policy[custom-dry]-rule[0]"},
		{"6.44 CUSTOM without a provider denies what it matches", []*AuthorizationPolicy{ap(Custom, when(is(RequestPath, "/orders*")))}, web(), false, "rule[0]"},
		{"6.44 and nothing else", []*AuthorizationPolicy{ap(Custom, when(is(RequestPath, "/admin*")))}, web(), true, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, err := NewAccess(tt.policies, nil, []string{"cluster.local"})
			if err != nil {
				t.Fatal(err)
			}
			if got := a.Judge(tt.attempt); got.Allowed != tt.allowed || !strings.HasSuffix(got.Rule, tt.rule) || (tt.rule == "") != (got.Rule == "") {
				t.Errorf("%+v, want allowed %v by %q", got, tt.allowed, tt.rule)
			}
		})
	}
}

func TestToken(t *testing.T) { // contract 6.29, 6.15
	token := &Token{
		Issuer: "https://issuer.example/realm", Subject: "alice", Audiences: []string{"shop", "db"}, Presenter: "cli",
		Claims: map[string]any{"groups": []any{"dev", "ops", 7}, "realm": map[string]any{"role": "admin"}},
	}
	for _, m := range []Match{
		is(RequestPrincipal, "https://issuer.example/realm/alice"), is(RequestPrincipal, "*"), is(RequestPrincipal, "*/alice"), is(RequestPrincipal, "*realm/alice"),
		is(RequestPrincipal, "https://issuer.example/realm/*"), is(RequestPrincipal, "https://issuer.example/realm/al*"), is(RequestPrincipal, "*ice"), is(RequestPrincipal, "https*"),
		is(RequestAudiences, "db"), is(RequestPresenter, "c*"), claim([]string{"ops"}, "groups"), claim([]string{"adm*"}, "realm", "role"),
	} {
		a, err := NewAccess([]*AuthorizationPolicy{ap(Allow, when(m))}, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if !a.Judge(with(func(r *Request) { r.Token = token })).Allowed {
			t.Errorf("%+v doesn't match", m)
		}
		if a.Judge(web()).Allowed {
			t.Errorf("%+v matches without a token", m)
		}
	}
	for _, m := range []Match{
		is(RequestPrincipal, "https://issuer.example/alice"), is(RequestPrincipal, "alice"), is(RequestPrincipal, "https://issuer.example/realm/bob*"),
		is(RequestAudiences, "shop2"), claim([]string{"7"}, "groups"), claim([]string{"*"}, "realm"), claim([]string{"*"}, "none"), claim([]string{"*"}, "groups", "x"),
	} {
		a, err := NewAccess([]*AuthorizationPolicy{ap(Allow, when(m))}, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if a.Judge(with(func(r *Request) { r.Token = token })).Allowed {
			t.Errorf("%+v matches", m)
		}
	}
}

func TestAliases(t *testing.T) { // contract 6.30
	tests := []struct {
		principal, peer string
		want            bool
	}{
		{"new.example/ns/a/sa/b", "old.example/ns/a/sa/b", true},
		{"old.example/ns/a/sa/b", "new.example/ns/a/sa/b", true},
		{"cluster.local/ns/a/sa/b", "old.example/ns/a/sa/b", true},
		{"cluster.local/ns/a/sa/b", "cluster.local/ns/a/sa/b", false}, // it stands for the mesh's, of which it is none
		{"third.example/ns/a/sa/b", "old.example/ns/a/sa/b", false},
		{"third.example/ns/a/sa/b", "third.example/ns/a/sa/b", true},
		{"*/ns/a/sa/b", "third.example/ns/a/sa/b", true},
		{"*.example/ns/a/sa/b", "third.example/ns/a/sa/b", true},
		{"old.example/ns/a*", "new.example/ns/a/sa/b", false}, // not of five parts
		{"old.example/ns/a/sa/*", "new.example/ns/a/sa/b", true},
	}
	for _, tt := range tests {
		a, err := NewAccess([]*AuthorizationPolicy{ap(Allow, when(is(SourcePrincipal, tt.principal)))}, nil, []string{"new.example", "old.example"})
		if err != nil {
			t.Fatal(err)
		}
		id, err := identity.Parse(tt.peer)
		if err != nil {
			t.Fatal(err)
		}
		if got := a.Judge(&Attempt{Peer: NewPeer(id)}).Allowed; got != tt.want {
			t.Errorf("principal %s and peer %s: %v", tt.principal, tt.peer, got)
		}
	}
	a, err := NewAccess([]*AuthorizationPolicy{ap(Allow, when(is(SourceTrustDomain, "new.example")))}, nil, []string{"new.example", "old.example"})
	if err != nil || !a.Judge(&Attempt{Peer: NewPeer(identity.MustNew("old.example", "a", "b"))}).Allowed {
		t.Errorf("a trust domain doesn't stand for its aliases: %v", err)
	}
}

func TestDryRun(t *testing.T) { // contract 6.42
	post := when(is(RequestMethod, "POST"))
	get := when(is(RequestMethod, "GET"))
	tests := []struct {
		name     string
		policies []*AuthorizationPolicy
		allowed  bool
		shadow   Shadow
	}{
		{"none", []*AuthorizationPolicy{ap(Deny, post)}, true, Shadow{}},
		{"only a dry-run ALLOW: open", []*AuthorizationPolicy{dryRun(ap(Allow, post))}, true, Shadow{Judged: true}},
		{"a dry-run ALLOW that matches", []*AuthorizationPolicy{dryRun(ap(Allow, get))}, true, Shadow{true, true, "ns[shop]-policy[allow-dry]-rule[0]"}},
		{"a dry-run DENY that matches", []*AuthorizationPolicy{dryRun(ap(Deny, get))}, true, Shadow{true, false, "ns[shop]-policy[deny-dry]-rule[0]"}},
		{"a dry-run DENY that doesn't", []*AuthorizationPolicy{dryRun(ap(Deny, post))}, true, Shadow{Judged: true, Allowed: true}},
		{"a dry-run ALLOW would open", []*AuthorizationPolicy{ap(Allow, post), dryRun(ap(Allow, get))}, false, Shadow{true, true, "ns[shop]-policy[allow-dry]-rule[0]"}},
		{"what DENY denies stays denied", []*AuthorizationPolicy{ap(Deny, get), dryRun(ap(Allow, get))}, false, Shadow{true, false, "ns[shop]-policy[deny]-rule[0]"}},
	}
	for _, tt := range tests {
		a, err := NewAccess(tt.policies, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := a.Judge(web()); got.Allowed != tt.allowed || got.DryRun != tt.shadow {
			t.Errorf("%s: %+v", tt.name, got)
		}
	}
}

func TestAudit(t *testing.T) { // contract 6.4, 6.35
	a, err := NewAccess([]*AuthorizationPolicy{ap(Audit, when(is(RequestMethod, "POST"))), ap(Deny, when(is(SourceNamespace, "db")))}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if j := a.Judge(web()); !j.Allowed || j.Audited != "" {
		t.Errorf("%+v", j)
	}
	if j := a.Judge(tcp()); !j.Allowed || j.Audited != "ns[shop]-policy[audit]-rule[0]" {
		t.Errorf("on TCP AUDIT is widened: %+v", j)
	}
}

// TestPending: a policy that applies and isn't known lets nothing through.
func TestPending(t *testing.T) {
	a, err := NewAccess(nil, []string{"shop/b", "shop/a"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if j := a.Judge(web()); j.Allowed || j.Rule != "shop/a" || a.Pending() != "shop/a" {
		t.Errorf("%+v, pending %q", j, a.Pending())
	}
}

func TestApplies(t *testing.T) { // contract 6.1
	web := map[string]string{"app": "web"}
	tests := []struct {
		namespace string
		selector  map[string]string
		want      bool
	}{
		{"shop", nil, true},
		{root, nil, true},
		{"other", nil, false},
		{"shop", web, true},
		{root, web, true},
		{"other", web, false},
		{"shop", map[string]string{"app": "db"}, false},
		{root, map[string]string{"app": "db"}, false},
	}
	for _, tt := range tests {
		p := &AuthorizationPolicy{Namespace: tt.namespace, Selector: tt.selector}
		if got := p.Applies(root, "shop", web); got != tt.want {
			t.Errorf("a policy of %s with selector %v: %v", tt.namespace, tt.selector, got)
		}
	}
}

func TestParseEffect(t *testing.T) { // contract 6.3
	for i, name := range []string{"ALLOW", "DENY", "AUDIT", "CUSTOM"} {
		if e, err := ParseEffect(name); err != nil || int(e) != i || e.String() != name {
			t.Errorf("ParseEffect(%q) = %v, %v", name, e, err)
		}
	}
	if e, err := ParseEffect(""); err != nil || e != Allow {
		t.Errorf("no action: %v, %v", e, err)
	}
	if _, err := ParseEffect("allow"); err == nil {
		t.Error("lower case is accepted")
	}
}

func TestParseCondition(t *testing.T) { // contract 6.15
	good := map[string]Attribute{
		"request.headers[X-Team]": RequestHeader, "source.ip": SourceIP, "remote.ip": RemoteIP, "source.namespace": SourceNamespace, "source.principal": SourcePrincipal,
		"source.serviceAccount": SourceServiceAccount, "source.trustDomain": SourceTrustDomain, "request.auth.principal": RequestPrincipal, "request.auth.audiences": RequestAudiences,
		"request.auth.presenter": RequestPresenter, "request.auth.claims[a][b]": RequestClaim, "destination.ip": DestinationIP, "destination.port": DestinationPort, "connection.sni": ConnectionSNI,
	}
	for key, on := range good {
		if m, err := ParseCondition(key); err != nil || m.On != on {
			t.Errorf("ParseCondition(%q) = %+v, %v", key, m, err)
		}
	}
	for _, key := range []string{"", "source", "request.path", "request.host", "request.headers", "request.headers[]", "request.headers[a][b]", "request.auth.claims[a]b", "source.ip[x]", "destination.labels[v]", "request.headers[a"} {
		if m, err := ParseCondition(key); err == nil {
			t.Errorf("ParseCondition(%q) = %+v", key, m)
		}
	}
}

func TestCheck(t *testing.T) {
	bad := []Match{
		is(SourceIP, "10.0.0.256"), is(RemoteIP, "10.0.0.0/33"), is(DestinationIP, ""), is(DestinationPort, "65536"), is(DestinationPort, "http"), is(DestinationPort, "-1"),
		is(SourcePrincipal, ""), is(SourceServiceAccount, "a/b/c"), is(SourceServiceAccount, "a*"), is(SourceServiceAccount, "/a"), is(SourceServiceAccount, strings.Repeat("a", 321)), // contract 6.22
		is(RequestPath, "/{a}"), is(RequestPath, "/{**}/{*}"), is(RequestPath, "/a{*}"), is(RequestPath, "/{*}/*"), is(RequestPath, "/{*}/a b"), is(RequestPath, "{**}"), is(RequestPath, ""), // contract 6.24
		is(SourceTrustDomain, "a*b*c"), is(RequestHeader, "x"), is(RequestClaim, "x"), header("", "x"),
		{On: SourceIP, Key: []string{"x"}, Values: []string{"::1"}}, // contract 6.23
		{On: SourceIP},
		is(0, "x"), is(RequestClaim+1, "x"),
	}
	for _, m := range bad {
		if err := Check(ap(Deny, when(m))); err == nil {
			t.Errorf("%+v passes", m)
		}
	}
	if err := Check(ap(Effect(9))); err == nil {
		t.Error("an unknown effect passes")
	}
	if err := Check(ap(Deny, when(is(SourceIP, "::ffff:10.0.0.0/104"), is(DestinationPort, "0"), is(RequestPath, "/a/{*}/{**}/z")))); err != nil {
		t.Error(err)
	}
}

func FuzzJudge(f *testing.F) {
	f.Add(int(RequestPath), "/a/{**}/b", "/a/x/b", "cluster.local/ns/a/sa/b")
	f.Add(int(SourceNamespace), "a*b*c", "x", "td/ns/abc/sa/x")
	f.Add(int(RemoteIP), "10.0.0.0/8", "10.0.0.1", "")
	f.Add(int(RequestPrincipal), "*/x", "iss", "td/ns/a/sa/b")
	f.Add(int(SourcePrincipal), "*a/ns/b/sa/c", "", "td-a/ns/b/sa/c")
	f.Fuzz(func(t *testing.T, on int, value, seen, peer string) {
		m := is(Attribute(on), value)
		if m.On == RequestHeader || m.On == RequestClaim {
			m.Key = []string{"x"}
		}
		id, err := identity.Parse(peer)
		if err != nil {
			id = identity.ID{}
		}
		b := []byte(seen)
		a := &Attempt{Peer: NewPeer(id), SNI: b, Source: netip.MustParseAddr("10.0.0.1"), Request: &Request{
			Method: b, Host: b, Path: b, Header: fields{"x": seen, "x-forwarded-for": seen}, Token: &Token{Issuer: seen, Subject: seen, Audiences: []string{seen}, Claims: map[string]any{"x": seen}},
		}}
		yes, err := NewAccess([]*AuthorizationPolicy{ap(Allow, when(m))}, nil, []string{"td"})
		if (err != nil) != (Check(ap(Deny, when(m))) != nil) {
			t.Fatalf("accepted as ALLOW: %v", err)
		}
		if err != nil {
			return
		}
		m.Values, m.NotValues = nil, m.Values
		no, err := NewAccess([]*AuthorizationPolicy{ap(Allow, when(m))}, nil, []string{"td"})
		if err != nil {
			t.Fatal(err)
		}
		if yes.Judge(a).Allowed == no.Judge(a).Allowed { // contract 6.13, 6.20
			t.Errorf("%v %q and its not agree about %q", m.On, value, seen)
		}
	})
}

// benchmarkAccess has one policy of each effect with several rules, of which the
// last ALLOW rule matches.
func benchmarkAccess(tb testing.TB) *Access {
	var rules []Rule
	for _, path := range []string{"/admin*", "/a/{*}/c", "*.internal", "/orders*"} {
		rules = append(rules, Rule{
			From: [][]Match{{is(SourcePrincipal, "cluster.local/ns/db/sa/pg")}, {is(SourceNamespace, "sh*"), is(SourceIP, "10.0.0.0/8")}},
			To:   [][]Match{{is(RequestMethod, "PUT", "GET"), is(RequestPath, path), is(RequestHost, "*.shop")}}, When: []Match{header("x-team", "blue"), is(RemoteIP, "203.0.113.0/24")},
		})
	}
	a, err := NewAccess([]*AuthorizationPolicy{ap(Allow, rules...), ap(Deny, when(isnt(SourcePrincipal, "*")), when(is(RequestPath, "/secret*"))), dryRun(ap(Deny, rules...)), ap(Audit, rules...)}, nil, []string{"cluster.local"})
	if err != nil {
		tb.Fatal(err)
	}
	return a
}

// someFields is a Header that allocates nothing.
type someFields struct{ team, forwarded []byte }

func (f *someFields) Field(name string) ([]byte, bool) {
	switch name {
	case "x-forwarded-for":
		return f.forwarded, true
	case "x-team":
		return f.team, true
	}
	return nil, false
}

func BenchmarkJudge(b *testing.B) {
	a, t := benchmarkAccess(b), web()
	t.Request.Header = &someFields{[]byte("blue"), []byte("203.0.113.7")}
	b.ReportAllocs()
	for b.Loop() {
		if !a.Judge(t).Allowed {
			b.Fatal("denied")
		}
	}
}

func TestJudgeAllocatesNothing(t *testing.T) {
	a, at := benchmarkAccess(t), web()
	at.Request.Header = &someFields{[]byte("blue"), []byte("203.0.113.7")}
	if n := testing.AllocsPerRun(100, func() { a.Judge(at) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
