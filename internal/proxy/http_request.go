package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"podseal.io/podseal/internal/tlsconn"
	"podseal.io/podseal/internal/wire"
)

// firstReader gives back what was read before, then goes on with the connection.
type firstReader struct {
	first []byte
	rest  io.Reader
}

func (r *firstReader) Read(b []byte) (int, error) {
	if len(r.first) == 0 {
		return r.rest.Read(b)
	}
	n := copy(b, r.first)
	r.first = r.first[n:]
	return n, nil
}

// nextHead waits for the next request, parses its head into h.req and returns
// its length. io.EOF means that no request comes any more.
func (h *httpRelay) nextHead() (int, error) {
	h.in.shrink()
	begun := false
	fresh := h.in.bytes()
	for {
		// Only a line end can complete a head: without one nothing is parsed again.
		if b := h.skipEmptyLine(); len(b) > 0 && (!begun || len(b) >= wire.MaxHead || bytes.IndexByte(fresh, '\n') >= 0) {
			n, err := wire.ParseRequestHead(&h.req, b)
			if err == nil || !errors.Is(err, wire.ErrShort) {
				return n, err
			}
			if !begun {
				begun = true
				_ = h.bound(h.Now().Add(httpHeadTimeout)) // a closed socket fails at the read
			}
		}
		var err error
		if fresh, err = h.in.fill(h.source, h.Received); err != nil {
			if !begun && errors.Is(err, os.ErrDeadlineExceeded) {
				if !h.idleOver() {
					continue
				}
				return 0, io.EOF
			}
			if !begun && errors.Is(err, io.EOF) {
				return 0, io.EOF
			}
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return 0, fmt.Errorf("read request: %w", err)
		}
	}
}

// skipEmptyLine passes over an empty line before a request, which some clients
// send after a body (RFC 9112 2.2). A CR that may begin one is waited on.
func (h *httpRelay) skipEmptyLine() []byte {
	b := h.in.bytes()
	switch {
	case bytes.HasPrefix(b, []byte("\r\n")):
		h.in.take(2)
	case string(b) == "\r":
		return nil
	}
	return h.in.bytes()
}

// exchange passes the request in h.req, whose head is size bytes long, to the
// application and waits until it is answered. It reports whether the connection
// goes on.
func (h *httpRelay) exchange(ctx context.Context, size int) (next bool, err error) {
	ex, r := &h.ex, &h.req
	h.reset(ex, r)
	if r.Minor == 0 && !h.HTTP10 {
		ex.minor, ex.keep = 1, false
		h.answer(&localReply{status: 426, reason: "Upgrade Required", flag: "DPE"}) // contract 2.55
		h.linger()
		return false, nil
	}
	if err := h.normalisePath(r); err != nil {
		return false, h.refuse(err)
	}
	head, decorated, err := h.appendRequest(ex.head[:0], r)
	if err != nil {
		return false, err
	}
	ex.decorated = decorated
	head, allowed := h.judge(ctx, head, size, r.Body)
	if ex.size = int64(size); h.keepHeads() {
		ex.seen = head
	}
	if h.gone != nil {
		ex.received.Store(int64(size))
		ex.ended = h.Now()
		h.report(ex, 0, "DC", 0)
		h.abort()
		return false, h.gone
	}
	h.body = newHTTPBody(r.Body)
	body := &h.body
	if body.kind == wire.ChunkedBody {
		body.chunks.HeaderOnly = h.headerOnly
	}
	ex.replay = body.done() && safeMethod(ex.method)
	h.in.take(size)
	there := h.in.bytes()
	there = there[:min(len(there), httpCoalesce)]
	n, err := body.advance(there)
	if err != nil {
		return false, h.refuse(err)
	}
	h.in.take(n)
	ex.received.Store(int64(size + n))
	answer := h.asked.Refusal
	if allowed && !h.register(append(head, there[:n]...)) {
		allowed, answer = false, &denied
	}
	if !allowed {
		ex.keep = ex.keep && body.done()
		if next = h.deny(answer); !next {
			h.linger()
		}
		return next, nil
	}

	failed, err := h.forward(ctx)
	h.appErr = nil
	if err != nil {
		h.appErr = fmt.Errorf("%w: %w", errHTTPApp, err)
		ex.keep = ex.keep && body.done()
		if next = h.answer(&localReply{status: 503, reason: "Service Unavailable", body: upstreamError + "remote connection failure", flag: "UF", routed: true, upstream: true}); !next { // contract 2.34
			h.linger()
		}
		return next, nil
	}
	if body.done() {
		return h.inTurn(ctx)
	}
	return h.bothWays(ctx, failed)
}

