package h2

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// stream is one request with its response. Relay.mu guards it.
type stream struct {
	id, up  uint32 // its numbers; up is 0 while the application doesn't know of it
	req     Request
	started time.Time
	heads   int   // what it counts for in Relay.heads
	length  int64 // what is left of the announced body, or unknownLength

	reqEnded  bool // the client has sent all
	responded bool // the final head has been passed on
	answered  bool // and the rest
	grpc      bool
	status    int
	grpcCode  string

	requestBytes, responseBytes int64
	sends, gets                 messages // of a call of gRPC

	asking   bool // it is not decided yet
	cancel   context.CancelFunc
	body     []byte // frames that wait for the decision
	trailers []Field
	window   uint32 // what the client added to the stream's window before the application knew of it
}

// heldFrame waits for the client's window of the connection.
type heldFrame struct {
	s        *stream
	data     []byte  // a frame, or
	trailers []Field // the end
}

func wrap(kind, cause error) error { return fmt.Errorf("%w: %w", kind, cause) }

// begin makes a stream of a request whose head has come and decides, or has it
// decided.
func (r *Relay) begin(ctx context.Context, id uint32, end bool, now time.Time) error {
	r.lastDown = id
	s := r.newStream()
	s.id, s.reqEnded, s.started = id, end, now
	s.req.Sent = now
	d := &r.down.dec
	length, err := readRequest(&s.req, d.fields, r.up.connect)
	if err == nil && end && length > 0 {
		err = malformed("a body is announced and none follows")
	}
	s.length = length
	switch {
	case errors.Is(err, errMalformed):
		return r.refuse(s, protocolError)
	case len(r.streams) >= maxStreams, r.heads+d.size > maxHeads:
		return r.refuse(s, refusedStream)
	}
	s.heads, s.grpc = d.size, s.req.GRPC()
	r.heads += s.heads
	r.streams[id] = s
	r.budgets.earn(freeUpdates)
	answer, ask := r.decide(s, d.tooLarge || len(s.req.Fields) > maxFields)
	switch {
	case answer != nil:
		r.answer(s, answer)
	case ask != nil:
		r.ask(ctx, s, ask)
	default:
		r.forward(s, now)
	}
	return nil
}

func (r *Relay) decide(s *stream, tooLarge bool) (*Answer, Ask) {
	if tooLarge {
		return r.cfg.Handler.Fault(&s.req, TooLarge), nil
	}
	return r.cfg.Handler.Request(&s.req)
}

// refuse resets a stream whose request nobody has seen.
func (r *Relay) refuse(s *stream, code errorCode) error {
	r.resetDown(s.id, code)
	r.recycle(s)
	return r.budgets.resets.spend("too many requests that can't be served")
}

func (r *Relay) newStream() *stream {
	if n := len(r.spare); n > 0 {
		s := r.spare[n-1]
		r.spare = r.spare[:n-1]
		return s
	}
	return &stream{}
}

// recycle keeps a stream's memory for the next one.
func (r *Relay) recycle(s *stream) {
	if s.cancel != nil || len(r.spare) >= 8 || cap(s.req.Fields) > 32 {
		return // a goroutine may still know it, or it is not worth it
	}
	clear(s.req.Fields)
	*s = stream{req: Request{Fields: s.req.Fields[:0]}}
	r.spare = append(r.spare, s)
}

// ask has a request decided beside the others. What comes for it meanwhile is kept.
func (r *Relay) ask(ctx context.Context, s *stream, ask Ask) {
	ctx, s.cancel = context.WithCancel(ctx)
	s.asking = true
	var body Body
	if !s.reqEnded {
		body = func(ctx context.Context, most int) ([]byte, bool, error) { return r.readAhead(ctx, s, most) }
	}
	r.work.Go(func() {
		settle := ask(ctx, body)
		r.mu.Lock()
		defer r.mu.Unlock()
		if !s.asking || r.over {
			return
		}
		s.asking = false
		s.cancel()
		var answer *Answer
		if settle != nil {
			answer = settle(&s.req)
		}
		if answer != nil {
			r.answer(s, answer)
		} else {
			r.forward(s, r.cfg.Now())
		}
		r.kick(&r.down)
		r.kick(&r.up)
		r.settle()
		r.wake.Broadcast()
	})
}

