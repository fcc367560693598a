package xds

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/metadata"

	"podseal.io/podseal/internal/xds/xdspb"
)

// A stranger can't make the server hold headers without end, nor connections that
// nobody uses.
func TestServerBoundsStrangers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		asked := 0
		r.auth = func(context.Context) (string, error) { asked++; return "", errors.New("a stranger") }
		defer r.up()()
		conn := r.dial()
		defer conn.Close()
		open := func(header string) {
			ctx := metadata.AppendToOutgoingContext(t.Context(), "x", header)
			g, err := xdspb.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
			if err == nil {
				_, err = g.Recv()
			}
			if err == nil {
				t.Fatal("the stream is open")
			}
		}
		open("small")
		synctest.Wait()
		open(strings.Repeat("x", 2*maxHeader))
		synctest.Wait()
		if asked != 1 {
			t.Errorf("%d streams reached authentication, want one", asked)
		}
		before := conn.GetState()
		time.Sleep(2 * maxIdle)
		synctest.Wait()
		if after := conn.GetState(); before != connectivity.Ready || after == connectivity.Ready {
			t.Errorf("the connection was %s and is %s", before, after)
		}
	})
}
