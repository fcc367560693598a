package policy

import (
	"errors"
	"net/netip"
	"slices"

	"podseal.io/podseal/internal/identity"
)

// Attempt is what is judged: a connection, or one HTTP request on it.
type Attempt struct {
	Peer        Peer
	Source      netip.Addr     // of the TCP peer (contract 6.28)
	Destination netip.AddrPort // as the connection had it, so the workload's own port (contract 6.27)
	SNI         []byte         // as the client sent it
	Request     *Request       // nil on a connection that isn't HTTP
	Agreed      []string       // names of the authorizers that have agreed to it (contract 6.44)
}

// Request is what HTTP adds to an Attempt.
type Request struct {
	Method []byte
	Host   []byte // with the port, if it was sent (contract 6.25)
	Path   []byte // normalised; a query is passed over (contract 6.24)
	Header Header // nil is no field
	Token  *Token // nil without one that was validated
}

// Header looks up a request's field by its name in lower case. Values of several
// are joined with commas (contract 6.31).
type Header interface {
	Field(name string) (value []byte, ok bool)
}

// Token is what a validated JWT says. Claims are as encoding/json decodes them.
type Token struct {
	Issuer, Subject string
	Audiences       []string
	Presenter       string
	Claims          map[string]any
}

// Peer is who the client has proved to be; the zero Peer has proved nothing, and
// no principal matches it (contract 6.19, 6.20).
type Peer struct {
	id   identity.ID
	text []byte // as principals are written
}

// NewPeer makes a Peer of an identity, once per connection.
func NewPeer(id identity.ID) Peer {
	if id.IsZero() {
		return Peer{}
	}
	return Peer{id, []byte(id.String())}
}

// Judgement says whether an attempt may go on, and why.
type Judgement struct {
	Allowed bool
	// Rule is the name (contract 6.11) of the rule that decided. It is "" when
	// none did: nothing restricts, or no ALLOW policy matched.
	Rule string
	// Audited is the name of a rule with effect AUDIT that matched.
	Audited string
	// DryRun is what Allowed and Rule would be if the dry-run policies were in
	// force; Judged is false if there are none (contract 6.42).
	DryRun Shadow
}

// Shadow is a judgement without effect.
type Shadow struct {
	Judged, Allowed bool
	Rule            string
}

// Access says who may reach one workload: what all policies that apply to it
// amount to. It is immutable, but for what it notes of matches ([Access.Matched]).
// A nil Access restricts nothing.
type Access struct {
	http, tcp table
	pending   string
	fields    []string
}

// table has the rules of one kind of traffic, by effect.
type table struct {
	custom               []customRule
	deny, audit, allow   []rule
	dryDeny, dryAllow    []rule
	restricts, dryLimits bool     // there is an ALLOW policy, be it without rules (contract 6.5, 6.6)
	dry                  bool     // there is a dry-run policy
	restricting          []string // keys of the ALLOW policies
	unmatched            hits     // by what none of them allows
}

// rule is a Rule, compiled.
type rule struct {
	name     string
	policy   string // its key
	number   int    // in the policy
	hits     hits
	from, to [][]clause
	when     []clause
}

