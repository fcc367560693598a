package discovery

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"podseal.io/podseal/internal/wire"
	"podseal.io/podseal/internal/workload"
)

func rule(t testing.TB, ns, name string, age int, spec string) *unstructured.Unstructured {
	t.Helper()
	u := peerAuthentication(t, ns, name, age, spec)
	u.SetAPIVersion("networking.istio.io/v1")
	u.SetKind(KindDestinationRule)
	return u
}

// fields are the paths that faults or warnings begin with.
func paths[T any](all []T, path func(T) string) []string {
	var out []string
	for _, x := range all {
		out = append(out, path(x))
	}
	return out
}

func TestValidateDestinationRule(t *testing.T) {
	const tls = "host: web\ntrafficPolicy: {tls: "
	const at = "spec.trafficPolicy.tls"
	const selector = "workloadSelector: {matchLabels: {a: b}}\n"
	const lb = "host: web\ntrafficPolicy: {loadBalancer: "
	const outlier, outlierAt = "host: web\ntrafficPolicy: {outlierDetection: ", "spec.trafficPolicy.outlierDetection"
	for name, tc := range map[string]struct {
		spec             string
		faults, warnings []string
	}{
		"plain":                              {"host: web\ntrafficPolicy: {tls: {mode: ISTIO_MUTUAL}}", nil, nil},
		"contract 3.30: no mode":             {tls + "{}}", nil, []string{at, at}},
		"DISABLE is said":                    {tls + "{mode: DISABLE}}", nil, []string{at}},
		"contract 3.31: no tls":              {"host: web\ntrafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}", nil, nil},
		"unknown mode":                       {tls + "{mode: MTLS}}", []string{at + ".mode"}, []string{at}},
		"contract 3.33: certificates of it":  {tls + "{mode: ISTIO_MUTUAL, caCertificates: /a, subjectAltNames: [x]}}", nil, []string{at + ".caCertificates", at + ".subjectAltNames[0]"}},
		"contract 3.38: MUTUAL needs files":  {tls + "{mode: MUTUAL, caCertificates: /a}}", []string{at + ".clientCertificate", at + ".privateKey"}, nil},
		"contract 3.38: Secret and files":    {tls + "{mode: MUTUAL, credentialName: a, clientCertificate: /a}}", []string{at + ".credentialName"}, []string{at + ".caCertificates"}},
		"contract 3.38: verify and not":      {tls + "{mode: SIMPLE, insecureSkipVerify: true, subjectAltNames: [a]}}", []string{at + ".insecureSkipVerify"}, []string{at + ".insecureSkipVerify"}},
		"contract 3.37: a Secret for nobody": {tls + "{mode: SIMPLE, credentialName: a}}", nil, []string{at + ".credentialName"}},
		"a Secret for some":                  {selector + tls + "{mode: MUTUAL, credentialName: a}}", nil, []string{at + ".credentialName"}},
		"no Secret":                          {selector + tls + "{mode: MUTUAL, credentialName: a/b}}", []string{at + ".credentialName"}, nil},
		"a ConfigMap":                        {selector + tls + "{mode: SIMPLE, credentialName: 'configmap://a'}}", nil, []string{at + ".credentialName"}},
		"no roots":                           {tls + "{mode: SIMPLE}}", nil, []string{at + ".caCertificates"}},
		"relative path":                      {tls + "{mode: SIMPLE, caCertificates: a/../b}}", []string{at + ".caCertificates"}, nil},
		"revocation list":                    {tls + "{mode: SIMPLE, caCertificates: /a, caCrl: /b}}", nil, []string{at + ".caCrl"}},
		"no host":                            {"trafficPolicy: {}", []string{"spec.host"}, nil},
		"address":                            {"host: 10.0.0.1", []string{"spec.host"}, nil},
		"star inside":                        {"host: a.*.b", []string{"spec.host"}, nil},
		"outside":                            {"host: api.example.com", nil, []string{"spec.host"}},
		"contract 3.46: half a name":         {"host: web.shop", nil, []string{"spec.host"}},
		"wildcard":                           {`host: "*.local"`, nil, nil},
		"subsets":                            {"host: web\nsubsets: [{name: v1, labels: {version: v1}}, {}]", []string{"spec.subsets[1].name"}, []string{"spec.subsets[0]", "spec.subsets[1]"}},
		"contract 3.43: tls of a subset":     {"host: web\nsubsets: [{name: v1, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}]", nil, []string{"spec.subsets[0].trafficPolicy.tls", "spec.subsets[0]"}},
		"fault in a subset":                  {"host: web\nsubsets: [{name: v1, trafficPolicy: {tls: {mode: X}}}]", []string{"spec.subsets[0].trafficPolicy.tls.mode"}, []string{"spec.subsets[0]"}},
		"contract 3.45: entry without tls":   {"host: web\ntrafficPolicy: {tls: {mode: ISTIO_MUTUAL}, portLevelSettings: [{port: {number: 80}}]}", nil, []string{"spec.trafficPolicy.portLevelSettings[0]"}},
		"ports":                              {"host: web\ntrafficPolicy: {portLevelSettings: [{port: {number: 0}}, {}, {port: {number: 65536}}, {port: {number: 80}}, {port: {number: 80}}]}", []string{"spec.trafficPolicy.portLevelSettings[0].port.number", "spec.trafficPolicy.portLevelSettings[1].port.number", "spec.trafficPolicy.portLevelSettings[2].port.number", "spec.trafficPolicy.portLevelSettings[2].port.number"}, []string{"spec.trafficPolicy.portLevelSettings[4]"}},
		"all that has no effect": {
			"host: web\ntrafficPolicy: {tunnel: {}, proxyProtocol: {}, retryBudget: {}, loadBalancer: {localityLbSetting: {}, zoneAwareLbSetting: {}, warmupDurationSecs: 1s, warmup: {}}, connectionPool: {http: {maxRetries: 1, idleTimeout: 1s}}}",
			nil,
			[]string{
				"spec.trafficPolicy.tunnel", "spec.trafficPolicy.proxyProtocol", "spec.trafficPolicy.retryBudget", "spec.trafficPolicy.loadBalancer.localityLbSetting",
				"spec.trafficPolicy.loadBalancer.zoneAwareLbSetting", "spec.trafficPolicy.loadBalancer.warmupDurationSecs", "spec.trafficPolicy.loadBalancer.warmup",
				"spec.trafficPolicy.connectionPool.http.idleTimeout", "spec.trafficPolicy.connectionPool.http.maxRetries",
			},
		},
		"limits of time":   {"host: web\ntrafficPolicy: {connectionPool: {tcp: {idleTimeout: 0s, maxConnectionDuration: 1h}}}", nil, nil},
		"no limits":        {"host: web\ntrafficPolicy: {connectionPool: {tcp: {idleTimeout: never, maxConnectionDuration: 0s}}}", []string{"spec.trafficPolicy.connectionPool.tcp.maxConnectionDuration", "spec.trafficPolicy.connectionPool.tcp.idleTimeout"}, nil},
		"hash":             {lb + "{consistentHash: {useSourceIp: true, maglev: {}}}}", nil, []string{"spec.trafficPolicy.loadBalancer.consistentHash.maglev"}},
		"hash of requests": {lb + "{consistentHash: {httpCookie: {name: a}, minimumRingSize: 5}}}", nil, []string{"spec.trafficPolicy.loadBalancer.consistentHash.minimumRingSize", "spec.trafficPolicy.loadBalancer.consistentHash.httpCookie"}},
		"two balancers":    {lb + "{simple: RANDOM, consistentHash: {useSourceIp: true}}}", []string{"spec.trafficPolicy.loadBalancer"}, nil},
		"passthrough":      {lb + "{simple: PASSTHROUGH}}", nil, nil},
		"outliers":         {outlier + "{splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 3, interval: 1s, baseEjectionTime: 1m, maxEjectionPercent: 100, minHealthPercent: 50}}", nil, nil},
		"outliers of responses": {outlier + "{consecutive5xxErrors: 3, consecutiveGatewayErrors: 2, consecutiveErrors: 1, consecutiveLocalOriginFailures: 2, outlierDetectionHttpErrorCodes: {}}}", nil, []string{
			outlierAt + ".consecutiveErrors", outlierAt + ".outlierDetectionHttpErrorCodes", outlierAt + ".consecutiveGatewayErrors", outlierAt + ".consecutive5xxErrors", outlierAt + ".consecutiveLocalOriginFailures",
		}},
		"outliers that are split": {outlier + "{splitExternalLocalOriginErrors: true, consecutive5xxErrors: 3}}", nil, []string{outlierAt + ".consecutive5xxErrors"}},
		"wrong outliers":          {outlier + "{interval: 0, maxEjectionPercent: 101, minHealthPercent: -1}}", []string{outlierAt + ".interval", outlierAt + ".maxEjectionPercent", outlierAt + ".minHealthPercent"}, nil},
		"unknown fields":          {"host: web\nhosts: [a]\ntrafficPolicy: {tlsMode: x}", nil, []string{"spec.hosts", "spec.trafficPolicy.tlsMode"}},
		"exportTo":                {"host: web\nexportTo: [., '*', bank, 'a b', 1]", []string{"spec.exportTo[4]", "spec.exportTo[3]"}, nil},
		"selector":                {"host: web\nworkloadSelector: {matchLabels: {a: '*'}}", []string{`spec.workloadSelector.matchLabels["a"]`}, nil},
		"numbers and times":       {"host: web\ntrafficPolicy: {loadBalancer: {simple: BEST}, connectionPool: {tcp: {maxConnections: -1, connectTimeout: 0s, tcpKeepalive: {probes: 1.5, time: x, interval: 1}}}}", []string{"spec.trafficPolicy.loadBalancer.simple", "spec.trafficPolicy.connectionPool.tcp.maxConnections", "spec.trafficPolicy.connectionPool.tcp.connectTimeout", "spec.trafficPolicy.connectionPool.tcp.tcpKeepalive.probes", "spec.trafficPolicy.connectionPool.tcp.tcpKeepalive.time", "spec.trafficPolicy.connectionPool.tcp.tcpKeepalive.interval"}, nil},
		"wrong shapes":            {"host: 1\ntrafficPolicy: []\nsubsets: {}\nexportTo: x", []string{"spec.host", "spec.host", "spec.exportTo", "spec.trafficPolicy", "spec.subsets"}, nil},
	} {
		faults, warnings := ValidateDestinationRule(rule(t, "shop", "r", 0, tc.spec), "cluster.local")
		if diff := cmp.Diff(tc.faults, paths(faults, func(f Fault) string { return f.Field })); diff != "" {
			t.Errorf("%s: faults (-want +got):\n%s", name, diff)
		}
		begin := func(w string) string { return strings.SplitN(w, ": ", 2)[0] }
		if diff := cmp.Diff(tc.warnings, paths(warnings, begin)); diff != "" {
			t.Errorf("%s: warnings (-want +got):\n%s", name, diff)
		}
	}
}

