package h2

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"time"
)

// readDown serves the client until its connection ends.
func (r *Relay) readDown(ctx context.Context) error {
	r.mu.Lock()
	r.began = r.cfg.Now()
	_ = r.down.conn.SetReadDeadline(r.began.Add(headTimeout)) // a closed socket fails at the read
	if r.cfg.IdleTimeout > 0 {
		r.idle = time.AfterFunc(r.cfg.IdleTimeout, r.quiet)
	}
	r.mu.Unlock()
	for {
		err := r.down.fill()
		r.mu.Lock()
		done := false
		if err == nil {
			done = r.takeDown(ctx)
		} else {
			done, err = r.downEnded(err)
		}
		r.mu.Unlock()
		if done {
			return err
		}
	}
}

// takeDown uses up what has come from the client and has it passed on.
func (r *Relay) takeDown(ctx context.Context) (done bool) {
	d := &r.down
	if r.closing {
		d.take(len(d.bytes()))
		return r.over
	}
	now := r.cfg.Now()
	r.budgets.refill(now)
	err := r.downFrames(ctx, now)
	d.giveCredit()
	r.watchHead(now)
	r.flush(&r.up)
	if err != nil {
		r.fail(err)
	}
	r.settle()
	if d.writing {
		r.backPressure(d)
	} else if len(d.out) > 0 || d.fin {
		d.writing = true // one round, so that what others append meanwhile is theirs to write
		r.writeOwn(d)
	}
	r.backPressure(&r.up)
	for r.pending > maxPending && !r.over && !r.closing {
		r.wake.Wait()
	}
	return r.over
}

// writeOwn writes what is queued now, and leaves what comes meanwhile to another.
func (r *Relay) writeOwn(d *side) {
	if len(d.out)+len(d.run) > 0 && d.failed == nil {
		r.writeRound(d)
	}
	d.writing = false
	r.wake.Broadcast()
	r.kick(d)
}

func (r *Relay) downFrames(ctx context.Context, now time.Time) error {
	d := &r.down
	if !d.preface {
		b := d.bytes()
		n := min(len(b), len(preface))
		if string(b[:n]) != preface[:n] {
			return broken(protocolError, "no preface of HTTP/2")
		}
		if n < len(preface) {
			return nil
		}
		d.preface = true
		d.take(n)
	}
	for {
		f, err := nextFrame(d.bytes())
		if errors.Is(err, errShort) {
			return nil
		}
		if err != nil {
			return err
		}
		d.take(len(f.raw))
		if err := r.fromClient(ctx, &f, now); err != nil {
			return err
		}
		if r.closing {
			d.take(len(d.bytes()))
			return nil
		}
	}
}

// watchHead bounds how long a head takes, and the beginning of the connection.
func (r *Relay) watchHead(now time.Time) {
	b := r.down.bytes()
	waiting := !r.down.heard || r.down.parts > 0 || len(b) > 3 && b[3] == frameHeaders
	switch {
	case waiting && r.began.IsZero():
		r.began = now
		_ = r.down.conn.SetReadDeadline(now.Add(headTimeout)) // a closed socket fails at the read
	case !waiting && !r.began.IsZero():
		r.began = time.Time{}
		_ = r.down.conn.SetReadDeadline(time.Time{})
	}
}

// downEnded follows the end of what the client sends.
func (r *Relay) downEnded(err error) (done bool, _ error) {
	switch {
	case r.over, r.closing:
		for !r.over && (r.down.writing || r.down.helping) && !errors.Is(err, os.ErrDeadlineExceeded) {
			r.wake.Wait()
		}
		return true, r.err
	case errors.Is(err, os.ErrDeadlineExceeded) && r.began.IsZero():
		return false, nil // it was for a head that has come
	case errors.Is(err, os.ErrDeadlineExceeded):
		r.fail(broken(noError, "a head did not come to its end"))
		r.kick(&r.down)
		return false, nil
	case !errors.Is(err, io.EOF):
		reset(r.cfg.Client)
		if r.up.conn != nil {
			reset(r.up.conn)
		}
		return true, wrap(errors.New("read from the client"), err)
	}
	r.clientEnded = true
	if len(r.streams) > 0 { // the application may still answer
		r.up.fin = true
		r.kick(&r.up)
	}
	for !r.over && (len(r.streams) > 0 && !r.dead || r.down.writing || r.down.helping) {
		r.wake.Wait()
	}
	return true, r.err
}

// fail ends the connection for a fault of the client's.
func (r *Relay) fail(err error) {
	ce, ok := errors.AsType[*connError](err)
	if !ok {
		ce = &connError{internalError, err.Error()}
	}
	r.err = wrap(ErrProtocol, ce)
	if ce.code == enhanceYourCalm {
		r.err = wrap(ErrFlood, ce)
	}
	r.greet(nil)
	r.down.out = appendGoAway(r.down.room(), r.lastDown, ce.code)
	for _, s := range r.streams {
		r.end(s, "DPE")
	}
	r.dead = true
	if r.up.conn != nil {
		reset(r.up.conn)
	}
	r.shut()
}

