package settings

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"podseal.io/podseal/api/deckhouse/v1alpha1"
	"podseal.io/podseal/internal/accesslog"
)

func netipCmp() cmp.Option {
	return cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
}

func config(t testing.TB, spec string) *v1alpha1.ModuleConfig {
	t.Helper()
	m := new(v1alpha1.ModuleConfig)
	if err := yaml.Unmarshal([]byte(spec), &m.Spec); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestParseOfTheDocument(t *testing.T) {
	got, warnings, err := Parse(config(t, "{version: 2, enabled: true}"), Cluster{Domain: "corp.local"})
	if err != nil || len(warnings) != 0 {
		t.Fatal(warnings, err)
	}
	if diff := cmp.Diff(Default("corp.local"), got, netipCmp()); diff != "" {
		t.Error(diff)
	}
	if got.TrustDomain != "corp.local" {
		t.Error("the trust domain is the cluster's domain, got", got.TrustDomain)
	}
}

// TestParseAccepts proves contract 3.12.
func TestParseAccepts(t *testing.T) {
	for _, test := range []struct {
		name, spec string
		want       func(*Settings)
		warnings   []string
	}{
		{name: "no version needed without settings", spec: "{enabled: true}"},
		{name: "null settings", spec: "{version: 1, settings: {sidecar: null, enableHTTP10: null}}"},
		{name: "maintenance", spec: "{maintenance: NoResourceReconciliation}"},
		{
			name: "version 1", spec: "{version: 1, settings: {auth: {password: secret}, enableHTTP10: true, proxyConfig: {idleTimeout: 90s}}}",
			want:     func(s *Settings) { s.HTTP10, s.IdleTimeout = true, 90*time.Second },
			warnings: []string{"settings.auth.password: known, but has no effect in this version"},
		},
		{
			name: "version 2", spec: "{version: 2, settings: {enableHTTP10: true, proxyConfig: {holdApplicationUntilProxyStarts: true}}}",
			want: func(s *Settings) { s.HTTP10, s.Sidecar.HoldApplication = true, true },
		},
		{
			name: "version 3", spec: "{version: 3, settings: {dataPlane: {enableHTTP10: true, trafficRedirectionSetupMode: CNIPlugin, proxyConfig: {idleTimeout: 2h}}}}",
			want: func(s *Settings) { s.HTTP10, s.IdleTimeout, s.CNIPlugin = true, 2*time.Hour, true },
		},
		{
			name: "traffic", spec: `{version: 3, settings: {outboundTrafficPolicyMode: RegistryOnly, sidecar: {
				includeOutboundIPRanges: [10.1.2.3/8, "fd00::/8"], excludeOutboundIPRanges: [10.9.0.0/16], excludeInboundPorts: ["22", "22"], excludeOutboundPorts: [3306, "9092"]}}}`,
			want: func(s *Settings) {
				s.RegistryOnly = true
				s.Sidecar.IncludeOutboundIPRanges = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}
				s.Sidecar.ExcludeOutboundIPRanges = []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")}
				s.Sidecar.ExcludeInboundPorts, s.Sidecar.ExcludeOutboundPorts = []uint16{22}, []uint16{3306, 9092}
			},
		},
		{
			name: "sidecar resources", spec: `{version: 3, settings: {sidecar: {resourcesManagement: {mode: Static, static: {requests: {cpu: 0.5, memory: 64Mi}, limits: {cpu: "1"}}}}}}`,
			want: func(s *Settings) {
				s.Sidecar.RequestCPU, s.Sidecar.RequestMemory, s.Sidecar.LimitCPU = "500m", "64Mi", "1"
			},
		},
		{ // contract 7.10, 7.11
			name: "access log", spec: `{version: 2, settings: {dataPlane: {accessLog: {}}}}`,
			want: func(s *Settings) { s.AccessLog = AccessLog{Format: accesslog.Default(false)} },
		},
		{
			name: "access log, text", spec: `{version: 3, settings: {dataPlane: {accessLog: {type: Text, textFormat: "%START_TIME% %REQ(COOKIE)% %FOO%\n", jsonLabels: {a: b}}}}}`,
			want: func(s *Settings) { s.AccessLog = AccessLog{Format: "%START_TIME% %REQ(COOKIE)% %FOO%\n"} },
			warnings: []string{
				"settings.dataPlane.accessLog.jsonLabels: has no effect beside type Text and textFormat",
				"settings.dataPlane.accessLog.textFormat: %FOO% is not known, and writes nothing",
				"settings.dataPlane.accessLog.textFormat: %REQ(COOKIE)% may hold a secret, and writes nothing",
			},
		},
		{ // contract 7.12
			name: "access log, JSON", spec: `{version: 3, settings: {dataPlane: {accessLog: {type: JSON, jsonLabels: {b: "%PROTOCOL%", a: 1}}}}}`,
			want: func(s *Settings) { s.AccessLog = AccessLog{JSON: true, Format: `{"a":1,"b":"%PROTOCOL%"}`} },
		},
		{
			name: "access log, JSON of Istio", spec: `{version: 3, settings: {dataPlane: {accessLog: {type: JSON, jsonFormat: {}}}}}`,
			want: func(s *Settings) { s.AccessLog = AccessLog{JSON: true, Format: accesslog.Default(true)} },
		},
		{ // contract 5.3: what Deckhouse's labels call a control plane
			name: "revisions", spec: `{version: 1, settings: {globalVersion: "1.27", additionalVersions: ["1.25", 1.21, "1.27"]}}`,
			want: func(s *Settings) { s.Revisions = []string{"v1x25", "v1x21", "v1x27"} },
		},
		{
			name: "control plane", spec: `{version: 3, settings: {controlPlane: {nodeSelector: {node-role/infra: ""}, tolerations: [{operator: Exists}, {key: a, value: b, effect: NoExecute, tolerationSeconds: 5}],
				replicasManagement: {mode: Static, static: {replicas: 3}}, resourcesManagement: {mode: Static, static: {requests: {cpu: 1, memory: 1Gi}, limits: {memory: 2Gi}}}}}}`,
			want: func(s *Settings) {
				five := int64(5)
				s.ControlPlane = ControlPlane{
					Replicas: 3, NodeSelector: map[string]string{"node-role/infra": ""},
					Tolerations: []Toleration{{Operator: "Exists"}, {Key: "a", Value: "b", Effect: "NoExecute", TolerationSeconds: &five}},
					RequestCPU:  "1", RequestMemory: "1Gi", LimitMemory: "2Gi",
				}
			},
		},
		{
			name: "autoscalers", spec: `{version: 3, settings: {controlPlane: {replicasManagement: {mode: HPA, hpa: {minReplicas: 2, maxReplicas: 5}}, resourcesManagement: {mode: VPA, vpa: {mode: Auto, cpu: {min: 80m}}}}}}`,
			want: func(s *Settings) { s.ControlPlane.Replicas, s.ControlPlane.RequestCPU = 2, "80m" },
			warnings: []string{
				"settings.controlPlane.replicasManagement.mode: HPA has no effect in this version; minReplicas is the number of replicas",
				"settings.controlPlane.resourcesManagement.mode: VPA has no effect in this version; the minima are the requests",
			},
		},
		{
			name: "known, without effect", spec: `{version: 3, settings: {ambient: {enabled: false}, tracing: {enabled: true}, highAvailability: true, https: {}, alliance: {ingressGateway: {}}}}`,
			warnings: []string{
				"settings.alliance: known, but has no effect in this version",
				"settings.highAvailability: known, but has no effect in this version", "settings.tracing: known, but has no effect in this version",
			},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, warnings, err := Parse(config(t, test.spec), Cluster{})
			if err != nil {
				t.Fatal(err)
			}
			want := Default("")
			if test.want != nil {
				test.want(&want)
			}
			if diff := cmp.Diff(want, got, netipCmp()); diff != "" {
				t.Error(diff)
			}
			if !slices.Equal(warnings, test.warnings) {
				t.Errorf("warnings %q, want %q", warnings, test.warnings)
			}
		})
	}
}

