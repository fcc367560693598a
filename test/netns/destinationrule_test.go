package netns

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/proof"
	"podseal.io/podseal/internal/proxy"
	"podseal.io/podseal/internal/workload"
)

const payload = "the payload of an application"

// authority is a CA that isn't the mesh's, in files that proxies can read.
type authority struct {
	m    *mesh
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	root string // file
}

func newAuthority(t *testing.T, m *mesh) *authority {
	t.Helper()
	a := &authority{m: m}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, NotAfter: time.Now().Add(time.Hour)}
	der, key := a.sign(t, template, nil)
	var err error
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.key = key
	a.root = m.write(t, "outside-root.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return a
}

func (a *authority) sign(t *testing.T, template *x509.Certificate, by *x509.Certificate) ([]byte, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer := a.key
	if by == nil {
		by, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, by, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	return der, key
}

// issue makes a certificate and writes it with its key to two files.
func (a *authority) issue(t *testing.T, name string) (cert tls.Certificate, certFile, keyFile string) {
	t.Helper()
	der, key := a.sign(t, &x509.Certificate{SerialNumber: big.NewInt(2), DNSNames: []string{name}, NotAfter: time.Now().Add(time.Hour)}, a.cert)
	text, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile = a.m.write(t, name+".crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	keyFile = a.m.write(t, name+".key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: text}))
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, certFile, keyFile
}

// serveEach answers every connection to a listener until the test ends.
func serveEach(t *testing.T, l net.Listener, talk func(net.Conn)) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		var talks sync.WaitGroup
		defer talks.Wait()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			talks.Go(func() {
				defer c.Close()
				talk(c)
			})
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
}

// tell sends the payload to an address as an application of p and returns the answer.
func tell(p *pod, address string) (string, error) { return say(p, address, payload) }

func say(p *pod, address, text string) (string, error) {
	var answer []byte
	err := p.try(app, func() error {
		c, err := net.DialTimeout("tcp", address, deadline)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(deadline)); err != nil {
			return err
		}
		if _, err := io.WriteString(c, text+"\n"); err != nil {
			return err
		}
		answer, err = io.ReadAll(c)
		return err
	})
	return string(answer), err
}

// answered reads a line and says who answers.
func answered(c net.Conn, as string) {
	if line, err := bufio.NewReader(c).ReadString('\n'); err == nil {
		fmt.Fprintf(c, "%s got %d bytes", as, len(line)-1)
	}
}

// records are those of a pod's proxy, the newest last.
func records(p *pod) ([]proxy.Record, error) {
	var all []proxy.Record
	err := p.try(app, func() error {
		c, err := net.DialTimeout("tcp", "127.0.0.1:15000", deadline)
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := io.WriteString(c, "GET /records HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"); err != nil {
			return err
		}
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		return json.NewDecoder(res.Body).Decode(&all)
	})
	return all, err
}

// inForce waits until connections of p to an address follow a rule.
func inForce(t *testing.T, p *pod, address, rule string) {
	t.Helper()
	eventually(t, rule+" is in force", func() error {
		_, _ = say(p, address, "x") // the record counts
		all, err := records(p)
		if err != nil {
			return err
		}
		if len(all) == 0 || all[len(all)-1].Rule != rule {
			return fmt.Errorf("no connection under it in %d records", len(all))
		}
		return nil
	})
}

