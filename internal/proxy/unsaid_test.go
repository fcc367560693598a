package proxy

import (
	"io"
	"math/rand/v2"
	"net"
	"testing"

	"podseal.io/podseal/internal/meshtest"
	"podseal.io/podseal/internal/policy"
)

// TestHalfSaid: those who begin a ClientHello, or what may be HTTP, and don't go on hold
// no more memory than allowed: the one that has waited longest goes, and the record says
// why. Who speaks to its end isn't disturbed, whatever waits beside it.
func TestHalfSaid(t *testing.T) {
	p := newPair(t, policy.Auto, meshtest.Echo)
	p.inside.unsaid.most = 5 * 4096
	hello := captureHello(t, p.meshTLS)
	var waiting []net.Conn
	half := func(what []byte) {
		t.Helper()
		c := p.connect(p.outsider(), p.app)
		if _, err := c.Write(what); err != nil {
			t.Fatal(err)
		}
		waiting = append(waiting, c)
		eventually(t, func() bool {
			p.inside.unsaid.mu.Lock()
			defer p.inside.unsaid.mu.Unlock()
			return p.inside.unsaid.held == min(len(waiting), 5)*4096
		})
	}
	for i := range 5 {
		if i%2 == 0 {
			half(hello[:len(hello)/2])
		} else {
			half([]byte("GET / HT"))
		}
	}
	exchange(t, p.dial(), "beside them")
	if got := p.inside.records.last(); len(got) != 0 {
		t.Fatalf("cut too early: %+v", got)
	}
	half(hello[:100])
	half(hello[:1])
	for _, c := range waiting[:2] {
		ends(t, c)
	}
	eventually(t, func() bool { return len(p.inside.records.last()) == 2 })
	for _, r := range p.inside.records.last() {
		if r.Reason != policy.Overloaded || r.Error != errCrowded.Error() {
			t.Errorf("record %+v", r)
		}
	}
	exchange(t, p.dial(), "beside them")
	// those that are left may still go on, and hold nothing then
	c, ok := waiting[3].(*net.TCPConn)
	if !ok {
		t.Fatal("no TCP")
	}
	if _, err := io.WriteString(c, "TP/9\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(io.LimitReader(c, 12)); err != nil || string(got) != "GET / HTTP/9" {
		t.Errorf("%q, %v", got, err)
	}
	for _, c := range waiting {
		_ = c.Close()
	}
	eventually(t, func() bool { return len(p.inside.conns.all()) <= 2 })
	if p.inside.unsaid.held != 0 || p.inside.unsaid.waiting.Len() != 0 {
		t.Errorf("%d bytes are still counted, of %d", p.inside.unsaid.held, p.inside.unsaid.waiting.Len())
	}
}

// TestUnsaid: whatever comes and goes, the sum is never more than allowed, and those that
// go for it are the oldest.
func TestUnsaid(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	u := unsaid{most: 1000}
	expelled := map[*begun]bool{}
	var order []*begun // that are counted, the oldest first
	for range 20000 {
		switch r.IntN(3) {
		case 0:
			b := &begun{}
			b.expel = func() { expelled[b] = true }
			order = append(order, b)
			u.hold(b, 1+r.IntN(400))
		case 1:
			if len(order) > 0 {
				u.hold(order[r.IntN(len(order))], 1+r.IntN(1200))
			}
		default:
			if len(order) > 0 {
				i := r.IntN(len(order))
				u.drop(order[i])
				u.drop(order[i]) // twice is once
				order = append(order[:i:i], order[i+1:]...)
			}
		}
		for len(order) > 0 && expelled[order[0]] {
			u.hold(order[0], 900) // it doesn't come back
			u.drop(order[0])
			order = order[1:]
		}
		sum := 0
		for _, b := range order {
			if expelled[b] {
				t.Fatal("one has gone that was not the oldest")
			}
			sum += b.bytes
		}
		if u.held != sum || sum > u.most || u.waiting.Len() != len(order) {
			t.Fatalf("%d bytes are counted of %d, and %d are held of %d", u.held, u.waiting.Len(), sum, len(order))
		}
	}
	u.drop(&begun{})
}