// bothWays passes the response on while the rest of the request is sent.
func (h *httpRelay) bothWays(ctx context.Context, failed bool) (next bool, err error) {
	h.start()
	h.work.Go(func() {
		h.respond(ctx)
		tunnel := h.ex.tunnel
		h.done <- struct{}{}
		if tunnel {
			h.tunnelBack()
		}
	})
	if whole, err := h.sendBody(&h.body, failed); !whole {
		return false, err
	}
	return h.await()
}

// inTurn passes the response on when the request has been sent.
func (h *httpRelay) inTurn(ctx context.Context) (next bool, err error) {
	h.ex.bodySent.Store(true)
	h.mu.Lock()
	h.answered = false
	h.watchClient()
	h.mu.Unlock()
	h.respond(ctx)
	ended, err := h.unwatchClient()
	if err != nil {
		return false, err
	}
	if h.ex.tunnel {
		h.work.Go(h.tunnelBack)
	}
	return h.after(ended)
}

// reset makes ex that of a new request.
func (h *httpRelay) reset(ex *httpExchange, r *wire.RequestHead) {
	head := ex.head
	if cap(head) > httpSmall {
		head = nil
	}
	ex.bodySent.Store(false)
	ex.fault.Store(0)
	h.mu.Lock()
	h.underWay, ex.head = false, head[:0]
	h.mu.Unlock()
	ex.method, ex.minor = methodName(r.Method), r.Minor
	ex.keep, ex.keepApp, ex.tunnel, ex.early = !r.Close && r.Minor == 1, false, false, false
	ex.upgrade, ex.decorated, ex.reused, ex.replay = upgradeOf(r) != nil, false, false, false
	ex.started = h.Now()
	ex.sent, ex.ended = ex.started, ex.started
	ex.received.Store(0)
	ex.size, ex.seen, ex.reply, ex.replySize, ex.details = 0, nil, ex.reply[:0], 0, ""
}

// methodName is the method as a string, without allocation for the usual ones.
func methodName(b []byte) string {
	for _, m := range [...]string{"GET", "POST", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "CONNECT"} {
		if string(b) == m {
			return m
		}
	}
	return string(b)
}

// safeMethod reports whether doing a request twice does no more than once (RFC 9110 9.2.1).
func safeMethod(m string) bool { return m == "GET" || m == "HEAD" || m == "OPTIONS" }

// start prepares for a response that comes while the request is still being sent.
func (h *httpRelay) start() {
	h.ex.bodySent.Store(false)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.answered = false
	_ = h.bound(time.Time{}) // a body may pause (contract 2.56)
}

// forward sends ex.head to the application. failed says that it took not all of
// it: there may be an answer nevertheless. An error means that the application
// can't be reached.
func (h *httpRelay) forward(ctx context.Context) (failed bool, err error) {
	ex := &h.ex
	if ex.reused = h.app != nil; ex.reused && !alive(h.app) {
		h.dropApp() // it closed its end between requests
		ex.reused = false
	}
	if h.app == nil {
		if err := h.connect(ctx); err != nil {
			return false, err
		}
	}
	if !ex.reused || h.Gate != nil && h.Gate.waits() {
		ex.sent = h.Now() // else no time has passed
	}
	_, err = h.app.Write(ex.head)
	if err != nil && ex.reused && ex.replay {
		return false, h.resend(ctx)
	}
	return err != nil, nil
}

