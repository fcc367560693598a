package h2

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// grpcBody is a body of messages of these lengths.
func grpcBody(lengths ...int) []byte {
	var b []byte
	for _, n := range lengths {
		b = append(b, 0)
		b = binary.BigEndian.AppendUint32(b, uint32(n))
		b = append(b, bytes.Repeat([]byte{0xff}, n)...)
	}
	return b
}

// TestMessages cuts bodies at every byte. Contract 7.2.
func TestMessages(t *testing.T) {
	for want, lengths := range [][]int{nil, {0}, {3, 0}, {1, 300, 2}, {0, 0, 0, 0}} {
		body := grpcBody(lengths...)
		for cut := range len(body) + 1 {
			var m messages
			if got := m.count(body[:cut]) + m.count(body[cut:]); got != want || m != (messages{head: m.head}) {
				t.Fatalf("%v cut at %d: %d messages, %+v", lengths, cut, got, m)
			}
		}
	}
}

func FuzzMessages(f *testing.F) {
	f.Add(grpcBody(0, 5, 70_000), 7)
	f.Add([]byte{0, 0xff, 0xff, 0xff, 0xff, 1}, 2)
	f.Fuzz(func(t *testing.T, body []byte, cut int) {
		var whole, parts messages
		n := whole.count(body)
		if n > len(body)/5 {
			t.Fatalf("%d messages in %d bytes", n, len(body))
		}
		if cut < 0 || cut > len(body) {
			return
		}
		if got := parts.count(body[:cut]) + parts.count(body[cut:]); got != n || parts.left != whole.left || parts.have != whole.have {
			t.Fatalf("%d whole, %d in parts", n, got)
		}
	})
}
