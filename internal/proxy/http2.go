package proxy

import (
	"bytes"
	"cmp"
	"context"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"podseal.io/podseal/internal/h2"
	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/wire"
)

// serverName is what the field `server` says (contract 2.37).
const serverName = "istio-envoy"

// http2Handler is what a relay of HTTP/2 asks about its requests: it changes their
// heads exactly as httpRelay does those of HTTP/1, and has the gate judge them.
type http2Handler struct {
	gate      *gate
	peer      bool   // the client has proved who it is
	element   string // our own of x-forwarded-client-cert
	decorator string
	rand      io.Reader
	now       func() time.Time
	done      func(r *h2.Request, o h2.Outcome)
	messages  func(requests, responses int) // of gRPC, as they pass; or nil
	keepHeads func() bool                   // done wants to see what was answered; or nil

	id      [16]byte
	scratch []byte
}

// http2Request is what is remembered of a request that the gate was asked about, or
// that named its operation.
type http2Request struct {
	gatedRequest
	decorated bool
	reply     []h2.Field // of the response, where heads are kept
	details   string     // what answered; "" for the application
}

// noteOf is what is remembered of a request.
func noteOf(r *h2.Request) *http2Request {
	q, ok := r.Note.(*http2Request)
	if !ok {
		q = &http2Request{}
		r.Note = q
	}
	return q
}

// http2Fields are the fields of a request.
type http2Fields struct{ r *h2.Request }

// Field implements policy.Header.
func (f http2Fields) Field(name string) ([]byte, bool) {
	if name == "host" {
		return []byte(f.r.Authority), f.r.Authority != ""
	}
	if name != "cookie" {
		v, ok := f.r.Field(name)
		return []byte(v), ok
	}
	var all []byte // its parts may come apart (RFC 9113 8.2.3)
	found := false
	for i := range f.r.Fields {
		if f.r.Fields[i].Name == name {
			if found {
				all = append(all, "; "...)
			}
			all, found = append(all, f.r.Fields[i].Value...), true
		}
	}
	return all, found
}

// Each implements fieldLister.
func (f http2Fields) Each(visit func(name, value []byte) bool) {
	if f.r.Authority != "" && !visit([]byte("host"), []byte(f.r.Authority)) {
		return
	}
	for i := range f.r.Fields {
		if !visit([]byte(f.r.Fields[i].Name), []byte(f.r.Fields[i].Value)) {
			return
		}
	}
}

// read takes what policy sees from the request, as the application gets it.
func (q *http2Request) read(r *h2.Request) {
	q.Request.Method, q.Request.Host, q.Request.Path = []byte(r.Method), []byte(r.Authority), []byte(r.Path)
	if r.Path == "" {
		q.Request.Path = q.Request.Host // as of a CONNECT in HTTP/1
	}
	q.Fields, q.Protocol = http2Fields{r}, "HTTP/2"
	q.Request.Header = q.Fields
}

// Request implements h2.Handler.
func (h *http2Handler) Request(r *h2.Request) (*h2.Answer, h2.Ask) {
	q, answer := h.rewrite(r)
	if answer != nil || h.gate == nil || h.gate.open() {
		return answer, nil
	}
	if q == nil {
		q = &http2Request{}
		r.Note = q
	}
	q.read(r)
	if !h.gate.waits() {
		return h.judged(r, q, h.gate.ask(context.Background(), &q.gatedRequest)), nil
	}
	return nil, func(ctx context.Context, body h2.Body) h2.Settle {
		q.ReadAhead = body
		allowed := h.gate.ask(ctx, &q.gatedRequest)
		q.ReadAhead = nil
		return func(r *h2.Request) *h2.Answer {
			if answer := h.judged(r, q, allowed); answer != nil {
				return answer
			}
			return h.stillAllowed(r, h.gate.World().Access) // it may have changed meanwhile
		}
	}
}

// judged makes the gate's changes, or its answer.
func (h *http2Handler) judged(r *h2.Request, q *http2Request, allowed bool) *h2.Answer {
	if !allowed {
		return h.refusal(r, q.Refusal)
	}
	if len(q.Edits) > 0 {
		editRequest(r, q.Edits)
		q.read(r)
	}
	return nil
}

func (h *http2Handler) refusal(r *h2.Request, refused *refusal) *h2.Answer {
	if refused == nil {
		refused = &denied // the stream has ended meanwhile
	}
	a := &h2.Answer{Status: refused.Status, Body: refused.Body, Flags: refused.Flag}
	for _, f := range refused.Header {
		a.Fields = append(a.Fields, h2.Field{Name: f.Name, Value: f.Value})
	}
	if q, ok := r.Note.(*http2Request); ok && refused == &denied {
		q.details = deniedDetails(q.judgement.Rule)
	}
	return h.own(r, a, true, false)
}