// readAhead is a Body.
func (r *Relay) readAhead(ctx context.Context, s *stream, most int) (body []byte, whole bool, err error) {
	stop := context.AfterFunc(ctx, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.wake.Broadcast()
	})
	defer stop()
	r.mu.Lock()
	defer r.mu.Unlock()
	for s.asking && !s.reqEnded && !r.over && ctx.Err() == nil && int(s.requestBytes) < most && int64(len(s.body)) < min(r.up.window, maxPending) {
		r.wake.Wait()
	}
	switch {
	case ctx.Err() != nil:
		return nil, false, fmt.Errorf("read the body: %w", context.Cause(ctx))
	case !s.asking || r.over:
		return nil, false, fmt.Errorf("read the body: %w", context.Canceled)
	}
	for b := s.body; len(b) > 0 && len(body) < most; {
		f, err := nextFrame(b)
		if err != nil {
			break // they were whole
		}
		p, _ := f.unpad() // as before
		body = append(body, p[:min(len(p), most-len(body))]...)
		b = b[len(f.raw):]
	}
	return body, s.reqEnded && int64(len(body)) == s.requestBytes, nil
}

// forward passes a request on.
func (r *Relay) forward(s *stream, now time.Time) {
	id := s.id
	if id <= r.lastUp {
		id = r.lastUp + 2
	}
	switch {
	case r.dead:
		r.answer(s, r.cfg.Handler.Fault(&s.req, r.fault))
		return
	case r.appClosed != 0 && id > r.appClosed-1, id > maxStreamID:
		r.resetDown(s.id, refusedStream)
		r.end(s, "UR")
		return
	}
	s.up, r.lastUp = id, id
	r.byUp[id] = s
	s.req.Sent = now
	e := &r.up.enc
	e.begin(":method", s.req.Method)
	for _, f := range [...]Field{
		{Name: ":protocol", Value: s.req.Protocol},
		{Name: ":scheme", Value: s.req.Scheme},
		{Name: ":authority", Value: s.req.Authority},
		{Name: ":path", Value: s.req.Path},
	} {
		if f.Value != "" {
			e.field(f)
		}
	}
	e.fields(s.req.Fields)
	ended := s.reqEnded && len(s.body) == 0 && s.trailers == nil
	r.up.out = appendBlock(r.up.room(), e.block, id, endFlag(ended))
	if !ended {
		r.forwardKept(s)
	}
}

// forwardKept passes on what came while the request was not decided.
func (r *Relay) forwardKept(s *stream) {
	if s.window > 0 {
		r.up.out = appendWindowUpdate(r.up.room(), s.up, s.window)
	}
	for b := s.body; len(b) > 0; {
		f, err := nextFrame(b)
		if err != nil {
			break // they were whole
		}
		if p, err := f.unpad(); err == nil {
			r.countRequest(s, p)
		}
		f.renumber(s.up)
		r.up.out = append(r.up.room(), f.raw...)
		b = b[len(f.raw):]
	}
	r.pending -= len(s.body)
	s.body = nil
	if s.trailers != nil {
		r.passTrailers(s, s.trailers)
	}
}

// countRequest and countResponse count the messages of a call of gRPC that are passed
// on.
func (r *Relay) countRequest(s *stream, body []byte) {
	if s.grpc {
		if n := s.sends.count(body); n > 0 {
			r.cfg.Handler.Messages(n, 0)
		}
	}
}

func (r *Relay) countResponse(s *stream, body []byte) {
	if s.grpc {
		if n := s.gets.count(body); n > 0 {
			r.cfg.Handler.Messages(0, n)
		}
	}
}

func endFlag(end bool) byte {
	if end {
		return flagEndStream
	}
	return 0
}

// passTrailers ends a request with trailers, or without if none may pass.
func (r *Relay) passTrailers(s *stream, fields []Field) {
	fields = r.cfg.Handler.Trailers(&s.req, fields)
	if len(fields) == 0 {
		r.up.out = appendHead(r.up.room(), 0, frameData, flagEndStream, s.up)
		return
	}
	e := &r.up.enc
	e.block = e.block[:0]
	for i := range fields {
		e.field(fields[i])
	}
	r.up.out = appendBlock(r.up.room(), e.block, s.up, flagEndStream)
}

