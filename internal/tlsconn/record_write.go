package tlsconn

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
)

// recordLimit is how many records are sealed with one key. AES-GCM allows 2^24.5
// full ones (RFC 8446 5.5).
const recordLimit = 1 << 24

// errEnded says that close_notify has been sent.
var errEnded = errors.New("this direction has been ended")

// writer is the direction from us to the peer: plaintext in, records out.
type writer struct {
	raw  *net.TCPConn
	sock syscall.RawConn // of raw; nil does as well
	pool *Pool

	owed  atomic.Bool           // an update, sent before the next record with data (RFC 8446 4.6.3)
	fault atomic.Pointer[fault] // what the reader has found: nothing more is sent

	mu    sync.Mutex
	keys  keys
	limit uint64 // of records for one key
	err   error  // permanent

	shared *muxWriter // who orders what many streams send; nil otherwise
}

// fault is why a connection is of no more use.
type fault struct {
	err   error
	alert byte // to be sent; close_notify for none
}

// send seals n bytes that stand in the slots of b and sends them with one call.
func (w *writer) send(b *buffer, n int) error {
	defer w.sound() // what came up while the lock was held
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.ready(n); err != nil {
		return err
	}
	size, at := 0, 0
	for n > 0 {
		part := min(n, maxPlain)
		size += w.keys.seal(b.mem[at:], part, typeData)
		at += slotLen
		n -= part
	}
	return w.write(b.mem[:size])
}

// ready says whether data may be sent, after the update that is due. Callers hold mu.
func (w *writer) ready(n int) error {
	if err := w.broken(); err != nil {
		return err
	}
	records := uint64((n + maxPlain - 1) / maxPlain)
	if w.keys.seq+records >= w.limit {
		w.owed.Store(true)
	}
	if !w.owed.Load() {
		return nil
	}
	return w.update()
}

// update tells the peer that new keys follow, and takes them. The peer is not
// asked for the same: each side knows what it has sealed, and crypto/tls fails
// when it is asked after it has ended its direction. Callers hold mu.
func (w *writer) update() error {
	w.owed.Store(false)
	if err := w.message(typeHandshake, []byte{messageKeyUpdate, 0, 0, 1, 0}); err != nil {
		return err
	}
	if err := w.keys.update(); err != nil {
		w.err = err // nothing may follow under the old keys
	}
	return w.err
}

// message sends a short record of another type. Callers hold mu.
func (w *writer) message(typ byte, content []byte) error {
	b := w.pool.get(small)
	defer w.pool.put(b)
	copy(b.mem[headerLen:], content)
	return w.write(b.mem[:w.keys.seal(b.mem, len(content), typ)])
}

// write sends records; after an error the peer may have a part of one, so
// nothing can follow. Callers hold mu.
func (w *writer) write(records []byte) error {
	if err := w.pool.write(w.raw, w.sock, records); err != nil {
		w.err = err
		w.keys.forget()
	}
	return w.err
}

// Write sends p, at once and whole.
func (w *writer) Write(p []byte) (int, error) {
	sent := 0
	for sent < len(p) {
		b := w.pool.get(classForPlain(len(p) - sent))
		n := fillSlots(b, p[sent:])
		err := w.send(b, n)
		w.pool.put(b)
		if err != nil {
			return sent, err
		}
		sent += n
	}
	return sent, nil
}

// classForPlain is the class whose slots hold n bytes.
func classForPlain(n int) class {
	switch {
	case n <= smallLen-overhead:
		return small
	case n <= maxPlain:
		return one
	case n <= 4*maxPlain:
		return four
	case n <= 16*maxPlain:
		return sixteen
	default:
		return largest
	}
}

// slot is where the content of record i of a buffer goes.
func (b *buffer) slot(i int) []byte {
	if b.class == small {
		return b.mem[headerLen : smallLen-trailerLen]
	}
	at := i*slotLen + headerLen
	return b.mem[at : at+maxPlain]
}

func fillSlots(b *buffer, p []byte) (n int) {
	for i := range b.class.slots() {
		n += copy(b.slot(i), p[n:])
	}
	return n
}

// end sends close_notify.
func (w *writer) end() error {
	defer w.sound()
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.broken(); errors.Is(err, errEnded) {
		return nil
	} else if err != nil {
		return err
	}
	if err := w.message(typeAlert, []byte{levelWarning, alertCloseNotify}); err != nil {
		return err
	}
	w.err = errEnded
	w.keys.forget()
	return nil
}

// broken is why nothing can be sent any more. Callers hold mu.
func (w *writer) broken() error {
	if w.err != nil {
		return w.err
	}
	if f := w.fault.Load(); f != nil {
		return f.err
	}
	return nil
}

// fail lets nothing more be sent but a fatal alert, which goes out if that is
// possible without waiting. close_notify stands for no alert.
func (w *writer) fail(alert byte, err error) {
	w.fault.CompareAndSwap(nil, &fault{err, alert})
	w.sound()
}

// sound sends the alert of fail, unless another goroutine is writing: that one
// calls it then.
func (w *writer) sound() {
	f := w.fault.Load()
	if f == nil || !w.mu.TryLock() {
		return
	}
	defer w.mu.Unlock()
	if w.err != nil {
		return
	}
	w.err = f.err
	if f.alert != alertCloseNotify {
		var rec [headerLen + 2 + trailerLen]byte
		rec[headerLen], rec[headerLen+1] = levelFatal, f.alert
		w.keys.seal(rec[:], 2, typeAlert)
		if w.shared != nil {
			w.shared.alarm(rec[:])
		} else {
			w.once(rec[:])
		}
	}
	w.keys.forget()
}

// once tries to send a last record: whoever breaks the protocol is not waited
// for, and that it could not be sent changes nothing.
func (w *writer) once(rec []byte) {
	raw, err := w.raw.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Write(func(fd uintptr) bool {
		_, _ = syscall.Write(int(fd), rec)
		return true
	})
}
