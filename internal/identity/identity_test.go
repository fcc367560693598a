package identity_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"podseal.io/podseal/internal/identity"
)

func TestParse(t *testing.T) { // contract 4.1
	good := map[string]string{
		"spiffe://cluster.local/ns/shop/sa/web":       "cluster.local/ns/shop/sa/web",
		"spiffe://a.b-c_d/ns/x/sa/default":            "a.b-c_d/ns/x/sa/default",
		"spiffe://cluster.local/ns/shop/sa/web.front": "cluster.local/ns/shop/sa/web.front",
	}
	for uri, text := range good {
		id, err := identity.ParseURI(uri)
		if err != nil || id.String() != text || id.URI() != uri {
			t.Errorf("ParseURI(%q) = %q, %v", uri, id, err)
		}
		if again, err := identity.Parse(text); err != nil || again != id {
			t.Errorf("Parse(%q) = %v, %v", text, again, err)
		}
	}
	bad := []string{
		"", "spiffe://", "cluster.local/ns/a/sa/b", "https://cluster.local/ns/a/sa/b",
		"spiffe://cluster.local/ns/a", "spiffe://cluster.local/ns/a/sa", "spiffe://cluster.local/ns/a/sa/",
		"spiffe://cluster.local/ns/a/sa/b/", "spiffe://cluster.local/ns/a/sa/b/c", "spiffe://cluster.local/sa/a/ns/b",
		"spiffe://cluster.local/NS/a/sa/b", "spiffe://cluster.local/ns//sa/b", "spiffe://Cluster.local/ns/a/sa/b",
		"spiffe://cluster.local:80/ns/a/sa/b", "spiffe://u@cluster.local/ns/a/sa/b", "spiffe://cluster.local/ns/a/sa/b?x", "spiffe://cluster.local/ns/a/sa/%62",
		"spiffe://cluster.local/ns/../sa/b", "spiffe://cluster.local/ns/a\x00/sa/b",
	}
	for _, uri := range bad {
		if id, err := identity.ParseURI(uri); err == nil {
			t.Errorf("ParseURI(%q) = %q, want an error", uri, id)
		}
	}
}

func TestNew(t *testing.T) {
	if id := identity.MustNew("cluster.local", "shop", ""); id.ServiceAccount() != "default" { // contract 4.2
		t.Errorf("no service account is %q, want default", id.ServiceAccount())
	}
	if id := identity.MustNew("user@example.org", "shop", "web"); id.TrustDomain() != "user.example.org" { // contract 4.1
		t.Errorf("trust domain %q", id.TrustDomain())
	}
	for _, parts := range [][3]string{{"", "a", "b"}, {"td", "", "b"}, {"td", "a/b", "c"}, {"td", "a", "b/c"}} {
		if id, err := identity.New(parts[0], parts[1], parts[2]); err == nil {
			t.Errorf("New(%q) = %q, want an error", parts, id)
		}
	}
}

func FuzzParseURI(f *testing.F) {
	f.Add("spiffe://cluster.local/ns/shop/sa/web")
	f.Add("spiffe://x/ns/../sa/%2f")
	f.Fuzz(func(t *testing.T, s string) {
		id, err := identity.ParseURI(s)
		if err != nil {
			return
		}
		if id.URI() != s {
			t.Errorf("%q reads as %q", s, id.URI())
		}
	})
}

// testCA signs for the tests of this package.
type testCA struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pem  []byte
}

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func clock() time.Time { return now }

