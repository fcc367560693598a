package proxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"

	"podseal.io/podseal/internal/wire"
)

// upstreamError is how Envoy's answers for an application that fails begin
// (contract 2.34).
const upstreamError = "upstream connect error or disconnect/reset before headers. reset reason: "

// respond passes the response of the exchange that has begun to the client. What
// follows an upgrade is left to tunnelBack.
func (h *httpRelay) respond(ctx context.Context) {
	ex := &h.ex
	before := h.Sent.Load()
	err := h.readResponse(ctx)
	if err != nil {
		h.failResponse(err)
		h.finish()
		return
	}
	h.reply = newHTTPBody(h.resp.Body)
	body := &h.reply
	ex.tunnel = h.resp.Body.Kind == wire.TunnelBody
	ex.keep = ex.keep && !ex.tunnel && h.resp.Body.Kind != wire.CloseBody && !h.draining()
	ex.keepApp = !ex.tunnel && h.resp.Body.Kind != wire.CloseBody && !h.resp.Close
	if err := h.writeResponse(body); err != nil {
		h.report(ex, h.resp.Status, responseFlag(err), h.Sent.Load()-before)
		h.abort()
		h.finish()
		return
	}
	if ex.tunnel {
		h.report(ex, h.resp.Status, "-", h.Sent.Load()-before)
		h.finish()
		return
	}
	if !body.done() {
		err = h.copyResponse(body)
		ex.ended = h.Now()
	}
	if !h.out.empty() {
		ex.keepApp = false // it has said more than it was asked for
	}
	h.out.release()
	if err != nil {
		h.endEarly(err)
		h.report(ex, h.resp.Status, responseFlag(err), h.Sent.Load()-before)
	} else {
		h.report(ex, h.resp.Status, "-", h.Sent.Load()-before)
	}
	h.finish()
}

// finish says that the response is out: the other goroutine, if there is one, may be
// reading from the client or still sending the request's body.
func (h *httpRelay) finish() {
	h.mu.Lock()
	h.answered = true
	h.underWay = h.underWay && h.ex.tunnel
	switch {
	case h.ex.tunnel:
	case h.ex.keep && h.ex.bodySent.Load():
		h.setIdle(h.ex.ended)
	default: // the rest of the request, or the client's end, must come soon
		h.ex.early = true
		end := h.Now().Add(httpLinger)
		_ = h.bound(end) // closed sockets fail at once
		if h.app != nil {
			_ = h.app.SetWriteDeadline(end)
		}
	}
	h.mu.Unlock()
	if !h.ex.keep && !h.ex.tunnel {
		_ = h.Client.CloseWrite() // the client may be gone, which is just as well
	}
}

// readResponse reads the final head into h.resp, passing interim ones on
// (contract 2.58). If the application had closed a connection that was kept, a
// request that may be sent twice is.
func (h *httpRelay) readResponse(ctx context.Context) error {
	ex := &h.ex
	for {
		n, err := h.parseResponse()
		if err != nil {
			if ex.reused && ex.replay && h.out.empty() && !errors.Is(err, wire.ErrMalformed) && h.resend(ctx) == nil {
				continue
			}
			return err
		}
		ex.reused = false
		switch {
		case h.resp.Status == 101 && (!ex.upgrade || h.resp.Upgrade == nil),
			h.resp.Body.Kind == wire.ChunkedBody && ex.minor == 0:
			return fmt.Errorf("%w: the client did not ask for it", wire.ErrMalformed)
		case h.resp.Status >= 200, h.resp.Status == 101:
			h.out.take(n)
			return nil
		}
		h.out.take(n)
		if ex.minor == 0 {
			continue // HTTP/1.0 knows no interim responses (RFC 9110 15.2)
		}
		h.response = appendInterim(h.response[:0], &h.resp)
		if err := h.write(h.response); err != nil {
			return err
		}
	}
}

func (h *httpRelay) parseResponse() (int, error) {
	for {
		if b := h.out.bytes(); len(b) > 0 {
			n, err := wire.ParseResponseHead(&h.resp, b, []byte(h.ex.method))
			if !errors.Is(err, wire.ErrShort) {
				return n, err
			}
		}
		if _, err := h.out.fill(h.app, &h.fromApp); err != nil {
			return 0, fmt.Errorf("read response: %w", err)
		}
	}
}