// TestDestinationRules: what each mode of a DestinationRule puts on the wire, towards
// a server outside of the mesh that ends TLS itself, and towards a pod of the mesh.
// Contract 3.32, 3.33, 3.35, 3.36 and 3.37.
func TestDestinationRules(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	client, web := m.attach(t, "client", "10.88.0.11", "fd88::11"), m.attach(t, "web", "10.88.0.12", "fd88::12")
	outside := m.attach(t, "outside", "10.88.0.13", "fd88::13")
	ca := newAuthority(t, m)
	cert, _, _ := ca.issue(t, "db.shop.svc.cluster.local")
	_, own, key := ca.issue(t, "client")
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	serveEach(t, outside.listen(t, ":8443"), func(c net.Conn) {
		s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: roots})
		if s.Handshake() == nil {
			answered(s, fmt.Sprintf("db with %d certificates", len(s.ConnectionState().PeerCertificates)))
			s.Close()
		}
	})
	serveEach(t, web.listen(t, ":80"), func(c net.Conn) { answered(c, "web") })
	w := m.world.Pod("shop", "web", web.v4)
	m.world.Pod("shop", "client", client.v4)
	m.world.Service("web", netip.MustParseAddrPort("10.96.0.10:80"), policy.TCP, 80, w)
	db := m.world.Service("db", netip.MustParseAddrPort("10.96.0.20:443"), policy.TCP, 8443)
	db.Namespace, db.Hostname = "shop", "db.shop.svc.cluster.local"
	db.Endpoints = []workload.Endpoint{{Address: outside.v4, Ready: true, Targets: map[uint16]uint16{443: 8443}}}
	m.tell(t)
	m.inject(t, client, "client")
	m.inject(t, web, "web")

	atDB, atWeb := netip.AddrPortFrom(outside.v4, 8443), netip.AddrPortFrom(web.v4, 80)
	for i, tt := range []struct {
		name   string
		tls    workload.ClientTLS
		to     netip.AddrPort
		kind   proof.Kind
		sni    string
		answer string
		reason policy.Reason
	}{
		{"SIMPLE", workload.ClientTLS{Mode: workload.TLSSimple, CACertificates: ca.root}, atDB, proof.ForeignTLS, "db.shop.svc.cluster.local", "db with 0 certificates", ""},
		{"MUTUAL", workload.ClientTLS{Mode: workload.TLSMutual, CACertificates: ca.root, ClientCertificate: own, PrivateKey: key}, atDB, proof.ForeignTLS, "db.shop.svc.cluster.local", "db with 1 certificates", ""},
		{"another name", workload.ClientTLS{Mode: workload.TLSSimple, CACertificates: ca.root, SNI: "other.example"}, atDB, proof.ForeignTLS, "other.example", "", policy.PeerUnverified},
		{"a Secret that can't be read", workload.ClientTLS{Mode: workload.TLSMutual, Credential: "none"}, atDB, proof.Empty, "", "", policy.TLSSettings},
		{"ISTIO_MUTUAL", workload.ClientTLS{Mode: workload.TLSIstioMutual, SNI: "custom.example"}, atWeb, proof.MeshTLS, "custom.example", "web", ""},
		{"DISABLE", workload.ClientTLS{Mode: workload.TLSDisable}, atWeb, proof.Plaintext, "", "web", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			address := map[netip.AddrPort]string{atDB: "10.96.0.20:443", atWeb: "10.96.0.10:80"}[tt.to]
			name := fmt.Sprintf("rule-%d", i)
			m.world.Rules = []*workload.DestinationRule{{
				Namespace: "shop", Name: name, Host: "*.local", ExportTo: []string{"*"}, Created: time.Unix(0, 0), Policy: &workload.TrafficPolicy{TLS: &tt.tls},
			}}
			before := m.capture(t)
			m.tell(t)
			inForce(t, client, address, "shop/"+name)
			first := before.end(t) // with the handshake of a connection that may be used again
			c := m.capture(t)
			got, err := tell(client, address)
			sum := c.end(t, payload)
			if !strings.HasPrefix(got, tt.answer) || (tt.answer == "") != (got == "") {
				t.Errorf("answer %q, %v\n%s", got, err, sum)
			}
			flows := carried(sum, client.v4, tt.to)
			switch {
			case tt.kind == proof.Empty:
				if len(flows) != 0 {
					t.Errorf("on the wire:\n%s", sum)
				}
			case len(flows) == 1 && flows[0].Kind == proof.UnknownTLS && tt.kind == proof.MeshTLS:
				if !slices.ContainsFunc(carried(first, client.v4, tt.to), func(f proof.Flow) bool { return f.Client == flows[0].Client && f.Kind == tt.kind && f.SNI == tt.sni }) {
					t.Errorf("used again, and not made as the rule says:\n%s", first)
				}
			case len(flows) != 1 || flows[0].Kind != tt.kind || flows[0].SNI != tt.sni:
				t.Errorf("on the wire:\n%s", sum)
			}
			if n := sum.Needles()[payload]; (n > 0) != (tt.kind == proof.Plaintext) {
				t.Errorf("the payload is on the wire %d times", n)
			}
			all, err := records(client)
			if err != nil || all[len(all)-1].Reason != tt.reason {
				t.Errorf("record %+v, %v", all[len(all)-1], err)
			}
		})
	}
	t.Run("DISABLE meets STRICT", func(t *testing.T) {
		w.Modes.Default = policy.Strict
		m.tell(t)
		eventually(t, "STRICT is in force", func() error {
			if got, err := tell(client, "10.96.0.10:80"); err == nil && got != "" {
				return fmt.Errorf("answered with %q", got)
			}
			return nil
		})
		if got, err := tell(client, "10.88.0.12:80"); err != nil || !strings.HasPrefix(got, "web") { // design D10: nobody's service
			t.Errorf("by bare address: %q, %v", got, err)
		}
	})
}