func newCA(t *testing.T) *testCA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{Organization: []string{"test"}}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(1000 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &testCA{key, cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

// snapshot gives a workload with these URI SANs, trusting the CA.
func (ca *testCA) snapshot(t *testing.T, notAfter time.Time, sans ...string) *identity.Snapshot {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: now.Add(-time.Hour), NotAfter: notAfter, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, KeyUsage: x509.KeyUsageDigitalSignature}
	for _, s := range sans {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		tmpl.URIs = append(tmpl.URIs, u)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, key.Public(), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	cred, err := identity.NewCredential(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), key)
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := identity.ParseBundle(ca.pem)
	if err != nil {
		t.Fatal(err)
	}
	return &identity.Snapshot{Credential: cred, Bundle: bundle, TrustDomains: []string{"cluster.local"}}
}

// handshake returns what the client and the server say of it.
func handshake(t *testing.T, client, server *tls.Config) (cs, ss tls.ConnectionState, clientErr, serverErr error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	c, s := tls.Client(a, client), tls.Server(b, server)
	done := make(chan error, 1)
	go func() {
		err := s.HandshakeContext(ctx)
		if err != nil {
			b.Close()
		}
		done <- err
	}()
	clientErr = c.HandshakeContext(ctx)
	if clientErr != nil {
		a.Close()
	}
	serverErr = <-done
	return c.ConnectionState(), s.ConnectionState(), clientErr, serverErr
}

const web, client = "spiffe://cluster.local/ns/shop/sa/web", "spiffe://cluster.local/ns/shop/sa/client"

// Contract 3.50, 3.51.
func TestMutualTLS(t *testing.T) {
	ca := newCA(t)
	srv, cli := ca.snapshot(t, now.Add(time.Hour), web), ca.snapshot(t, now.Add(time.Hour), client)
	want := identity.MustNew("cluster.local", "shop", "web")
	alpn := []string{identity.ALPNHTTP11, identity.ALPNIstio, "http/1.1"}
	cs, ss, cerr, serr := handshake(t, identity.ClientConfig(cli, want, "outbound_.80_._.web.shop.svc.cluster.local", alpn, clock), identity.ServerConfig(srv, alpn, clock))
	if cerr != nil || serr != nil {
		t.Fatal(cerr, serr)
	}
	if cs.Version != tls.VersionTLS13 || cs.CurveID != tls.X25519MLKEM768 { // design D6
		t.Errorf("version %x, group %v", cs.Version, cs.CurveID)
	}
	if cs.NegotiatedProtocol != "http/1.1" { // contract 2.21: never a mesh name
		t.Errorf("negotiated %q", cs.NegotiatedProtocol)
	}
	if ss.ServerName != "outbound_.80_._.web.shop.svc.cluster.local" { // contract 3.47
		t.Errorf("SNI %q", ss.ServerName)
	}
	if id, err := identity.PeerID(ss); err != nil || id.URI() != client {
		t.Errorf("the server sees %v, %v", id, err)
	}
	if id, err := identity.PeerID(cs); err != nil || id != want {
		t.Errorf("the client sees %v, %v", id, err)
	}
}

func TestVersions(t *testing.T) { // contract 2.19
	ca := newCA(t)
	s := ca.snapshot(t, now.Add(time.Hour), web)
	for version, ok := range map[uint16]bool{tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
		old := identity.ClientConfig(s, s.Credential.ID, "x", nil, clock)
		old.MinVersion, old.MaxVersion = version, version
		cs, _, cerr, serr := handshake(t, old, identity.ServerConfig(s, nil, clock))
		if done := cerr == nil && serr == nil; done != ok || (ok && cs.Version != version) {
			t.Errorf("version %x: %v, %v", version, cerr, serr)
		}
	}
}

// TestSuites: TLS 1.2 with forward secrecy and authenticated encryption, or not at all
// (contract 2.20).
func TestSuites(t *testing.T) {
	ca := newCA(t)
	s := ca.snapshot(t, now.Add(time.Hour), web)
	all := append(tls.CipherSuites(), tls.InsecureCipherSuites()...)
	for _, suite := range all {
		if slices.Contains(suite.SupportedVersions, tls.VersionTLS13) {
			continue
		}
		old := identity.ClientConfig(s, s.Credential.ID, "x", nil, clock)
		old.MaxVersion, old.CipherSuites = tls.VersionTLS12, []uint16{suite.ID}
		cs, _, cerr, serr := handshake(t, old, identity.ServerConfig(s, nil, clock))
		want := slices.Contains([]string{"TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"}, suite.Name) // the key is ECDSA's
		if done := cerr == nil && serr == nil; done != want || (done && cs.CipherSuite != suite.ID) {
			t.Errorf("%s: %v, %v", suite.Name, cerr, serr)
		}
	}
}

// TestNoResumption: neither side keeps sessions by itself; tlsconn adds what it takes
// (contract 2.25).
func TestNoResumption(t *testing.T) {
	ca := newCA(t)
	s := ca.snapshot(t, now.Add(time.Hour), web)
	eager := identity.ClientConfig(s, s.Credential.ID, "x", nil, clock)
	eager.SessionTicketsDisabled, eager.ClientSessionCache, eager.MaxVersion = false, tls.NewLRUClientSessionCache(1), tls.VersionTLS12
	server := identity.ServerConfig(s, nil, clock)
	for range 2 {
		cs, _, cerr, serr := handshake(t, eager, server)
		if cerr != nil || serr != nil || cs.DidResume {
			t.Errorf("resumed %v: %v, %v", cs.DidResume, cerr, serr)
		}
	}
}

func TestNoOverlapInALPN(t *testing.T) { // contract B1
	ca := newCA(t)
	s := ca.snapshot(t, now.Add(time.Hour), web)
	cs, _, cerr, serr := handshake(t, identity.ClientConfig(s, s.Credential.ID, "x", []string{"istio"}, clock), identity.ServerConfig(s, []string{"istio"}, clock))
	if cerr != nil || serr != nil || cs.NegotiatedProtocol != "" {
		t.Errorf("%q %v %v", cs.NegotiatedProtocol, cerr, serr)
	}
}

func TestAlias(t *testing.T) { // contract 4.4
	ca := newCA(t)
	renamed := ca.snapshot(t, now.Add(time.Hour), "spiffe://new.example/ns/shop/sa/web")
	before := ca.snapshot(t, now.Add(time.Hour), web)
	stranger := ca.snapshot(t, now.Add(time.Hour), client)
	for _, s := range []*identity.Snapshot{renamed, before, stranger} {
		s.TrustDomains = []string{"new.example", "cluster.local"}
	}
	for _, tt := range []struct {
		name           string
		client, server *identity.Snapshot
		ok             bool
	}{
		{"server with its name of before", renamed, before, true},
		{"client with its name of before", before, renamed, true},
		{"another account of the alias", renamed, stranger, false},
	} {
		_, _, cerr, serr := handshake(t, identity.ClientConfig(tt.client, renamed.Credential.ID, "x", nil, clock), identity.ServerConfig(tt.server, nil, clock))
		if ok := cerr == nil && serr == nil; ok != tt.ok {
			t.Errorf("%s: client: %v; server: %v", tt.name, cerr, serr)
		}
	}
}

func TestRefusedPeers(t *testing.T) {
	ca, other := newCA(t), newCA(t)
	good := ca.snapshot(t, now.Add(time.Hour), web)
	want := good.Credential.ID
	foreign := ca.snapshot(t, now.Add(time.Hour), "spiffe://elsewhere.org/ns/shop/sa/web")
	tests := []struct {
		name           string
		client, server *identity.Snapshot
		want           identity.ID
		is             error
	}{
		{"3.51 D11 another identity", good, ca.snapshot(t, now.Add(time.Hour), client), want, identity.ErrPeerIdentity},
		{"D11 no expectation accepts nobody", good, good, identity.ID{}, identity.ErrPeerIdentity},
		{"2.22 server of a foreign trust domain", good, foreign, want, identity.ErrTrustDomain},
		{"2.22 client of a foreign trust domain", foreign, good, want, identity.ErrTrustDomain},
		{"2.22 client of another root", other.snapshot(t, now.Add(time.Hour), client), good, want, nil},
		{"server of another root", good, other.snapshot(t, now.Add(time.Hour), web), want, nil},
		{"expired client", ca.snapshot(t, now.Add(-time.Minute), client), good, want, nil},
		{"expired server", good, ca.snapshot(t, now.Add(-time.Minute), web), want, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, _, cerr, serr := handshake(t, identity.ClientConfig(tt.client, tt.want, "x", nil, clock), identity.ServerConfig(tt.server, nil, clock))
			if cerr == nil && serr == nil {
				t.Fatal("accepted")
			}
			if tt.is != nil && !errors.Is(cerr, tt.is) && !errors.Is(serr, tt.is) {
				t.Errorf("client: %v; server: %v; want %v", cerr, serr, tt.is)
			}
		})
	}
}

