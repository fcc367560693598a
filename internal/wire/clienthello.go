package wire

import (
	"encoding/binary"
	"errors"
	"fmt"

	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/policy"
)

// MaxClientHello bounds how many bytes of a stream a ClientHello may take,
// record headers included: no caller needs a larger buffer.
const MaxClientHello = 64 << 10

var (
	// ErrShort says that the bytes are a proper prefix: call again with more.
	ErrShort = errors.New("more bytes are needed")
	// ErrNotTLS says that the stream doesn't begin with a ClientHello.
	ErrNotTLS = errors.New("not a TLS ClientHello")
	// ErrTooLarge says that a limit of this package is exceeded.
	ErrTooLarge = errors.New("larger than allowed")
)

// Hello is what a ClientHello says that concerns a proxy.
type Hello struct {
	SNI      string   // "" when absent
	ALPN     []string // in the client's order
	Versions []uint16 // the supported_versions extension, or the legacy version alone
}

const (
	recordHeader    = 5
	recordHandshake = 22
	maxRecord       = 1 << 14
	messageHeader   = 4
	typeClientHello = 1

	extensionSNI      = 0
	extensionALPN     = 16
	extensionVersions = 43
)

// ParseClientHello reads the ClientHello at the start of a TCP stream (RFC 8446
// 4.1.2, 5.1), also when it is split over several records. It keeps nothing of
// b. Errors are ErrShort, ErrTooLarge, or wrap ErrNotTLS.
func ParseClientHello(b []byte) (Hello, error) {
	msg, err := helloMessage(b)
	if err != nil {
		if errors.Is(err, ErrShort) && len(b) >= MaxClientHello {
			return Hello{}, ErrTooLarge
		}
		return Hello{}, err
	}
	h, ok := parseHello(msg)
	if !ok {
		return Hello{}, fmt.Errorf("%w: malformed", ErrNotTLS)
	}
	return h, nil
}

// helloMessage returns the body of the ClientHello, without its header. It is a
// slice of b when one record holds it all.
func helloMessage(b []byte) ([]byte, error) {
	var joined []byte
	for {
		fragment, rest, err := nextRecord(b)
		if err != nil && !errors.Is(err, ErrShort) {
			return nil, err
		}
		all := fragment
		if joined != nil {
			joined = append(joined, fragment...)
			all = joined
		}
		if len(all) > 0 && all[0] != typeClientHello {
			return nil, fmt.Errorf("%w: handshake message of another type", ErrNotTLS)
		}
		if len(all) >= messageHeader {
			size := int(all[1])<<16 | int(all[2])<<8 | int(all[3])
			if size > MaxClientHello-recordHeader-messageHeader {
				return nil, ErrTooLarge
			}
			if body := all[messageHeader:]; len(body) >= size {
				return body[:size:size], nil
			}
		}
		if err != nil {
			return nil, err
		}
		if joined == nil {
			joined = append(make([]byte, 0, 2*len(fragment)+1024), fragment...)
		}
		b = rest
	}
}

// nextRecord splits one handshake record off. With ErrShort comes as much of
// its fragment as is there.
func nextRecord(b []byte) (fragment, rest []byte, err error) {
	if len(b) > 0 && b[0] != recordHandshake {
		return nil, nil, fmt.Errorf("%w: no handshake record", ErrNotTLS)
	}
	if len(b) > 1 && b[1] != 3 {
		return nil, nil, fmt.Errorf("%w: record version", ErrNotTLS)
	}
	if len(b) < recordHeader {
		return nil, nil, ErrShort
	}
	size := int(binary.BigEndian.Uint16(b[3:]))
	if size == 0 || size > maxRecord {
		return nil, nil, fmt.Errorf("%w: record of %d bytes", ErrNotTLS, size)
	}
	b = b[recordHeader:]
	if len(b) < size {
		return b, nil, ErrShort
	}
	return b[:size], b[size:], nil
}

// cursor reads TLS presentation language; after a failure it stays failed.
type cursor struct {
	b      []byte
	failed bool
}