// TestParseFaults: every fault says where, what and what would be right, and
// all come at once.
func TestParseFaults(t *testing.T) {
	for _, test := range []struct{ name, spec, want string }{
		{"settings need a version", "{settings: {enableHTTP10: true}}", `settings.enableHTTP10: unknown setting in version 3: there it is dataPlane.enableHTTP10
version: missing: settings need the version of the schema that they are written in, at best 3`},
		{"version", "{version: 4, settings: {a: b}}", "version: 4: versions 1 to 3 can be read"},
		{"maintenance", "{maintenance: Yes please}", `maintenance: "Yes please": write NoResourceReconciliation, or leave it out`},
		{"not an object", "{version: 3, settings: [1]}", "settings: not an object"},
		{"part is not an object", "{version: 3, settings: {ca: secret}}", "settings.ca: not an object"},
		{"typing error", "{version: 3, settings: {sidecar: {excludeInboundPort: []}}}", "settings.sidecar.excludeInboundPort: unknown setting; did you mean sidecar.excludeInboundPorts?"},
		{"unlike anything", "{version: 3, settings: {zzz: 1}}", "settings.zzz: unknown setting"},
		{"dotted key", "{version: 3, settings: {sidecar.excludeInboundPorts: []}}", "settings.sidecar.excludeInboundPorts: unknown setting; a path is written as objects inside objects, not with dots"},
		{"odd key", `{version: 3, settings: {"a\nb": 1}}`, `settings."a\nb": unknown setting`},
		{"old path", "{version: 3, settings: {proxyConfig: {idleTimeout: 1h}}}", "settings.proxyConfig: unknown setting in version 3: there it is dataPlane.proxyConfig"},
		{"new path in an old version", "{version: 2, settings: {dataPlane: {enableHTTP10: true}}}", "settings.dataPlane.enableHTTP10: unknown setting in version 2: there it is enableHTTP10"},
		{"ended", "{version: 2, settings: {auth: {password: a}}}", "settings.auth.password: unknown setting in version 2: it ended with version 1"},
		{"tlsMode", "{version: 2, settings: {tlsMode: Mutual}}", "settings.tlsMode: unknown setting: it is gone; whether mutual TLS is required is now said by PeerAuthentication objects (spec.mtls.mode)"},
		{"redirection", "{version: 3, settings: {dataPlane: {trafficRedirectionSetupMode: CNI}}}", `settings.dataPlane.trafficRedirectionSetupMode: "CNI": write InitContainer or CNIPlugin`},
		{"access log", `{version: 3, settings: {dataPlane: {accessLog: {typ: Text, textFormat: "%REQ(A"}}}}`, "settings.dataPlane.accessLog.textFormat: %REQ: there is no closing parenthesis\nsettings.dataPlane.accessLog.typ: unknown setting; did you mean type?"},
		{"access log, type", `{version: 3, settings: {dataPlane: {accessLog: {type: json}}}}`, `settings.dataPlane.accessLog.type: "json": write Text or JSON`},
		{"access log, labels", `{version: 3, settings: {dataPlane: {accessLog: {type: JSON, jsonLabels: [a]}}}}`, `settings.dataPlane.accessLog.jsonLabels: ["a"]: write an object of names and formats`},
		{"access log, no object", `{version: 3, settings: {dataPlane: {accessLog: true}}}`, "settings.dataPlane.accessLog: true: write an object with type, textFormat and jsonLabels"},
		{
			"all at once", `{version: 3, settings: {outboundTrafficPolicyMode: Any, dataPlane: {enableHTTP10: "yes", proxyConfig: {idleTimeout: 1d}},
				sidecar: {includeOutboundIPRanges: [], excludeOutboundIPRanges: [10.0.0.1, 7], excludeInboundPorts: ["70000", "0", x], excludeOutboundPorts: "80",
				resourcesManagement: {mode: VPA, static: {requests: {cpu: lots, memory: 2Gi}, limits: {cpu: "0"}}}}}}`,
			`settings.dataPlane.enableHTTP10: "yes": write true or false
settings.dataPlane.proxyConfig.idleTimeout: "1d": write a whole number followed by s, m or h, such as 1h; 0s means never
settings.outboundTrafficPolicyMode: "Any": write AllowAny or RegistryOnly
settings.sidecar.excludeInboundPorts[0]: "70000": write a port from "1" to "65535"
settings.sidecar.excludeInboundPorts[1]: "0": write a port from "1" to "65535"
settings.sidecar.excludeInboundPorts[2]: "x": write a port from "1" to "65535"
settings.sidecar.excludeOutboundIPRanges[0]: "10.0.0.1": write a range such as 10.0.0.0/8 or fd00::/8, a single address as 10.1.2.3/32
settings.sidecar.excludeOutboundIPRanges[1]: 7: write a range such as 10.0.0.0/8 or fd00::/8, a single address as 10.1.2.3/32
settings.sidecar.excludeOutboundPorts: "80": write a list
settings.sidecar.includeOutboundIPRanges: []: nothing would be captured; leave it out for everything
settings.sidecar.resourcesManagement.mode: "VPA": write Static
settings.sidecar.resourcesManagement.static.limits.cpu: "0": write a Kubernetes quantity above zero, such as 100m or 128Mi
settings.sidecar.resourcesManagement.static.limits.memory: "1Gi": less than the request, which is 2Gi
settings.sidecar.resourcesManagement.static.requests.cpu: "lots": write a Kubernetes quantity above zero, such as 100m or 128Mi`,
		},
		{
			"control plane", `{version: 3, settings: {controlPlane: {nodeSelector: {"a b": x, c: 1}, tolerations: [x, {value: v}, {operator: Exists, value: v}, {key: a, tolerationSeconds: 1}, {operator: Exists, efect: x}],
				replicasManagement: {mode: Static, static: {replicas: 0}}, resourcesManagement: {mode: Static, sttic: {}, static: {requests: {cpu: x}}}}}}`,
			`settings.controlPlane.nodeSelector."a b": "x": the name is not a label name
settings.controlPlane.nodeSelector.c: 1: write a label value; "" matches the empty value
settings.controlPlane.replicasManagement.static.replicas: 0: write a whole number from 1 to 100
settings.controlPlane.resourcesManagement.static.requests.cpu: "x": write a Kubernetes quantity above zero, such as 100m or 128Mi
settings.controlPlane.resourcesManagement.sttic: unknown setting; did you mean static?
settings.controlPlane.tolerations[0]: "x": write an object with key, operator, value and effect
settings.controlPlane.tolerations[1]: {"value":"v"}: without a key the operator must be Exists
settings.controlPlane.tolerations[2]: {"operator":"Exists","value":"v"}: with the operator Exists there is no value
settings.controlPlane.tolerations[3]: {"key":"a","tolerationSeconds":1}: tolerationSeconds needs the effect NoExecute
settings.controlPlane.tolerations[4].efect: unknown; a toleration has key, operator, value, effect and tolerationSeconds`,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, _, err := Parse(config(t, test.spec), Cluster{})
			if err == nil {
				t.Fatal("accepted")
			}
			if diff := cmp.Diff(test.want, err.Error()); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(Default(""), got, netipCmp()); diff != "" {
				t.Error("bad settings got through:", diff)
			}
		})
	}
	if _, _, err := Parse(config(t, "{}"), Cluster{Domain: "no domain"}); err == nil {
		t.Error("a bad cluster domain was accepted")
	}
}

