// Package tlsconn is the TLS connection that a relay runs on.
//
// A [Conn] is made by a handshake over a TCP connection ([Client], [Server]) and
// is from then on a stream whose two directions end one by one: [Conn.CloseWrite]
// sends close_notify and then FIN, so that peers which look at either see the end
// (contract B8); [Conn.Reset] ends both at once. [Copy] moves bytes between such a
// stream and a plain one without holding a large buffer while nothing moves.
//
// The record layer is crypto/tls. Callers see streams only, so that a record path
// of our own can take its place.
package tlsconn

import (
	"crypto/tls"
	"fmt"
	"net"
	"time"
)

// Conn is an established TLS connection over TCP. Read and Write may be used by
// one goroutine each at the same time. A read deadline that passes does no harm;
// write deadlines must not be set, as a timed-out write breaks the connection.
type Conn struct {
	*tls.Conn
	raw *net.TCPConn
}

// Client shakes hands as a client until the deadline. On an error raw stays open
// and is the caller's.
func Client(raw *net.TCPConn, cfg *tls.Config, deadline time.Time) (*Conn, error) {
	return handshake(raw, tls.Client(raw, tuned(cfg)), deadline)
}

// Server shakes hands as a server until the deadline. peeked is what has already
// been read from raw (contract B4). On an error raw stays open and is the
// caller's; an alert that says why has then been sent.
func Server(raw *net.TCPConn, peeked []byte, cfg *tls.Config, deadline time.Time) (*Conn, error) {
	var under net.Conn = raw
	if len(peeked) > 0 {
		under = &replay{raw, peeked}
	}
	return handshake(raw, tls.Server(under, tuned(cfg)), deadline)
}

// tuned sends full records from the start: what a relay reads is there to be
// sent, and small records are what costs.
func tuned(cfg *tls.Config) *tls.Config {
	cfg.DynamicRecordSizingDisabled = true
	return cfg
}

func handshake(raw *net.TCPConn, c *tls.Conn, deadline time.Time) (*Conn, error) {
	if err := raw.SetDeadline(deadline); err != nil {
		return nil, fmt.Errorf("set handshake deadline: %w", err)
	}
	//nolint:noctx // the deadline bounds it, and closing raw ends it at once
	if err := c.Handshake(); err != nil {
		return nil, fmt.Errorf("tls handshake: %w", err)
	}
	if err := raw.SetDeadline(time.Time{}); err != nil {
		return nil, fmt.Errorf("clear handshake deadline: %w", err)
	}
	return &Conn{c, raw}, nil
}

// CloseWrite ends our direction: close_notify, then FIN. The other direction
// stays open.
func (c *Conn) CloseWrite() error {
	if err := c.Conn.CloseWrite(); err != nil {
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

// replay gives back what was read before, then goes on with the connection.
type replay struct {
	net.Conn
	first []byte
}

func (r *replay) Read(b []byte) (int, error) {
	if len(r.first) == 0 {
		return r.Conn.Read(b)
	}
	n := copy(b, r.first)
	r.first = r.first[n:]
	if len(r.first) == 0 {
		r.first = nil
	}
	return n, nil
}