// shut ends our direction once all is written, and gives the client a moment.
func (r *Relay) shut() {
	r.closing, r.goneAway, r.down.fin = true, true, true
	_ = r.down.conn.SetReadDeadline(r.cfg.Now().Add(lingerTime)) // a closed socket fails at the read
	r.wake.Broadcast()
}

// settle ends the connection once there is nothing to be waited for. Callers hold mu
// and then have what is queued written.
func (r *Relay) settle() {
	if r.closing || r.over {
		return
	}
	if r.dead && (!r.deadEarly || r.lastDown > 0) && !r.goneAway {
		r.goAway()
	}
	if r.goneAway && len(r.streams) == 0 {
		r.shut()
		r.kick(&r.down)
	}
}

// goAway tells the client that later requests are not served.
func (r *Relay) goAway() {
	r.greet(nil)
	r.down.out = appendGoAway(r.down.room(), r.lastDown, noError)
	r.goneAway = true
}

// quiet ends a connection on which there was no request for long.
func (r *Relay) quiet() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over || r.closing {
		return
	}
	left := r.cfg.IdleTimeout
	if len(r.streams) == 0 || r.clientEnded {
		if left -= r.cfg.Now().Sub(r.budgets.at); left <= 0 {
			r.over = r.clientEnded // nobody else ends it
			r.goAway()
			r.shut()
			r.kick(&r.down)
			return
		}
	}
	r.idle.Reset(left)
}

// fromClient takes one frame. Errors are of the connection.
func (r *Relay) fromClient(ctx context.Context, f *frame, now time.Time) error {
	d := &r.down
	switch {
	case d.parts > 0 && (f.kind != frameContinuation || f.id != d.head.id):
		return broken(protocolError, "a head is not complete")
	case !d.heard && (f.kind != frameSettings || f.has(flagAck)):
		return broken(protocolError, "the first frame is not SETTINGS")
	}
	switch f.kind {
	case frameData:
		return r.clientData(f)
	case frameHeaders, frameContinuation:
		complete, err := d.gather(f)
		if !complete || err != nil {
			return err
		}
		return r.clientHead(ctx, now)
	case framePriority:
		return r.clientPriority(f)
	case frameRST:
		return r.clientReset(f)
	case frameSettings:
		return r.clientSettings(f)
	case framePing:
		return r.clientPing(f)
	case frameGoAway:
		return r.clientGoAway(f)
	case frameWindowUpdate:
		return r.clientWindow(f)
	case framePush:
		return broken(protocolError, "a client can't push")
	default:
		return r.budgets.control.spend("too many frames of unknown types")
	}
}

// gather collects the frames of one head in s.block. It reports whether it is whole.
func (s *side) gather(f *frame) (complete bool, err error) {
	p := f.payload
	if f.kind == frameHeaders {
		if f.id == 0 {
			return false, broken(protocolError, "HEADERS of no stream")
		}
		if p, err = f.unpad(); err != nil {
			return false, err
		}
		s.head = *f
		if f.dependsOnItself() {
			s.head.flags |= flagItself
		}
		s.block, s.parts = s.block[:0], 0
	} else if s.parts == 0 {
		return false, broken(protocolError, "CONTINUATION of nothing")
	}
	s.parts++
	if s.parts > maxContinuations || len(s.block)+len(p) > maxBlock {
		return false, broken(enhanceYourCalm, "a head is too large")
	}
	s.block = append(s.block, p...)
	if !f.has(flagEndHeaders) {
		return false, nil
	}
	s.parts = 0
	return true, nil
}

// flagItself marks HEADERS whose priority depends on their own stream. It is no flag
// of RFC 9113.
const flagItself = 0x80

func (r *Relay) clientHead(ctx context.Context, now time.Time) error {
	d := &r.down
	id, end := d.head.id, d.head.has(flagEndStream)
	if err := d.dec.decode(d.block); err != nil {
		return err
	}
	if cap(d.block) > smallRead {
		d.block = nil
	}
	if id%2 == 0 {
		return broken(protocolError, "a stream of the client has an even number")
	}
	s := r.streams[id]
	switch {
	case r.goneAway && id > r.lastDown:
		return nil // it has been told
	case id > r.lastDown && d.head.has(flagItself):
		r.lastDown = id
		r.resetDown(id, protocolError)
		return r.budgets.resets.spend("too many streams with errors")
	case id > r.lastDown:
		return r.begin(ctx, id, end, now)
	case s == nil && r.gone.has(id):
		return nil
	case s == nil:
		return broken(streamClosed, "HEADERS of a stream that has ended")
	case s.reqEnded:
		return r.strike(s, streamClosed)
	case !end, d.dec.tooLarge, s.length > 0, checkTrailers(d.dec.fields) != nil:
		return r.strike(s, protocolError)
	}
	s.reqEnded = true
	if s.asking {
		r.wake.Broadcast()
		s.trailers = append(make([]Field, 0, len(d.dec.fields)+1), d.dec.fields...)
		return nil
	}
	r.passTrailers(s, d.dec.fields)
	r.half(s)
	return nil
}