func TestParseQuantity(t *testing.T) {
	for text, want := range map[string]string{"100m": "100m", "0.5": "500m", "1e3": "1e3", "2Gi": "2Gi", "1.5G": "1500M"} {
		if q, err := ParseQuantity(text); err != nil || q.String() != want {
			t.Errorf("%s: %s, %v", text, q.String(), err)
		}
	}
	for _, text := range []string{"", "0", "-1", "+1", "x", "1e-1000000000", "1e1000000000", "1 Gi", "12Mb", "..", strings.Repeat("9", 100)} {
		if q, err := ParseQuantity(text); err == nil {
			t.Errorf("%s was read as %s", text, q.String())
		}
	}
}

func TestTrustDomainAnnotations(t *testing.T) {
	m := config(t, "{version: 3}")
	m.Annotations = map[string]string{AnnotationTrustDomain: "prod.example", AnnotationTrustDomainAliases: "old.example, older", "podseal.io/trust-domian": "x", "other": "x"}
	s, warnings, err := Parse(m, Cluster{})
	if err != nil || s.TrustDomain != "prod.example" || !slices.Equal(s.TrustDomainAliases, []string{"old.example", "older"}) {
		t.Error(s.TrustDomain, s.TrustDomainAliases, err)
	}
	if want := "annotation podseal.io/trust-domian: unknown, has no effect; did you mean podseal.io/trust-domain?"; !slices.Equal(warnings, []string{want}) {
		t.Error(warnings)
	}
	m.Annotations = map[string]string{AnnotationTrustDomain: "Prod", AnnotationTrustDomainAliases: ""}
	if _, _, err := Parse(m, Cluster{}); err == nil || strings.Count(err.Error(), "\n") != 1 {
		t.Error("want two faults, got", err)
	}
}

