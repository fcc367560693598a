package xds

import (
	"slices"
	"strconv"
	"testing"
	"time"

	"podseal.io/podseal/internal/xds/xdspb"
)

// TestConverged: how long a change takes until a client has acknowledged it. What the
// client has asked for itself, and what it rejects, doesn't count. Contract 7.15.
func TestConverged(t *testing.T) {
	const typeURL = "type/a"
	store, s := NewStore(), newSession()
	begin := time.Unix(1000, 0)
	at := func(second int) time.Time { return begin.Add(time.Duration(second) * time.Second) }
	var took []time.Duration
	s.converged = func(d time.Duration) { took = append(took, d) }
	change := func(second int) {
		t.Helper()
		if !store.Replace(typeURL, map[string][]byte{"x": []byte(strconv.Itoa(second)), "y": nil}) {
			t.Fatal("unchanged")
		}
		store.current.types[typeURL].at = at(second)
	}
	nonce := ""
	step := func(second int, req *xdspb.DeltaDiscoveryRequest) {
		t.Helper()
		if req != nil {
			req.TypeUrl = typeURL
		}
		out, err := s.step(event{req: req, view: store.view(), now: at(second)})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range out {
			nonce = r.GetNonce()
		}
	}
	answer := func(second int) { t.Helper(); step(second, &xdspb.DeltaDiscoveryRequest{ResponseNonce: nonce}) }

	change(0)
	step(5, &xdspb.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"x"}})
	answer(6)
	if len(took) > 0 {
		t.Errorf("what a client asks for at first counts: %s", took)
	}
	change(10)
	step(10, nil)
	answer(13) // 3 s
	change(20)
	step(20, nil)
	change(21) // while an answer is on its way
	step(21, nil)
	change(22)
	step(22, nil)
	answer(25) // 5 s
	answer(28) // 7 s, since the first of the two
	step(30, &xdspb.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"y"}})
	answer(39)
	change(40)
	step(40, nil)
	step(44, &xdspb.DeltaDiscoveryRequest{ResponseNonce: nonce, ErrorDetail: &xdspb.Status{Message: "no"}})
	if want := []time.Duration{3 * time.Second, 5 * time.Second, 7 * time.Second}; !slices.Equal(took, want) {
		t.Errorf("took %s, want %s", took, want)
	}
}