// stillAllowed returns the answer to a request that may no longer go on, or nil.
func (h *http2Handler) stillAllowed(r *h2.Request, access *policy.Access) *h2.Answer {
	q, ok := r.Note.(*http2Request)
	if !ok || q.Fields == nil {
		q = &http2Request{} // nothing restricted it when it came
		q.read(r)
	}
	if h.gate.still(access, &q.gatedRequest) {
		return nil
	}
	return h.refusal(r, &denied)
}

// editRequest makes the gate's changes to a head.
func editRequest(r *h2.Request, edits []headEdit) {
	for _, e := range edits {
		switch {
		case e.Name == ":path":
			r.Path = e.Value
			continue
		case e.Name == "host" && e.Put:
			r.Authority = e.Value
			continue
		case !e.Keep:
			r.Fields = slices.DeleteFunc(r.Fields, func(f h2.Field) bool { return f.Name == e.Name })
		}
		if e.Put {
			r.Fields = append(r.Fields, h2.Field{Name: e.Name, Value: e.Value})
		}
	}
}

// rewrite makes of a request what the application gets (contract 2.40-2.54). It
// returns what is to be remembered, nil if nothing is.
func (h *http2Handler) rewrite(r *h2.Request) (q *http2Request, answer *h2.Answer) {
	if answer := h.normalisePath(r); answer != nil {
		return nil, answer
	}
	var proto, id bool
	var claimed strings.Builder
	kept := r.Fields[:0]
	for _, f := range r.Fields {
		switch f.Name {
		case "x-request-id":
			id = true
		case "x-forwarded-proto":
			proto = true
		case wire.ClientCertField: // contract 2.46, 2.47
			if h.peer && f.Value != "" && quotesClose([]byte(f.Value)) {
				claimed.WriteString(f.Value + ",")
			}
			continue
		case "x-envoy-decorator-operation": // contract 2.40
			if q == nil {
				q = &http2Request{decorated: true}
				r.Note = q
			}
			continue
		case "http2-settings":
			continue
		default:
			if dropped(f.Name) {
				continue
			}
		}
		kept = append(kept, f)
	}
	if !proto {
		kept = append(kept, h2.Field{Name: "x-forwarded-proto", Value: "http"}) // contract 2.44
	}
	if !id {
		kept = append(kept, h2.Field{Name: "x-request-id", Value: h.requestID()})
	}
	if h.peer {
		kept = append(kept, h2.Field{Name: wire.ClientCertField, Value: claimed.String() + h.element})
	}
	r.Fields = kept
	return q, nil
}

// dropped reports whether a field of a client is not for the application.
func dropped(name string) bool {
	return proxyOnly(name) || len(name) == len(wire.ClientCertField) && wire.IsClientCert([]byte(name))
}

// normalisePath is httpRelay.normalisePath.
func (h *http2Handler) normalisePath(r *h2.Request) *h2.Answer {
	if r.Path == "" || r.Path[0] != '/' {
		return nil
	}
	h.scratch = append(h.scratch[:0], r.Path...)
	if wire.IsNormalPath(h.scratch) {
		return nil
	}
	path, err := wire.AppendNormalPath(nil, h.scratch)
	if err != nil {
		return h.own(r, &h2.Answer{Status: 400, Flags: "DPE"}, false, false)
	}
	r.Path = string(path)
	return nil
}

// requestID is a random UUID, or "" if there is no randomness.
func (h *http2Handler) requestID() string {
	if _, err := io.ReadFull(h.rand, h.id[:]); err != nil {
		return ""
	}
	h.scratch = appendUUID(h.scratch[:0], &h.id)
	return string(h.scratch)
}

// Trailers implements h2.Handler: a server that joins trailers to the header must not
// learn from them what only a header may say.
func (h *http2Handler) Trailers(r *h2.Request, fields []h2.Field) []h2.Field {
	var asked *gatedRequest
	if q, ok := r.Note.(*http2Request); ok {
		asked = &q.gatedRequest
	} else if h.gate != nil && !h.gate.open() {
		asked = &gatedRequest{} // nothing restricted it when it came
	}
	return slices.DeleteFunc(fields, func(f h2.Field) bool { return h.gate.headerOnly(asked, f.Name) })
}

