package identity

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

// signsLists makes a CA of this name that may sign lists.
func signsLists(name string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		authority(c)
		c.KeyUsage |= x509.KeyUsageCRLSign
		c.Subject.CommonName = name
	}
}

// listOf is a revocation list from an hour before noon to two hours after, unless change
// says otherwise.
func listOf(tb testing.TB, by *issued, change func(*x509.RevocationList), revoked ...*issued) []byte {
	tb.Helper()
	l := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: noon.Add(-time.Hour), NextUpdate: noon.Add(2 * time.Hour)}
	for _, r := range revoked {
		l.RevokedCertificateEntries = append(l.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: r.cert.SerialNumber, RevocationTime: noon})
	}
	if change != nil {
		change(l)
	}
	der, err := x509.CreateRevocationList(rand.Reader, l, by.cert, by.key)
	if err != nil {
		tb.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}

func revocations(tb testing.TB, lists ...[]byte) *Revocations {
	tb.Helper()
	r, err := ParseRevocations(bytes.Join(lists, nil))
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

// TestRevocations: contract 4.39, 4.40. As soon as there is a list, every CA of a chain
// needs one that is its own and has not ended, and none of the certificates may be in it.
func TestRevocations(t *testing.T) {
	root := issue(t, nil, signsLists("root"))
	namesake := issue(t, nil, signsLists("root"))
	between := issue(t, root, signsLists("between"))
	leaf := issue(t, between, peer)
	chain := []*x509.Certificate{leaf.cert, between.cert}
	impostor := issue(t, nil, signsLists("between"))
	ended := func(l *x509.RevocationList) { l.NextUpdate = noon.Add(-time.Minute) }
	older := func(l *x509.RevocationList) { l.ThisUpdate = noon.Add(-2 * time.Hour) }
	endless := func(l *x509.RevocationList) { l.NextUpdate = time.Time{} }
	next := func(l *x509.RevocationList) { l.Number = big.NewInt(2) }
	ok := listOf(t, root, nil)
	for name, tc := range map[string]struct {
		lists [][]byte
		want  error
	}{
		"nothing is revoked":           {[][]byte{ok, listOf(t, between, nil)}, nil},
		"the leaf is":                  {[][]byte{ok, listOf(t, between, nil, leaf)}, ErrRevoked},
		"the CA between is":            {[][]byte{listOf(t, root, nil, between), listOf(t, between, nil)}, ErrRevoked},
		"the root itself is":           {[][]byte{listOf(t, root, nil, root), listOf(t, between, nil)}, ErrRevoked},
		"the root has no list":         {[][]byte{listOf(t, between, nil)}, ErrNoRevocationList},
		"the CA between has none":      {[][]byte{ok}, ErrNoRevocationList},
		"it is another's of that name": {[][]byte{ok, listOf(t, impostor, nil)}, ErrNoRevocationList},
		"and so is one of two":         {[][]byte{ok, listOf(t, impostor, nil, leaf), listOf(t, between, nil)}, nil},
		"a root's namesake has one":    {[][]byte{listOf(t, namesake, nil), listOf(t, between, nil)}, ErrNoRevocationList},
		"the root's has ended":         {[][]byte{listOf(t, root, ended), listOf(t, between, nil)}, ErrRevocationListEnded},
		"the other has ended":          {[][]byte{ok, listOf(t, between, ended)}, ErrRevocationListEnded},
		"ended, and the leaf is in it": {[][]byte{listOf(t, root, ended), listOf(t, between, nil, leaf)}, ErrRevoked},
		"an older one has the leaf":    {[][]byte{ok, listOf(t, between, older, leaf), listOf(t, between, nil)}, nil},
		"the newer one has the leaf":   {[][]byte{ok, listOf(t, between, older), listOf(t, between, nil, leaf)}, ErrRevoked},
		"the higher number counts":     {[][]byte{ok, listOf(t, between, nil), listOf(t, between, next, leaf)}, ErrRevoked},
		"of somebody else's leaf":      {[][]byte{listOf(t, root, nil, leaf), listOf(t, between, nil)}, nil}, // serial numbers are each CA's own
	} {
		snap := trusting(t, root, namesake)
		snap.Bundle = snap.Bundle.WithRevocations(revocations(t, tc.lists...))
		for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
			for range 2 { // what is remembered is no other
				if _, err := VerifyPeer(snap, chain, usage, noon); !errors.Is(err, tc.want) {
					t.Errorf("%s: %v, want %v", name, err, tc.want)
				}
			}
		}
	}
	// Go doesn't write a list without an end; one that is read without is for ever.
	forever := revocations(t, ok, listOf(t, between, nil))
	for _, l := range forever.lists {
		endless(l.raw)
	}
	if got := revocations(t, ok, listOf(t, between, ended)).Ends(); !got.Equal(noon.Add(-time.Minute)) || !forever.Ends().IsZero() {
		t.Errorf("the first ends at %s, of those without an end at %s", got, forever.Ends())
	}
	if until, err := forever.Check([]*x509.Certificate{leaf.cert, between.cert, root.cert}, noon.AddDate(9, 0, 0)); err != nil || !until.IsZero() {
		t.Errorf("without an end: until %s, %v", until, err)
	}
}

