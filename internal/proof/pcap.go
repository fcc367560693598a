package proof

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
)

// Errors of the file format. What was read before one of them is still summed up.
var (
	// ErrFormat says that the bytes are not a pcap file that is understood.
	ErrFormat = errors.New("not a pcap file that is understood")
	// ErrTooMany says that a limit on memory is exceeded.
	ErrTooMany = errors.New("too many connections")
)

// Link types, by the registry of tcpdump.org.
const (
	linkEthernet = 1
	linkRawOld   = 12
	linkRaw      = 101
	linkSLL      = 113
	linkIPv4     = 228
	linkIPv6     = 229
	linkSLL2     = 276
)

const (
	fileHeader   = 24
	packetHeader = 16
	// maxPacket is the largest packet that libpcap's own reader accepts.
	maxPacket = 256 << 10
)

// pcapReader reads the classic format: a file header of 24 bytes, then per packet
// a header of 16 (seconds, fraction, bytes here, bytes on the wire) and the bytes.
type pcapReader struct {
	r        io.Reader
	order    binary.ByteOrder
	fraction time.Duration
	link     uint32
	buf      []byte
}

func newPcapReader(r io.Reader) (*pcapReader, error) {
	var h [fileHeader]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return nil, fmt.Errorf("%w: read file header: %w", ErrFormat, noEOF(err))
	}
	p := &pcapReader{r: r, order: binary.LittleEndian, fraction: time.Microsecond}
	switch magic := binary.BigEndian.Uint32(h[:]); magic {
	case 0xd4c3b2a1:
	case 0x4d3cb2a1:
		p.fraction = time.Nanosecond
	case 0xa1b2c3d4:
		p.order = binary.BigEndian
	case 0xa1b23c4d:
		p.order, p.fraction = binary.BigEndian, time.Nanosecond
	case 0x0a0d0d0a:
		return nil, fmt.Errorf("%w: it is pcapng: write it with tcpdump -w", ErrFormat)
	default:
		return nil, fmt.Errorf("%w: magic number %#08x", ErrFormat, magic)
	}
	if major := p.order.Uint16(h[4:]); major != 2 {
		return nil, fmt.Errorf("%w: version %d", ErrFormat, major)
	}
	// the upper bits tell the length of a frame check sequence
	p.link = p.order.Uint32(h[20:]) & 0x0fffffff
	switch p.link {
	case linkEthernet, linkRawOld, linkRaw, linkSLL, linkIPv4, linkIPv6, linkSLL2:
		return p, nil
	}
	return nil, fmt.Errorf("%w: link type %d", ErrFormat, p.link)
}

// next returns the next packet, which is good until the next call, and how many
// bytes it had on the wire; or io.EOF.
func (p *pcapReader) next() (at time.Time, b []byte, length int, err error) {
	var h [packetHeader]byte
	if _, err := io.ReadFull(p.r, h[:]); err != nil {
		if errors.Is(err, io.EOF) {
			return at, nil, 0, io.EOF
		}
		return at, nil, 0, fmt.Errorf("read packet header: %w", err)
	}
	here, length := p.order.Uint32(h[8:]), int(p.order.Uint32(h[12:]))
	if here > maxPacket {
		return at, nil, 0, fmt.Errorf("%w: packet of %d bytes", ErrFormat, here)
	}
	at = time.Unix(int64(p.order.Uint32(h[0:])), int64(p.order.Uint32(h[4:]))*int64(p.fraction)).UTC()
	if int(here) > cap(p.buf) {
		p.buf = make([]byte, max(int(here), 2048))
	}
	b = p.buf[:here]
	if _, err := io.ReadFull(p.r, b); err != nil {
		return at, nil, 0, fmt.Errorf("read packet: %w", noEOF(err))
	}
	return at, b, length, nil
}

// noEOF turns an end in the middle into an error that nobody takes for a good end.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