// Response implements h2.Handler (contract 2.37-2.41), as httpRelay.appendResponse.
func (h *http2Handler) Response(r *h2.Request, res *h2.Response) {
	q, _ := r.Note.(*http2Request)
	var reply []headEdit
	if q != nil {
		reply = q.Reply
	}
	server, date := false, false
	kept := res.Fields[:0]
	for _, f := range res.Fields {
		switch {
		case len(reply) > 0 && replaces(reply, []byte(f.Name)):
			continue
		case f.Name == "server":
			if server {
				continue
			}
			server, f = true, h2.Field{Name: "server", Value: serverName}
		case f.Name == "date":
			date = true
		case f.Name == "x-envoy-upstream-service-time", f.Name == "x-envoy-decorator-operation":
			continue
		}
		kept = append(kept, f)
	}
	now := h.now()
	kept = append(kept, serviceTime(r, now))
	if !date {
		kept = append(kept, h2.Field{Name: "date", Value: now.UTC().Format(httpDate)})
	}
	if !server {
		kept = append(kept, h2.Field{Name: "server", Value: serverName})
	}
	for i := range reply {
		if reply[i].Put {
			kept = append(kept, h2.Field{Name: reply[i].Name, Value: reply[i].Value})
		}
	}
	res.Fields = h.decorate(r, kept)
	h.keepReply(r, res.Fields, "")
}

// keepReply remembers an answer's fields and what answered, if that is wanted.
func (h *http2Handler) keepReply(r *h2.Request, fields []h2.Field, details string) {
	if h.keepHeads == nil || !h.keepHeads() {
		return
	}
	q := noteOf(r)
	q.reply, q.details = slices.Clone(fields), cmp.Or(q.details, details)
}

// Interim implements h2.Handler (contract 2.58).
func (h *http2Handler) Interim(res *h2.Response) {
	res.Fields = slices.DeleteFunc(res.Fields, func(f h2.Field) bool {
		return f.Name == "server" || f.Name == "x-envoy-upstream-service-time" || f.Name == "x-envoy-decorator-operation"
	})
}

// Fault implements h2.Handler (contract 2.34).
func (h *http2Handler) Fault(r *h2.Request, f h2.Fault) *h2.Answer {
	switch f {
	case h2.TooLarge:
		return h.own(r, &h2.Answer{Status: 431, Flags: "DPE"}, false, false)
	case h2.Unreachable:
		return h.own(r, &h2.Answer{Status: 503, Body: upstreamError + "remote connection failure", Flags: "UF"}, true, true)
	case h2.NoHTTP2:
		return h.own(r, &h2.Answer{Status: 502, Body: upstreamError + "protocol error", Flags: "UPE"}, true, true)
	default:
		return h.own(r, &h2.Answer{Status: 503, Body: upstreamError + "connection termination", Flags: "UC"}, true, true)
	}
}

// own adds to an answer what each of this proxy's has.
func (h *http2Handler) own(r *h2.Request, a *h2.Answer, routed, upstream bool) *h2.Answer {
	now := h.now()
	a.Fields = append(a.Fields, h2.Field{Name: "date", Value: now.UTC().Format(httpDate)}, h2.Field{Name: "server", Value: serverName})
	if upstream {
		a.Fields = append(a.Fields, serviceTime(r, now))
	}
	if routed {
		a.Fields = h.decorate(r, a.Fields)
	}
	h.keepReply(r, a.Fields, answerDetails(a.Flags))
	return a
}

func serviceTime(r *h2.Request, now time.Time) h2.Field {
	return h2.Field{Name: "x-envoy-upstream-service-time", Value: strconv.FormatInt(max(0, now.Sub(r.Sent).Milliseconds()), 10)}
}

// decorate names the operation to a client that is no proxy (contract 2.40).
func (h *http2Handler) decorate(r *h2.Request, fields []h2.Field) []h2.Field {
	if h.peer || h.decorator == "" {
		return fields
	}
	if q, ok := r.Note.(*http2Request); ok && q.decorated {
		return fields
	}
	return append(fields, h2.Field{Name: "x-envoy-decorator-operation", Value: h.decorator})
}

// Messages implements h2.Handler (contract 7.2).
func (h *http2Handler) Messages(requests, responses int) {
	if h.messages != nil {
		h.messages(requests, responses)
	}
}

// Done implements h2.Handler.
func (h *http2Handler) Done(r *h2.Request, o h2.Outcome) {
	if h.done != nil {
		h.done(r, o)
	}
}

// speaksHTTP2 reports whether what an application says first are the SETTINGS of an
// HTTP/2 server: it is then no protocol whose server speaks first.
func speaksHTTP2(b []byte) bool {
	return len(b) >= 9 && bytes.Equal(b[3:9], []byte{4, 0, 0, 0, 0, 0}) && b[0] == 0 && b[2]%6 == 0
}
