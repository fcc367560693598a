package h2

import (
	"encoding/binary"
	"errors"
	"strconv"
)

// readUp serves the application until its connection ends.
func (r *Relay) readUp() {
	for {
		err := r.up.fill()
		r.mu.Lock()
		if err == nil {
			err = r.upFrames()
			r.up.giveCredit()
			r.flush(&r.down)
		}
		if err == nil && len(r.up.out) > maxReplies {
			err = broken(enhanceYourCalm, "the application doesn't read what it asked for")
		}
		if err != nil || r.over {
			r.lost(err)
			r.kick(&r.down)
			r.mu.Unlock()
			return
		}
		r.settle()
		r.kick(&r.up)
		r.backPressure(&r.down)
		r.mu.Unlock()
	}
}

func (r *Relay) upFrames() error {
	u := &r.up
	for {
		f, err := nextFrame(u.bytes())
		if errors.Is(err, errShort) {
			if !u.heard && len(u.bytes()) >= headLen && f.kind != frameSettings {
				return broken(protocolError, "the application speaks no HTTP/2")
			}
			return nil
		}
		if err != nil {
			return err
		}
		u.take(len(f.raw))
		if err := r.fromApp(&f); err != nil {
			return err
		}
	}
}

// lost follows the end of the application's connection: whoever waits for it is
// answered.
func (r *Relay) lost(err error) {
	r.wake.Broadcast()
	if r.dead || r.over || r.closing {
		return
	}
	r.dead, r.fault = true, Ended
	flag := "UC"
	if ce, ok := errors.AsType[*connError](err); ok {
		r.fault, flag = NoHTTP2, "UPE"
		r.err = wrap(ErrApp, ce)
		reset(r.up.conn)
	}
	r.deadEarly = r.lastDown == 0
	r.greet(nil)
	for _, s := range r.streams {
		switch {
		case s.asking: // answered when it is decided
		case !s.responded:
			r.answer(s, r.cfg.Handler.Fault(&s.req, r.fault))
		default:
			r.resetDown(s.id, internalError)
			r.end(s, s.flag(flag))
		}
	}
	r.settle()
}

// fromApp takes one frame. Errors are of the connection.
func (r *Relay) fromApp(f *frame) error {
	u := &r.up
	switch {
	case u.parts > 0 && (f.kind != frameContinuation || f.id != u.head.id):
		return broken(protocolError, "a head is not complete")
	case !u.heard && (f.kind != frameSettings || f.has(flagAck)):
		return broken(protocolError, "the application speaks no HTTP/2")
	}
	switch f.kind {
	case frameData:
		return r.appData(f)
	case frameHeaders, frameContinuation:
		complete, err := u.gather(f)
		if !complete || err != nil {
			return err
		}
		return r.appHead()
	case frameRST:
		return r.appReset(f)
	case frameSettings:
		return r.appSettings(f)
	case framePing:
		if f.id != 0 || len(f.payload) != 8 {
			return broken(protocolError, "PING")
		}
		if !f.has(flagAck) {
			u.out = appendPing(u.room(), string(f.payload), flagAck)
		}
	case frameGoAway:
		return r.appGoAway(f)
	case frameWindowUpdate:
		return r.appWindow(f)
	case framePush:
		return broken(protocolError, "the application pushes, which it was told not to")
	}
	return nil
}

func (r *Relay) appData(f *frame) error {
	if f.id == 0 || f.id > r.lastUp {
		return broken(protocolError, "DATA of a stream that has not begun")
	}
	body, err := f.unpad()
	if err != nil {
		return err
	}
	s := r.byUp[f.id]
	switch {
	case s == nil:
		r.up.credit += uint32(len(f.payload))
		return nil
	case !s.responded, s.answered:
		r.up.credit += uint32(len(f.payload))
		r.brokenResponse(s)
		return nil
	}
	s.responseBytes += int64(len(body))
	r.countResponse(s, body)
	r.budgets.earn(updatesPerFrame)
	end := f.has(flagEndStream)
	if len(r.held) > 0 || r.debt > 0 && int64(len(f.payload)) > r.window {
		f.renumber(s.id)
		r.held = append(r.held, heldFrame{s: s, data: append([]byte(nil), f.raw...)})
		return nil
	}
	r.window -= int64(len(f.payload))
	f.renumber(s.id)
	r.down.pass(f.raw)
	if end {
		s.answered = true
		r.half(s)
	}
	return nil
}

// releaseHeld sends what waited for the client's window, as far as that goes now.
func (r *Relay) releaseHeld() {
	for len(r.held) > 0 {
		h := r.held[0]
		n := int64(len(h.data) - headLen)
		if h.trailers == nil && n > r.window {
			return
		}
		r.held[0] = heldFrame{}
		r.held = r.held[1:]
		if h.trailers != nil {
			r.sendTrailers(h.s, h.trailers)
			continue
		}
		r.window -= n
		r.down.out = append(r.down.room(), h.data...)
		if h.data[4]&flagEndStream != 0 {
			h.s.answered = true
			r.half(h.s)
		}
	}
	r.held = nil
}