// answer responds for the application and ends the stream. What the client still
// sends for it is thrown away.
func (r *Relay) answer(s *stream, a *Answer) {
	e := &r.down.enc
	body := a.Body
	s.status = a.Status
	if s.grpc {
		s.status, s.grpcCode = 200, grpcCode(a.Status)
		e.begin(":status", "200")
		e.field(Field{Name: "content-type", Value: "application/grpc"})
		e.field(Field{Name: "grpc-status", Value: s.grpcCode})
		e.field(Field{Name: "grpc-message", Value: grpcMessage(body)})
		body = ""
	} else {
		if s.req.Method == http.MethodHead || !r.roomFor(s, len(body)) {
			body = ""
		}
		e.begin(":status", strconv.Itoa(a.Status))
		if body != "" || s.req.Method != http.MethodHead {
			e.field(Field{Name: "content-length", Value: strconv.Itoa(len(body))})
		} else {
			e.field(Field{Name: "content-length", Value: strconv.Itoa(len(a.Body))})
		}
		if a.Body != "" && !hasField(a.Fields, "content-type") {
			e.field(Field{Name: "content-type", Value: "text/plain"})
		}
	}
	for _, f := range a.Fields {
		if f.Name == "content-length" || s.grpc && f.Name == "content-type" {
			continue
		}
		e.field(f)
	}
	r.down.out = appendBlock(r.down.room(), e.block, s.id, endFlag(body == ""))
	if body != "" {
		r.down.out = append(appendHead(r.down.room(), len(body), frameData, flagEndStream, s.id), body...)
		r.window -= int64(len(body))
		r.debt += int64(len(body))
		s.responseBytes += int64(len(body))
	}
	s.responded = true
	r.finish(s, a.Flags)
}

// roomFor reports whether a body of ours may be sent now.
func (r *Relay) roomFor(s *stream, n int) bool {
	return n <= maxFrame && int64(n) <= r.down.window+int64(s.window) && int64(n) <= r.window && r.debt+int64(n) <= maxDebt && len(r.held) == 0
}

// half ends a stream that both sides have ended. An application may go on reading
// after its response, or not: it says so itself.
func (r *Relay) half(s *stream) {
	if s.reqEnded && s.answered {
		r.budgets.resets.earn()
		r.end(s, "-")
	}
}

// finish ends a stream with a response of ours: a client that is still sending is
// told to stop (RFC 9113 8.1).
func (r *Relay) finish(s *stream, flags string) {
	if !s.reqEnded {
		r.resetDown(s.id, noError)
	}
	r.end(s, flags)
}

// cutShort ends a request that may no longer go on.
func (r *Relay) cutShort(s *stream, a *Answer) {
	switch {
	case !s.responded:
		r.answer(s, a)
	case s.grpc:
		s.grpcCode = grpcCode(a.Status)
		e := &r.down.enc
		e.block = e.block[:0]
		e.field(Field{Name: "grpc-status", Value: s.grpcCode})
		e.field(Field{Name: "grpc-message", Value: grpcMessage(a.Body)})
		r.down.out = appendBlock(r.down.room(), e.block, s.id, flagEndStream)
		r.finish(s, a.Flags)
	default:
		r.resetDown(s.id, cancelled)
		r.end(s, a.Flags)
	}
}

// strike ends a stream for a fault of the client's.
func (r *Relay) strike(s *stream, code errorCode) error {
	r.resetDown(s.id, code)
	r.resetUp(s, cancelled)
	r.end(s, "DPE")
	return r.budgets.resets.spend("too many streams with errors")
}

func (r *Relay) resetDown(id uint32, code errorCode) {
	r.down.out = appendRST(r.down.room(), id, code)
	r.gone.add(id)
}

// resetUp ends a stream towards the application, which then knows nothing of it.
func (r *Relay) resetUp(s *stream, code errorCode) {
	if s.up != 0 && !r.dead {
		r.up.out = appendRST(r.up.room(), s.up, code)
	}
}

// end forgets a stream and says how it fared.
func (r *Relay) end(s *stream, flags string) {
	delete(r.streams, s.id)
	delete(r.byUp, s.up)
	r.heads -= s.heads
	r.pending -= len(s.body)
	if s.asking {
		s.asking = false
		s.cancel()
	}
	r.dropHeld(s)
	now := r.cfg.Now()
	r.cfg.Handler.Done(&s.req, Outcome{
		Status: s.status, GRPCStatus: s.grpcCode, Flags: flags, RequestBytes: s.requestBytes, ResponseBytes: s.responseBytes, Duration: now.Sub(s.started),
	})
	r.recycle(s)
	if len(r.streams) == 0 {
		r.wake.Broadcast()
	}
}

// dropHeld throws away what waits of a stream; the application may send as much
// again.
func (r *Relay) dropHeld(s *stream) {
	if len(r.held) == 0 {
		return
	}
	kept := r.held[:0]
	for _, h := range r.held {
		if h.s != s {
			kept = append(kept, h)
		} else if len(h.data) > headLen {
			r.up.credit += uint32(len(h.data) - headLen)
		}
	}
	clear(r.held[len(kept):])
	r.held = kept
}

// giveCredit returns window of the connection for what was thrown away.
func (s *side) giveCredit() {
	if s.credit > 0 {
		s.out = appendWindowUpdate(s.room(), 0, s.credit)
		s.credit = 0
	}
}
