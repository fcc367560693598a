//go:build !race

package tlsconn

import (
	"io"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"
)

// idleBudget is what an idle relay may hold: the connection's keys and state, two
// goroutines, and the peer's certificate. Sockets are the kernel's.
const idleBudget = 12 << 10

// inUse is what the heap and stacks hold.
func inUse() uint64 {
	var m runtime.MemStats
	for range 3 { // pools are emptied, and stacks shrink by half, each time
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

// An idle relay, with the goroutines that a proxy has for it, holds no buffer and
// little else, however much it has carried before.
func TestIdleMemory(t *testing.T) {
	for name, places := range map[string]int{"one server": 1, "many servers": 200} {
		t.Run(name, func(t *testing.T) { idleMemory(t, places) })
	}
}

// idleMemory has relays to so many servers. With each of them a session is kept.
func idleMemory(t *testing.T, places int) {
	const n = 200
	c := newCouple(t)
	c.servers = c.clients
	p := c.clients
	deadline := time.Now().Add(30 * time.Second)
	type end struct{ tls, plain, app *net.TCPConn }
	ends, conns := make([]end, 2*n), make([]*Conn, 2*n)
	for i := range ends {
		if i%2 == 0 {
			ends[i].tls, ends[i+1].tls = tcpPair(t)
		}
		ends[i].plain, ends[i].app = tcpPair(t)
	}
	before := inUse()
	var done, up sync.WaitGroup
	for i, e := range ends {
		c.peer.Endpoint = netip.AddrPortFrom(c.peer.Endpoint.Addr(), uint16(1+i/2%places))
		cc, sc := c.configs()
		up.Add(1)
		done.Go(func() {
			var c *Conn
			var err error
			if i%2 == 0 {
				c, err = p.Client(e.tls, cc, deadline)
			} else {
				c, err = p.Server(e.tls, nil, sc, deadline)
			}
			conns[i] = c
			up.Done()
			if err != nil {
				t.Error(err)
				return
			}
			done.Go(func() { _ = p.Copy(c, e.plain, func(int) {}) }) // on stacks that have not grown, as in a proxy
			done.Go(func() { _ = p.Copy(e.plain, c, func(int) {}) })
		})
	}
	up.Wait()
	big := make([]byte, 1<<20)
	for i := 0; i < len(ends); i += 2 {
		go func() { _, _ = ends[i].app.Write(big) }()
		if _, err := io.CopyN(io.Discard, ends[i+1].app, int64(len(big))); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range conns {
		c.Rest()
	}
	if len(p.sessions.known) != places {
		t.Errorf("%d sessions are kept, of %d", len(p.sessions.known), places)
	}
	each := (inUse() - before) / uint64(len(ends))
	t.Logf("%d bytes per idle relay", each)
	if each > idleBudget {
		t.Errorf("the budget is %d", idleBudget)
	}
	if lent := p.lent.Load(); lent != 0 {
		t.Errorf("%d bytes of large buffers are held", lent)
	}
	for _, e := range ends {
		e.tls.Close()
		e.plain.Close()
	}
	done.Wait()
}

// Nothing is allocated for a message, in either direction.
func TestMessagesAllocateNothing(t *testing.T) {
	c := newChain(t, "aes128")
	msg := make([]byte, 200)
	round := func() {
		if _, err := c.client.Write(msg); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c.server, msg); err != nil {
			t.Fatal(err)
		}
	}
	for range 20 {
		round()
	}
	if n := testing.AllocsPerRun(200, round); n > 1 { // a pool that a collection has emptied
		t.Errorf("%v allocations", n)
	}
}

// Nor for one on a stream of many, relayed at both ends as proxies do: what arrives
// is delivered by who reads the connection.
func TestStreamMessagesAllocateNothing(t *testing.T) {
	m := newMuxPair(t)
	client, a := tcpPair(t)
	b, server := tcpPair(t)
	ours, theirs := m.open(t, "")
	var done sync.WaitGroup
	for stream, socket := range map[*Stream]*net.TCPConn{ours: a, theirs: b} {
		done.Add(1)
		stream.Deliver(socket, func(int) {}, func(error) { done.Done() })
		done.Go(func() { _ = m.pool.Copy(stream, socket, func(int) {}) })
	}
	msg := make([]byte, 200)
	half := func(from, to *net.TCPConn) {
		if _, err := from.Write(msg); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(to, msg); err != nil {
			t.Fatal(err)
		}
	}
	round := func() {
		half(client, server)
		half(server, client)
	}
	for range 20 {
		round()
	}
	if n := testing.AllocsPerRun(200, round); n > 0 { // rounded down: a pool that a collection has emptied
		t.Errorf("%v allocations for a message and its answer", n)
	}
	ours.Reset()
	for _, c := range []*net.TCPConn{a, b} {
		c.Close()
	}
	done.Wait()
}
