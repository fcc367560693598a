package proxy

import (
	"crypto/tls"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"podseal.io/podseal/internal/meshtest"
	"podseal.io/podseal/internal/policy"
)

// What listens on localhost only is not to be reached through capture, which
// redirects before the kernel drops (contract 2.30).
func TestLoopbackIsNotForOthers(t *testing.T) {
	for _, tt := range []struct {
		from, to string
		want     bool
	}{
		{"10.0.0.9", "127.0.0.1", true},
		{"10.0.0.9", "::ffff:127.0.0.1", true},
		{"fd00::9", "::1", true},
		{"fd00::9", "::", true},
		{"10.0.0.9", "0.0.0.0", true},
		{"10.0.0.9", "10.0.0.2", false},
		{"127.0.0.1", "127.0.0.2", false}, // from within the pod: contract 5.27
	} {
		if got := smuggled(netip.MustParseAddr(tt.from), netip.MustParseAddr(tt.to)); got != tt.want {
			t.Errorf("from %s to %s: %v", tt.from, tt.to, got)
		}
	}
}

// What a stranger's ClientHello says is in the record, but not 60 KB of it.
func TestRecordsAreBounded(t *testing.T) {
	p := newPair(t, policy.TCP, meshtest.Echo)
	p.mode(p.server, policy.Strict)
	names := make([]string, 250)
	for i := range names {
		names[i] = strings.Repeat("é", 100)
	}
	raw := p.connect(p.outsider(), p.app)
	_ = tls.Client(raw, &tls.Config{InsecureSkipVerify: true, ServerName: strings.Repeat("a", 60) + ".example", NextProtos: names}).Handshake()
	ends(t, raw)
	r := record(t, p.inside, anyRecord)
	if !strings.HasPrefix(r.ALPN, names[0]) || len(r.ALPN) > maxName || !strings.HasPrefix(r.SNI, "aaa") {
		t.Errorf("%d bytes of ALPN, SNI %q", len(r.ALPN), r.SNI)
	}
	var c conn
	c.because(policy.PeerUnverified, errors.New(strings.Repeat("x", 10*maxError)))
	if n := len(c.facts.Error); n != maxError {
		t.Errorf("%d bytes of error", n)
	}
}
