package explain_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"podseal.io/podseal/internal/explain"
	"podseal.io/podseal/internal/meshtest"
	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/wire"
	"podseal.io/podseal/internal/workload"
	"podseal.io/podseal/internal/xds"
)

// read is what a mesh looks like to explain.
func read(t *testing.T, w *meshtest.World) *explain.Mesh {
	t.Helper()
	resources := map[string]map[string][]byte{}
	w.Tell(t, func(typeURL string, upserts []xds.Resource, _ []string) map[string]error {
		for _, r := range upserts {
			if resources[typeURL] == nil {
				resources[typeURL] = map[string][]byte{}
			}
			resources[typeURL][r.Name] = r.Body
		}
		return nil
	})
	m, err := explain.Read(resources, func(pod string, port uint16) bool { return pod != "shop/api" || port != 7070 })
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// testWorld has shop/web and shop/api in the mesh and old/legacy not; service api
// leads to port 8080 of api as HTTP, db to 5432 as TCP.
func testWorld() (w *meshtest.World, api, legacy *workload.Workload) {
	w = meshtest.NewWorld(nil)
	w.Pod("shop", "web", netip.MustParseAddr("10.0.0.1"))
	api = w.Pod("shop", "api", netip.MustParseAddr("10.0.0.2"))
	legacy = w.Pod("old", "legacy", netip.MustParseAddr("10.0.0.3"))
	legacy.Mesh = false
	w.Service("api", netip.MustParseAddrPort("10.96.0.1:80"), policy.HTTP, 8080, api)
	w.Service("db", netip.MustParseAddrPort("10.96.0.2:5432"), policy.TCP, 5432, api)
	return w, api, legacy
}

func allow(name string, rules ...policy.Rule) *policy.AuthorizationPolicy {
	return &policy.AuthorizationPolicy{Namespace: "shop", Name: name, Scope: policy.Namespace, Rules: rules}
}

func match(on policy.Attribute, values ...string) policy.Match {
	return policy.Match{On: on, Values: values}
}

func TestCan(t *testing.T) {
	orders := allow("orders", policy.Rule{When: []policy.Match{match(policy.SourceNamespace, "shop"), match(policy.RequestPath, "/orders*")}})
	noPost := &policy.AuthorizationPolicy{Namespace: "shop", Name: "no-post", Scope: policy.Namespace, Effect: policy.Deny, Rules: []policy.Rule{{When: []policy.Match{match(policy.RequestMethod, "POST")}}}}
	strict := func(api, _ *workload.Workload) { api.Modes = policy.Modes{Default: policy.Strict} }
	rule := func(tls *workload.ClientTLS) []*workload.DestinationRule {
		return []*workload.DestinationRule{{Namespace: "shop", Name: "r", Host: "api.shop.svc.cluster.local", ExportTo: []string{"*"}, Policy: &workload.TrafficPolicy{TLS: tls}}}
	}
	get := func(path string) *explain.Request { return &explain.Request{Path: path} }
	for name, tc := range map[string]struct {
		from     string // shop/web
		port     uint16 // 8080
		request  *explain.Request
		policies []*policy.AuthorizationPolicy
		rules    []*workload.DestinationRule
		change   func(api, legacy *workload.Workload)
		want     string // verdict and over
		because  string
	}{
		"both in the mesh":                     {want: "yes mutual_tls", because: "PERMISSIVE"},
		"plaintext, PERMISSIVE":                {from: "old/legacy", want: "yes plaintext", because: "not in the mesh, and the port's mode is PERMISSIVE"},
		"plaintext, STRICT":                    {from: "old/legacy", change: strict, want: "no plaintext", because: "plaintext_refused: the source is not in the mesh, and the port's mode is STRICT"},
		"some paths":                           {policies: []*policy.AuthorizationPolicy{orders}, want: "depends mutual_tls", because: "ns[shop]-policy[orders]-rule[0] decides by request.path"},
		"one of them":                          {request: get("/x/../orders/1"), policies: []*policy.AuthorizationPolicy{orders}, want: "yes mutual_tls", because: "allowed by ns[shop]-policy[orders]-rule[0]"},
		"another":                              {request: get("/admin"), policies: []*policy.AuthorizationPolicy{orders}, want: "no mutual_tls", because: "ns[shop]-policy[orders]-rule[0] wants another request.path"},
		"of another namespace":                 {from: "old/legacy", policies: []*policy.AuthorizationPolicy{orders}, want: "no plaintext", because: "wants another source.namespace"},
		"denied method":                        {request: &explain.Request{Method: "POST"}, policies: []*policy.AuthorizationPolicy{noPost}, want: "no mutual_tls", because: "denied by ns[shop]-policy[no-post]-rule[0]"},
		"HTTP rule on a TCP port":              {port: 5432, policies: []*policy.AuthorizationPolicy{orders}, want: "no mutual_tls", because: "no ALLOW rule matches"}, // contract 6.33
		"a request on a TCP port":              {port: 5432, request: get("/"), want: "yes mutual_tls", because: "declared as TCP"},
		"DENY by method on a TCP port":         {port: 5432, policies: []*policy.AuthorizationPolicy{noPost}, want: "no mutual_tls", because: "denied by"}, // contract 6.34
		"an undeclared port, by what it is":    {port: 9999, policies: []*policy.AuthorizationPolicy{orders}, want: "depends mutual_tls", because: "HTTP: depends"},
		"an excluded port":                     {port: 7070, change: func(api, _ *workload.Workload) { api.Modes.Ports = map[uint16]policy.Mode{7070: policy.Disable} }, policies: []*policy.AuthorizationPolicy{allow("none")}, want: "yes plaintext", because: "excluded from capture"},
		"the proxy's own port":                 {port: 15021, policies: []*policy.AuthorizationPolicy{allow("none")}, want: "yes plaintext", because: "excluded from capture"},
		"DISABLE in a rule":                    {rules: rule(&workload.ClientTLS{Mode: workload.TLSDisable}), want: "yes plaintext", because: "DestinationRule shop/r says DISABLE"},
		"DISABLE in a rule, STRICT":            {rules: rule(&workload.ClientTLS{Mode: workload.TLSDisable}), change: strict, want: "no plaintext", because: "plaintext_refused: DestinationRule shop/r says DISABLE"},
		"SIMPLE in a rule, PERMISSIVE HTTP":    {rules: rule(&workload.ClientTLS{Mode: workload.TLSSimple}), want: "no tls", because: "foreign_tls_refused"}, // contract 2.13
		"SIMPLE in a rule, STRICT":             {rules: rule(&workload.ClientTLS{Mode: workload.TLSSimple}), change: strict, want: "no tls", because: "handshake_failed"},
		"another name wanted":                  {rules: rule(&workload.ClientTLS{Mode: workload.TLSIstioMutual, SubjectAltNames: []string{"spiffe://x"}}), want: "no none", because: "peer_identity"},
		"what can't be carried out":            {rules: rule(&workload.ClientTLS{Mode: workload.TLSMutual, Unusable: "no Secrets"}), want: "no none", because: "tls_settings: DestinationRule shop/r: no Secrets"},
		"a rule does nothing for who is out":   {from: "old/legacy", rules: rule(&workload.ClientTLS{Mode: workload.TLSMutual, Unusable: "no Secrets"}), want: "yes plaintext"},
		"DISABLE of the port":                  {change: func(api, _ *workload.Workload) { api.Modes = policy.Modes{Default: policy.Disable} }, want: "yes plaintext", because: "DISABLE"}, // contract 3.20
		"nobody without identity, from within": {policies: []*policy.AuthorizationPolicy{allow("any", policy.Rule{When: []policy.Match{match(policy.SourcePrincipal, "*")}})}, want: "yes mutual_tls"},
		"nobody without identity":              {from: "old/legacy", policies: []*policy.AuthorizationPolicy{allow("any", policy.Rule{When: []policy.Match{match(policy.SourcePrincipal, "*")}})}, want: "no plaintext"},
		"a policy that isn't known":            {change: func(api, _ *workload.Workload) { api.Policies = []string{"shop/new"} }, want: "no mutual_tls", because: "policy shop/new holds and isn't known"},
	} {
		w, api, legacy := testWorld()
		w.Access, w.Rules = tc.policies, tc.rules
		if tc.change != nil {
			tc.change(api, legacy)
		}
		q := explain.Question{Source: "shop/web", Destination: "shop/api", Port: 8080, Request: tc.request}
		if tc.from != "" {
			q.Source = tc.from
		}
		if tc.port != 0 {
			q.Port = tc.port
		}
		all := read(t, w).Can(q)
		if len(all) != 1 {
			t.Errorf("%s: %+v", name, all)
			continue
		}
		a := all[0]
		if a.Verdict+" "+a.Over != tc.want || !strings.Contains(a.Because, tc.because) || a.Allowed != (a.Verdict == explain.Yes) {
			t.Errorf("%s: %+v", name, a)
		}
	}
}

// Every way that services lead is answered for, and only those that are asked for.
func TestWays(t *testing.T) {
	w, api, _ := testWorld()
	w.Service("front", netip.MustParseAddrPort("10.96.0.3:8000"), policy.HTTP, 8080, api)
	api.Ports = api.Ports[:2] // of a port the oldest service's word counts
	m := read(t, w)
	for name, tc := range map[string]struct {
		q    explain.Question
		want []string
	}{
		"every port":       {explain.Question{Destination: "shop/api"}, []string{"db.shop.svc.cluster.local:5432", "api.shop.svc.cluster.local:80", "front.shop.svc.cluster.local:8000"}},
		"a port":           {explain.Question{Destination: "shop/api", Port: 8080}, []string{"api.shop.svc.cluster.local:80", "front.shop.svc.cluster.local:8000"}},
		"a service":        {explain.Question{Destination: "shop/api", Service: "shop/db"}, []string{"db.shop.svc.cluster.local:5432"}},
		"not there":        {explain.Question{Destination: "shop/api", Service: "shop/db", Port: 8080}, nil},
		"without service":  {explain.Question{Destination: "old/legacy"}, []string{""}},
		"nobody knows it":  {explain.Question{Destination: "old/x"}, nil},
		"nor who is asked": {explain.Question{Source: "x/y", Destination: "old/legacy"}, nil},
	} {
		if tc.q.Source == "" {
			tc.q.Source = "shop/web"
		}
		var got []string
		for _, a := range m.Can(tc.q) {
			got = append(got, a.Service)
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// Policies stand in the order in which a proxy looks at them; those of the mesh
// and the namespace hold for all there, others for whom they select.
func TestPolicies(t *testing.T) { // contract 6.1, 6.4
	w, api, _ := testWorld()
	deny := &policy.AuthorizationPolicy{Namespace: "root", Name: "deny", Scope: policy.Mesh, Effect: policy.Deny, Rules: []policy.Rule{{}}}
	own := &policy.AuthorizationPolicy{Namespace: "shop", Name: "own", Scope: policy.Workloads, Effect: policy.Audit, Rules: []policy.Rule{{}}, DryRun: true}
	w.Access = []*policy.AuthorizationPolicy{allow("a"), deny, own, {Namespace: "old", Name: "x", Scope: policy.Namespace}}
	api.Policies = []string{"shop/own", "shop/lost"}
	m := read(t, w)
	names := func(pod string) []string {
		var out []string
		for _, p := range m.Policies(pod) {
			out = append(out, strings.Join([]string{p.Action, p.Key(), p.Scope}, " "))
		}
		return out
	}
	if diff := cmp.Diff([]string{"unknown shop/lost selector", "AUDIT shop/own selector", "DENY root/deny mesh", "ALLOW shop/a namespace"}, names("shop/api")); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"DENY root/deny mesh", "ALLOW shop/a namespace"}, names("shop/web")); diff != "" {
		t.Error(diff)
	}
	if got := m.Policies("shop/none"); got != nil {
		t.Error(got)
	}
}

// What can't be read is said, and the rest is answered.
func TestUnreadable(t *testing.T) {
	w, _, _ := testWorld()
	body, err := wire.AppendWorkload(nil, w.Workloads[0])
	if err != nil {
		t.Fatal(err)
	}
	m, err := explain.Read(map[string]map[string][]byte{wire.TypeWorkload: {"shop/web": body, "shop/x": {0xff}}}, nil)
	if err == nil || !strings.Contains(err.Error(), "shop/x") || m == nil || m.Policies("shop/web") == nil {
		t.Errorf("%v, %v", m, err)
	}
}