// TestRevocationListEnds: what was verified is not remembered beyond the end of a list.
func TestRevocationListEnds(t *testing.T) {
	root := issue(t, nil, signsLists("root"))
	leaf := issue(t, root, peer)
	snap := trusting(t, root)
	end := noon.Add(10 * time.Minute)
	snap.Bundle = snap.Bundle.WithRevocations(revocations(t, listOf(t, root, func(l *x509.RevocationList) { l.NextUpdate = end })))
	for at, want := range map[time.Time]error{noon: nil, end: nil, end.Add(time.Second): ErrRevocationListEnded} {
		for range 2 {
			if _, err := VerifyPeer(snap, []*x509.Certificate{leaf.cert}, x509.ExtKeyUsageClientAuth, at); !errors.Is(err, want) {
				t.Errorf("%s: %v, want %v", at, err, want)
			}
		}
	}
	if kept := snap.Bundle.WithRevocations(revocations(t, listOf(t, root, nil, leaf))); kept.Same(snap.Bundle) || kept.Hash() != snap.Bundle.Hash() {
		t.Error("bundles of other lists are told apart, and their roots are not")
	} else if _, err := VerifyPeer(&Snapshot{Bundle: kept, TrustDomains: snap.TrustDomains}, []*x509.Certificate{leaf.cert}, x509.ExtKeyUsageClientAuth, noon); !errors.Is(err, ErrRevoked) {
		t.Errorf("a bundle with new lists goes by what the one before remembered: %v", err)
	}
}

// TestHandshakeWithRevoked: either side refuses the other's certificate. Contract 4.39.
func TestHandshakeWithRevoked(t *testing.T) {
	root := issue(t, nil, signsLists("root"))
	client, server := issue(t, root, peer), issue(t, root, peer)
	side := func(own *issued, revoked ...*issued) *Snapshot {
		s := trusting(t, root)
		s.Bundle = s.Bundle.WithRevocations(revocations(t, listOf(t, root, nil, revoked...)))
		cred, err := NewCredential(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: own.cert.Raw}), own.key)
		if err != nil {
			t.Fatal(err)
		}
		s.Credential = cred
		return s
	}
	now := func() time.Time { return noon }
	for name, tc := range map[string]struct {
		client, server         *Snapshot
		wantClient, wantServer error
	}{
		"none":       {side(client), side(server), nil, nil},
		"the server": {side(client, server), side(server), ErrRevoked, nil},
		"the client": {side(client), side(server, client), nil, ErrRevoked},
	} {
		a, b := connected(t)
		c := tls.Client(a, ClientConfig(tc.client, MustNew("cluster.local", "shop", "web"), "x", nil, now))
		s := tls.Server(b, ServerConfig(tc.server, nil, now))
		done := make(chan error, 1)
		go func() {
			err := s.HandshakeContext(t.Context())
			if err != nil {
				_ = b.Close()
			}
			done <- err
		}()
		clientErr := c.HandshakeContext(t.Context())
		if clientErr == nil && tc.wantServer != nil {
			_, clientErr = c.Read(make([]byte, 1)) // TLS 1.3: the client is done first
		}
		if clientErr != nil {
			_ = a.Close()
		}
		serverErr := <-done
		if tc.wantClient != nil && !errors.Is(clientErr, tc.wantClient) || tc.wantServer != nil && !errors.Is(serverErr, tc.wantServer) {
			t.Errorf("%s is revoked: client %v, server %v", name, clientErr, serverErr)
		}
		if name == "none" && (clientErr != nil || serverErr != nil) {
			t.Errorf("%s: client %v, server %v", name, clientErr, serverErr)
		}
		_, _ = a.Close(), b.Close()
	}
}

// connected are the two ends of a TCP connection: over net.Pipe two that write at once
// wait for each other.
func connected(t *testing.T) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if a, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return a, b
}