// TestTrustDomainIsCompared proves contract 2.23.
func TestTrustDomainIsCompared(t *testing.T) { // contract 2.22, trap 15: neither substring nor prefix
	ca := newCA(t)
	srv := ca.snapshot(t, now.Add(time.Hour), web)
	for _, td := range []string{"cluster.localx", "cluster.loca", "x.cluster.local"} {
		peer := ca.snapshot(t, now.Add(time.Hour), "spiffe://"+td+"/ns/shop/sa/client")
		if _, err := identity.VerifyPeer(srv, []*x509.Certificate{peer.Credential.Leaf}, x509.ExtKeyUsageClientAuth, now); !errors.Is(err, identity.ErrTrustDomain) {
			t.Errorf("%s: %v", td, err)
		}
	}
}

func TestClientCertificateIsRequired(t *testing.T) { // contract 2.18
	ca := newCA(t)
	srv := ca.snapshot(t, now.Add(time.Hour), web)
	_, _, _, serr := handshake(t, &tls.Config{InsecureSkipVerify: true, Time: clock, MaxVersion: tls.VersionTLS12}, identity.ServerConfig(srv, nil, clock))
	if serr == nil {
		t.Error("a client without a certificate is accepted")
	}
}

func TestOneURI(t *testing.T) {
	ca := newCA(t)
	leaf := ca.snapshot(t, now.Add(time.Hour), web).Credential.Leaf
	two := *leaf
	two.URIs = append([]*url.URL{}, leaf.URIs[0], leaf.URIs[0])
	none := *leaf
	none.URIs = nil
	for _, c := range []*x509.Certificate{&two, &none} {
		if id, err := identity.FromCertificate(c); err == nil {
			t.Errorf("%d URIs read as %v", len(c.URIs), id)
		}
	}
}

