package tlsconn

import (
	"sync"
	"sync/atomic"
)

// Sizes of a record on the wire (RFC 8446 5.1, 5.2).
const (
	headerLen  = 5
	tagLen     = 16             // of all three ciphers
	trailerLen = 1 + tagLen     // inner type and tag
	maxPlain   = 1 << 14        // application data in one record
	maxCipher  = maxPlain + 256 // what follows the header
	maxRecord  = headerLen + maxCipher
	slotLen    = headerLen + maxPlain + trailerLen // a full record without padding
	overhead   = headerLen + trailerLen
)

// class is how large a buffer is. Each class but the first holds a record of any
// size, and so many full records of ours.
type class int8

const (
	small class = iota
	one
	four
	sixteen
	thirtytwo
	classes

	largest = classes - 1
)

// Sizes of buffers. They are what the allocator hands out anyway; those that go to
// more than one record leave room for the first part of a next one.
const (
	smallLen     = 4 << 10
	oneLen       = 18 << 10
	fourLen      = 72 << 10
	sixteenLen   = 264 << 10
	thirtytwoLen = 528 << 10
)

// defaultLimit is what buffers of the three large classes may take together.
const defaultLimit = 32 << 20

func (c class) size() int {
	switch c {
	case small:
		return smallLen
	case one:
		return oneLen
	case four:
		return fourLen
	case sixteen:
		return sixteenLen
	default:
		return thirtytwoLen
	}
}

// slots is how many full records of ours fit.
func (c class) slots() int {
	switch c {
	case small, one:
		return 1
	case four:
		return 4
	case sixteen:
		return 16
	default:
		return 32
	}
}

// classFor is the smallest class of at least n bytes; more than the largest has
// is the largest.
func classFor(n int) class {
	switch {
	case n <= smallLen:
		return small
	case n <= oneLen:
		return one
	case n <= fourLen:
		return four
	case n <= sixteenLen:
		return sixteen
	default:
		return largest
	}
}

// maxPieces is how many pieces one call reads or writes at most.
const maxPieces = 34

// buffer is a piece of memory for records.
type buffer struct {
	mem    []byte
	class  class
	lent   bool              // it counts against the limit
	parts  [maxPieces][]byte // scratch: pieces for readv and writev
	vector vector            // of parts
}

// Pool makes connections, and owns the buffers that they share. The zero Pool is
// ready; it must not be copied.
type Pool struct {
	// Limit bounds the bytes that large buffers take together, so that many slow
	// readers can't hold much; beyond it connections use small ones. What streams may
	// have on their way counts against it as well, up to half of it: else many of them
	// would leave no buffer to any. 0 means 32 MB.
	Limit int64

	free  [classes]sync.Pool
	turns turns
	certs certificates

	tickets  tickets
	sessions sessions

	quick   sync.Pool     // of *quickWrite
	batches sync.Pool     // of *batch
	waits   atomic.Uint32 // that there have been for a socket
	lent    atomic.Int64  // bytes in large buffers that are in use
}

// get takes a buffer of a class, or of a smaller one, but at least of class one,
// when the limit is reached. It must be given back with put: those of the three
// large classes count until then.
func (p *Pool) get(c class) *buffer {
	for c > one && !p.lend(int64(c.size()), p.limit()) {
		c--
	}
	return p.take(c)
}

func (p *Pool) take(c class) *buffer {
	b, ok := p.free[c].Get().(*buffer)
	if !ok {
		b = &buffer{mem: make([]byte, c.size()), class: c}
	}
	b.lent = c > one
	return b
}

func (p *Pool) limit() int64 {
	if p.Limit == 0 {
		return defaultLimit
	}
	return p.Limit
}

// lend counts n bytes against the limit, if there is room up to a certain part of it.
func (p *Pool) lend(n, limit int64) bool {
	if p.lent.Add(n) <= limit {
		return true
	}
	p.lent.Add(-n)
	return false
}

func (p *Pool) put(b *buffer) {
	if b.lent {
		p.lent.Add(-int64(b.class.size()))
		b.lent = false
	}
	p.free[b.class].Put(b)
}

// batch is a number of sealed records.
type batch struct{ b []byte }

// batchKept is how large a batch may have grown to be used again.
const batchKept = 2 * pendingMost

func (p *Pool) batch() *batch {
	if b, ok := p.batches.Get().(*batch); ok {
		return b
	}
	return &batch{make([]byte, 0, smallLen)}
}

func (p *Pool) putBatch(b *batch) {
	if cap(b.b) <= batchKept {
		b.b = b.b[:0]
		p.batches.Put(b)
	}
}
