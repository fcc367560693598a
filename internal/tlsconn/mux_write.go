package tlsconn

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"runtime"
	"slices"
	"sync"
)

// pendingMost is how many sealed bytes may wait for the one who is writing. Frames
// that must not wait (credit, resets) come on top.
const pendingMost = 64 << 10

// controlMost is how many may wait in all. A peer that has so much to be told and
// doesn't read is no peer.
const controlMost = 1 << 20

var (
	errCrowded = errors.New("too much is waiting to be sent")
	errUnread  = errors.New("the peer does not read what it has asked for")
)

// muxWriter sends the frames of all streams. What is small is sealed one behind the
// other and goes out with one call for all who had something to send at that moment;
// what is larger than a frame is sealed where it stands and written by its sender.
// One goroutine writes at a time. The lock is that of the writer below.
type muxWriter struct {
	*writer
	helpers *sync.WaitGroup

	changed  sync.Cond
	pending  *batch // sealed; nil when there is nothing
	writing  bool   // somebody writes, or is about to
	large    int    // how many wait for their turn with more than a frame
	waiting  int    // how many wait for room in pending
	finished bool
	sealed   uint64 // bytes, ever
	taken    uint64 // of them, by the kernel
}

func (o *muxWriter) init(w *writer, helpers *sync.WaitGroup) {
	o.writer, o.helpers = w, helpers
	o.changed.L = &w.mu
	w.shared = o
}

// queue seals at most frameRoom bytes of a stream. They go out with flush. It waits
// while too much is waiting.
func (o *muxWriter) queue(s *Stream, content []byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.pending != nil && len(o.pending.b) > pendingMost && o.broken() == nil {
		o.waiting++
		o.changed.Wait()
		o.waiting--
	}
	if s.shut.Load() {
		return errEnded
	}
	return o.add(frameData, s.id, content)
}

// offer queues a frame, unless too much is waiting. It returns where the frame ends:
// see reached.
func (o *muxWriter) offer(what byte, id uint32, content []byte) (end uint64, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.pending != nil && len(o.pending.b) > pendingMost {
		return 0, errCrowded
	}
	err = o.add(what, id, content)
	return o.sealed, err
}

// reached reports whether the peer may have all that was sealed up to there.
func (o *muxWriter) reached(end uint64) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.taken >= end
}

// control queues a frame without waiting. It goes out with the next flush or kick.
func (o *muxWriter) control(what byte, id uint32, content []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.pending != nil && len(o.pending.b) > controlMost && o.err == nil {
		o.err = errUnread
		o.keys.forget()
		_ = o.raw.SetLinger(0) // fails only on a closed connection
		_ = o.raw.Close()
	}
	_ = o.add(what, id, content) // Run meets the error
}

// add seals a frame behind what is pending. Callers hold mu.
func (o *muxWriter) add(what byte, id uint32, content []byte) error {
	if err := o.renewed(1); err != nil {
		return err
	}
	at := o.extend(headerLen + frameLen + len(content) + trailerLen)
	rec := o.pending.b[at:]
	binary.BigEndian.PutUint32(rec[headerLen:], uint32(what)<<24|id)
	copy(rec[headerLen+frameLen:], content)
	o.keys.seal(rec, frameLen+len(content), typeData)
	return nil
}

// renewed says whether so many records may follow, after the update of keys that is
// due. Callers hold mu.
func (o *muxWriter) renewed(records uint64) error {
	if err := o.broken(); err != nil {
		return err
	}
	if o.keys.seq+records < o.limit && !o.owed.Load() {
		return nil
	}
	o.owed.Store(false)
	at := o.extend(headerLen + 5 + trailerLen)
	copy(o.pending.b[at+headerLen:], []byte{messageKeyUpdate, 0, 0, 1, 0})
	o.keys.seal(o.pending.b[at:], 5, typeHandshake)
	if err := o.keys.update(); err != nil {
		o.err = err // nothing may follow under the old keys
	}
	return o.err
}

// extend makes room behind what is pending and returns where it begins.
func (o *muxWriter) extend(n int) int {
	if o.pending == nil {
		o.pending = o.pool.batch()
	}
	o.sealed += uint64(n)
	at := len(o.pending.b)
	o.pending.b = slices.Grow(o.pending.b, n)[:at+n]
	return at
}

// flush sends what is pending, unless somebody is writing, who then does.
func (o *muxWriter) flush() error {
	o.mu.Lock()
	if o.writing || o.large > 0 || o.pending == nil {
		err := o.err
		o.mu.Unlock()
		return err
	}
	o.writing = true
	o.mu.Unlock()
	runtime.Gosched() // others that can run may have something to send as well
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.rest()
}

