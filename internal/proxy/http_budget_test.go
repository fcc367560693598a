//go:build !race

package proxy

import (
	"context"
	"runtime"
	"sync"
	"testing"
	"time"

	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/workload"
)

// TestHTTPAllocations: a request without a body allocates nothing, with policies in
// force or without.
func TestHTTPAllocations(t *testing.T) {
	for name, world := range map[string]func() *workload.World{"open": nil, "judged": worldOf(someAccess(t))} {
		t.Run(name, func(t *testing.T) {
			client, inner := tcpPair(t)
			toApp, app := tcpPair(t)
			h := &httpRelay{Client: inner, App: toApp, Decorator: "web:80/*", PeerURI: "spiffe://a", IdleTimeout: time.Hour}
			if world != nil {
				h.Gate = &gate{World: world, Attempt: policy.Attempt{}}
				h.Gate.Attempt.Peer = policy.NewPeer(identity.MustNew("cluster.local", "shop", "client"))
			}
			var all sync.WaitGroup
			all.Go(func() { _ = h.serve(context.Background()) })
			all.Go(func() {
				response, buf := []byte(emptyOK+"\r\n"), make([]byte, 4096)
				for {
					if _, err := app.Read(buf); err != nil {
						return
					}
					if _, err := app.Write(response); err != nil {
						return
					}
				}
			})
			request, buf := []byte(plainGet+"User-Agent: x\r\nAccept: */*\r\n\r\n"), make([]byte, 4096)
			const requests = 2000
			var before, after runtime.MemStats
			for i := range 2 * requests {
				if i == requests { // all pools are full now
					runtime.ReadMemStats(&before)
				}
				if _, err := client.Write(request); err != nil {
					t.Fatal(err)
				}
				if _, err := client.Read(buf); err != nil {
					t.Fatal(err)
				}
			}
			runtime.ReadMemStats(&after)
			if n := after.Mallocs - before.Mallocs; n > requests/10 {
				t.Errorf("%d allocations for %d requests", n, requests)
			}
			_ = client.Close()
			all.Wait()
		})
	}
}