func TestAutoUpgradeAnnotation(t *testing.T) {
	m := config(t, "{version: 3}")
	for value, want := range map[string]bool{"true": true, "false": false, "": false} {
		m.Annotations = map[string]string{AnnotationAutoUpgrade: value}
		if s, warnings, err := Parse(m, Cluster{}); err != nil || len(warnings) > 0 || s.AutoUpgrade != want {
			t.Errorf("%q: %t, %v, %v", value, s.AutoUpgrade, warnings, err)
		}
	}
	m.Annotations = map[string]string{AnnotationAutoUpgrade: "yes"}
	if _, _, err := Parse(m, Cluster{}); err == nil || !strings.Contains(err.Error(), `podseal.io/auto-upgrade: "yes": write "true" or "false"`) {
		t.Error(err)
	}
}

// issue makes a CA certificate, self-signed if parent is nil.
func issue(t *testing.T, name string, isCA bool, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey, string, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{Organization: []string{name}}, IsCA: isCA, BasicConstraintsValid: true, NotAfter: time.Unix(1<<33, 0)}
	if parent == nil {
		parent, parentKey = cert, key
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, parent, key.Public(), parentKey)
	if err != nil {
		t.Fatal(err)
	}
	if cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
}

func parseCA(t *testing.T, ca CA) (Settings, error) {
	t.Helper()
	m := config(t, "{version: 3}")
	raw, err := json.Marshal(map[string]any{"ca": ca})
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(map[string]any{"version": 3, "settings": json.RawMessage(raw)})
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &m.Spec); err != nil {
		t.Fatal(err)
	}
	s, _, err := Parse(m, Cluster{})
	return s, err
}

