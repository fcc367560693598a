package proxy

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"

	"podseal.io/podseal/internal/tlsconn"
	"podseal.io/podseal/internal/wire"
)

const (
	httpSmall    = 4 << 10   // held by a connection whose messages are small
	httpLarge    = 64 << 10  // for heads that don't fit, and while a body flows
	httpCoalesce = 16 << 10  // so much of a body is sent in one piece with its head
	httpBulk     = 128 << 10 // from here on a body is carried as a stream is, without our buffers
)

// httpBuffers owns the buffers that HTTP connections share. The zero value is ready.
type httpBuffers struct{ small, large sync.Pool }

// httpBuffer holds what was read from a connection and not yet used. It takes
// memory from the pools at the first fill and gives it back on release.
type httpBuffer struct {
	pools *httpBuffers
	small *[httpSmall]byte
	large *[httpLarge]byte
	r, w  int
	full  bool // the last read filled it: more is to be expected
}

func (q *httpBuffer) space() []byte {
	switch {
	case q.large != nil:
		return q.large[:]
	case q.small != nil:
		return q.small[:]
	}
	return nil
}

// bytes are what is there to be used. They are valid until the next fill.
func (q *httpBuffer) bytes() []byte { return q.space()[q.r:q.w] }

func (q *httpBuffer) empty() bool { return q.r == q.w }

// take uses n bytes up.
func (q *httpBuffer) take(n int) {
	if q.r += n; q.r == q.w {
		q.r, q.w = 0, 0
	}
}

