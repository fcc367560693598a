package tlsconn

import "fmt"

// Messages after the handshake (RFC 8446 4.6).
const (
	messageTicket    byte = 4
	messageKeyUpdate byte = 24

	maxTicket = 64 << 10 // crypto/tls takes no longer ones
)

// postHandshake follows messages, which may be spread over records. Tickets
// are crypto/tls' business (asker). The zero value is between two messages.
type postHandshake struct {
	head [4]byte // type and length
	have int     // bytes of head
	left int     // bytes of the body that are to come
	last byte    // of the body; all that there is of a KeyUpdate
}

// idle reports whether no message has begun without ending.
func (m *postHandshake) idle() bool { return m.have == 0 }

func (m *postHandshake) typ() byte { return m.head[0] }

// take takes the next bytes, to the end of the message at most. It returns how
// many it took and whether the message has ended, or the alert for one that is
// not allowed.
func (m *postHandshake) take(p []byte) (n int, whole bool, alert byte, why string) {
	if m.have < len(m.head) {
		n = copy(m.head[m.have:], p)
		m.have += n
		if t := m.typ(); t != messageTicket && t != messageKeyUpdate {
			return n, false, alertUnexpectedMessage, fmt.Sprintf("a handshake message of type %d", t)
		}
		if m.have < len(m.head) {
			return n, false, 0, ""
		}
		m.left = int(m.head[1])<<16 | int(m.head[2])<<8 | int(m.head[3])
		if (m.typ() == messageKeyUpdate && m.left != 1) || m.left == 0 || m.left > maxTicket {
			return n, false, alertDecodeError, "a handshake message of a wrong length"
		}
	}
	if part := min(m.left, len(p)-n); part > 0 {
		n += part
		m.left -= part
		m.last = p[n-1]
	}
	if m.left > 0 {
		return n, false, 0, ""
	}
	m.have = 0
	return n, true, 0, ""
}
