package wire

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/proto"

	meshv1 "podseal.io/podseal/api/mesh/v1"
	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/workload"
)

var compare = []cmp.Option{
	cmp.Comparer(func(a, b identity.ID) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmpopts.EquateEmpty(),
}

func fullWorkload() *workload.Workload {
	return &workload.Workload{
		UID: "shop/web-1", Name: "web-1", Namespace: "shop", Node: "node-1",
		Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::2")},
		Identity:  identity.MustNew("cluster.local", "shop", "web"),
		Mesh:      true,
		Modes:     policy.Modes{Default: policy.Strict, Ports: map[uint16]policy.Mode{80: policy.Permissive, 81: policy.Disable, 65535: policy.Strict}},
		Ports: []workload.Port{
			{Target: 80, Protocol: policy.HTTP, ServiceHost: "web.shop.svc.cluster.local", ServicePort: 8080},
			{Target: 3306, Protocol: policy.TCP},
		},
		Policies:      []string{"shop/allow-web"},
		CanonicalName: "web", CanonicalRevision: "v1", WorkloadName: "web", App: "web", Version: "v1", Rules: []string{"shop/db"},
	}
}

func fullService() *workload.Service {
	return &workload.Service{
		Name: "web", Namespace: "shop", Hostname: "web.shop.svc.cluster.local",
		Addresses: []netip.Addr{netip.MustParseAddr("10.96.0.5"), netip.MustParseAddr("fd00:96::5")},
		Ports:     []workload.ServicePort{{Name: "http", Port: 80, Protocol: policy.HTTP}, {Port: 9000}},
		Endpoints: []workload.Endpoint{
			{Address: netip.MustParseAddr("10.0.0.2"), Ready: true, Targets: map[uint16]uint16{80: 8080, 9000: 9000}},
			{Address: netip.MustParseAddr("fd00::2")},
		},
	}
}

func fullMesh(t testing.TB) *workload.Mesh {
	return &workload.Mesh{
		TrustDomains: []string{"cluster.local", "old.example"}, ClusterDomain: "cluster.local",
		Outbound: workload.RegistryOnly, HTTP10: true, IdleTimeout: time.Hour, BundlePEM: rootPEM(t), RevokedPEM: listPEM(t), RootNamespace: "d8-istio",
		AccessLog: workload.AccessLog{Format: "{}", JSON: true},
	}
}

func fullRule() *workload.DestinationRule {
	return &workload.DestinationRule{
		Namespace: "shop", Name: "db", Host: "*.shop.svc.cluster.local", ExportTo: []string{"shop", "bank"}, Selective: true, Created: time.Unix(1000, 0).UTC(),
		Policy: &workload.TrafficPolicy{
			Balance: workload.Random, ConnectTimeout: time.Second, MaxConnections: 7,
			Keepalive:   &workload.Keepalive{Probes: 3, Time: time.Minute, Interval: time.Second},
			IdleTimeout: time.Hour, MaxDuration: 2 * time.Hour,
			Outlier: &workload.Outlier{Failures: 5, Ejection: time.Minute, Interval: time.Second, MaxPercent: 50, MinHealthy: 10},
			TLS: &workload.ClientTLS{
				Mode: workload.TLSMutual, SNI: "db.example", SubjectAltNames: []string{"db.example"}, CACertificates: "/c", ClientCertificate: "/a", PrivateKey: "/b",
			},
		},
		Ports: map[uint16]workload.TrafficPolicy{
			80: {}, 81: {TLS: &workload.ClientTLS{Mode: workload.TLSSimple, SkipVerify: true}}, 82: {TLS: &workload.ClientTLS{Mode: workload.TLSMutual, Unusable: "no"}},
			85: {TLS: &workload.ClientTLS{Mode: workload.TLSMutual, Credential: "db-client"}},
			83: {Balance: workload.Passthrough}, 84: {Balance: workload.SourceHash},
		},
	}
}

func fullEntry() *workload.Entry {
	return &workload.Entry{
		Namespace: "shop", Name: "out", Hosts: []string{"a.example", "*.b.example"}, External: true, Resolution: workload.ResolveDNS, ExportTo: []string{"shop"},
		Addresses: []netip.Prefix{netip.MustParsePrefix("240.0.0.0/8"), netip.MustParsePrefix("2001:db8::1/128")}, SubjectAltNames: []string{"x"}, Created: time.Unix(1000, 0).UTC(),
		Ports: []workload.EntryPort{{Port: 80, Target: 8080, Protocol: policy.HTTP, Naming: workload.NamedByHost}, {Port: 443, Target: 443, Protocol: policy.TCP, Naming: workload.NamedBySNI}},
		Endpoints: []workload.EntryEndpoint{
			{Name: "c.example", Targets: map[uint16]uint16{80: 81}},
			{Address: netip.MustParseAddr("10.0.0.2"), Workload: "shop/web-1"},
			{Address: netip.MustParseAddr("10.0.0.3"), Mesh: true, Identity: identity.MustNew("cluster.local", "shop", "vm")},
		},
	}
}

func rootPEM(t testing.TB) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	root := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, root, root, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// listPEM is a revocation list.
func listPEM(t testing.TB) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	by := &x509.Certificate{KeyUsage: x509.KeyUsageCRLSign, SubjectKeyId: []byte{1}}
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Unix(1000, 0), NextUpdate: time.Unix(2000, 0)}, by, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}

