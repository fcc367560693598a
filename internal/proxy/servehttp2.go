package proxy

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"sync/atomic"
	"time"

	"podseal.io/podseal/internal/h2"
	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/metrics"
	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/workload"
)

// serveHTTP2 hands the connection to the relay that knows HTTP/2. The application
// gets HTTP/2, too (contract 2.59).
func (in *inbound) serveHTTP2(ctx context.Context, client stream, first sight) {
	in.c.note(func(r *Record) { r.Protocol = "http" })
	h := in.http2Handler()
	cfg := h2.Config{
		Client: client, First: first.client, FirstApp: first.app, Handler: h,
		Dial: func(ctx context.Context) (h2.Conn, error) {
			if err := in.connect(ctx); err != nil {
				return nil, err
			}
			return in.app, nil
		},
		IdleTimeout: in.p.idleTimeout(), Now: time.Now, Buffers: &in.p.h2Buffers, Received: &in.c.received, Sent: &in.c.sent,
	}
	if in.app != nil {
		cfg.App = in.app
	}
	relay := h2.New(cfg)
	var last atomic.Pointer[policy.Access]
	in.c.watch(func(w *workload.World, _ *identity.Snapshot) policy.Reason {
		if last.Swap(w.Access) != w.Access {
			in.recheckHTTP2(relay, h, w.Access)
		}
		return policy.None
	})
	in.c.onDrain(relay.Drain)
	if in.p.draining.Load() {
		relay.Drain()
	}
	in.c.carry = func() { in.ended(relay.Serve(ctx)) }
}

func (in *inbound) http2Handler() *http2Handler {
	plain, calls := in.p.metrics.HTTP(in.labels("http")), in.p.metrics.HTTP(in.labels("grpc"))
	h := &http2Handler{
		gate: in.gate(), peer: in.id.URI() != "", decorator: in.decorator(), rand: rand.Reader, now: time.Now,
		keepHeads: in.p.accessLog.on, messages: calls.Messages,
		done: func(r *h2.Request, o h2.Outcome) {
			in.c.requests.Add(1)
			in.logRequest2(r, &o)
			answer := metrics.Answer{Code: o.Status, Flags: o.Flags, Took: o.Duration, RequestBytes: o.RequestBytes + headSize(r), ResponseBytes: o.ResponseBytes}
			if r.GRPC() {
				answer.GRPC = o.GRPCStatus
				calls.Request(answer)
				return
			}
			plain.Request(answer)
		},
	}
	if in.cert != nil {
		own := ""
		if snap := in.p.creds.current.Load(); snap != nil {
			own = snap.Credential.ID.URI()
		}
		sum := sha256.Sum256(in.cert.Raw)
		h.element = string(appendElement(nil, own, hex.EncodeToString(sum[:]), in.id.URI(), namesIn(in.cert)))
	}
	return h
}

// headSize is how large the head of a request is, in bytes, before it is compressed.
func headSize(r *h2.Request) int64 {
	n := len(r.Method) + len(r.Authority) + len(r.Path)
	for i := range r.Fields {
		n += len(r.Fields[i].Name) + len(r.Fields[i].Value)
	}
	return int64(n)
}

// recheckHTTP2 ends the requests that are no longer allowed; the others go on.
func (in *inbound) recheckHTTP2(relay *h2.Relay, h *http2Handler, access *policy.Access) {
	relay.Recheck(func(r *h2.Request) *h2.Answer {
		a := h.stillAllowed(r, access)
		if a != nil {
			in.c.note(func(rec *Record) { rec.RequestsDenied++ })
			in.p.metrics.Refused(directionInbound, string(policy.PolicyChanged))
		}
		return a
	})
}