// NewAccess compiles policies that all apply to one workload, in any order.
// trustDomains are the mesh's, its own first (contract 6.30). missing are the
// keys of policies that apply but aren't known: until they are, nothing is
// allowed. The error joins the faults of every policy; it is not nil only if one
// would not pass Check.
func NewAccess(policies []*AuthorizationPolicy, missing, trustDomains []string) (*Access, error) {
	if len(policies) == 0 && len(missing) == 0 {
		return nil, nil //nolint:nilnil // a nil Access is a value: it restricts nothing
	}
	a := &Access{}
	if len(missing) > 0 {
		a.pending = slices.Min(missing)
	}
	var faults []error
	for _, p := range policies {
		c := compiler{policy: p, trustDomains: trustDomains}
		c.add(&a.http, false)
		c.add(&a.tcp, true)
		faults = append(faults, c.faults...)
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	a.fields = a.http.fields()
	return a, nil
}

// Fields are the names, in lower case, of the header fields that decide something.
func (a *Access) Fields() []string {
	if a == nil {
		return nil
	}
	return a.fields
}

func (b *table) fields() []string {
	var names []string
	note := func(rules []rule) {
		for i := range rules {
			for _, c := range rules[i].when {
				if c.on == RequestHeader && len(c.key) > 0 {
					names = append(names, c.key[0])
				}
			}
		}
	}
	note(b.deny)
	note(b.allow)
	for i := range b.custom {
		note([]rule{b.custom[i].rule})
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Check finds what of a policy can't be compiled, joined.
func Check(p *AuthorizationPolicy) error {
	_, err := NewAccess([]*AuthorizationPolicy{p}, nil, nil)
	return err
}

// Pending is the key of a policy that applies and isn't known, or "".
func (a *Access) Pending() string {
	if a == nil {
		return ""
	}
	return a.pending
}

// Judge decides: CUSTOM, AUDIT, DENY, ALLOW (contract 6.4, 6.5). What an authorizer
// must agree to and hasn't is denied: ask first ([Access.Consult]). It allocates
// nothing but for a header field that comes several times.
func (a *Access) Judge(t *Attempt) Judgement {
	if a == nil {
		return Judgement{Allowed: true}
	}
	if a.pending != "" {
		return Judgement{Rule: a.pending}
	}
	return a.table(t).judge(t, OutcomeDenied)
}

// Still reports whether what was allowed is so still: if not, it is cut.
func (a *Access) Still(t *Attempt) bool {
	if a == nil || a.pending != "" {
		return a == nil
	}
	return a.table(t).judge(t, OutcomeCut).Allowed
}

func (a *Access) table(t *Attempt) *table {
	if t.Request != nil {
		return &a.http
	}
	return &a.tcp
}

// judge decides; what it denies is noted as that.
func (b *table) judge(t *Attempt, no Outcome) Judgement {
	var j Judgement
	if r := first(b.audit, t); r != nil {
		j.Audited = r.name
		r.hits.note(OutcomeAudited)
	}
	denied := disagreed(b.custom, t) // contract 6.4: before the others
	if denied == nil {
		denied = first(b.deny, t)
	}
	var allowed *rule
	if denied == nil {
		allowed = first(b.allow, t)
	}
	switch {
	case denied != nil:
		j.Rule = denied.name
		denied.hits.note(no)
	case !b.restricts:
		j.Allowed = true
	case allowed != nil:
		j.Allowed, j.Rule = true, allowed.name
		allowed.hits.note(OutcomeAllowed)
	default:
		b.unmatched.note(no)
	}
	if b.dry {
		j.DryRun = Shadow{Judged: true, Allowed: j.Allowed, Rule: j.Rule}
		if denied == nil {
			b.shadow(t, allowed != nil, &j.DryRun)
		}
	}
	return j
}

// shadow takes the dry-run policies in (contract 6.42). passed says that an ALLOW
// rule in force matched.
func (b *table) shadow(t *Attempt, passed bool, s *Shadow) {
	if r := first(b.dryDeny, t); r != nil {
		s.Allowed, s.Rule = false, r.name
		r.hits.note(OutcomeDryRun)
		return
	}
	if !b.dryLimits || passed {
		return
	}
	s.Allowed, s.Rule = false, ""
	if r := first(b.dryAllow, t); r != nil {
		s.Allowed, s.Rule = true, r.name
		r.hits.note(OutcomeDryRun)
	}
}

// first returns the first rule that matches; their order is of no consequence
// for the outcome (contract 6.8).
func first(rules []rule, t *Attempt) *rule {
	for i := range rules {
		if rules[i].matches(t) {
			return &rules[i]
		}
	}
	return nil
}

func (r *rule) matches(t *Attempt) bool {
	return anyOf(r.from, t) && anyOf(r.to, t) && all(r.when, t)
}

func anyOf(alternatives [][]clause, t *Attempt) bool {
	for _, one := range alternatives {
		if all(one, t) {
			return true
		}
	}
	return len(alternatives) == 0
}

func all(clauses []clause, t *Attempt) bool {
	for i := range clauses {
		if clauses[i].holds(t) == clauses[i].not {
			return false
		}
	}
	return true
}