func TestPluggedCA(t *testing.T) {
	root, rootKey, rootPEM, rootKeyPEM := issue(t, "root", true, nil, nil)
	_, _, midPEM, midKeyPEM := issue(t, "mid", true, root, rootKey)
	_, _, leafPEM, leafKeyPEM := issue(t, "leaf", false, nil, nil)
	for _, test := range []struct {
		name string
		ca   CA
		want string
	}{
		{"self-signed", CA{Cert: rootPEM, Key: rootKeyPEM}, ""},
		{"intermediate", CA{Cert: midPEM, Key: midKeyPEM, Chain: midPEM, Root: rootPEM + rootPEM}, ""},
		{"intermediate without root", CA{Cert: midPEM, Key: midKeyPEM}, "settings.ca.root: missing: ca.cert is an intermediate, so workloads need the root that it chains to (PEM)"},
		{"another key", CA{Cert: rootPEM, Key: midKeyPEM}, "settings.ca.key: not the private key of ca.cert, or of a kind that is not supported (RSA, ECDSA, Ed25519; not encrypted)"},
		{"a leaf", CA{Cert: leafPEM, Key: leafKeyPEM}, "settings.ca.cert: certificate 1 is not a CA certificate"},
		{"all wrong", CA{Cert: rootKeyPEM, Key: rootPEM, Chain: "SECRET", Root: "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"}, `settings.ca.cert: PEM block 1 is not a CERTIFICATE
settings.ca.chain: no certificate in PEM
settings.ca.key: not a private key in PEM
settings.ca.root: PEM block 1 is not a certificate that can be read`},
		{"root alone", CA{Root: rootPEM}, "settings.ca.cert: missing: a CA needs its certificate (PEM)\nsettings.ca.key: missing: a CA needs its private key (PEM)"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, err := parseCA(t, test.ca)
			if test.want == "" {
				if err != nil || s.CA != test.ca {
					t.Error(err)
				}
				return
			}
			if err == nil || err.Error() != test.want {
				t.Errorf("got\n%v\nwant\n%s", err, test.want)
			}
		})
	}
}