func TestBundle(t *testing.T) { // contract 4.33
	a, b := newCA(t), newCA(t)
	both, err := identity.ParseBundle(append(append([]byte{}, a.pem...), b.pem...))
	if err != nil || len(both.Roots()) != 2 {
		t.Fatal(err)
	}
	one, err := identity.ParseBundle(a.pem)
	if err != nil || one.Hash() == both.Hash() {
		t.Error("different bundles have the same hash")
	}
	leaf := a.snapshot(t, now.Add(time.Hour), web).Credential.Leaf
	for name, text := range map[string]string{
		"empty":    "",
		"garbage":  "hello",
		"a leaf":   string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw})),
		"a key":    string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")})),
		"bad DER":  string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")})),
		"too many": strings.Repeat(string(a.pem), 65),
	} {
		if _, err := identity.ParseBundle([]byte(text)); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

func TestCredentialNeedsItsKey(t *testing.T) {
	ca := newCA(t)
	leaf := ca.snapshot(t, now.Add(time.Hour), web).Credential.Leaf
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := identity.NewCredential(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw}), stranger); err == nil {
		t.Error("a certificate of another key is accepted")
	}
}

func TestRenewAt(t *testing.T) { // contract 4.26
	start, end := now, now.Add(24*time.Hour)
	for jitter, want := range map[float64]time.Duration{0: 12 * time.Hour, 1: 12*time.Hour - 864*time.Second, -1: 12*time.Hour + 864*time.Second, 50: 12*time.Hour - 864*time.Second} {
		if got := identity.RenewAt(start, end, jitter).Sub(start).Round(time.Second); got != want {
			t.Errorf("jitter %v: after %v, want %v", jitter, got, want)
		}
	}
}
