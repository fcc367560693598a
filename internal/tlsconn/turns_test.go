package tlsconn

import (
	"errors"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestTurns: no more at a time than there are processors, and everybody in the end.
func TestTurns(t *testing.T) {
	var turns turns
	var now, most, done atomic.Int64
	var all sync.WaitGroup
	for range 200 {
		all.Go(func() {
			for range 20 {
				turns.take()
				n := now.Add(1)
				for {
					m := most.Load()
					if n <= m || most.CompareAndSwap(m, n) {
						break
					}
				}
				runtime.Gosched()
				now.Add(-1)
				turns.leave()
				done.Add(1)
			}
		})
	}
	all.Wait()
	if done.Load() != 4000 || most.Load() > int64(runtime.GOMAXPROCS(0)) {
		t.Errorf("%d turns, %d at a time", done.Load(), most.Load())
	}
}

// TestStalledPeersHoldNoTurn: however many handshakes wait for their peers, others
// are made.
func TestStalledPeersHoldNoTurn(t *testing.T) {
	p := &Pool{}
	_, sc := configs(t, "aes128")
	var stalled sync.WaitGroup
	defer stalled.Wait()
	for range 4 * runtime.GOMAXPROCS(0) {
		client, server := tcpPair(t)
		defer client.Close()
		stalled.Go(func() {
			if _, err := p.Server(server, nil, sc.Clone(), time.Now().Add(time.Minute)); err == nil {
				t.Error("shook hands with nobody")
			}
		})
	}
	client, server := establishedIn(t, p, "aes128", 0)
	go client.Write([]byte("hello"))
	b := make([]byte, 5)
	if _, err := server.Read(b); err != nil || string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}
}

// TestLateHandshakeIsNotMade: what nobody waits for any more costs nothing.
func TestLateHandshakeIsNotMade(t *testing.T) {
	p := &Pool{}
	_, sc := configs(t, "aes128")
	_, server := tcpPair(t)
	if _, err := p.Server(server, []byte("not even TLS"), sc, time.Now().Add(-time.Second)); err == nil || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("want a timeout, got %v", err)
	}
}