func (c *cursor) take(n int) []byte {
	if c.failed || len(c.b) < n {
		c.failed = true
		return nil
	}
	taken := c.b[:n]
	c.b = c.b[n:]
	return taken
}

func (c *cursor) uint(width int) int {
	n := 0
	for _, x := range c.take(width) {
		n = n<<8 | int(x)
	}
	return n
}

// vector reads a length of this width and as many bytes.
func (c *cursor) vector(width int) cursor {
	n := c.uint(width)
	b := c.take(n)
	return cursor{b: b, failed: c.failed}
}

func (c *cursor) more() bool { return !c.failed && len(c.b) > 0 }

func parseHello(msg []byte) (Hello, bool) {
	c := cursor{b: msg}
	legacy := uint16(c.uint(2))
	c.take(32) // random
	session, suites, compression := c.vector(1), c.vector(2), c.vector(1)
	if c.failed || len(session.b) > 32 || len(suites.b) < 2 || len(suites.b)%2 != 0 || len(compression.b) == 0 {
		return Hello{}, false
	}
	var h Hello
	if c.more() {
		extensions := c.vector(2)
		if c.failed || c.more() || !h.readExtensions(extensions) {
			return Hello{}, false
		}
	}
	if len(h.Versions) == 0 {
		h.Versions = []uint16{legacy}
	}
	return h, true
}

// readExtensions refuses an extension that comes twice (RFC 8446 4.2): two
// readers could each believe another one.
func (h *Hello) readExtensions(c cursor) bool {
	var seen [1 << 16 / 64]uint64
	for c.more() {
		kind := c.uint(2)
		body := c.vector(2)
		if c.failed || seen[kind/64]&(1<<(kind%64)) != 0 {
			return false
		}
		seen[kind/64] |= 1 << (kind % 64)
		ok := true
		switch kind {
		case extensionSNI:
			ok = h.readSNI(body)
		case extensionALPN:
			ok = h.readALPN(body)
		case extensionVersions:
			ok = h.readVersions(body)
		}
		if !ok {
			return false
		}
	}
	return !c.failed
}

// readSNI reads RFC 6066 3: one name of type host_name.
func (h *Hello) readSNI(c cursor) bool {
	names := c.vector(2)
	if c.failed || c.more() || !names.more() {
		return false
	}
	for names.more() {
		kind, name := names.uint(1), names.vector(2)
		if names.failed || len(name.b) == 0 {
			return false
		}
		if kind == 0 {
			if h.SNI != "" {
				return false
			}
			h.SNI = string(name.b)
		}
	}
	return !names.failed
}

// readALPN reads RFC 7301 3.1.
func (h *Hello) readALPN(c cursor) bool {
	list := c.vector(2)
	if c.failed || c.more() || !list.more() {
		return false
	}
	for list.more() {
		name := list.vector(1)
		if list.failed || len(name.b) == 0 {
			return false
		}
		h.ALPN = append(h.ALPN, string(name.b))
	}
	return !list.failed
}

// readVersions reads RFC 8446 4.2.1.
func (h *Hello) readVersions(c cursor) bool {
	list := c.vector(1)
	if c.failed || c.more() || !list.more() {
		return false
	}
	for list.more() {
		h.Versions = append(h.Versions, uint16(list.uint(2)))
	}
	return !list.failed
}

// Seen says what a client with this hello is. ALPN alone decides (contract
// 2.11), and the first mesh name in the client's order (contract 2.10, 2.12).
func (h Hello) Seen() policy.Seen {
	for _, p := range h.ALPN {
		switch p {
		case identity.ALPNDetect:
			return policy.MeshDetect
		case identity.ALPNHTTP10, identity.ALPNHTTP11, identity.ALPNH2:
			return policy.MeshHTTP
		case identity.ALPNIstio, identity.ALPNPeerExchange:
			return policy.MeshTCP
		}
	}
	return policy.ForeignTLS
}