// roundTrip checks that a value comes back as it was, that the encoding is
// deterministic, that what was in front stays, and that no prefix breaks the parser.
func roundTrip[T any](t *testing.T, v *T, appendTo func([]byte, *T) ([]byte, error), parse func([]byte) (*T, error)) {
	t.Helper()
	b, err := appendTo([]byte("front"), v)
	if err != nil {
		t.Fatal(err)
	}
	body, ok := bytes.CutPrefix(b, []byte("front"))
	if !ok {
		t.Fatal("what was in front is gone")
	}
	for range 20 {
		if again, err := appendTo(nil, v); err != nil || !bytes.Equal(again, body) {
			t.Fatalf("not deterministic (%v)", err)
		}
	}
	got, err := parse(body)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(v, got, compare...); d != "" {
		t.Errorf("came back changed:\n%s", d)
	}
	for i := range body { // cut at every byte: refused, or a value that can be sent on
		if v, err := parse(body[:i]); err == nil {
			if _, err := appendTo(nil, v); err != nil {
				t.Errorf("cut at %d: parsed, and can't be encoded: %v", i, err)
			}
		}
	}
}

func TestRoundTrip(t *testing.T) {
	roundTrip(t, fullWorkload(), AppendWorkload, ParseWorkload)
	roundTrip(t, &workload.Workload{UID: "a/b", Name: "b", Namespace: "a"}, AppendWorkload, ParseWorkload)
	roundTrip(t, fullService(), AppendService, ParseService)
	roundTrip(t, &workload.Service{Name: "b", Namespace: "a", Hostname: "b.a.svc.cluster.local"}, AppendService, ParseService)
	roundTrip(t, fullRule(), AppendDestinationRule, ParseDestinationRule)
	roundTrip(t, &workload.DestinationRule{Namespace: "a", Name: "b", Host: "*", ExportTo: []string{"*"}, Created: time.Unix(0, 0).UTC()}, AppendDestinationRule, ParseDestinationRule)
	roundTrip(t, fullEntry(), AppendServiceEntry, ParseServiceEntry)
	roundTrip(t, &workload.Entry{Namespace: "a", Name: "b", Hosts: []string{"c"}, ExportTo: []string{"*"}, Created: time.Unix(0, 0).UTC()}, AppendServiceEntry, ParseServiceEntry)
	roundTrip(t, fullMesh(t), AppendMesh, ParseMesh)
	roundTrip(t, &workload.Mesh{TrustDomains: []string{"td"}, ClusterDomain: "cluster.local"}, AppendMesh, ParseMesh)
}