// TestDestinationRules builds rules and says what becomes of each (contract
// 3.35, 3.39-3.42, 3.46).
func TestDestinationRules(t *testing.T) {
	svc := object[corev1.Service](t, "metadata: {namespace: shop, name: web}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}")
	web := meshPod("shop", "a", "10.0.0.1", map[string]string{"app": "a"})
	c := Cluster{
		Services: []*corev1.Service{svc}, Pods: []*corev1.Pod{web, meshPod("bank", "a", "10.0.0.2", map[string]string{"app": "a"})},
		DestinationRules: []*unstructured.Unstructured{
			rule(t, "shop", "full", 1, "host: web\nexportTo: [., bank]\nworkloadSelector: {matchLabels: {app: a}}\ntrafficPolicy: {loadBalancer: {simple: RANDOM}, connectionPool: {tcp: {maxConnections: 5, connectTimeout: 2s, tcpKeepalive: {probes: 3, time: 60s, interval: 5s}}}, "+
				"tls: {mode: MUTUAL, clientCertificate: /a, privateKey: /b, caCertificates: /c, sni: x, subjectAltNames: [y.example]}, portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE, insecureSkipVerify: true}}]}"),
			rule(t, "shop", "old", 1, "host: web\ntrafficPolicy: {tls: {mode: DISABLE}}\nsubsets: [{name: v1}, {name: v2}]"),
			rule(t, "shop", "young", 2, "host: web.shop.svc.cluster.local\ntrafficPolicy: {tls: {mode: SIMPLE}}"),
			rule(t, "shop", "nobody", 1, "host: other"),
			rule(t, root, "wide", 1, `host: "*.local"`),
			rule(t, "shop", "bad", 1, "trafficPolicy: {}"),
			rule(t, "shop", "secret", 1, "host: web\nexportTo: [.]\ntrafficPolicy: {tls: {mode: SIMPLE, credentialName: c}}"),
			rule(t, "shop", "secret-of-some", 1, "host: web\nworkloadSelector: {matchLabels: {app: b}}\ntrafficPolicy: {tls: {mode: MUTUAL, credentialName: c}}"),
		},
	}
	other := rule(t, "shop", "theirs", 1, "host: web")
	other.SetLabels(map[string]string{labelRevision: "canary"})
	c.DestinationRules = append(c.DestinationRules, other)
	c.Settings, c.RootNamespace = testSettings(), root
	res, verdicts := Build(c)
	got := map[string]*workload.DestinationRule{}
	for name, body := range res[wire.TypeDestinationRule] {
		r, err := wire.ParseDestinationRule(body)
		if err != nil {
			t.Fatal(err)
		}
		got[name] = r
	}
	want := &workload.DestinationRule{
		Namespace: "shop", Name: "full", Host: "web.shop.svc.cluster.local", ExportTo: []string{"shop", "bank"}, Selective: true, Created: created(1).UTC(),
		Policy: &workload.TrafficPolicy{
			Balance: workload.Random, MaxConnections: 5, ConnectTimeout: 2 * time.Second, Keepalive: &workload.Keepalive{Probes: 3, Time: time.Minute, Interval: 5 * time.Second},
			TLS: &workload.ClientTLS{Mode: workload.TLSMutual, ClientCertificate: "/a", PrivateKey: "/b", CACertificates: "/c", SNI: "x", SubjectAltNames: []string{"y.example"}},
		},
		Ports: map[uint16]workload.TrafficPolicy{80: {TLS: &workload.ClientTLS{Mode: workload.TLSSimple, SkipVerify: true}}},
	}
	if diff := cmp.Diff(want, got["shop/full"]); diff != "" {
		t.Error(diff)
	}
	if r := got["shop/secret"]; r == nil || r.Policy.TLS.Unusable == "" || r.Policy.TLS.Credential != "" {
		t.Errorf("a Secret for nobody: %+v", r)
	}
	if r := got["shop/secret-of-some"]; r == nil || r.Policy.TLS.Unusable != "" || r.Policy.TLS.Credential != "c" {
		t.Errorf("a Secret for some: %+v", r)
	}
	b := build(t, c)
	if b.mesh.RootNamespace != root || !cmp.Equal(b.workloads["shop/a"].Rules, []string{"shop/full"}) || b.workloads["bank/a"].Rules != nil {
		t.Error("who is selected", b.workloads["shop/a"].Rules, b.workloads["bank/a"].Rules)
	}
	for name, want := range map[string]Verdict{
		"shop/full":    {Accepted: true, Reason: ReasonAccepted, Workloads: 1, Message: "in force for web.shop.svc.cluster.local, services of that name: 1, at 1 workload"},
		"shop/old":     {Accepted: true, Reason: ReasonAccepted, Message: "in force for web.shop.svc.cluster.local, services of that name: 1; DISABLE: clients send plaintext; without effect, as nothing leads to them: subsets v1, v2"},
		"shop/young":   {Reason: ReasonShadowed, Message: "old is older (or first by name) and is the one in force for web.shop.svc.cluster.local: put both into one"},
		"shop/nobody":  {Reason: ReasonNoEffect, Message: "no Service and no ServiceEntry has the name other.shop.svc.cluster.local"},
		root + "/wide": {Accepted: true, Reason: ReasonAccepted, Message: "in force for *.local, services of that name: 1"},
		"shop/bad":     {Reason: ReasonInvalid, Message: "spec.host: is missing; name the service · it is left out"},
	} {
		ns, n, _ := strings.Cut(name, "/")
		if diff := cmp.Diff(want, verdicts[Key{KindDestinationRule, ns, n}]); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	if got["shop/bad"] != nil || got["shop/theirs"] != nil {
		t.Error("in force: a wrong one, or another revision's")
	}
	c.LastGood = map[Key]*unstructured.Unstructured{{KindDestinationRule, "shop", "bad"}: rule(t, "shop", "bad", 1, "host: web")}
	if res, verdicts := Build(c); res[wire.TypeDestinationRule]["shop/bad"] == nil || !strings.Contains(verdicts[Key{KindDestinationRule, "shop", "bad"}].Message, "stays in force") {
		t.Error("the last good version is gone")
	}
}

// TestTrafficPolicy reads what rules say of connections, and what holds where they
// say nothing.
func TestTrafficPolicy(t *testing.T) {
	outlier := func(failures uint32) *workload.Outlier {
		return &workload.Outlier{Failures: failures, Ejection: 30 * time.Second, Interval: 10 * time.Second, MaxPercent: 10}
	}
	for spec, want := range map[string]workload.TrafficPolicy{
		"loadBalancer: {simple: PASSTHROUGH}":                                               {Balance: workload.Passthrough},
		"loadBalancer: {consistentHash: {useSourceIp: true}}":                               {Balance: workload.SourceHash},
		"loadBalancer: {consistentHash: {httpHeaderName: a}}":                               {},
		"connectionPool: {tcp: {idleTimeout: 0s, maxConnectionDuration: 1h}}":               {IdleTimeout: forever, MaxDuration: time.Hour},
		"connectionPool: {tcp: {idleTimeout: 5m}}":                                          {IdleTimeout: 5 * time.Minute},
		"outlierDetection: {}":                                                              {Outlier: outlier(5)},
		"outlierDetection: {consecutive5xxErrors: 7}":                                       {Outlier: outlier(7)},
		"outlierDetection: {consecutiveGatewayErrors: 3}":                                   {Outlier: outlier(3)},
		"outlierDetection: {consecutiveGatewayErrors: 3, consecutive5xxErrors: 0}":          {Outlier: outlier(3)},
		"outlierDetection: {consecutive5xxErrors: 0}":                                       {},
		"outlierDetection: {splitExternalLocalOriginErrors: true, consecutive5xxErrors: 0}": {Outlier: outlier(5)},
		"outlierDetection: {splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 2, interval: 1s, baseEjectionTime: 1m, maxEjectionPercent: 100, minHealthPercent: 50}": {
			Outlier: &workload.Outlier{Failures: 2, Ejection: time.Minute, Interval: time.Second, MaxPercent: 100, MinHealthy: 50},
		},
	} {
		d, r := readDestinationRule(rule(t, "shop", "r", 0, "host: web\ntrafficPolicy: {"+spec+"}"), "cluster.local")
		if diff := cmp.Diff(&want, d.rule.Policy); diff != "" || len(r.faults) > 0 {
			t.Errorf("%s: %v (-want +got):\n%s", spec, r.faults, diff)
		}
	}
}

// FuzzValidateDestinationRule: whatever JSON comes, it is judged, and what is
// judged good can be told to proxies.
func FuzzValidateDestinationRule(f *testing.F) {
	for _, s := range []string{
		`{"metadata":{"name":"r","namespace":"shop"},"spec":{"host":"web","exportTo":["."],"trafficPolicy":{"tls":{"mode":"MUTUAL","clientCertificate":"/a","privateKey":"/b"},"portLevelSettings":[{"port":{"number":80},"tls":{}}],"connectionPool":{"tcp":{"maxConnections":1,"connectTimeout":"1s","tcpKeepalive":{"probes":1}}}},"subsets":[{"name":"v1"}]}}`,
		`{"metadata":{"name":"r","namespace":"shop"},"spec":{"host":"*"}}`, `{"spec":{"host":"*."}}`, `{}`, `{"spec":[]}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		u := &unstructured.Unstructured{}
		if json.Unmarshal(b, &u.Object) != nil {
			return
		}
		u.SetNamespace("shop")
		u.SetName("r")
		d, r := readDestinationRule(u, "cluster.local")
		if len(r.faults) > 0 {
			return
		}
		if _, err := wire.AppendDestinationRule(nil, d.rule); err != nil {
			t.Error(err)
		}
	})
}
