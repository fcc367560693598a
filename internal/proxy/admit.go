package proxy

import (
	"bytes"
	"context"
	"log/slog"
	"sync/atomic"

	"podseal.io/podseal/internal/extauthz"
	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/workload"
)

// attempt is what policy is told of this connection.
func (in *inbound) attempt() policy.Attempt {
	return policy.Attempt{
		Peer: policy.NewPeer(in.id), Source: addrPort(in.c.client.RemoteAddr()).Addr(), Destination: in.dst, SNI: []byte(in.sni),
	}
}

// gate is what the requests of this connection must pass.
func (in *inbound) gate() *gate {
	return &gate{
		World: in.p.worlds.world, Attempt: in.attempt(), Now: in.p.cfg.Now, OnJudged: in.judgedRequest, OnRefused: in.refusedRequest,
		Authorize: func(ctx context.Context, a *policy.Authorizer, r *extauthz.Request) (*extauthz.Answer, error) {
			return in.p.authorizers.ask(ctx, a, in.check(r))
		},
	}
}

// admitted reports whether a connection that isn't HTTP may reach the application,
// and cuts it if not (contract 6.9, 6.39): nothing of the application's has reached
// the client by then. Every change of policy asks again.
func (in *inbound) admitted(ctx context.Context) bool {
	a := &admission{attempt: in.attempt()}
	agreed, refusal := in.authorized(ctx, &a.attempt)
	a.attempt.Agreed = agreed
	in.c.watch(a.still)
	access := in.p.worlds.world().Access
	j := access.Judge(&a.attempt)
	in.c.note(func(r *Record) { r.judged(&j) })
	if !j.Allowed {
		if refusal == nil {
			refusal = errDetail(because(&j, access))
		}
		in.c.cut(policy.PolicyDenied, refusal)
	}
	return j.Allowed
}

// admission is what policy has said of a connection.
type admission struct {
	attempt policy.Attempt
	last    atomic.Pointer[policy.Access] // that was asked
}

// still is the check of every change of policy.
func (a *admission) still(w *workload.World, _ *identity.Snapshot) policy.Reason {
	if a.last.Swap(w.Access) != w.Access && w.Access.Pending() == "" && !w.Access.Still(&a.attempt) {
		return policy.PolicyChanged
	}
	return policy.None
}

// judgedRequest keeps what policy said of a request.
func (in *inbound) judgedRequest(j *policy.Judgement, r *policy.Request) {
	in.c.note(func(rec *Record) { rec.judged(j) })
	if !j.Allowed {
		in.refusedRequest(policy.PolicyDenied, because(j, in.p.worlds.world().Access), r)
	}
}

// refusedRequest counts a request that was refused. The first is logged at once,
// since the connection may last.
func (in *inbound) refusedRequest(reason policy.Reason, detail string, r *policy.Request) {
	var denied int64
	rule := ""
	in.c.note(func(rec *Record) {
		rec.RequestsDenied++
		denied, rule = rec.RequestsDenied, rec.Policy
	})
	in.p.metrics.Refused(directionInbound, string(reason))
	if denied > 1 {
		return
	}
	path, _, _ := bytes.Cut(r.Path, []byte{'?'})
	in.p.log.Info("request denied", slog.String("reason", string(reason)), slog.String("src_addr", in.c.client.RemoteAddr().String()),
		slog.String("src_identity", in.id.String()), slog.String("dst_addr", in.dst.String()), slog.String("policy", rule),
		slog.String("method", brief(string(r.Method), maxName)), slog.String("path", brief(string(path), maxName)),
		slog.String("error", brief(detail, maxError)))
}

// because says in a sentence why something was denied.
func because(j *policy.Judgement, access *policy.Access) string {
	switch {
	case access.Pending() != "":
		return "AuthorizationPolicy " + access.Pending() + " applies and is not known to this proxy yet"
	case j.Rule == "":
		return "no ALLOW policy matches"
	default:
		return "denied by " + j.Rule
	}
}

// judged notes what policy said. Of several requests the last counts for each
// field, but one that the dry-run policies would deny before one that they would
// not.
func (r *Record) judged(j *policy.Judgement) {
	if !j.Allowed {
		r.Policy = j.Rule
	}
	if j.Audited != "" {
		r.Audited = j.Audited
	}
	if j.DryRun.Judged && (r.DryRun != "denied" || !j.DryRun.Allowed) {
		r.DryRun, r.DryRunPolicy = "denied", j.DryRun.Rule
		if j.DryRun.Allowed {
			r.DryRun = "allowed"
		}
	}
}
