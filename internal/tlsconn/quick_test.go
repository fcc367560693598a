package tlsconn

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
)

// TestWriteVector: pieces arrive in order, however much of them a call takes, and a
// writer without room waits.
func TestWriteVector(t *testing.T) {
	for name, raw := range map[string]bool{"quick": true, "ordinary": false} {
		t.Run(name, func(t *testing.T) {
			p := &Pool{}
			a, b := tcpPair(t)
			if err := a.SetWriteBuffer(8 << 10); err != nil {
				t.Fatal(err)
			}
			sock := rawConn(a)
			if !raw {
				sock = nil
			}
			r := rand.New(rand.NewPCG(1, 2))
			var want []byte
			var all []net.Buffers
			for n := range 100 {
				var pieces net.Buffers
				for range 1 + n%maxPieces {
					piece := make([]byte, 1+r.IntN(20_000))
					for i := range piece {
						piece[i] = byte(r.Uint32())
					}
					want = append(want, piece...)
					pieces = append(pieces, piece)
				}
				all = append(all, pieces)
			}
			var got []byte
			var err error
			var reader sync.WaitGroup
			reader.Go(func() { got, err = io.ReadAll(b) })
			for _, pieces := range all {
				if err := p.writeVector(a, sock, pieces); err != nil {
					t.Error(err)
				}
			}
			a.Close()
			reader.Wait()
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d of %d bytes, %v", len(got), len(want), err)
			}
			if waited := p.waits.Load() > 0; waited != raw {
				t.Errorf("waits that were noted: %t", waited)
			}
			if err := p.writeVector(a, sock, net.Buffers{{1}, {2}}); err == nil {
				t.Error("a closed connection took something")
			}
		})
	}
}

// TestRun: large reads in a row are counted for as long as nobody waits; small ones
// never.
func TestRun(t *testing.T) {
	p, r := &Pool{}, run{}
	for range quickRuns {
		r.reads(p, quickLen)
	}
	if r.calls != 0 {
		t.Errorf("%d small reads were counted", r.calls)
	}
	for range quickRuns + 1 {
		r.reads(p, sixteenLen)
	}
	if r.calls != quickRuns+1 {
		t.Errorf("%d were counted, want %d", r.calls, quickRuns+1)
	}
	p.waits.Add(1)
	r.reads(p, sixteenLen)
	if r.calls != 1 {
		t.Errorf("%d were counted since somebody waited, want 1", r.calls)
	}
}

// TestWhoWaits: a wait of a plain connection's reader is noted, as it leaves its
// processor to others; that a sink can take no more is not, as its writer goes on.
func TestWhoWaits(t *testing.T) {
	p := &Pool{}
	a, b := tcpPair(t)
	var k sink
	k.init()
	eventually(t, func() bool {
		n, err := k.write(rawConn(a), [][]byte{make([]byte, 1<<16)})
		if err != nil {
			t.Fatal(err)
		}
		return n == 0
	})
	if n := p.waits.Load(); n != 0 {
		t.Errorf("%d waits were noted where nobody has waited", n)
	}
	c := p.Plain(a)
	read := make(chan error, 1)
	go func() {
		_, err := c.Read(make([]byte, 1))
		read <- err
	}()
	eventually(t, func() bool { return p.waits.Load() > 0 })
	if _, err := b.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := <-read; err != nil {
		t.Error(err)
	}
}
