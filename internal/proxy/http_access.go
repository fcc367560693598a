package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"slices"

	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/wire"
)

// accessDenied is the body of a refusal (contract 6.38).
const accessDenied = "RBAC: access denied"

// normalisePath replaces the path by what policy judges and the application gets
// (contract 2.53). The target of CONNECT and `*` are no paths.
func (h *httpRelay) normalisePath(r *wire.RequestHead) error {
	if r.Path[0] != '/' || wire.IsNormalPath(r.Path) {
		return nil
	}
	path, err := wire.AppendNormalPath(h.path[:0], r.Path)
	if err != nil {
		return err
	}
	r.Path = path
	if cap(path) <= httpSmall {
		h.path = path
	}
	return nil
}

// judge asks the gate about the request with this head, and returns it as the
// application is to get it. size is how long the head is that came, which is still
// in the buffer.
func (h *httpRelay) judge(ctx context.Context, head []byte, size int, body wire.Body) (changed []byte, allowed bool) {
	if h.Gate == nil {
		return head, true
	}
	q := &h.asked
	q.read(head)
	q.Protocol, q.ReadAhead, q.Beside = "HTTP/1.1", nil, nil
	if h.Gate.waits() {
		q.Beside = h.beside
		if body.Kind != wire.NoBody {
			q.ReadAhead = func(_ context.Context, most int) ([]byte, bool, error) { return h.readAhead(size, body, most) }
		}
	}
	allowed = h.Gate.ask(ctx, &q.gatedRequest)
	if len(q.Edits) > 0 {
		head = editHead(head, q.Edits)
		q.read(head)
	}
	return head, allowed
}

// beside looks at the client while an authorizer is asked: one that resets its
// connection is gone, one that ends its direction may wait for HalfClosed longer.
func (h *httpRelay) beside(ctx context.Context) (asking context.Context, stop func() (gone bool)) {
	asking, cancel := context.WithCancel(ctx)
	h.mu.Lock()
	h.watch.hangUp = cancel
	h.watchClient()
	h.mu.Unlock()
	return asking, func() bool {
		defer cancel()
		_, err := h.unwatchClient()
		if err == nil && asking.Err() != nil && ctx.Err() == nil {
			err = errClientLeft
		}
		h.watch.hangUp, h.gone = nil, err
		return err != nil
	}
}

// readAhead reads the beginning of a body into the buffer behind its head, and
// returns it without its framing. A body that doesn't fit there is not whole.
func (h *httpRelay) readAhead(size int, body wire.Body, most int) (ahead []byte, whole bool, err error) {
	if _, waits := h.asked.fields.Field("expect"); waits {
		if err := h.write([]byte("HTTP/1.1 100 Continue\r\n\r\n")); err != nil {
			return nil, false, err
		}
	}
	_ = h.Client.SetReadDeadline(h.Now().Add(httpHeadTimeout)) // a closed socket fails at the read
	for {
		ahead, whole := bodySoFar(h.in.bytes()[size:], body)
		if whole || len(ahead) >= most {
			return ahead[:min(len(ahead), most)], whole && len(ahead) <= most, nil
		}
		_, err := h.in.fill(h.source, h.Received)
		if errors.Is(err, io.ErrShortBuffer) {
			return ahead, false, nil
		}
		if err != nil {
			return nil, false, fmt.Errorf("read the request's body: %w", err)
		}
	}
}

// bodySoFar is what is there of a body, without chunks, and whether that is all.
func bodySoFar(raw []byte, body wire.Body) (b []byte, whole bool) {
	if body.Kind == wire.LengthBody {
		n := min(int64(len(raw)), body.Length)
		return raw[:n], n == body.Length
	}
	b, err := io.ReadAll(httputil.NewChunkedReader(bytes.NewReader(raw)))
	return b, err == nil
}

// headerOnly reports whether no trailer of the request may have this name.
func (h *httpRelay) headerOnly(name []byte) bool {
	if h.Gate == nil {
		return onlyInHeader(string(name))
	}
	return h.Gate.headerOnly(&h.asked.gatedRequest, string(name))
}

// register puts a request that may pass under way, with what is there of its
// body: from now on every change of policy asks again, until it has its answer. It
// reports whether it may still pass.
func (h *httpRelay) register(head []byte) bool {
	h.mu.Lock()
	h.ex.head, h.underWay = head, true
	h.mu.Unlock()
	return h.Gate == nil || h.Gate.still(h.Gate.World().Access, &h.asked.gatedRequest)
}

// deny answers a request that may not pass (contract 6.38).
func (h *httpRelay) deny(r *refusal) bool {
	if r == &denied {
		h.ex.details = deniedDetails(h.asked.judgement.Rule)
	}
	return h.answer(&localReply{status: r.Status, reason: http.StatusText(r.Status), body: r.Body, header: r.Header, flag: r.Flag, routed: true})
}

// stillAllowed reports whether the request that is under way, if there is one,
// may go on. It may be called at any time.
func (h *httpRelay) stillAllowed(access *policy.Access) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !h.underWay || h.Gate == nil || h.Gate.still(access, &h.asked.gatedRequest)
}

// judgedRequest is a request as policy sees it: what the application gets, so
// that neither can be told something that the other is not.
type judgedRequest struct {
	gatedRequest
	fields headFields
}

// read takes the head apart, which this proxy has written itself.
func (q *judgedRequest) read(head []byte) {
	line, rest, _ := bytes.Cut(head, []byte("\r\n"))
	method, line, _ := bytes.Cut(line, []byte{' '})
	path := line
	if end := bytes.LastIndexByte(line, ' '); end >= 0 {
		path = line[:end]
	}
	q.fields = rest
	host, _ := q.fields.Field("host")
	q.Request.Method, q.Request.Host, q.Request.Path = method, host, path
	q.Fields = &q.fields
	q.Request.Header = q.Fields
}

// headFields are the fields of a head with lower-case names, up to the empty line.
type headFields []byte

// Field implements policy.Header.
func (f *headFields) Field(name string) (value []byte, ok bool) {
	for rest := []byte(*f); ; {
		var line []byte
		line, rest, _ = bytes.Cut(rest, []byte("\r\n"))
		if len(line) == 0 {
			return value, ok
		}
		if !isField(line, name) {
			continue
		}
		v := bytes.TrimLeft(line[len(name)+1:], " ")
		if !ok {
			value, ok = slices.Clip(v), true
			continue
		}
		value = append(append(value, ','), v...) // copies, as the first value has no room
	}
}

// Each implements fieldLister.
func (f *headFields) Each(visit func(name, value []byte) bool) {
	for rest := []byte(*f); ; {
		var line []byte
		line, rest, _ = bytes.Cut(rest, []byte("\r\n"))
		name, value, ok := bytes.Cut(line, []byte{':'})
		if !ok || !visit(name, bytes.TrimLeft(value, " ")) {
			return
		}
	}
}
