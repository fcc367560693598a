package tlsconn

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// Bounds for what costs work and brings nothing.
const (
	maxUseless = 16 // records or messages in a row without application data, as crypto/tls has it
	maxParts   = 64 // records that one message after the handshake is spread over
	// Updates of the peer's keys: so many, and one more for so many records with
	// data. Honest peers update after millions.
	freeUpdates      = 64
	recordsPerUpdate = 64
)

// reader is the direction from the peer to us: records in, plaintext out.
//
// Invariants: what stands in buf is either opened and not yet delivered (plain) or
// sealed and in order (buf.mem[r:e]); nothing is delivered that has not been
// authenticated; after an error nothing is.
type reader struct {
	raw  syscall.RawConn
	pool *Pool
	out  *writer // for alerts and updates

	mu    sync.Mutex
	keys  keys
	buf   *buffer
	r, e  int
	plain []byte
	next  class // what the next read is to ask for
	err   error // permanent

	useless int // in a row
	parts   int // of the message that has begun
	records uint64
	updates uint64
	post    postHandshake
	client  bool                  // we are the client
	ask     atomic.Pointer[asker] // until a ticket has come, or will not come

	// Of the read that is going on; try is a field so that it is made once.
	try   func(fd uintptr) bool
	top   class // largest class to take
	pace  pace  // of whom a copy goes to
	run   run
	most  int // bytes to read; 0 means any number
	n     int
	cause error
}

// start takes over from the handshake, which has read first too much. Its
// buffer becomes ours.
func (r *reader) start(first *buffer, from, to int) {
	r.try = r.attempt
	switch {
	case first == nil:
	case from == to:
		r.pool.put(first)
	default:
		r.buf, r.r, r.e = first, from, to
	}
}

// Read fills p with what is there, and waits if nothing is.
func (r *reader) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer r.settle()
	n := 0
	for {
		if len(r.plain) > 0 {
			part := copy(p[n:], r.plain)
			r.plain = r.plain[part:]
			n += part
		}
		if n == len(p) {
			return n, nil
		}
		direct, there, err := r.open(p[n:])
		n += len(direct)
		switch {
		case err != nil && n > 0:
			return n, nil // the error comes again
		case err != nil:
			return 0, err
		case there:
		case n > 0:
			return n, nil
		default:
			r.top, r.most = max(one, classFor(len(p))), 0
			if r.top > one {
				r.most = len(p) + overhead - (r.e - r.r) // what is left then fits in one record
			}
			if err := r.fill(); err != nil {
				return 0, err
			}
		}
	}
}

// fill reads once from the socket and waits if nothing is there.
func (r *reader) fill() error {
	if r.err != nil {
		return r.err
	}
	r.n, r.cause = 0, nil
	err := r.raw.Read(r.try)
	if err == nil {
		err = r.cause
	}
	switch {
	case err == nil && r.n > 0:
		r.e += r.n
		return nil
	case err == nil && r.r == r.e && r.post.idle():
		err = io.EOF // as crypto/tls: many a peer ends without close_notify
	case err == nil:
		err = io.ErrUnexpectedEOF
	case errors.Is(err, os.ErrDeadlineExceeded):
		return err
	}
	r.err = err
	return err
}

// attempt is one try to read. While there is nothing, no memory is held.
func (r *reader) attempt(fd uintptr) bool {
	r.makeRoom()
	space := r.buf.mem[r.e:]
	if r.most > 0 && len(space) > r.most {
		space = space[:r.most]
	}
	r.run.reads(r.pool, len(space))
	n, err := readNow(int(fd), space)
	if errors.Is(err, unix.EAGAIN) {
		r.pool.waits.Add(1)
		r.settle()
		return false
	}
	r.n, r.cause = max(n, 0), err
	switch had := r.buf.class; {
	case n == len(space):
		r.next = min(had+1, r.top)
	case had > small && n <= (had-1).size() && r.next > small:
		r.next = had - 1
	}
	return true
}

