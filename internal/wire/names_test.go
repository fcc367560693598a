package wire

import (
	"slices"
	"testing"

	"podseal.io/podseal/internal/policy"
)

// contract 3.47
func TestSNI(t *testing.T) {
	for want, got := range map[string]string{
		"outbound_.80_._.web.shop.svc.cluster.local":  SNI(80, "", "web.shop.svc.cluster.local"),
		"outbound_.8443_.v2_.a.b.svc.cluster.local":   SNI(8443, "v2", "a.b.svc.cluster.local"),
		"outbound_.65535_._.x_y.shop.svc.example.org": SNI(65535, "", "x_y.shop.svc.example.org"),
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// contract 2.28, 3.48, 3.49: what we offer is what the other side then sees.
func TestOutboundALPN(t *testing.T) {
	for _, tt := range []struct {
		proto policy.Protocol
		alpn  []string
		seen  policy.Seen
	}{
		{policy.HTTP, []string{"podseal-mux", "istio-http/1.1", "istio", "http/1.1"}, policy.MeshHTTP},
		{policy.TCP, []string{"podseal-mux", "istio"}, policy.MeshTCP},
		{policy.Auto, []string{"podseal-mux", "podseal", "istio"}, policy.MeshDetect},
	} {
		got := OutboundALPN(tt.proto)
		if !slices.Equal(got, tt.alpn) {
			t.Errorf("%v: got %q, want %q", tt.proto, got, tt.alpn)
		}
		if seen := (Hello{ALPN: got}).Seen(); seen != tt.seen {
			t.Errorf("%v: is seen as %v, want %v", tt.proto, seen, tt.seen)
		}
		if slices.Contains(got, "istio-peer-exchange") {
			t.Errorf("%v: offers istio-peer-exchange", tt.proto)
		}
	}
}