// TestEnums checks that the numbers of the protobuf enums are those of our types.
func TestEnums(t *testing.T) {
	for n, name := range meshv1.Mode_name {
		if got := "MODE_" + policy.Mode(n).String(); got != name {
			t.Errorf("mode %d is %s on the wire and %s here", n, name, got)
		}
	}
	for n, name := range meshv1.Protocol_name {
		if got := "PROTOCOL_" + strings.ToUpper(policy.Protocol(n).String()); got != name {
			t.Errorf("protocol %d is %s on the wire and %s here", n, name, got)
		}
	}
	if int(workload.ResolveDNS) != int(meshv1.ServiceEntry_RESOLUTION_DNS) || int(workload.NamedByEither) != int(meshv1.ServiceEntry_NAMING_EITHER) {
		t.Error("resolutions or namings differ")
	}
	for n, name := range meshv1.ClientTLSMode_name {
		if got := "CLIENT_TLS_MODE_" + strings.ToUpper(workload.TLSMode(n).String()); got != name {
			t.Errorf("TLS mode %d is %s on the wire and %s here", n, name, got)
		}
	}
	if int(workload.Random) != int(meshv1.Balance_BALANCE_RANDOM) || int(workload.RoundRobin) != int(meshv1.Balance_BALANCE_ROUND_ROBIN) {
		t.Error("balances differ")
	}
	if int(workload.RegistryOnly) != int(meshv1.OutboundPolicy_OUTBOUND_POLICY_REGISTRY_ONLY) {
		t.Error("outbound policies differ")
	}
}