// makeRoom gets a buffer that the record which has begun fits in, and a larger
// one if the stream is bulk.
func (r *reader) makeRoom() {
	want := min(r.next, r.top)
	pending := r.e - r.r
	if pending > 0 {
		want = max(want, classFor(r.length()))
	}
	if r.buf == nil {
		r.buf = r.pool.get(want)
		r.r, r.e = 0, 0
		return
	}
	if r.buf.class < want || (r.buf.class > one && want <= one) {
		r.move(max(want, one))
		return
	}
	r.e = copy(r.buf.mem, r.buf.mem[r.r:r.e])
	r.r = 0
}

// length is how long the record that has begun is, or will be at least.
func (r *reader) length() int {
	head := r.buf.mem[r.r:r.e]
	if len(head) < headerLen {
		return headerLen
	}
	return headerLen + int(binary.BigEndian.Uint16(head[3:]))
}

// move takes what is in the buffer to one of another class. There is no
// plaintext in it, or nothing else.
func (r *reader) move(to class) {
	b := r.pool.get(to)
	if len(r.plain) > 0 {
		r.plain = b.mem[:copy(b.mem, r.plain)]
		r.e = len(r.plain) + copy(b.mem[len(r.plain):], r.buf.mem[r.r:r.e])
		r.r = len(r.plain)
	} else {
		r.e = copy(b.mem, r.buf.mem[r.r:r.e])
		r.r = 0
	}
	r.pool.put(r.buf)
	r.buf = b
}

// settle gives the buffer back if it is empty, and a large one in any case: a
// record that has begun fits in less.
func (r *reader) settle() {
	switch {
	case r.buf == nil:
	case len(r.plain) == 0 && (r.r == r.e || r.err != nil):
		r.pool.put(r.buf)
		r.buf, r.plain, r.r, r.e = nil, nil, 0, 0
	case r.buf.class > one && len(r.plain)+r.e-r.r <= oneLen:
		r.move(one)
	}
}

// open opens the next record, if a whole one is there. It returns
// application data either in p, or as r.plain, when p is too small for it or nil.
func (r *reader) open(p []byte) (direct []byte, there bool, err error) {
	if r.err != nil {
		return nil, false, r.err
	}
	if r.e-r.r < headerLen {
		return nil, false, nil
	}
	head := r.buf.mem[r.r : r.r+headerLen]
	size := int(binary.BigEndian.Uint16(head[3:]))
	switch {
	case head[0] != typeData: // after Finished nothing is in the clear (RFC 8446 5.1, 5.2)
		return nil, false, r.fail(alertUnexpectedMessage, fmt.Sprintf("a record of type %d in the clear", head[0]))
	case size > maxCipher:
		return nil, false, r.fail(alertRecordOverflow, "longer than allowed")
	case r.e-r.r < headerLen+size:
		return nil, false, nil
	}
	rec := r.buf.mem[r.r : r.r+headerLen+size]
	r.r += len(rec)
	var dst []byte
	if size-tagLen <= len(p) {
		dst = p[:0:len(p)]
	}
	asks := r.ask.Load()
	var sealed []byte
	if asks != nil {
		sealed = asks.copy(rec)
	}
	inner, err := r.keys.open(dst, rec)
	if err != nil {
		return nil, false, r.fail(alertBadRecordMAC, "it can't be authenticated")
	}
	direct, err = r.content(inner, dst == nil)
	if asks != nil {
		r.answered(asks, sealed, inner, err)
	}
	return direct, true, err
}

// answered looks whether a record, which content has taken, had tickets in it.
func (r *reader) answered(asks *asker, sealed, inner []byte, err error) {
	inner = bytes.TrimRight(inner, "\x00")
	switch {
	case err != nil:
		r.askNoMore()
		return
	case sealed == nil || inner[len(inner)-1] != typeHandshake || r.post.typ() != messageTicket:
		asks.offer.none()
	case asks.take(sealed):
		return
	}
	r.ask.Store(nil)
}

