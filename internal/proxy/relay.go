package proxy

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/tlsconn"
)

// longestTick bounds how long the byte counts of a connection that is spliced
// in the kernel are behind.
const longestTick = 30 * time.Second

// leastIdle bounds how often it is asked whether anything has moved.
const leastIdle = 100 * time.Millisecond

// errIdle says that nothing moved in either direction.
var errIdle = errors.New("nothing was sent in either direction")

// stream is a TCP connection, or TLS over one.
type stream interface {
	net.Conn
	CloseWrite() error
}

// relay carries bytes both ways until both directions have ended, and notes how
// it went. fromClient and fromServer have been read already and are sent first.
//
// Invariants: each direction ends by itself (FIN, or close_notify and FIN); an
// error of one side is seen by the other as RST, never as an orderly end.
func (p *proxy) relay(c *conn, client, server stream, fromClient, fromServer []byte) {
	r := &relaying{p: p, c: c, client: client, server: server, fromClient: fromClient, fromServer: fromServer}
	r.idle = max(cmp.Or(c.idle, p.idleTimeout()), leastIdle)
	c.progress.Store(time.Now().UnixNano())
	c.mayRest(client)
	c.mayRest(server)
	r.run(p.watchIdle(c, r.idle))
}

// relaying is a relay. What its two goroutines need is here and not on their
// stacks, which are the larger part of what an idle connection holds: beyond
// 1.2 kB they would be twice as large.
type relaying struct {
	p                      *proxy
	c                      *conn
	client, server         stream
	fromClient, fromServer []byte // read already
	idle                   time.Duration
	there                  sync.WaitGroup
	over                   atomic.Bool // one direction has ended
}

func (r *relaying) run(stop func()) {
	r.there.Add(1)
	if s, ok := r.client.(*tlsconn.Stream); ok && r.deliver(r.server, s, &r.fromClient, &r.c.received, "client to server") {
		r.toClient()
	} else if s, ok := r.server.(*tlsconn.Stream); ok && r.deliver(r.client, s, &r.fromServer, &r.c.sent, "server to client") {
		r.there.Add(1)
		r.toServer()
	} else {
		r.p.second.do(r.toServer)
		r.toClient()
	}
	r.there.Wait()
	stop()
	r.c.close()
}

// deliver has what comes over a tunnel delivered by who reads the tunnel: that takes
// no goroutine of this connection. It reports false where it can't be.
func (r *relaying) deliver(dst stream, src *tlsconn.Stream, first *[]byte, count interface{ Add(int64) int64 }, where string) bool {
	to, ok := dst.(*net.TCPConn)
	if !ok {
		return false
	}
	moved := r.c.moved(count)
	if err := r.begin(dst, first, moved); err != nil {
		r.failed(where, err)
		r.there.Done()
		return true
	}
	src.Deliver(to, moved, func(err error) {
		defer r.there.Done()
		if err == nil {
			err = r.finish(dst, true)
		}
		if err != nil && !errors.Is(err, net.ErrClosed) { // closed by whoever has cut the connection
			r.failed(where, err)
		}
	})
	return true
}

func (r *relaying) toServer() {
	defer r.there.Done()
	if r.c.lookFirst {
		r.c.look(r.fromClient)
	}
	if err := r.direction(r.server, r.client, &r.fromClient, r.c.moved(&r.c.received)); err != nil {
		r.failed("client to server", err)
	}
}

func (r *relaying) toClient() {
	if err := r.direction(r.client, r.server, &r.fromServer, r.c.moved(&r.c.sent)); err != nil {
		r.failed("server to client", err)
	}
}

//go:noinline
func (r *relaying) failed(where string, err error) {
	r.c.cut(relayReason(err), fmt.Errorf("%s: %w", where, err))
}

// moved returns a function that counts bytes of one direction.
func (c *conn) moved(count interface{ Add(int64) int64 }) func(n int) {
	return func(n int) {
		count.Add(int64(n))
		c.progress.Store(time.Now().UnixNano())
	}
}

// direction carries one direction to its end and then ends it at dst.
// What first points to goes before, and is then forgotten.
func (r *relaying) direction(dst, src stream, first *[]byte, moved func(n int)) error {
	if err := r.begin(dst, first, moved); err != nil {
		return err
	}
	d, plainDst := dst.(*net.TCPConn)
	s, plainSrc := src.(*net.TCPConn)
	var err error
	if plainDst && plainSrc {
		err = splice(d, s, r.idle, moved)
	} else {
		err = r.p.tls.Copy(dst, src, moved)
	}
	if err != nil {
		return err
	}
	return r.finish(dst, plainDst)
}

// begin sends what was read before.
func (r *relaying) begin(dst stream, first *[]byte, moved func(n int)) error {
	if len(*first) == 0 {
		return nil
	}
	if _, err := dst.Write(*first); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	moved(len(*first))
	*first = nil
	return nil
}

// finish ends one direction.
func (r *relaying) finish(dst stream, plain bool) error {
	if r.over.Swap(true) && plain {
		return nil // dst has ended its direction, and is closed at once, which tells it the same
	}
	if err := dst.CloseWrite(); err != nil && !isGone(err) {
		return fmt.Errorf("end direction: %w", err)
	}
	return nil
}

// splice lets the kernel carry the bytes. It comes back from time to time to
// count them, which is also how the idle timeout learns that they move.
func splice(dst, src *net.TCPConn, idle time.Duration, moved func(n int)) error {
	tick := min(idle/4, longestTick)
	for {
		if err := src.SetReadDeadline(time.Now().Add(tick)); err != nil {
			return fmt.Errorf("set deadline: %w", err)
		}
		n, err := io.Copy(dst, src)
		if n > 0 {
			moved(int(n))
		}
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return fmt.Errorf("copy: %w", err)
		}
	}
}

// watchIdle cuts the connection once nothing has moved in either direction for
// so long. The function that it returns stops the watch.
func (p *proxy) watchIdle(c *conn, idle time.Duration) (stop func()) {
	var mu sync.Mutex
	var timer *time.Timer
	stopped := false
	mu.Lock()
	defer mu.Unlock()
	timer = time.AfterFunc(idle, func() {
		mu.Lock()
		defer mu.Unlock()
		if stopped {
			return
		}
		left := idle - time.Since(time.Unix(0, c.progress.Load()))
		if left <= 0 {
			c.cut(policy.IdleTimeout, errIdle)
			return
		}
		timer.Reset(left)
	})
	return func() {
		mu.Lock()
		defer mu.Unlock()
		stopped = true
		timer.Stop()
	}
}

// relayReason is the reason of an error in the middle of a connection: none for
// peers that go away, which is no refusal, but a TLS 1.3 client learns only here
// that the server did not accept its certificate.
func relayReason(err error) policy.Reason {
	if isAlert(err) {
		return policy.HandshakeFailed
	}
	return policy.None
}

var _ stream = (*tlsconn.Conn)(nil)
