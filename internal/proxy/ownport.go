package proxy

import (
	"net"
	"sync"
	"time"

	"podseal.io/podseal/internal/edges"
)

// ownListener counts who asks at one of the proxy's own ports for health or metrics
// (contract 5.26). They aren't captured, so no relay sees them, and what goes there is
// plaintext: who looks for plaintext has to be told of it, too.
type ownListener struct {
	net.Listener
	p *proxy
}

// Accept implements net.Listener. What the pod asks itself is on no wire.
func (l ownListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	from, to := addrPort(c.RemoteAddr()), addrPort(c.LocalAddr())
	if from.Addr().IsLoopback() || from.Addr() == to.Addr() {
		return c, nil
	}
	key := edges.Key{Direction: edges.Inbound, Security: edges.Plaintext, Protocol: "http", Port: to.Port(), Address: from.Addr()}
	about := edges.About{Address: from.Addr()}
	if w, ok := l.p.worlds.world().WorkloadAt(from.Addr()); ok {
		key.Workload, about.Pod = l.p.edgeNames.of(w), w.UID
	}
	return &ownConn{Conn: c, table: l.p.edges, key: key, about: about}, nil
}

// ownConn counts its bytes in the table: there are few, and seldom.
type ownConn struct {
	net.Conn
	table *edges.Table
	key   edges.Key
	about edges.About

	mu             sync.Mutex
	flow           edges.Flow
	sent, received int64
	closed         bool
}

// Read implements net.Conn.
func (c *ownConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.count(0, n)
	return n, err
}

// Write implements net.Conn.
func (c *ownConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.count(n, 0)
	return n, err
}

// Close implements net.Conn.
func (c *ownConn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed && c.flow.Opened() {
		c.table.Close(&c.flow, c.sent, c.received, 0, "", time.Now())
	}
	c.closed = true
	return c.Conn.Close()
}

func (c *ownConn) count(sent, received int) {
	if sent+received == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	now := time.Now()
	if !c.flow.Opened() {
		c.table.Open(&c.flow, c.key, c.about, now)
	}
	c.sent, c.received = c.sent+int64(sent), c.received+int64(received)
	c.table.Move(&c.flow, c.sent, c.received, 0, now)
}