// askNoMore leaves it to another connection to ask for a ticket. It may be called at
// any time.
func (r *reader) askNoMore() {
	if asks := r.ask.Swap(nil); asks != nil {
		asks.offer.forget()
	}
}

// content takes what was in a record: it keeps or returns application data, and
// does what other records say.
func (r *reader) content(inner []byte, inPlace bool) (direct []byte, err error) {
	if len(inner) > maxPlain+1 {
		return nil, r.fail(alertRecordOverflow, "more content than allowed")
	}
	end := len(inner)
	for end > 0 && inner[end-1] == 0 {
		end-- // padding (RFC 8446 5.4)
	}
	if end == 0 {
		return nil, r.fail(alertUnexpectedMessage, "without a type")
	}
	typ, content := inner[end-1], inner[:end-1]
	if typ == typeData && len(content) > 0 && r.post.idle() {
		r.useless = 0
		r.records++
		if inPlace {
			r.plain, content = content, nil
		}
		return content, nil
	}
	switch {
	case typ != typeHandshake && !r.post.idle(): // RFC 8446 5.1
		return nil, r.fail(alertUnexpectedMessage, "between parts of a message")
	case typ == typeData:
		return nil, r.uselessOne()
	case typ == typeHandshake && len(content) > 0:
		return nil, r.messages(content)
	case typ == typeAlert && len(content) > 0:
		return nil, r.alert(content)
	default:
		return nil, r.fail(alertUnexpectedMessage, fmt.Sprintf("%d bytes of type %d", len(content), typ))
	}
}

// uselessOne counts what brings nothing.
func (r *reader) uselessOne() error {
	if r.useless++; r.useless > maxUseless {
		return r.fail(alertUnexpectedMessage, "too many without data")
	}
	return nil
}

// alert ends this direction, or the connection (RFC 8446 6).
func (r *reader) alert(content []byte) error {
	switch {
	case len(content) != 2:
		return r.fail(alertDecodeError, "an alert of a wrong length")
	case content[1] == alertCloseNotify:
		r.err = io.EOF
	case content[1] == alertUserCanceled:
		return r.uselessOne() // close_notify follows
	default:
		r.err = remoteError(content[1])
		r.out.fail(alertCloseNotify, r.err)
	}
	r.keys.forget()
	return r.err
}

// fail ends the connection: the alert says why to the peer, the error to us.
func (r *reader) fail(alert byte, why string) error {
	r.err = &BadRecordError{Alert: tls.AlertError(alert), Why: why}
	r.askNoMore()
	r.keys.forget()
	r.out.fail(alert, r.err)
	return r.err
}

// messages takes a record's part of what comes after the handshake.
func (r *reader) messages(content []byte) error {
	for len(content) > 0 {
		n, whole, alert, why := r.post.take(content)
		if alert != 0 {
			return r.fail(alert, why)
		}
		if r.post.typ() == messageTicket && !r.client {
			return r.fail(alertUnexpectedMessage, "a ticket from a client")
		}
		content = content[n:]
		if !whole {
			if r.parts++; r.parts > maxParts {
				return r.fail(alertUnexpectedMessage, "a message in too many parts")
			}
			return nil
		}
		r.parts = 0
		if err := r.uselessOne(); err != nil {
			return err
		}
		if r.post.typ() != messageKeyUpdate {
			continue
		}
		switch {
		case len(content) > 0: // RFC 8446 5.1
			return r.fail(alertUnexpectedMessage, "more under a key that was given up")
		case r.post.last > 1:
			return r.fail(alertIllegalParameter, "a KeyUpdate that asks for something else")
		case r.updates > freeUpdates+r.records/recordsPerUpdate:
			return r.fail(alertUnexpectedMessage, "too many KeyUpdates")
		}
		r.updates++
		if r.post.last == 1 {
			r.out.owed.Store(true)
		}
		if err := r.keys.update(); err != nil {
			return r.fail(alertInternalError, err.Error())
		}
	}
	return nil
}