func TestKeyIsNeverShown(t *testing.T) {
	_, _, cert, key := issue(t, "root", true, nil, nil)
	s, err := parseCA(t, CA{Cert: cert, Key: key})
	if err != nil {
		t.Fatal(err)
	}
	secret := strings.Split(key, "\n")[1]
	var logged strings.Builder
	for _, h := range []slog.Handler{slog.NewJSONHandler(&logged, nil), slog.NewTextHandler(&logged, nil)} {
		slog.New(h).Info("x", slog.Any("settings", s), slog.Any("ca", s.CA))
	}
	for _, text := range []string{logged.String(), fmt.Sprint(s), fmt.Sprintf("%+v", s), fmt.Sprintf("%#v", s), fmt.Sprintf("%v %s %#v", s.CA, s.CA, &s.CA)} {
		if strings.Contains(text, secret) {
			t.Error("the key is in", text)
		}
	}
	if got := s.CA.String() + " " + (CA{}).String(); got != "plugged in (cert, key) none" {
		t.Error(got)
	}
}

func TestJSONRoundTrip(t *testing.T) {
	s, _, err := Parse(config(t, `{version: 3, settings: {outboundTrafficPolicyMode: RegistryOnly, sidecar: {includeOutboundIPRanges: [10.0.0.0/8, "fd00::/8"], excludeInboundPorts: ["22"]},
		controlPlane: {tolerations: [{operator: Exists, effect: NoExecute, tolerationSeconds: 1}], nodeSelector: {a: b}}}}`), Cluster{})
	if err != nil {
		t.Fatal(err)
	}
	s.CA, s.TrustDomainAliases = CA{Cert: "c", Key: "k", Chain: "h", Root: "r"}, []string{"x"}
	for _, want := range []Settings{s, Default("a.b")} {
		throughJSON(t, want)
	}
}

// throughJSON checks that writing and reading leaves want as it is.
func throughJSON(t *testing.T, want Settings) {
	t.Helper()
	b, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got Settings
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, netipCmp()); diff != "" {
		t.Error(diff)
	}
}

// FuzzParse: no input panics, no fault spans lines, what is accepted goes
// through JSON unchanged.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		`{}`, `null`, `[]`, `{"tlsMode":1}`, `{"ca":{"key":"-----BEGIN"}}`, `{"sidecar":{"excludeInboundPorts":["1"],"resourcesManagement":{"static":{"limits":{"cpu":1e3}}}}}`,
		`{"controlPlane":{"tolerations":[{"operator":"Exists"}],"replicasManagement":{"mode":"HPA","hpa":{}},"resourcesManagement":{"vpa":{"cpu":[]}}}}`, `{"a\n":{"b":`,
	} {
		f.Add(seed, 3)
		f.Add(seed, 1)
	}
	f.Fuzz(func(t *testing.T, raw string, version int) {
		m := config(t, "{settings: {}}")
		m.Spec.Version, m.Spec.Settings.Raw = version, []byte(raw)
		s, warnings, err := Parse(m, Cluster{})
		if err != nil {
			for line := range strings.Lines(err.Error()) {
				if !strings.Contains(line, ": ") {
					t.Errorf("a line is not a fault: %q", line)
				}
			}
		}
		if strings.Contains(strings.Join(warnings, ""), "\n") {
			t.Errorf("a warning spans lines: %q", warnings)
		}
		throughJSON(t, s)
	})
}

// TestCutAtEveryByte: settings that end early are refused, whatever is left.
func TestCutAtEveryByte(t *testing.T) {
	whole := `{"sidecar":{"excludeInboundPorts":["22"],"resourcesManagement":{"mode":"Static"}},"outboundTrafficPolicyMode":"RegistryOnly"}`
	m := config(t, "{version: 3, settings: {}}")
	for i := 1; i < len(whole); i++ {
		m.Spec.Settings.Raw = []byte(whole[:i])
		if _, _, err := Parse(m, Cluster{}); err == nil || err.Error() != "settings: not JSON" {
			t.Errorf("%s: %v", whole[:i], err)
		}
	}
}
