package proof

import (
	"bytes"
	"cmp"
	"slices"
)

const (
	// maxPending bounds the bytes of one direction that wait for a gap to be
	// filled. What still comes then counts as if the gap were lost.
	maxPending = 1 << 20
	// maxPieces bounds their number.
	maxPieces = 1024
	// maxAhead, in sequence numbers, is how far ahead of the stream a segment may
	// be: more is no reordering.
	maxAhead = 1 << 26
)

// stream puts the segments of one direction of a connection in order and hands
// each byte on once: a segment that was retransmitted, or captured on several
// interfaces, adds nothing.
type stream struct {
	begun   bool
	next    uint32 // the sequence number that is due
	pending []piece
	held    int // bytes in pending
	content content
}

// piece is a run of bytes at a sequence number; missing more follow that were not
// captured.
type piece struct {
	seq     uint32
	b       []byte
	missing int
}

func (p piece) size() int { return len(p.b) + p.missing }

// begin says where the stream starts.
func (s *stream) begin(seq uint32) {
	if !s.begun {
		s.begun, s.next = true, seq
	}
}

// add takes a segment's payload, which it copies if it must keep it.
func (s *stream) add(seq uint32, b []byte, missing int) {
	p := piece{seq, b, missing}
	if p.size() == 0 {
		return
	}
	s.begin(seq)
	switch ahead := int32(seq - s.next); {
	case ahead <= 0:
		s.deliver(p)
	case ahead > maxAhead:
		s.flush()
		s.content.lose(int(seq - s.next))
		s.next = seq
		s.deliver(p)
	default:
		s.wait(p)
	}
	s.advance()
	for s.held > maxPending || len(s.pending) > maxPieces {
		s.skip()
	}
}

// wait keeps a copy of a piece that is not due yet, in order, once.
func (s *stream) wait(p piece) {
	at, _ := slices.BinarySearchFunc(s.pending, p.seq, func(q piece, seq uint32) int {
		return cmp.Compare(int32(q.seq-s.next), int32(seq-s.next))
	})
	if at < len(s.pending) && s.pending[at].seq == p.seq {
		if s.pending[at].size() >= p.size() {
			return
		}
		s.held -= len(s.pending[at].b)
		s.pending = slices.Delete(s.pending, at, at+1)
	}
	p.b = slices.Clone(p.b)
	s.held += len(p.b)
	s.pending = slices.Insert(s.pending, at, p)
}

// deliver hands on what is new of a piece that begins at or before next.
func (s *stream) deliver(p piece) {
	old := int(s.next - p.seq)
	if old >= p.size() {
		return
	}
	b, missing := p.b, p.missing
	if old <= len(b) {
		b = b[old:]
	} else {
		missing -= old - len(b)
		b = nil
	}
	s.content.take(b)
	s.content.lose(missing)
	s.next += uint32(len(b) + missing)
}

// advance delivers what is waiting and due.
func (s *stream) advance() {
	for len(s.pending) > 0 && int32(s.pending[0].seq-s.next) <= 0 {
		p := s.pending[0]
		s.pending = s.pending[1:]
		s.held -= len(p.b)
		s.deliver(p)
	}
}

// skip gives up the gap before what is waiting.
func (s *stream) skip() {
	s.content.lose(int(s.pending[0].seq - s.next))
	s.next = s.pending[0].seq
	s.advance()
}

// flush delivers all that is waiting: nothing more will come.
func (s *stream) flush() {
	for len(s.pending) > 0 {
		s.skip()
	}
}

// content says what the bytes of one direction are, as they come.
type content struct {
	needles [][]byte
	found   []int
	tail    []byte // the last bytes, in which a needle may have begun

	head    []byte // the first bytes, for those who want to know more of them
	headCut bool   // head is not all that came before it was full

	kind      contentKind
	header    []byte // of a TLS record, as far as it has come
	left      int    // bytes of the TLS record that are still to come
	records   map[RecordType]int
	tls       int64
	plain     int64
	lost      int64
	unsorted  int64 // bytes after a gap, of which nobody knows what they are
	handshake []byte
	inHello   bool // the record in progress is a handshake record
}

type contentKind int

const (
	undecided contentKind = iota
	isTLS
	isPlain
	isUnsorted
)

// maxHead is how many of a direction's first bytes are kept.
const maxHead = 64 << 10

func newContent(needles [][]byte) content {
	return content{needles: needles, found: make([]int, len(needles)), records: map[RecordType]int{}}
}

// take reads bytes that follow what came before.
func (c *content) take(b []byte) {
	if len(b) == 0 {
		return
	}
	c.search(b)
	if room := maxHead - len(c.head); room > 0 && !c.headCut {
		c.head = append(c.head, b[:min(room, len(b))]...)
	}
	for len(b) > 0 {
		b = c.step(b)
	}
}

// step reads some of b and returns the rest.
func (c *content) step(b []byte) []byte {
	switch {
	case c.kind == isPlain:
		c.plain += int64(len(b))
		return nil
	case c.kind == isUnsorted:
		c.unsorted += int64(len(b))
		return nil
	case c.left > 0:
		n := min(c.left, len(b))
		if c.inHello && len(c.handshake) < maxHead {
			c.handshake = append(c.handshake, b[:n]...)
		}
		c.left -= n
		c.tls += int64(n)
		return b[n:]
	}
	n := min(recordHeader-len(c.header), len(b))
	c.header = append(c.header, b[:n]...)
	if !plausibleRecord(c.header) {
		// also when records came before: bytes that are no record are not encrypted
		c.kind = isPlain
		c.plain += int64(len(c.header))
		c.header = nil
		return b[n:]
	}
	if len(c.header) == recordHeader {
		c.kind = isTLS
		c.records[RecordType(c.header[0])]++
		c.tls += recordHeader
		c.left = int(c.header[3])<<8 | int(c.header[4])
		c.inHello = RecordType(c.header[0]) == Handshake && c.records[ApplicationData] == 0
		c.header = c.header[:0]
	}
	return b[n:]
}

// lose says that n bytes are not known. Within a record that changes nothing else.
func (c *content) lose(n int) {
	if n <= 0 {
		return
	}
	c.lost += int64(n)
	c.tail = nil
	c.headCut = true
	if c.kind == isTLS && n <= c.left {
		c.left -= n
		c.inHello = false
		return
	}
	if c.kind == isTLS || len(c.header) > 0 {
		c.unsorted += int64(len(c.header))
		c.header, c.left, c.kind = nil, 0, isUnsorted
	}
}

// finish says that nothing more comes.
func (c *content) finish() {
	if len(c.header) > 0 && c.kind == undecided {
		c.kind = isPlain
		c.plain += int64(len(c.header))
	} else {
		c.tls += int64(len(c.header))
	}
	c.header = nil
}

// search counts the needles that end in b.
func (c *content) search(b []byte) {
	longest := 0
	for _, n := range c.needles {
		longest = max(longest, len(n))
	}
	if longest == 0 {
		return
	}
	text := append(c.tail, b...)
	for i, n := range c.needles {
		from := max(0, len(c.tail)-len(n)+1)
		for len(n) > 0 {
			at := bytes.Index(text[from:], n)
			if at < 0 {
				break
			}
			c.found[i]++
			from += at + 1
		}
	}
	c.tail = slices.Clone(text[max(0, len(text)-longest+1):])
}
