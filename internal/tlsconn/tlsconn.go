// Package tlsconn is the TLS connection that a relay runs on.
//
// A [Conn] is made by a handshake over a TCP connection ([Pool.Client],
// [Pool.Server]) and is from then on a stream whose two directions end one by one:
// [Conn.CloseWrite] sends close_notify and then FIN, so that peers which look at
// either see the end (contract B8); [Conn.Reset] ends both at once. [Pool.Copy]
// moves bytes between such a stream and a plain one. Between two proxies that agree
// on it one connection carries many streams ([Mux], [Stream]).
//
// The handshake is crypto/tls. After one of TLS 1.3 its traffic secrets are taken
// ([tls.Config.KeyLogWriter], in this process only) and records are sealed and
// opened here, in place, in buffers that all connections share:
//
//	plaintext → peer: readv(2) into slots, seal each, one write(2)
//	peer → plaintext: one read(2) of many records, open each, one writev(2)
//
// A slot is 5 bytes of header, 16 kB, 17 bytes of type and tag; full records stand
// in a buffer one behind the other, as they go on the wire. Buffers are of five
// classes: 4 kB, and 1, 4, 16 and 32 slots. The class grows when a read fills it,
// shrinks when it would have fitted in less, and while a read waits there is no
// buffer at all. What is small goes out at once.
//
// Sessions of TLS 1.3 are resumed where both sides ask for it ([Pool.Resume],
// [Pool.Issue]): tickets are bound to what is in force at either end, and who the
// other is is verified all the same.
//
// Invariants: every byte delivered was authenticated, in order. Nothing is sent but
// records. After an error a direction delivers, or sends, nothing more. A handshake
// after which it is not clear what comes next is an error, and anything but TLS 1.3
// with a known cipher stays with crypto/tls.
package tlsconn

import (
	"crypto/tls"
	"fmt"
	"net"
	"sync/atomic"
	"time"
)

// Conn is an established TLS connection over TCP. Read and Write may be used by
// one goroutine each at the same time. A read deadline that passes does no harm;
// write deadlines must not be set, as a timed-out write breaks the connection.
type Conn struct {
	raw     *net.TCPConn
	state   tls.ConnectionState
	records *records  // or
	tls     *tls.Conn // for what the record path doesn't know

	timed atomic.Bool // reads have a deadline
}

// records are both directions of a connection.
type records struct {
	in     reader
	out    writer
	shared bool // both sides have agreed to carry many streams
}

// Client shakes hands as a client until the deadline. cfg must be for this
// handshake only: it is changed. On an error raw stays open and is the caller's.
// It takes a deep stack, which the goroutine that calls it keeps: let another one
// carry the connection.
func (p *Pool) Client(raw *net.TCPConn, cfg *tls.Config, deadline time.Time) (*Conn, error) {
	return p.handshake(raw, nil, cfg, true, deadline)
}

// Server shakes hands as a server until the deadline. peeked is what has already
// been read from raw (contract B4). cfg must be for this handshake only: it is
// changed. On an error raw stays open and is the caller's; an alert that says why
// has then been sent. It takes a deep stack, as Client does.
func (p *Pool) Server(raw *net.TCPConn, peeked []byte, cfg *tls.Config, deadline time.Time) (*Conn, error) {
	return p.handshake(raw, peeked, cfg, false, deadline)
}

// Read returns what is there, and waits if nothing is. An end without
// close_notify is io.EOF too, as for crypto/tls, but not within a record. Alerts
// of the peer are [tls.AlertError], what breaks the protocol is [BadRecordError].
func (c *Conn) Read(b []byte) (int, error) {
	if c.records == nil {
		return c.tls.Read(b) //nolint:wrapcheck // callers look for io.EOF
	}
	return c.records.in.Read(b)
}

// Write sends b at once.
func (c *Conn) Write(b []byte) (int, error) {
	if c.records == nil {
		return c.tls.Write(b) //nolint:wrapcheck // the same errors in both cases
	}
	return c.records.out.Write(b)
}

// ConnectionState is what was negotiated, and the peer's certificates.
func (c *Conn) ConnectionState() tls.ConnectionState { return c.state }

// CloseWrite ends our direction: close_notify, then FIN. The other direction stays
// open.
func (c *Conn) CloseWrite() error {
	var err error
	if c.records == nil {
		err = c.tls.CloseWrite()
	} else {
		err = c.records.out.end()
	}
	if err != nil {
		return fmt.Errorf("send close_notify: %w", err)
	}
	if err := c.raw.CloseWrite(); err != nil {
		return fmt.Errorf("send fin: %w", err)
	}
	return nil
}

// Close closes the connection below, without close_notify unless CloseWrite has
// sent it: what ends early must not look as if it were whole.
func (c *Conn) Close() error { return c.raw.Close() }

// Reset ends both directions at once: the peer sees RST.
func (c *Conn) Reset() {
	_ = c.raw.SetLinger(0) // fails only on a closed connection
	_ = c.raw.Close()
}

// Rest gives back memory that is needed again only when the next bytes come: for
// connections that have been quiet for a while. It may be called at any time.
func (c *Conn) Rest() {
	if c.records != nil {
		c.records.in.askNoMore()
		c.records.in.keys.rest()
		c.records.out.keys.rest()
	}
}

// LocalAddr is our end.
func (c *Conn) LocalAddr() net.Addr { return c.raw.LocalAddr() }

// RemoteAddr is the peer's end.
func (c *Conn) RemoteAddr() net.Addr { return c.raw.RemoteAddr() }

// SetDeadline sets both deadlines; see Conn for that of writes.
func (c *Conn) SetDeadline(t time.Time) error {
	c.timed.Store(!t.IsZero())
	return c.raw.SetDeadline(t)
}

// SetReadDeadline sets when Read gives up; what was read of a record by then is
// kept.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.timed.Store(!t.IsZero())
	return c.raw.SetReadDeadline(t)
}

// NoReadDeadline takes back a deadline that was set here, if there is one.
func (c *Conn) NoReadDeadline() error {
	if !c.timed.Load() {
		return nil
	}
	return c.SetReadDeadline(time.Time{})
}

// SetWriteDeadline sets when Write gives up, after which the connection is broken.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.raw.SetWriteDeadline(t) }
