package policy

import "sync/atomic"

// Outcome is what became of what a rule has matched.
type Outcome int

// The outcomes.
const (
	OutcomeAllowed Outcome = iota + 1
	OutcomeDenied
	OutcomeCut     // it was open, and is no longer allowed
	OutcomeAudited // contract 6.3
	OutcomeAsked   // an authorizer (contract 6.44)
	OutcomeDryRun  // without effect (contract 6.42)
)

func (o Outcome) String() string {
	if o < OutcomeAllowed || o > OutcomeDryRun {
		return "unknown"
	}
	return [...]string{"", "allowed", "denied", "cut", "audited", "asked", "dry_run"}[o]
}

// NoRule stands for the rule in what no rule has matched: ALLOW policies deny that
// together (contract 6.5).
const NoRule = -1

// hits are the outcomes since somebody took them, a bit each. Who judges reads one
// word that is there already, and writes it only if nobody has since: no clock, no
// memory, no contention.
type hits struct{ bits uint32 } //nolint:modernize // a rule is copied while it is built

func (h *hits) note(o Outcome) {
	if bit := uint32(1) << o; atomic.LoadUint32(&h.bits)&bit == 0 {
		atomic.OrUint32(&h.bits, bit)
	}
}

func (h *hits) take(visit func(Outcome)) {
	if atomic.LoadUint32(&h.bits) == 0 {
		return
	}
	bits := atomic.SwapUint32(&h.bits, 0)
	for o := OutcomeAllowed; o <= OutcomeDryRun; o++ {
		if bits&(1<<o) != 0 {
			visit(o)
		}
	}
}

// Matched visits what has matched since it was asked last: the key of the policy, the
// number of its rule or [NoRule], and what became of it.
func (a *Access) Matched(visit func(key string, rule int, o Outcome)) {
	if a == nil {
		return
	}
	for _, b := range []*table{&a.http, &a.tcp} {
		for i := range b.custom {
			b.custom[i].rule.take(visit)
		}
		for _, rules := range [][]rule{b.deny, b.audit, b.allow, b.dryDeny, b.dryAllow} {
			for i := range rules {
				rules[i].take(visit)
			}
		}
		b.unmatched.take(func(o Outcome) {
			for _, key := range b.restricting {
				visit(key, NoRule, o)
			}
		})
	}
}

func (r *rule) take(visit func(key string, rule int, o Outcome)) {
	r.hits.take(func(o Outcome) { visit(r.policy, r.number, o) })
}

// Matched visits whose tokens were taken or refused since it was asked last: the key
// of the RequestAuthentication and the number of its rule.
func (a *Authentication) Matched(visit func(key string, rule int, o Outcome)) {
	if a == nil {
		return
	}
	for i := range a.rules {
		r := &a.rules[i]
		r.hits.take(func(o Outcome) { visit(r.object, r.number, o) })
	}
}