// writeResponse sends the head and, in the same piece, what is there of the body.
func (h *httpRelay) writeResponse(body *httpBody) error {
	h.ex.ended = h.Now()
	b := h.appendResponse(h.response[:0], &h.resp, &h.ex, h.ex.ended)
	h.noteReply(b)
	there := h.out.bytes()
	there = there[:min(len(there), httpCoalesce)]
	n, err := body.advance(there)
	if err != nil {
		n = 0 // the head still goes out: the body then ends early
	}
	b = append(b, there[:n]...)
	if cap(b) <= httpSmall {
		h.response = b
	}
	if err == nil && body.done() { // who has the answer must not see the request cut
		h.mu.Lock()
		h.underWay = false
		h.mu.Unlock()
	}
	if werr := h.write(b); werr != nil {
		return fmt.Errorf("%w: %w", errHTTPSink, werr)
	}
	h.out.take(n)
	return err
}

func (h *httpRelay) copyResponse(body *httpBody) error {
	c := httpCopy{tls: h.TLS, src: h.app, dst: h.Client, buffer: &h.out, body: body, received: &h.fromApp, sent: h.Sent, splice: true}
	return c.run()
}

// write sends to the client.
func (h *httpRelay) write(b []byte) error {
	n, err := h.Client.Write(b)
	h.Sent.Add(int64(n))
	if err != nil {
		return fmt.Errorf("write to the client: %w", err)
	}
	return nil
}

// endEarly ends a response whose body is not whole, so that the client sees
// that. A framed body shows it by itself, and what was sent of it stays
// readable; one that lasts as long as the connection needs a reset.
func (h *httpRelay) endEarly(err error) {
	h.ex.keep, h.ex.keepApp = false, false
	if h.resp.Body.Kind == wire.CloseBody || errors.Is(err, errHTTPSink) {
		h.abort()
		return
	}
	h.closeApp()
}

// tunnelBack passes bytes from the application on after an upgrade.
func (h *httpRelay) tunnelBack() {
	err := h.copyResponse(&httpBody{kind: wire.TunnelBody})
	if err == nil {
		err = h.Client.CloseWrite()
	}
	if err != nil && !isGone(err) {
		h.abort()
	}
}

// failResponse answers for an application that gave no response, unless nobody
// is there to read it.
func (h *httpRelay) failResponse(err error) {
	ex := &h.ex
	h.out.release()
	ex.keepApp = false
	ex.keep = ex.keep && ex.bodySent.Load() && !h.draining()
	switch {
	case httpFault(ex.fault.Load()) == faultClientGone:
		ex.keep, ex.ended = false, h.Now()
		h.report(ex, 0, "DC", 0)
	case httpFault(ex.fault.Load()) == faultBadBody:
		ex.keep = false
		h.answer(&localReply{status: 400, reason: "Bad Request", flag: "DPE"})
	case errors.Is(err, wire.ErrMalformed), errors.Is(err, wire.ErrTooLarge):
		h.answer(&localReply{status: 502, reason: "Bad Gateway", body: upstreamError + "protocol error", flag: "UPE", routed: true, upstream: true})
	default:
		h.answer(&localReply{status: 503, reason: "Service Unavailable", body: upstreamError + "connection termination", flag: "UC", routed: true, upstream: true})
	}
}

// responseFlag is Envoy's flag for a response that ended early.
func responseFlag(err error) string {
	switch {
	case errors.Is(err, errHTTPSink):
		return "DC"
	case errors.Is(err, wire.ErrMalformed), errors.Is(err, wire.ErrTooLarge):
		return "UPE"
	default:
		return "UC"
	}
}

// answer sends a response of our own and reports whether the connection goes on.
// Callers own the exchange.
func (h *httpRelay) answer(a *localReply) bool {
	ex := &h.ex
	h.mu.Lock()
	h.underWay = false
	h.mu.Unlock()
	ex.keep = ex.keep && !h.draining()
	ex.ended = h.Now()
	h.response = h.appendLocal(h.response[:0], ex, a, ex.ended)
	h.noteReply(h.response)
	ex.details = cmp.Or(ex.details, answerDetails(a.flag))
	err := h.write(h.response)
	h.report(ex, a.status, a.flag, int64(len(h.response)))
	if err != nil {
		ex.keep = false
		h.abort()
	}
	return ex.keep
}

// refuse answers a request that can't be read and ends the connection.
func (h *httpRelay) refuse(err error) error {
	ex := &h.ex
	status, reason := 400, "Bad Request"
	switch {
	case errors.Is(err, wire.ErrTooLarge):
		status, reason = 431, "Request Header Fields Too Large"
	case errors.Is(err, os.ErrDeadlineExceeded):
		status, reason = 408, "Request Timeout"
	case !errors.Is(err, wire.ErrMalformed):
		return err // nobody is there to be told
	}
	h.reset(ex, &wire.RequestHead{Head: wire.Head{Minor: 1}})
	ex.keep = false
	h.answer(&localReply{status: status, reason: reason, flag: "DPE"})
	h.linger()
	return err
}
