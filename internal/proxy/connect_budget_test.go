//go:build !race

package proxy

import (
	"runtime"
	"testing"

	"podseal.io/podseal/internal/meshtest"
	"podseal.io/podseal/internal/policy"
)

// TestConnectAllocations: what a connection over mutual TLS that is there already may
// take of the heap, at both proxies together, with what its client and its server
// take here.
func TestConnectAllocations(t *testing.T) {
	p := newPair(t, policy.TCP, meshtest.Echo)
	const connections, objects, bytes = 500, 150, 10_000
	var before, after runtime.MemStats
	for i := range 2 * connections {
		if i == connections { // all pools are full now
			runtime.ReadMemStats(&before)
		}
		c, err := p.net.Connect(t.Context(), p.client.Addresses[0], p.service)
		if err != nil {
			t.Fatal(err)
		}
		exchange(t, c, "x")
		c.Close()
	}
	runtime.ReadMemStats(&after)
	if n := (after.Mallocs - before.Mallocs) / connections; n > objects {
		t.Errorf("%d allocations for each connection, at most %d are allowed", n, objects)
	}
	if n := (after.TotalAlloc - before.TotalAlloc) / connections; n > bytes {
		t.Errorf("%d bytes for each connection, at most %d are allowed", n, bytes)
	}
}
