// Package proof says what is on the wire: which connections a packet capture holds,
// which of them are encrypted, by whom, and how many bytes of them are not.
//
// It reads pcap files (microseconds or nanoseconds; Ethernet, Linux cooked v1 and
// v2, raw IP), follows IPv4 and IPv6 TCP, and puts each direction in order, so that
// what was retransmitted or captured on several interfaces counts once. A byte is
// encrypted only if it is part of a TLS record; all else is plaintext. What can't be
// told, because it was not captured, is counted apart and never taken for
// encrypted. Invariant: on a capture without loss, TLS bytes and plaintext bytes
// add up to what TCP carried.
package proof

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"podseal.io/podseal/internal/wire"
)

// Options says what else to look for.
type Options struct {
	// Needles are byte strings that are searched in all that TCP carries.
	Needles []string
	// MaxFlows bounds how many connections are followed; 0 means 65536.
	MaxFlows int
}

// Kind is what a connection is.
type Kind int

// The kinds. A connection is what its client's first bytes say.
const (
	Empty      Kind = iota // nothing was sent
	MeshTLS                // TLS with the ALPN of a mesh
	ForeignTLS             // TLS of the applications' own
	UnknownTLS             // TLS whose beginning was not captured
	Plaintext
)

func (k Kind) String() string {
	return [...]string{"empty", "mesh TLS", "foreign TLS", "TLS, joined late", "plaintext"}[k]
}

// Summary is what a capture holds.
type Summary struct {
	Packets    int // all
	TCP        int // of them TCP segments
	Undecoded  int // with headers that can't be read
	Fragments  int // parts of IP packets, whose content was not looked at
	Start, End time.Time
	Flows      []Flow // in the order of their first packet
}

// Flow is one TCP connection.
type Flow struct {
	Client, Server netip.AddrPort
	Start, End     time.Time
	Opened         bool   // both sides agreed to it
	Reset          bool   // a side cut it
	ResetBy        string // "client", "server", or ""

	Kind     Kind
	Protocol string // of plaintext: HTTP/1.1, HTTP/1.0, h2c, other

	// What the two hellos say; zero where a hello was not captured.
	SNI        string
	ALPN       []string // offered, in the client's order
	TLSVersion uint16
	Cipher     uint16
	Group      tls.CurveID // of TLS 1.3's key exchange

	Sent     Direction // by the client
	Received Direction // by the client
}

// Direction is what one side of a connection sent.
type Direction struct {
	Records    map[RecordType]int
	TLSBytes   int64 // in TLS records, their headers included
	PlainBytes int64
	LostBytes  int64          // not captured
	Unsorted   int64          // captured, but after a loss that leaves unknown what they are
	Needles    map[string]int // how often each was found, if at all
}

// TLSBytes returns how many bytes were part of TLS records, in both directions.
func (f Flow) TLSBytes() int64 { return f.Sent.TLSBytes + f.Received.TLSBytes }

// PlainBytes returns how many bytes were not, in both directions.
func (f Flow) PlainBytes() int64 { return f.Sent.PlainBytes + f.Received.PlainBytes }

// Complete reports whether nothing is missing of what the flow carried.
func (f Flow) Complete() bool {
	return f.Sent.LostBytes+f.Sent.Unsorted+f.Received.LostBytes+f.Received.Unsorted == 0
}

// Records returns how many TLS records there were of each type, in both directions.
func (f Flow) Records() map[RecordType]int {
	all := map[RecordType]int{}
	for _, d := range []Direction{f.Sent, f.Received} {
		for r, n := range d.Records {
			all[r] += n
		}
	}
	return all
}

// Needles returns how often each needle was found in the whole capture, if at all.
func (s Summary) Needles() map[string]int {
	all := map[string]int{}
	for _, f := range s.Flows {
		for _, d := range []Direction{f.Sent, f.Received} {
			for needle, n := range d.Needles {
				all[needle] += n
			}
		}
	}
	return all
}

// Select returns a Summary with the flows for which keep is true.
func (s Summary) Select(keep func(Flow) bool) Summary {
	s.Flows = slices.DeleteFunc(slices.Clone(s.Flows), func(f Flow) bool { return !keep(f) })
	return s
}

// Between selects the flows in which this address and port is the server.
func (s Summary) Between(client netip.Addr, server netip.AddrPort) Summary {
	return s.Select(func(f Flow) bool { return f.Client.Addr() == client && f.Server == server })
}

// Read sums up a capture. Of a file that breaks off, or isn't one, it returns what
// it read up to there, and an error that wraps io.ErrUnexpectedEOF or ErrFormat.
func Read(r io.Reader, o Options) (Summary, error) {
	p, err := newPcapReader(r)
	if err != nil {
		return Summary{}, fmt.Errorf("read capture: %w", err)
	}
	var s Summary
	t := newTracker(o)
	for {
		at, b, _, err := p.next()
		if err == nil {
			s.count(at)
			seg, what := decode(p.link, b)
			switch what {
			case isTCP:
				s.TCP++
				err = t.add(at, seg)
			case isBroken:
				s.Undecoded++
			case isFragment:
				s.Fragments++
			case isOther:
			}
		}
		if err != nil {
			s.Flows = t.finish()
			if errors.Is(err, io.EOF) {
				return s, nil
			}
			return s, fmt.Errorf("read capture: after %d packets: %w", s.Packets, err)
		}
	}
}

func (s *Summary) count(at time.Time) {
	if s.Packets == 0 || at.Before(s.Start) {
		s.Start = at
	}
	if at.After(s.End) {
		s.End = at
	}
	s.Packets++
}

// describe fills in what the bytes of both sides say.
func (f *Flow) describe(sent, received *content) {
	f.Sent, f.Received = sent.direction(), received.direction()
	switch {
	case sent.kind == isTLS || len(sent.records) > 0:
		f.Kind = UnknownTLS
		hello, err := wire.ParseClientHello(sent.head)
		if err == nil {
			f.Kind = ForeignTLS
			f.SNI, f.ALPN = hello.SNI, hello.ALPN
			// a hello that offers nothing is foreign
			if hello.Seen() != (wire.Hello{}).Seen() {
				f.Kind = MeshTLS
			}
		}
	case f.PlainBytes() > 0 || f.Sent.Unsorted+f.Received.Unsorted > 0:
		f.Kind = Plaintext
		f.Protocol = protocol(sent.head, received.head)
	case len(received.records) > 0:
		f.Kind = UnknownTLS
	}
	if h, ok := findServerHello(received.handshake); ok {
		f.TLSVersion, f.Cipher, f.Group = h.version, h.cipher, h.group
	}
}

// protocol names a plaintext protocol.
func protocol(sent, received []byte) string {
	switch d := wire.DetectHTTP(sent); d {
	case wire.HTTP1, wire.HTTP10, wire.H2C:
		return d.String()
	case wire.NotHTTP, wire.NeedMore:
	}
	if strings.HasPrefix(string(received), "HTTP/1.") {
		return wire.HTTP1.String()
	}
	return "other"
}

func (c *content) direction() Direction {
	d := Direction{
		Records: c.records, TLSBytes: c.tls, PlainBytes: c.plain, LostBytes: c.lost, Unsorted: c.unsorted,
		Needles: map[string]int{},
	}
	for i, n := range c.found {
		if n > 0 {
			d.Needles[string(c.needles[i])] += n
		}
	}
	return d
}
