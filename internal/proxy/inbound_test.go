package proxy

import (
	"net/netip"
	"testing"
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
		{"10.0.0.9", "10.0.0.2", false},
		{"127.0.0.1", "127.0.0.2", false}, // from within the pod: contract 5.27
	} {
		if got := smuggled(netip.MustParseAddr(tt.from), netip.MustParseAddr(tt.to)); got != tt.want {
			t.Errorf("from %s to %s: %v", tt.from, tt.to, got)
		}
	}
}
