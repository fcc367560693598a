package proxy

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"sync/atomic"

	"podseal.io/podseal/internal/h2"
	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/metrics"
	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/wire"
	"podseal.io/podseal/internal/workload"
)

// noServiceDecorator names a port that no service leads to (contract 2.40).
const noServiceDecorator = ":0/*"

// serveHTTP hands the connection to the relay that knows HTTP/1. The application
// is connected when the first request has come, unless it is already.
func (in *inbound) serveHTTP(ctx context.Context, client stream, first sight) {
	in.c.note(func(r *Record) { r.Protocol = "http" })
	count := in.p.metrics.HTTP(in.labels("http"))
	h := &httpRelay{
		Gate:   in.gate(),
		Client: client, First: first.client,
		Dial: func(ctx context.Context) (stream, error) {
			app, err := in.dialApp(ctx)
			if err != nil {
				return nil, err
			}
			if err := in.c.attach(app); err != nil {
				return nil, err
			}
			return app, nil
		},
		PeerURI: in.id.URI(), Decorator: in.decorator(), HTTP10: in.p.worlds.world().Mesh.HTTP10,
		IdleTimeout: in.p.idleTimeout(), Buffers: &in.p.httpBuffers, TLS: &in.p.tls, Draining: in.p.draining.Load,
		Received: &in.c.received, Sent: &in.c.sent,
		OnRequest: func(r RequestInfo) {
			in.c.requests.Add(1)
			count.Request(metrics.Answer{Code: r.Status, Flags: r.Flags, Took: r.Duration, RequestBytes: r.RequestBytes, ResponseBytes: r.ResponseBytes})
			in.logRequest(&r)
		},
		KeepHeads: in.p.accessLog.on,
	}
	if in.app != nil {
		h.App = in.app
	}
	if in.cert != nil {
		sum := sha256.Sum256(in.cert.Raw)
		h.PeerCertHash, h.PeerNames = hex.EncodeToString(sum[:]), namesIn(in.cert)
	}
	if snap := in.p.creds.current.Load(); snap != nil {
		h.OwnURI = snap.Credential.ID.URI()
	}
	var last atomic.Pointer[policy.Access]
	in.c.watch(func(w *workload.World, _ *identity.Snapshot) policy.Reason {
		if last.Swap(w.Access) != w.Access && !h.stillAllowed(w.Access) {
			return policy.PolicyChanged
		}
		return policy.None
	})
	in.c.mayRest(client)
	in.c.carry = func() { in.ended(h.serve(ctx)) }
}

// ended notes how a relay of HTTP ended.
func (in *inbound) ended(err error) {
	switch {
	case err == nil:
	case errors.Is(err, wire.ErrMalformed), errors.Is(err, wire.ErrTooLarge), errors.Is(err, h2.ErrProtocol), errors.Is(err, h2.ErrFlood):
		in.c.end(policy.BadRequest, err)
	case errors.Is(err, errHTTPApp), errors.Is(err, h2.ErrApp):
		in.c.end(policy.ConnectFailed, err)
	default:
		in.c.end(policy.None, err)
	}
}

// decorator names the operation as the response header shows it (contract 2.40).
func (in *inbound) decorator() string {
	if in.port.ServiceHost == "" {
		return noServiceDecorator
	}
	return serviceName(in.port.ServiceHost, in.port.ServicePort) + "/*"
}