func TestParseRevocations(t *testing.T) {
	root, other := issue(t, nil, signsLists("root")), issue(t, nil, signsLists("root"))
	good := listOf(t, root, nil, other)
	many := make([]*issued, maxRevoked/2+1)
	for i := range many {
		many[i] = &issued{cert: &x509.Certificate{SerialNumber: big.NewInt(int64(i + 1))}}
	}
	critical := pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 27}, Critical: true, Value: []byte{2, 1, 1}}
	for says, text := range map[string][]byte{
		"no PEM block":            {},
		"not PEM":                 append(slices.Clone(good), "rest"...),
		"list 1: ":                pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: []byte("x")}),
		"of type \"CERTIFICATE\"": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.cert.Raw}),
		"a critical extension":    listOf(t, root, func(l *x509.RevocationList) { l.ExtraExtensions = []pkix.Extension{critical} }),
		"list 2: the entry": append(slices.Clone(good), listOf(t, root, func(l *x509.RevocationList) {
			l.RevokedCertificateEntries[0].ExtraExtensions = []pkix.Extension{critical}
		}, other)...),
		"more than 64 lists": bytes.Repeat(good, maxLists+1),
		"at most 524288":     bytes.Repeat([]byte("\n"), MaxRevocationBytes+1),
		"than 10000 revoked": append(listOf(t, root, nil, many...), listOf(t, other, nil, many...)...),
	} {
		if len(text) > MaxRevocationBytes && says != "at most 524288" {
			t.Fatalf("%s: the test's own list is too long", says)
		}
		if r, err := ParseRevocations(text); err == nil || r != nil || !strings.Contains(err.Error(), says) {
			t.Errorf("want %q: %v", says, err)
		}
	}
	r := revocations(t, good)
	if !r.Is(good) || r.Is(good[1:]) || !bytes.Equal(r.PEM(), good) || r.Len() != 1 || len(r.Hash()) != 16 {
		t.Errorf("%d revoked, hash %q", r.Len(), r.Hash())
	}
	if none := (*Revocations)(nil); none.Hash() != "" {
		t.Error("no lists have a name")
	}
	damaged := &issued{cert: func() *x509.Certificate { c := *other.cert; c.SubjectKeyId = root.cert.SubjectKeyId; return &c }()}
	if err := r.Judge([]*x509.Certificate{other.cert}, noon); err != nil {
		t.Errorf("a CA of the same name is another by its key: %v", err)
	}
	for says, tc := range map[string]struct {
		list  []byte
		known *issued
	}{
		"":                  {good, root},
		"is not signed by":  {good, damaged},
		"begins at":         {listOf(t, root, func(l *x509.RevocationList) { l.ThisUpdate = noon.Add(time.Minute) }), root},
		"key usage lacking": {good, &issued{cert: func() *x509.Certificate { c := *root.cert; c.KeyUsage = x509.KeyUsageCertSign; return &c }()}},
	} {
		err := revocations(t, tc.list).Judge([]*x509.Certificate{tc.known.cert}, noon)
		if (says == "") != (err == nil) || err != nil && says != "key usage lacking" && !strings.Contains(err.Error(), says) {
			t.Errorf("want %q: %v", says, err)
		}
	}
	if err := r.Judge([]*x509.Certificate{other.cert, root.cert}, noon); err != nil {
		t.Errorf("one of two CAs of a name has signed it: %v", err)
	}
	if err := r.Judge(nil, noon); err != nil {
		t.Errorf("a CA may show itself later: %v", err)
	}
}

func FuzzRevocations(f *testing.F) {
	root := issue(f, nil, signsLists("root"))
	leaf := issue(f, root, peer)
	good := listOf(f, root, nil, leaf)
	f.Add(good)
	f.Add(append(good, listOf(f, root, nil)...))
	f.Add([]byte("-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		r, err := ParseRevocations(in)
		if err != nil {
			return
		}
		again, err := ParseRevocations(r.PEM())
		if err != nil || again.Hash() != r.Hash() || again.Len() != r.Len() {
			t.Errorf("read again it is another: %v", err)
		}
		_, was := r.Check([]*x509.Certificate{leaf.cert, root.cert}, noon)
		if _, is := again.Check([]*x509.Certificate{leaf.cert, root.cert}, noon); (was == nil) != (is == nil) {
			t.Errorf("judged again it is another: %v, %v", was, is)
		}
		_ = r.Judge([]*x509.Certificate{root.cert}, noon)
	})
}
