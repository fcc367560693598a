package tlsconn

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"
)

var (
	muxRounds = flag.Int("mux.rounds", 3, "rounds of TestMuxRandom")
	muxTime   = flag.Duration("mux.time", 30*time.Second, "after which TestMuxRandom begins no further round")
)

// oneEnd is what one end of a stream has done with it.
type oneEnd struct {
	sent, got    []byte
	ended, whole bool // CloseWrite was called; the end of the other was seen
	closed       bool // Close was called, perhaps between two writes
}

// Whatever is done with many streams at both ends at once: what arrives is how that
// which was sent begins, and all of it where both ended as they should; the memory and
// every goroutine are given back.
func TestMuxRandom(t *testing.T) {
	began := time.Now()
	for round := range *muxRounds {
		if time.Since(began) > *muxTime { // this machine is busy with something else
			t.Logf("%d of %d rounds", round, *muxRounds)
			break
		}
		seed := uint64(time.Now().UnixNano())
		if !t.Run("", func(t *testing.T) { randomRound(t, seed, round) }) {
			t.Fatalf("seed %d", seed)
		}
	}
}

func randomRound(t *testing.T, seed uint64, round int) {
	m := newMuxPair(t)
	if round%3 == 1 {
		m.pool.Limit = 1 << 20 // windows stay small
	}
	for _, side := range []*Mux{m.client, m.server} {
		side.out.mu.Lock()
		side.out.limit = 20 + uint64(round) // keys are updated all the time
		side.out.mu.Unlock()
	}
	var all sync.WaitGroup
	for i := range 24 {
		client, server := m.open(t, "")
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		ends := [2]oneEnd{}
		var both sync.WaitGroup
		for j, s := range []*Stream{client, server} {
			both.Go(oneSide(t, m.pool, s, &ends[j], rand.New(rand.NewPCG(seed, r.Uint64()))))
		}
		all.Go(func() {
			both.Wait()
			for j := range ends {
				from, to := &ends[j], &ends[1-j]
				if !bytes.HasPrefix(from.sent, to.got) {
					t.Errorf("stream %d: what came is not what was sent", i)
				}
				if to.whole && !from.closed && (!from.ended || len(to.got) != len(from.sent)) {
					t.Errorf("stream %d: an end after %d of %d bytes, ended: %v", i, len(to.got), len(from.sent), from.ended)
				}
			}
			client.Reset()
			server.Reset()
		})
	}
	all.Wait()
}

// oneSide makes a function that writes to s and reads from it at once, in one of many
// ways.
func oneSide(t *testing.T, p *Pool, s *Stream, e *oneEnd, r *rand.Rand) func() {
	plan := make([]int, r.IntN(6))
	for i := range plan {
		plan[i] = r.IntN([]int{1, 10, 5000, 20_000, 300_000, 1 << 20}[r.IntN(6)])
	}
	resets, how, slow, limit := r.IntN(5) == 0, r.IntN(4), r.IntN(3) == 0, r.IntN(8)
	data := make([]byte, 1<<20)
	for i := 0; i < len(data); i += 8 {
		binary.NativeEndian.PutUint64(data[i:], r.Uint64())
	}
	return func() {
		var both sync.WaitGroup
		both.Go(func() {
			for _, n := range plan {
				e.sent = append(e.sent, data[:n]...) // whatever of it is sent
				if _, err := s.Write(data[:n]); err != nil {
					return
				}
			}
			if resets {
				s.Reset()
				return
			}
			e.ended = true // before it can be seen
			_ = s.CloseWrite()
		})
		both.Go(func() {
			var err error
			e.got, err = receive(t, p, s, how, slow)
			if e.whole = err == nil; limit == 0 {
				e.closed = true
				_ = s.Close() // our own direction may not have ended
			}
		})
		both.Wait()
	}
}

// receive takes all that comes, in one of the ways to do that.
func receive(t *testing.T, p *Pool, s *Stream, how int, slow bool) (got []byte, err error) {
	wait := func() {
		if slow {
			<-time.After(time.Millisecond)
		}
	}
	take := writerFunc(func(b []byte) (int, error) {
		got = append(got, b...)
		wait()
		return len(b), nil
	})
	switch how {
	case 0:
		_, err = io.Copy(take, struct{ io.Reader }{s})
	case 1:
		err = p.Copy(take, s, func(int) {})
	case 2:
		for err == nil {
			_, err = p.CopyN(take, s, 7777, func(int) {})
		}
		if errors.Is(err, io.ErrUnexpectedEOF) && !broken(s) {
			err = nil
		}
	default:
		a, b := tcpPair(t)
		done := make(chan error, 1)
		s.Deliver(a, func(int) {}, func(err error) {
			if err == nil {
				err = a.CloseWrite()
			} else {
				_ = a.SetLinger(0)
				_ = a.Close()
			}
			done <- err
		})
		_, err = io.Copy(take, struct{ net.Conn }{b})
		if derr := <-done; derr != nil {
			err = derr
		}
	}
	return got, err
}

func broken(s *Stream) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err != nil || !s.ended
}
