package xds

import (
	"testing"
	"time"

	"podseal.io/podseal/internal/xds/xdspb"
)

// What a client has of each resource follows its ACKs and NACKs, not what it was sent.
func TestHolding(t *testing.T) {
	store := NewStore()
	store.Replace("t", map[string][]byte{"a": []byte("1"), "b": []byte("1")})
	s := newSession()
	step := func(req *xdspb.DeltaDiscoveryRequest) *xdspb.DeltaDiscoveryResponse {
		t.Helper()
		out, err := s.step(event{req: req, view: store.view(), now: time.Unix(1, 0)})
		if err != nil {
			t.Fatal(err)
		}
		if len(out) == 0 {
			return nil
		}
		return out[0]
	}
	expect := func(when string, want map[string]Holding) {
		t.Helper()
		for name, w := range want {
			if got := s.subs["t"].holding(store.view().types["t"], name); got != w {
				t.Errorf("%s: %s is %d, want %d", when, name, got, w)
			}
		}
	}
	expect("before it asks", map[string]Holding{"a": Unasked})
	sent := step(&xdspb.DeltaDiscoveryRequest{TypeUrl: "t"})
	expect("sent", map[string]Holding{"a": Waiting, "b": Waiting, "none": Held})
	step(&xdspb.DeltaDiscoveryRequest{TypeUrl: "t", ResponseNonce: sent.GetNonce()})
	expect("acknowledged", map[string]Holding{"a": Held, "b": Held})
	store.Replace("t", map[string][]byte{"a": []byte("2")})
	expect("changed, not sent yet", map[string]Holding{"a": Waiting, "b": Waiting})
	sent = step(nil)
	step(&xdspb.DeltaDiscoveryRequest{TypeUrl: "t", ResponseNonce: sent.GetNonce(), ErrorDetail: &xdspb.Status{Message: "no"}})
	expect("refused", map[string]Holding{"a": Rejected, "b": Held})
	store.Replace("t", map[string][]byte{"a": []byte("3")})
	sent = step(nil)
	expect("mended, on its way", map[string]Holding{"a": Waiting})
	step(&xdspb.DeltaDiscoveryRequest{TypeUrl: "t", ResponseNonce: sent.GetNonce()})
	expect("mended", map[string]Holding{"a": Held})
	if got := s.subs["other"].holding(nil, "a"); got != Unasked {
		t.Errorf("of a type that nobody asked for: %d", got)
	}
}