func (r *Relay) appHead() error {
	u := &r.up
	if err := u.dec.decode(u.block); err != nil {
		return err
	}
	if cap(u.block) > smallRead {
		u.block = nil
	}
	if u.head.id > r.lastUp {
		return broken(protocolError, "HEADERS of a stream that has not begun")
	}
	s := r.byUp[u.head.id]
	if s == nil {
		return nil
	}
	end := u.head.has(flagEndStream)
	var res Response
	trailers, err := readResponse(&res, u.dec.fields)
	switch {
	case err != nil, u.dec.tooLarge, s.answered, trailers != s.responded, trailers && !end, res.Status/100 == 1 && end:
		r.brokenResponse(s)
	case trailers:
		r.appTrailers(s, res.Fields)
	case res.Status/100 == 1:
		r.cfg.Handler.Interim(&res)
		r.sendHead(s, &res, false)
	default:
		s.status, s.responded = res.Status, true
		if s.grpc && end {
			s.noteGRPC(res.Fields)
		}
		r.cfg.Handler.Response(&s.req, &res)
		r.sendHead(s, &res, end)
		if end {
			s.answered = true
			r.half(s)
		}
	}
	return nil
}

func (s *stream) noteGRPC(fields []Field) {
	for i := range fields {
		if fields[i].Name == "grpc-status" && len(fields[i].Value) <= 2 {
			s.grpcCode = fields[i].Value
		}
	}
}

func (r *Relay) sendHead(s *stream, res *Response, end bool) {
	e := &r.down.enc
	e.begin(":status", statusText(res.Status))
	e.fields(res.Fields)
	r.down.out = appendBlock(r.down.room(), e.block, s.id, endFlag(end))
}

func statusText(n int) string {
	if n == 200 {
		return "200"
	}
	return strconv.Itoa(n)
}

func (r *Relay) appTrailers(s *stream, fields []Field) {
	if s.grpc {
		s.noteGRPC(fields)
	}
	if len(r.held) > 0 {
		r.held = append(r.held, heldFrame{s: s, trailers: append(make([]Field, 0, len(fields)+1), fields...)})
		return
	}
	r.sendTrailers(s, fields)
}

func (r *Relay) sendTrailers(s *stream, fields []Field) {
	if len(fields) == 0 {
		r.down.out = appendHead(r.down.room(), 0, frameData, flagEndStream, s.id)
	} else {
		e := &r.down.enc
		e.block = e.block[:0]
		for i := range fields {
			e.field(fields[i])
		}
		r.down.out = appendBlock(r.down.room(), e.block, s.id, flagEndStream)
	}
	s.answered = true
	r.half(s)
}

// brokenResponse ends a stream whose response is no HTTP/2.
func (r *Relay) brokenResponse(s *stream) {
	r.resetUp(s, protocolError)
	if s.responded {
		r.resetDown(s.id, internalError)
		r.end(s, "UPE")
		return
	}
	r.answer(s, r.cfg.Handler.Fault(&s.req, NoHTTP2))
}

func (r *Relay) appReset(f *frame) error {
	if len(f.payload) != 4 || f.id == 0 || f.id > r.lastUp {
		return broken(protocolError, "RST_STREAM")
	}
	if s := r.byUp[f.id]; s != nil {
		r.resetDown(s.id, errorCode(binary.BigEndian.Uint32(f.payload)))
		r.end(s, s.flag("UR"))
	}
	return nil
}

// flag is for a stream that ends by a reset: one that was answered has ended well.
func (s *stream) flag(otherwise string) string {
	if s.answered {
		return "-"
	}
	return otherwise
}

func (r *Relay) appWindow(f *frame) error {
	if len(f.payload) != 4 || f.id > r.lastUp {
		return broken(protocolError, "WINDOW_UPDATE")
	}
	n := binary.BigEndian.Uint32(f.payload) & maxWindow
	if f.id == 0 {
		r.down.out = appendWindowUpdate(r.down.room(), 0, n)
		return nil
	}
	if s := r.byUp[f.id]; s != nil {
		r.down.out = appendWindowUpdate(r.down.room(), s.id, n)
	}
	return nil
}

// appGoAway passes on that the application serves no more requests than it names,
// and refuses those that it doesn't serve, so that they can be sent again elsewhere.
func (r *Relay) appGoAway(f *frame) error {
	if f.id != 0 || len(f.payload) < 8 {
		return broken(protocolError, "GOAWAY")
	}
	last, code := binary.BigEndian.Uint32(f.payload)&maxStreamID, binary.BigEndian.Uint32(f.payload[4:])
	r.appClosed = last + 1
	if r.goneAway {
		return nil
	}
	if last >= maxStreamID {
		r.down.out = appendGoAway(r.down.room(), maxStreamID, errorCode(code))
		return nil
	}
	for _, s := range r.streams {
		if s.up > last {
			r.resetDown(s.id, refusedStream)
			r.end(s, "UR")
		}
	}
	debug := f.payload[8:]
	r.down.out = appendHead(r.down.room(), 8+len(debug), frameGoAway, 0, 0)
	r.down.out = binary.BigEndian.AppendUint32(r.down.out, r.lastDown)
	r.down.out = binary.BigEndian.AppendUint32(r.down.out, code)
	r.down.out = append(r.down.out, debug...)
	r.goneAway = true
	return nil
}