// resend sends the request on a new connection, once.
func (h *httpRelay) resend(ctx context.Context) error {
	h.ex.reused, h.ex.replay = false, false
	h.dropApp()
	if err := h.connect(ctx); err != nil {
		return err
	}
	h.ex.sent = h.Now()
	if _, err := h.app.Write(h.ex.head); err != nil {
		return fmt.Errorf("send request again: %w", err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.clientEnded {
		_ = h.app.CloseWrite() // as in endRequests
	}
	return nil
}

// alive reports whether an idle connection to the application can still be
// used: it has not been closed, and nothing unasked has come on it.
func alive(app stream) bool {
	tcp, ok := app.(*tlsconn.Plain)
	return !ok || tcp.Quiet()
}

// sendBody passes the rest of the request's body on and reports whether it did
// to the end; if not, the exchange is over. An application that takes no more of
// it may still answer: the rest is then read and thrown away.
func (h *httpRelay) sendBody(body *httpBody, failed bool) (whole bool, err error) {
	c := httpCopy{tls: h.TLS, src: h.source, dst: h.app, buffer: &h.in, body: body, received: h.Received, sent: &h.toApp, discard: failed}
	before := h.toApp.Load()
	if err = c.run(); errors.Is(err, errHTTPSink) {
		c.discard = true
		err = c.run()
	}
	h.ex.received.Add(h.toApp.Load() - before)
	if err == nil {
		h.wholeSent()
		return true, nil
	}
	fault := faultClientGone
	if errors.Is(err, wire.ErrMalformed) || errors.Is(err, wire.ErrTooLarge) {
		fault = faultBadBody
	}
	h.mu.Lock()
	answered := h.answered
	h.mu.Unlock()
	if answered { // the client had its time to finish
		<-h.done
		return false, nil
	}
	h.ex.fault.Store(int32(fault))
	h.closeApp() // which sees that the body is not whole, and wakes respond
	if fault == faultClientGone {
		h.abort()
	}
	<-h.done
	if fault == faultBadBody {
		h.linger()
	}
	return false, fmt.Errorf("request body: %w", err)
}

// wholeSent notes that the request has been sent. If the response was out before that
// was known, it has set a time for the rest of the request, which is taken away.
func (h *httpRelay) wholeSent() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ex.bodySent.Store(true)
	if !h.answered || !h.ex.early || !h.ex.keep {
		return
	}
	h.ex.early = false
	h.setIdle(h.ex.ended)
	if h.app != nil {
		_ = h.app.SetWriteDeadline(time.Time{}) // a closed socket fails at the write
	}
}

// await waits for the response. Meanwhile it reads from the client: the next
// request is kept until its turn, an end of stream is passed on to the
// application, which may answer nevertheless, and an error ends the exchange.
func (h *httpRelay) await() (next bool, err error) {
	ended := false
	for !ended && h.in.empty() {
		_, err := h.in.fill(h.source, h.Received)
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded):
			ended = h.waitOver()
		case errors.Is(err, io.EOF):
			ended = true
			h.endRequests()
		default:
			if !h.isAnswered() {
				h.ex.fault.Store(int32(faultClientGone))
				h.abort()
			}
			<-h.done
			return false, fmt.Errorf("read from the client: %w", err)
		}
	}
	<-h.done
	return h.after(ended)
}

// after follows a response that is out. ended says that the client has ended its
// direction. It reports whether the connection goes on.
func (h *httpRelay) after(ended bool) (next bool, err error) {
	switch {
	case h.ex.tunnel:
		return false, h.tunnel(ended)
	case ended:
		return false, nil
	case !h.ex.keep:
		h.linger()
		return false, nil
	case !h.ex.keepApp:
		h.dropApp()
	}
	if h.ex.early {
		h.mu.Lock()
		h.setIdle(h.Now())
		h.mu.Unlock()
		if h.app != nil {
			_ = h.app.SetWriteDeadline(time.Time{}) // a closed socket fails at the write
		}
	}
	return true, nil
}

// waitOver reports whether the client has had its time when a deadline has passed:
// that of an earlier wait is taken away, or put off.
func (h *httpRelay) waitOver() bool {
	if !h.isAnswered() {
		return false
	}
	return h.idleOver()
}

// isAnswered reports whether the response is out. If it isn't, the deadline of
// an earlier wait is taken away.
func (h *httpRelay) isAnswered() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.answered {
		_ = h.bound(time.Time{}) // a closed socket fails at the read
	}
	return h.answered
}

// endRequests passes the client's end of stream on while the application works
// on the last request. Between requests there is nothing to say.
func (h *httpRelay) endRequests() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clientEnded = true
	if !h.answered && h.app != nil {
		_ = h.app.CloseWrite() // the application may be gone, which its answer will show
	}
}

// tunnel passes bytes from the client on after an upgrade (contract 2.51).
func (h *httpRelay) tunnel(ended bool) error {
	if !ended {
		_ = h.bound(time.Time{}) // a closed socket fails at the read
		c := httpCopy{tls: h.TLS, src: h.source, dst: h.app, buffer: &h.in, body: &httpBody{kind: wire.TunnelBody}, received: h.Received, sent: &h.toApp}
		if err := c.run(); err != nil {
			h.abort() // which ends the other direction too
			return fmt.Errorf("tunnel: %w", err)
		}
	}
	if err := h.app.CloseWrite(); err != nil && !isGone(err) {
		h.abort()
		return fmt.Errorf("end tunnel: %w", err)
	}
	return nil
}

// linger lets the client read the response before the connection is closed: it
// ends our direction, and throws away what the client still sends for a while.
func (h *httpRelay) linger() {
	if h.Client.CloseWrite() != nil || h.bound(h.Now().Add(httpLinger)) != nil {
		return
	}
	for {
		h.in.take(len(h.in.bytes()))
		if _, err := h.in.fill(h.source, h.Received); err != nil {
			return
		}
	}
}
