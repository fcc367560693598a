package tlsconn

import (
	"crypto/x509"
	"runtime"
	"testing"
	"time"

	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/meshtest"
)

// Connections to the same peer have one certificate between them, and when the
// last is gone nothing is kept.
func TestCertificatesAreShared(t *testing.T) {
	now := time.Now()
	ca := meshtest.NewCA(t, now)
	var raw [][]byte
	for _, name := range []string{"web", "client"} {
		raw = append(raw, ca.Snapshot(t, identity.MustNew("cluster.local", "shop", name), now).Credential.Leaf.Raw)
	}
	parse := func(i int) []*x509.Certificate {
		c, err := x509.ParseCertificate(raw[i])
		if err != nil {
			t.Fatal(err)
		}
		return []*x509.Certificate{c}
	}
	var s certificates
	first, second, other := s.shared(parse(0)), s.shared(parse(0)), s.shared(parse(1))
	if first[0] != second[0] || first[0] == other[0] || !first[0].Equal(parse(0)[0]) || !other[0].Equal(parse(1)[0]) {
		t.Error("the same certificate is there twice, or another one in its stead")
	}
	count := func() (n int) {
		s.known.Range(func(any, any) bool { n++; return true })
		return n
	}
	if n := count(); n != 2 {
		t.Errorf("%d are known, want 2", n)
	}
	runtime.KeepAlive(first)
	runtime.KeepAlive(second)
	runtime.KeepAlive(other)
	for range 100 {
		if runtime.GC(); count() == 0 {
			return
		}
		runtime.Gosched() // cleanups have a goroutine of their own
	}
	t.Errorf("%d are kept that nobody has", count())
}