// kick is flush for those who must not wait.
func (o *muxWriter) kick() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.writing || o.large > 0 || o.pending == nil || o.finished {
		return
	}
	o.writing = true
	o.helpers.Go(func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		_ = o.rest() // Run meets the error
	})
}

// rest writes what is pending until nothing is, or somebody waits who takes it along.
// Callers hold mu and write.
func (o *muxWriter) rest() error {
	for o.pending != nil && o.large == 0 && o.err == nil {
		o.put(o.grab(), nil)
	}
	o.writing = false
	if o.large > 0 {
		o.changed.Broadcast()
	}
	return o.err
}

// grab takes what is pending.
func (o *muxWriter) grab() *batch {
	b := o.pending
	o.pending = nil
	return b
}

// put writes what was grabbed, then records. Callers hold mu, which is free meanwhile.
func (o *muxWriter) put(grabbed *batch, records []byte) {
	o.mu.Unlock()
	var n int64
	var err error
	switch {
	case grabbed == nil:
		n, err = o.write(records)
	case len(records) == 0:
		n, err = o.write(grabbed.b)
	default:
		n = int64(len(grabbed.b) + len(records)) // after an error the peer may have any part of it
		err = o.pool.writeVector(o.raw, o.sock, net.Buffers{grabbed.b, records})
	}
	if grabbed != nil {
		o.pool.putBatch(grabbed)
	}
	o.mu.Lock()
	o.taken += uint64(n)
	if err != nil && o.err == nil {
		o.err = err
		o.keys.forget()
	}
	if o.waiting > 0 || o.err != nil {
		o.changed.Broadcast()
	}
}

func (o *muxWriter) write(records []byte) (int64, error) {
	n, err := o.pool.writeAll(o.raw, o.sock, records)
	return int64(n), err
}

// send sends n bytes of a stream that stand in the slots of b, behind room for the
// frame's head in each.
func (o *muxWriter) send(s *Stream, b *buffer, n int) error {
	if n <= frameRoom && b.class <= one {
		if err := o.queue(s, b.slot(0)[frameLen:frameLen+n]); err != nil {
			return err
		}
		return o.flush()
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.turn()
	records := uint64((n + frameRoom - 1) / frameRoom)
	if err := o.renewed(records); err != nil {
		return err
	}
	o.writing = true
	if s.shut.Load() {
		_ = o.rest() // what was left to us is to be sent in any case
		return errEnded
	}
	size, at := 0, 0
	for n > 0 {
		part := min(n, frameRoom)
		binary.BigEndian.PutUint32(b.mem[at+headerLen:], uint32(frameData)<<24|s.id)
		size += o.keys.seal(b.mem[at:], frameLen+part, typeData)
		at += slotLen
		n -= part
	}
	o.sealed += uint64(size)
	o.put(o.grab(), b.mem[:size])
	return o.rest()
}

// end sends what is pending, close_notify and FIN. The reader goes on until the peer
// has done the same: a connection that is closed before all was read is reset by the
// kernel, with what the peer has not got yet. It doesn't wait; it reports false if that
// isn't possible any more.
func (o *muxWriter) end() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.finished || o.broken() != nil {
		return false
	}
	o.helpers.Go(func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.turn()
		if o.renewed(1) == nil {
			at := o.extend(headerLen + 2 + trailerLen)
			copy(o.pending.b[at+headerLen:], []byte{levelWarning, alertCloseNotify})
			o.keys.seal(o.pending.b[at:], 2, typeAlert)
			o.writing = true
			o.put(o.grab(), nil)
		}
		if o.err == nil {
			o.err = errEnded
			o.keys.forget()
		}
		_ = o.rest()
		if !errors.Is(o.err, errEnded) || o.raw.CloseWrite() != nil {
			_ = o.raw.Close()
		}
	})
	return true
}

// turn waits until nobody writes. Callers hold mu, and write next or leave it.
func (o *muxWriter) turn() {
	o.large++
	for o.writing && o.broken() == nil {
		o.changed.Wait()
	}
	o.large--
}

// stop lets nothing more be sent.
func (o *muxWriter) stop(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.finished = true
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF // to who sends it is no end as it should be
	}
	if o.err == nil {
		o.err = err
		o.keys.forget()
	}
	o.pending = nil
	o.changed.Broadcast()
}

// alarm sends a sealed alert behind what is pending, if that is possible without
// waiting: see writer.sound. Callers hold mu.
func (o *muxWriter) alarm(rec []byte) {
	if o.writing {
		return // out of order it would not be understood
	}
	if b := o.grab(); b != nil {
		rec = append(b.b, rec...)
	}
	o.once(rec)
}

// credits sends credit that was given, if there is any.
func (o *muxWriter) credits() error {
	o.mu.Lock()
	idle := o.pending == nil || o.writing
	o.mu.Unlock()
	if idle {
		return nil
	}
	return o.flush()
}