// fill reads once and returns what came.
func (q *httpBuffer) fill(src io.Reader, received *atomic.Int64) ([]byte, error) {
	if q.r > 0 {
		q.w = copy(q.space(), q.bytes())
		q.r = 0
	}
	if q.small == nil && q.large == nil {
		var ok bool
		if q.small, ok = q.pools.small.Get().(*[httpSmall]byte); !ok {
			q.small = new([httpSmall]byte)
		}
	}
	if q.small != nil && (q.w == httpSmall || q.full) {
		q.grow()
	}
	if q.w == len(q.space()) {
		return nil, io.ErrShortBuffer
	}
	n, err := src.Read(q.space()[q.w:])
	fresh := q.space()[q.w : q.w+n]
	q.w += n
	q.full = q.w == len(q.space())
	if n > 0 {
		received.Add(int64(n))
		return fresh, nil // an error comes again
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return nil, err
}

func (q *httpBuffer) grow() {
	var ok bool
	if q.large, ok = q.pools.large.Get().(*[httpLarge]byte); !ok {
		q.large = new([httpLarge]byte)
	}
	q.w = copy(q.large[:], q.small[q.r:q.w])
	q.r = 0
	q.pools.small.Put(q.small)
	q.small = nil
}

// shrink gives a large buffer back once it is empty.
func (q *httpBuffer) shrink() {
	if q.large != nil && q.empty() {
		q.release()
	}
}

// release gives back what is held; what was not used is lost.
func (q *httpBuffer) release() {
	if q.small != nil {
		q.pools.small.Put(q.small)
	}
	if q.large != nil {
		q.pools.large.Put(q.large)
	}
	*q = httpBuffer{pools: q.pools}
}

// httpBody follows a body that is passed on unchanged.
type httpBody struct {
	kind   wire.BodyKind
	left   int64
	chunks wire.ChunkTracker
}

func newHTTPBody(b wire.Body) httpBody { return httpBody{kind: b.Kind, left: b.Length} }

// advance returns how many of the bytes that come next belong to the body.
func (b *httpBody) advance(p []byte) (int, error) {
	switch b.kind {
	case wire.LengthBody:
		n := min(b.left, int64(len(p)))
		b.left -= n
		return int(n), nil
	case wire.ChunkedBody:
		return b.chunks.Advance(p)
	case wire.CloseBody, wire.TunnelBody:
		return len(p), nil
	default:
		return 0, nil
	}
}

// done reports whether the body has ended. One that lasts as long as the
// connection ends with io.EOF instead.
func (b *httpBody) done() bool {
	switch b.kind {
	case wire.LengthBody:
		return b.left == 0
	case wire.ChunkedBody:
		return b.chunks.Done()
	case wire.CloseBody, wire.TunnelBody:
		return false
	default:
		return true
	}
}

var (
	errHTTPSource = errors.New("read body")
	errHTTPSink   = errors.New("write body")
)

// httpCopy passes the rest of a body on.
type httpCopy struct {
	src            io.Reader
	dst            io.Writer
	buffer         *httpBuffer
	body           *httpBody
	received, sent *atomic.Int64
	discard        bool // dst takes no more: read on, so that src can finish
	splice         bool // errors of src and dst need not be told apart
	tls            *tlsconn.Pool
}

// run returns nil at the end of the body. Errors wrap errHTTPSource,
// errHTTPSink, or wire's.
func (c *httpCopy) run() error {
	for !c.body.done() {
		if c.buffer.empty() {
			switch {
			case c.spliceable():
				return c.kernel()
			case c.encrypted():
				return c.stream()
			}
			if _, err := c.buffer.fill(c.src, c.received); err != nil {
				if errors.Is(err, io.EOF) {
					if c.body.kind == wire.CloseBody || c.body.kind == wire.TunnelBody {
						return nil
					}
					err = io.ErrUnexpectedEOF
				}
				return fmt.Errorf("%w: %w", errHTTPSource, err)
			}
		}
		b := c.buffer.bytes()
		n, err := c.body.advance(b)
		if err != nil {
			return fmt.Errorf("chunked body: %w", err)
		}
		if !c.discard {
			if _, err := c.dst.Write(b[:n]); err != nil {
				return fmt.Errorf("%w: %w", errHTTPSink, err)
			}
			c.sent.Add(int64(n))
		}
		c.buffer.take(n)
	}
	return nil
}

// bulk reports whether the rest of the body is long, and ends where it says or
// with the stream.
func (c *httpCopy) bulk() bool {
	return !c.discard && c.body.kind != wire.ChunkedBody && (c.body.kind != wire.LengthBody || c.body.left >= httpBulk)
}

func (c *httpCopy) spliceable() bool {
	if !c.splice || !c.bulk() {
		return false
	}
	return plainOf(c.src) != nil && plainOf(c.dst) != nil
}

// plainOf is the connection behind one side, if there is no TLS on it; or nil.
func plainOf(side any) *net.TCPConn {
	switch side := side.(type) {
	case *tlsconn.Plain:
		return side.TCPConn
	case *net.TCPConn:
		return side
	}
	return nil
}

// kernel copies without bringing the bytes here (splice(2)).
func (c *httpCopy) kernel() error {
	var src io.Reader = plainOf(c.src)
	if c.body.kind == wire.LengthBody {
		src = io.LimitReader(src, c.body.left)
	}
	n, err := io.Copy(plainOf(c.dst), src)
	c.received.Add(n)
	c.sent.Add(n)
	if err == nil && c.body.kind == wire.LengthBody && n < c.body.left {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errHTTPSource, err)
	}
	c.body.left = 0
	return nil
}

// encrypted reports whether the rest of the body comes from or goes to TLS, which
// then has its own buffers for it.
func (c *httpCopy) encrypted() bool {
	return c.bulk() && (isSecured(c.from()) || isSecured(c.dst))
}

// from is what is read when nothing is left of what was read before.
func (c *httpCopy) from() io.Reader {
	if first, ok := c.src.(*firstReader); ok && len(first.first) == 0 {
		return first.rest
	}
	return c.src
}

// stream copies without a buffer of ours.
func (c *httpCopy) stream() error {
	c.buffer.release()
	moved := int64(0)
	count := func(n int) {
		moved += int64(n)
		c.received.Add(int64(n))
		c.sent.Add(int64(n))
	}
	src, dst := c.from(), c.dst
	if tcp := plainOf(src); tcp != nil {
		src = tcp
	}
	if tcp := plainOf(dst); tcp != nil {
		dst = tcp
	}
	var err error
	if c.body.kind == wire.LengthBody {
		var taken int64
		taken, err = c.tls.CopyN(dst, src, c.body.left, count)
		c.received.Add(taken - moved)
		c.body.left -= taken
	} else {
		err = c.tls.Copy(dst, src, count)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, tlsconn.ErrSink):
		return fmt.Errorf("%w: %w", errHTTPSink, err)
	default:
		return fmt.Errorf("%w: %w", errHTTPSource, err)
	}
}

func isSecured(side any) bool {
	_, ok := side.(secured)
	return ok
}
