package h2

import "encoding/binary"

// messages counts the messages of a gRPC body: each has a head of 5 bytes, a flag and
// the length of what follows, whatever frames it comes in. The zero value is at the
// start of a body.
type messages struct {
	head [5]byte
	have uint8  // bytes of the head
	left uint32 // of the message after its head
}

// count takes the bytes that come next and returns how many messages began in them.
func (m *messages) count(p []byte) (began int) {
	for len(p) > 0 {
		if m.left > 0 {
			n := min(int64(m.left), int64(len(p)))
			m.left -= uint32(n)
			p = p[n:]
			continue
		}
		n := copy(m.head[m.have:], p)
		p = p[n:]
		if m.have += uint8(n); int(m.have) == len(m.head) {
			m.have, m.left = 0, binary.BigEndian.Uint32(m.head[1:])
			began++
		}
	}
	return began
}
