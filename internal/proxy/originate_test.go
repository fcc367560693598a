package proxy

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/meshtest"
	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/workload"
)

// outsideCA is an authority that isn't the mesh's, in files as rules name them.
type outsideCA struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newOutsideCA(t *testing.T) *outsideCA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	ca := &outsideCA{t.TempDir(), cert, key}
	ca.write(t, "ca.pem", "CERTIFICATE", der)
	return ca
}

func (ca *outsideCA) file(name string) string { return filepath.Join(ca.dir, name) }

func (ca *outsideCA) write(t *testing.T, name, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(ca.file(name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// issue writes <name>.crt and <name>.key.
func (ca *outsideCA) issue(t *testing.T, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(2), DNSNames: []string{name}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	ca.write(t, name+".crt", "CERTIFICATE", der)
	ca.write(t, name+".key", "PRIVATE KEY", keyDER)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// ruled is a client pod, and a database that ends TLS itself and is in no mesh,
// under one rule.
type ruled struct {
	*testMesh
	client *workload.Workload
	proxy  *proxy
	rule   *workload.DestinationRule
	asked  chan *tls.ClientHelloInfo
	seen   chan int // client certificates
	addr   netip.AddrPort
	stop   func()
}

func newRuled(t *testing.T, cert tls.Certificate, trust *x509.CertPool, change ...func(*Config)) *ruled {
	t.Helper()
	m := newTestMesh(t)
	r := &ruled{testMesh: m, client: m.pod("client"), asked: make(chan *tls.ClientHelloInfo, 10), seen: make(chan int, 10)}
	host := m.outsider()
	r.addr = meshtest.Serve(t, host, func(c *net.TCPConn) {
		cfg := &tls.Config{Certificates: []tls.Certificate{cert}, GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) { r.asked <- h; return nil, nil }}
		if trust != nil {
			cfg.ClientAuth, cfg.ClientCAs = tls.RequireAndVerifyClientCert, trust
		}
		s := tls.Server(c, cfg)
		if s.Handshake() != nil {
			return
		}
		r.seen <- len(s.ConnectionState().PeerCertificates)
		_, _ = io.Copy(s, s)
		_ = s.CloseWrite()
	})
	m.world.Services = append(m.world.Services, &workload.Service{
		Name: "db", Namespace: "shop", Hostname: "db.shop.svc.cluster.local", Addresses: []netip.Addr{vip(80).Addr()},
		Ports:     []workload.ServicePort{{Port: 80, Protocol: policy.TCP}},
		Endpoints: []workload.Endpoint{{Address: host, Ready: true, Targets: map[uint16]uint16{80: r.addr.Port()}}},
	})
	r.rule = &workload.DestinationRule{Namespace: "shop", Name: "db", Host: "db.shop.svc.cluster.local", ExportTo: []string{"*"}, Created: time.Unix(0, 0)}
	m.world.Rules = append(m.world.Rules, r.rule)
	var stop func()
	r.proxy, stop = m.startStoppable(r.client, change...)
	r.stop = sync.OnceFunc(stop)
	t.Cleanup(r.stop)
	return r
}

func (r *ruled) say(tls *workload.ClientTLS) {
	r.rule.Policy = &workload.TrafficPolicy{TLS: tls}
	r.tell()
}

// TestOriginate: SIMPLE and MUTUAL as contract 3.35 and 3.36 say. Whatever is
// wrong, nothing is sent in plaintext.
func TestOriginate(t *testing.T) {
	ca, stranger := newOutsideCA(t), newOutsideCA(t)
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	simple := newRuled(t, ca.issue(t, "db.shop.svc.cluster.local"), nil)
	mutual := newRuled(t, ca.issue(t, "db.example"), roots)
	ca.issue(t, "client")
	for name, tt := range map[string]struct {
		with   *ruled
		tls    workload.ClientTLS
		sni    string
		reason policy.Reason
	}{
		"the service's name":    {simple, workload.ClientTLS{Mode: workload.TLSSimple, CACertificates: ca.file("ca.pem")}, "db.shop.svc.cluster.local", ""},
		"another authority":     {simple, workload.ClientTLS{Mode: workload.TLSSimple, CACertificates: stranger.file("ca.pem")}, "db.shop.svc.cluster.local", policy.PeerUnverified},
		"another name":          {simple, workload.ClientTLS{Mode: workload.TLSSimple, CACertificates: ca.file("ca.pem"), SNI: "x.example"}, "x.example", policy.PeerUnverified},
		"names of the rule":     {simple, workload.ClientTLS{Mode: workload.TLSSimple, CACertificates: ca.file("ca.pem"), SNI: "x.example", SubjectAltNames: []string{"a", "db.shop.svc.cluster.local"}}, "x.example", ""},
		"none of its names":     {simple, workload.ClientTLS{Mode: workload.TLSSimple, CACertificates: ca.file("ca.pem"), SubjectAltNames: []string{"x.example"}}, "db.shop.svc.cluster.local", policy.PeerIdentity},
		"a name, not the chain": {simple, workload.ClientTLS{Mode: workload.TLSSimple, CACertificates: stranger.file("ca.pem"), SubjectAltNames: []string{"db.shop.svc.cluster.local"}}, "db.shop.svc.cluster.local", policy.PeerUnverified},
		"anybody":               {simple, workload.ClientTLS{Mode: workload.TLSSimple, SkipVerify: true}, "db.shop.svc.cluster.local", ""},
		"no such file":          {simple, workload.ClientTLS{Mode: workload.TLSSimple, CACertificates: "/nowhere"}, "", policy.TLSSettings},
		"no file":               {simple, workload.ClientTLS{Mode: workload.TLSSimple, CACertificates: ca.dir}, "", policy.TLSSettings},
		"no certificates in it": {simple, workload.ClientTLS{Mode: workload.TLSSimple, CACertificates: ca.file("client.key")}, "", policy.TLSSettings},
		"contract 3.37":         {simple, workload.ClientTLS{Mode: workload.TLSSimple, Unusable: "credentialName needs a workloadSelector"}, "", policy.TLSSettings},
		"own certificate":       {mutual, workload.ClientTLS{Mode: workload.TLSMutual, SNI: "db.example", CACertificates: ca.file("ca.pem"), ClientCertificate: ca.file("client.crt"), PrivateKey: ca.file("client.key")}, "db.example", ""},
		"another's key":         {mutual, workload.ClientTLS{Mode: workload.TLSMutual, SNI: "db.example", CACertificates: ca.file("ca.pem"), ClientCertificate: ca.file("client.crt"), PrivateKey: ca.file("db.example.key")}, "", policy.TLSSettings},
		"no certificate":        {mutual, workload.ClientTLS{Mode: workload.TLSSimple, SNI: "db.example", CACertificates: ca.file("ca.pem")}, "db.example", policy.HandshakeFailed},
	} {
		t.Run(name, func(t *testing.T) {
			r := tt.with
			r.say(&tt.tls)
			before := len(r.proxy.records.last())
			c := r.connect(r.client.Addresses[0], vip(80))
			if tt.reason == "" {
				exchange(t, c, "hello")
				if n := <-r.seen; (n > 0) != (tt.tls.Mode == workload.TLSMutual) {
					t.Errorf("%d client certificates", n)
				}
				_ = c.CloseWrite()
			} else {
				_, _ = io.WriteString(c, "secret")
			}
			_ = ends(t, c)
			eventually(t, func() bool { return len(r.proxy.records.last()) == before+1 })
			got := r.proxy.records.last()[before]
			if got.Reason != tt.reason || got.Rule != "shop/db" || (tt.reason == "" && got.Security != securityTLS) || (tt.reason != "" && got.Security == securityPlaintext) {
				t.Errorf("record %+v", got)
			}
			if tt.sni != "" {
				if h := <-r.asked; h.ServerName != tt.sni || len(h.SupportedProtos) > 0 {
					t.Errorf("asked for %q with ALPN %q", h.ServerName, h.SupportedProtos)
				}
			}
		})
	}
}

// TestRuleWantsOthers: the names of an ISTIO_MUTUAL rule replace the endpoint's
// own identity (contract 3.33).
func TestRuleWantsOthers(t *testing.T) {
	for uri, reason := range map[string]policy.Reason{
		"spiffe://cluster.local/ns/shop/sa/web": "", "spiffe://cluster.local/ns/shop/sa/other": policy.PeerIdentity,
	} {
		p := newPair(t, policy.TCP, meshtest.Echo)
		p.server.Identity = identity.MustNew(meshtest.TrustDomain, "shop", "expected-without-a-rule")
		p.world.Rules = append(p.world.Rules, &workload.DestinationRule{
			Namespace: "shop", Name: "r", Host: "web.shop.svc.cluster.local", ExportTo: []string{"shop"}, Created: time.Unix(0, 0),
			Policy: &workload.TrafficPolicy{TLS: &workload.ClientTLS{Mode: workload.TLSIstioMutual, SubjectAltNames: []string{uri}, SNI: "custom.example"}},
		})
		p.tell()
		c := p.dial()
		_, _ = io.WriteString(c, "x")
		_ = c.CloseWrite()
		_ = ends(t, c)
		if r := record(t, p.clientSide, anyRecord); r.Reason != reason || r.SNI != "custom.example" || r.Rule != "shop/r" {
			t.Errorf("%s: %+v", uri, r)
		}
	}
}

// TestRuleDisables: DISABLE is plaintext to a mesh destination because a user
// says so; STRICT refuses it at the server (contract 3.32).
func TestRuleDisables(t *testing.T) {
	p := newPair(t, policy.TCP, meshtest.Echo)
	p.world.Rules = append(p.world.Rules, &workload.DestinationRule{
		Namespace: "shop", Name: "r", Host: "web.shop.svc.cluster.local", ExportTo: []string{"*"}, Created: time.Unix(0, 0),
		Policy: &workload.TrafficPolicy{TLS: &workload.ClientTLS{Mode: workload.TLSDisable}},
	})
	p.tell()
	c := p.dial()
	exchange(t, c, "hello")
	c.Close()
	if r := record(t, p.inside, anyRecord); r.Security != securityPlaintext {
		t.Errorf("record %+v", r)
	}
	p.mode(p.server, policy.Strict)
	c = p.dial()
	_, _ = io.WriteString(c, "hello")
	_ = ends(t, c)
	record(t, p.inside, withReason(policy.PlaintextRefused))
}

// TestConnectionPool: maxConnections bounds what one proxy opens to a service
// port, and the connection that ends makes room (contract 3.74).
func TestConnectionPool(t *testing.T) {
	p := newPair(t, policy.TCP, meshtest.Echo)
	pool := &workload.TrafficPolicy{MaxConnections: 1, ConnectTimeout: 50 * time.Millisecond, Keepalive: &workload.Keepalive{Probes: 3, Time: time.Minute}}
	p.world.Rules = append(p.world.Rules, &workload.DestinationRule{Namespace: "shop", Name: "r", Host: "*.local", ExportTo: []string{"*"}, Created: time.Unix(0, 0), Policy: pool})
	p.tell()
	first := p.dial()
	exchange(t, first, "one")
	second := p.dial()
	_ = ends(t, second)
	if r := record(t, p.clientSide, withReason(policy.Overloaded)); r.Rule != "shop/r" || !strings.Contains(r.Error, "DestinationRule") {
		t.Errorf("record %+v", r)
	}
	_ = first.CloseWrite()
	_ = ends(t, first)
	eventually(t, func() bool { return len(p.clientSide.conns.all()) == 0 })
	exchange(t, p.dial(), "two")
}