func TestIdleTimeoutRoundsUp(t *testing.T) {
	m := fullMesh(t)
	m.IdleTimeout = 1500 * time.Millisecond
	b, err := AppendMesh(nil, m)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ParseMesh(b); err != nil || got.IdleTimeout != 2*time.Second {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestAppendRefuses(t *testing.T) {
	w := fullWorkload()
	w.UID, w.Modes.Ports[7] = "other/name", policy.Unset
	if _, err := AppendWorkload(nil, w); err == nil || !strings.Contains(err.Error(), "port 7 is not resolved") {
		t.Errorf("got %v", err)
	}
	w = fullWorkload()
	w.UID = "other/name"
	if _, err := AppendWorkload(nil, w); err == nil {
		t.Error("a UID that isn't <namespace>/<name> was accepted")
	}
	m := fullMesh(t)
	m.IdleTimeout = -1
	if _, err := AppendMesh(nil, m); err == nil {
		t.Error("a negative idle timeout was accepted")
	}
	s := fullService()
	s.Addresses = []netip.Addr{{}}
	if _, err := AppendService(nil, s); err == nil {
		t.Error("an invalid address was accepted")
	}
}

func encode(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestParseRefuses checks that every fault is named, all of them at once.
func TestParseRefuses(t *testing.T) {
	_, err := ParseWorkload(encode(t, &meshv1.Workload{
		Name: "a/b", Mesh: true, Mode: 9, Identity: "not an identity",
		Addresses: [][]byte{{1, 2, 3}, netip.MustParseAddr("::ffff:10.0.0.1").AsSlice(), {0, 0, 0, 0}},
		PortModes: map[uint32]meshv1.Mode{0: 1, 7: 0, 8: 4},
		Ports: []*meshv1.Workload_Port{
			{Target: 70000, Protocol: 5}, {Target: 1}, {Target: 1, ServiceHost: "h"}, {Target: 2, ServicePort: 3},
		},
	}))
	mustName(t, err, `namespace ""`, `name "a/b"`, "mode 9", "not an identity", "010203", "ffff0a000001", "00000000",
		"port mode 0", "port 7 is not resolved", "port mode 4", "target port 70000", "protocol 5", "target port 1 comes twice",
		"service port 0", "target port 2 has a service port and no service")
	_, err = ParseWorkload(encode(t, &meshv1.Workload{Name: "a", Namespace: "b", Mesh: true}))
	mustName(t, err, "no identity", "mode of a mesh workload is not resolved")

	_, err = ParseService(encode(t, &meshv1.Service{
		Namespace: "a", Addresses: [][]byte{{}}, Ports: []*meshv1.Service_Port{{}, {Port: 1}, {Port: 1, Protocol: 3}},
		Endpoints: []*meshv1.Service_Endpoint{{Address: []byte{1}, Targets: map[uint32]uint32{0: 65536}}},
	}))
	mustName(t, err, `name ""`, "hostname is empty", "address  is", "port 0", "port 1 comes twice", "protocol 3", "address 01",
		"endpoint's service port 0", "endpoint's target port 65536")

	_, err = ParseMesh(encode(t, &meshv1.Mesh{TrustDomains: []string{"a/b", ""}, Outbound: 3, IdleTimeoutSeconds: -1, Bundle: []byte("x"), Revocations: []byte("x")}))
	mustName(t, err, `"a/b" is not a trust domain`, `"" is not`, "cluster domain", "outbound policy 3", "idle timeout", "no PEM")
	_, err = ParseMesh(encode(t, &meshv1.Mesh{IdleTimeoutSeconds: maxSeconds + 1}))
	mustName(t, err, "no trust domain", "idle timeout")
	_, err = ParseDestinationRule(encode(t, &meshv1.DestinationRule{
		Name: "a/b", Host: "a.*", CreatedSeconds: maxSeconds + 1, Policy: &meshv1.TrafficPolicy{Balance: 9, ConnectTimeoutMs: -1, IdleTimeoutMs: -1, MaxDurationMs: -1, Outlier: &meshv1.TrafficPolicy_Outlier{MaxPercent: 101, EjectionMs: -1, IntervalMs: -1}, Keepalive: &meshv1.TrafficPolicy_Keepalive{TimeMs: -1, IntervalMs: maxSeconds * 1001}, Tls: &meshv1.ClientTLS{}},
		Ports: map[uint32]*meshv1.TrafficPolicy{0: {Tls: &meshv1.ClientTLS{Mode: meshv1.ClientTLSMode_CLIENT_TLS_MODE_MUTUAL}}},
	}))
	mustName(t, err, `namespace ""`, `name "a/b"`, `host "a.*"`, "exported to nobody", "age is", "balance 9", "connect timeout", "idle timeout", "maximum duration", "after no failure", "100 percent", "ejection is", "interval of outliers", "keepalive time", "keepalive interval", "TLS mode 0", "port of the rule 0", "MUTUAL without certificate")
	_, err = ParseServiceEntry(encode(t, &meshv1.ServiceEntry{
		Name: "a/b", Hosts: []string{"", "*", "*x", "a.*"}, CreatedSeconds: maxSeconds + 1, Resolution: 9,
		Addresses: []*meshv1.ServiceEntry_Prefix{{Address: []byte{1}}, {Address: []byte{10, 0, 0, 1}, Bits: 8}, {Address: []byte{10, 0, 0, 0}, Bits: 264}},
		Ports:     []*meshv1.ServiceEntry_Port{{Naming: 9}, {Port: 1, Target: 1}, {Port: 1, Target: 1}},
		Endpoints: []*meshv1.ServiceEntry_Endpoint{{}, {Address: []byte{10, 0, 0, 1}, Name: "x", Identity: "y", Targets: map[uint32]uint32{0: 0}}},
	}))
	mustName(t, err, `name "a/b"`, `host ""`, `host "*"`, `host "*x"`, `host "a.*"`, "exported to nobody", "age is", "resolution 9", "01/0 is", "0a000001/8", "0a000000/264", "naming 9", "port 0",
		"port 1 comes twice", "either an address or a name", "endpoint's port 0", "endpoint's target port 0")
	for _, parse := range []func([]byte) error{
		func(b []byte) error { _, err := ParseServiceEntry(b); return err },
		func(b []byte) error { _, err := ParseDestinationRule(b); return err },
		func(b []byte) error { _, err := ParseWorkload(b); return err },
		func(b []byte) error { _, err := ParseService(b); return err },
		func(b []byte) error { _, err := ParseMesh(b); return err },
	} {
		if parse([]byte{0xff}) == nil {
			t.Error("garbage was accepted")
		}
	}
}

func mustName(t *testing.T, err error, faults ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("accepted")
	}
	for _, fault := range faults {
		if !strings.Contains(err.Error(), fault) {
			t.Errorf("the error doesn't say %q: %v", fault, err)
		}
	}
}

// TestUnknownFields: a newer control plane may say more than we understand.
func TestUnknownFields(t *testing.T) {
	b, err := AppendService(nil, fullService())
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseService(append(b, 0xfa, 0x3f, 1, 'x'))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(fullService(), got, compare...); d != "" {
		t.Error(d)
	}
}

// TestOlderProxies: what a proxy that knows nothing newer than unusable makes of a
// rule is still safe: it takes the rule, and refuses what it can't carry out.
func TestOlderProxies(t *testing.T) {
	b, err := AppendDestinationRule(nil, &workload.DestinationRule{
		Namespace: "shop", Name: "db", Host: "*", ExportTo: []string{"*"}, Created: time.Unix(0, 0),
		Policy: &workload.TrafficPolicy{Balance: workload.SourceHash, TLS: &workload.ClientTLS{Mode: workload.TLSMutual, Credential: "c"}},
		Ports:  map[uint16]workload.TrafficPolicy{80: {Balance: workload.Passthrough}},
	})
	if err != nil {
		t.Fatal(err)
	}
	m := &meshv1.DestinationRule{}
	if err := proto.Unmarshal(b, m); err != nil {
		t.Fatal(err)
	}
	if m.GetPolicy().GetBalance() != 0 || m.GetPorts()[80].GetBalance() != 0 || m.GetPolicy().GetTls().GetUnusable() == "" {
		t.Errorf("%v", m)
	}
}

// FuzzParseResource: what parses encodes, and that encoding parses to the same.
func FuzzParseResource(f *testing.F) {
	w, _ := AppendWorkload(nil, fullWorkload())
	s, _ := AppendService(nil, fullService())
	m, _ := AppendMesh(nil, fullMesh(f))
	r, _ := AppendDestinationRule(nil, fullRule())
	e, _ := AppendServiceEntry(nil, fullEntry())
	f.Add(e)
	f.Add(r)
	f.Add(w)
	f.Add(s)
	f.Add(m)
	f.Fuzz(func(t *testing.T, b []byte) {
		stable(t, b, AppendWorkload, ParseWorkload)
		stable(t, b, AppendService, ParseService)
		stable(t, b, AppendMesh, ParseMesh)
		stable(t, b, AppendDestinationRule, ParseDestinationRule)
		stable(t, b, AppendServiceEntry, ParseServiceEntry)
	})
}

func stable[T any](t *testing.T, b []byte, appendTo func([]byte, *T) ([]byte, error), parse func([]byte) (*T, error)) {
	t.Helper()
	v, err := parse(b)
	if err != nil {
		return
	}
	first, err := appendTo(nil, v)
	if err != nil {
		t.Fatalf("parsed, and can't be encoded: %v", err)
	}
	again, err := parse(first)
	if err != nil {
		t.Fatalf("encoded, and can't be parsed: %v", err)
	}
	if d := cmp.Diff(v, again, compare...); d != "" {
		t.Error(d)
	}
}