func (r *Relay) clientData(f *frame) error {
	if f.id == 0 {
		return broken(protocolError, "DATA of no stream")
	}
	body, err := f.unpad()
	if err != nil {
		return err
	}
	if len(body) == 0 && !f.has(flagEndStream) {
		if err := r.budgets.empty.spend("too many empty frames"); err != nil {
			return err
		}
	}
	s := r.streams[f.id]
	switch {
	case s == nil && f.id > r.lastDown && !r.goneAway:
		return broken(protocolError, "DATA of a stream that has not begun")
	case s == nil:
		r.down.credit += uint32(len(f.payload))
		if r.gone.has(f.id) || f.id > r.lastDown {
			return nil
		}
		return broken(streamClosed, "DATA of a stream that has ended")
	case s.reqEnded:
		r.down.credit += uint32(len(f.payload))
		return r.strike(s, streamClosed)
	}
	n := int64(len(body))
	s.reqEnded = f.has(flagEndStream)
	s.requestBytes += n
	if s.length >= 0 {
		if s.length -= n; s.length < 0 || s.reqEnded && s.length > 0 {
			r.down.credit += uint32(len(f.payload))
			return r.strike(s, protocolError)
		}
	}
	if s.asking {
		s.body = append(s.body, f.raw...)
		r.pending += len(f.raw)
		r.wake.Broadcast()
		return nil
	}
	r.countRequest(s, body)
	f.renumber(s.up)
	r.up.pass(f.raw)
	r.half(s)
	return nil
}

func (r *Relay) clientPriority(f *frame) error {
	switch {
	case f.id == 0:
		return broken(protocolError, "PRIORITY of no stream")
	case len(f.payload) != 5:
		return broken(frameSize, "PRIORITY has another size than 5")
	case f.dependsOnItself():
		return broken(protocolError, "a stream depends on itself")
	}
	return r.budgets.control.spend("too many PRIORITY")
}

func (r *Relay) clientReset(f *frame) error {
	switch {
	case len(f.payload) != 4:
		return broken(frameSize, "RST_STREAM has another size than 4")
	case f.id == 0, f.id > r.lastDown && !r.goneAway:
		return broken(protocolError, "RST_STREAM of a stream that has not begun")
	}
	s := r.streams[f.id]
	if s == nil {
		return r.budgets.control.spend("too many RST_STREAM")
	}
	early := !s.responded
	r.resetUp(s, errorCode(binary.BigEndian.Uint32(f.payload)))
	r.end(s, s.flag("DC"))
	if early {
		return r.budgets.resets.spend("too many requests are taken back")
	}
	return nil
}

func (r *Relay) clientPing(f *frame) error {
	switch {
	case f.id != 0:
		return broken(protocolError, "PING of a stream")
	case len(f.payload) != 8:
		return broken(frameSize, "PING has another size than 8")
	case f.has(flagAck):
		if r.draining && !r.goneAway && string(f.payload) == drainPing {
			r.goAway()
		}
	default:
		r.down.out = appendPing(r.down.room(), string(f.payload), flagAck)
	}
	return r.budgets.control.spend("too many PING")
}

func (r *Relay) clientGoAway(f *frame) error {
	switch {
	case f.id != 0:
		return broken(protocolError, "GOAWAY of a stream")
	case len(f.payload) < 8:
		return broken(frameSize, "GOAWAY is too short")
	}
	if !r.dead {
		r.up.out = appendGoAway(r.up.room(), 0, errorCode(binary.BigEndian.Uint32(f.payload[4:])))
	}
	return r.budgets.control.spend("too many GOAWAY")
}

func (r *Relay) clientWindow(f *frame) error {
	if len(f.payload) != 4 {
		return broken(frameSize, "WINDOW_UPDATE has another size than 4")
	}
	n := binary.BigEndian.Uint32(f.payload) & maxWindow
	if err := r.budgets.update(); err != nil {
		return err
	}
	if f.id == 0 {
		return r.widen(n)
	}
	s := r.streams[f.id]
	switch {
	case f.id > r.lastDown && !r.goneAway:
		return broken(protocolError, "WINDOW_UPDATE of a stream that has not begun")
	case s == nil:
		return nil
	case n == 0:
		return r.strike(s, protocolError)
	case uint64(s.window)+uint64(n) > maxWindow && s.asking:
		return r.strike(s, flowControl)
	}
	if s.asking {
		s.window += n
		return nil
	}
	r.up.out = appendWindowUpdate(r.up.room(), s.up, n)
	return nil
}

// widen follows an update of the connection's window: debts are paid from it, what
// waits goes out, and the application hears of the rest.
func (r *Relay) widen(n uint32) error {
	if n == 0 {
		return broken(protocolError, "WINDOW_UPDATE of nothing")
	}
	if r.window += int64(n); r.window > maxWindow {
		return broken(flowControl, "the window is larger than 2^31-1")
	}
	paid := min(r.debt, int64(n))
	r.debt -= paid
	r.releaseHeld()
	if rest := n - uint32(paid); rest > 0 && !r.dead {
		r.up.out = appendWindowUpdate(r.up.room(), 0, rest)
	}
	return nil
}
