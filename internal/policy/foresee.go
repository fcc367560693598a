package policy

import "slices"

// Certainty says whether something holds when not everything is known.
type Certainty int

// The certainties, in order: of alternatives the largest counts, of conditions
// that must all hold the smallest.
const (
	Never Certainty = iota
	Sometimes
	Always
)

func (c Certainty) String() string { return [...]string{"no", "depends", "yes"}[c] }

// Outlook is what Judge would say of all attempts that have what is known in
// common.
type Outlook struct {
	Allowed Certainty
	// Rule is the name (contract 6.11) of the rule that decides, or of one that may.
	// It is "" when nothing restricts, or when no ALLOW rule can match.
	Rule string
	// Pending: the rule is a policy's key, and what the policy says isn't known.
	Pending bool
	// On is what of the attempt decides, if it isn't known.
	On []Attribute
	// Misses are the ALLOW rules that can't match, if Allowed is Never for their sake.
	Misses []Miss
	// Audited is the name of a rule with effect AUDIT that matches, or may.
	Audited string
	// DryRun is what Allowed and Rule would be if the dry-run policies were in
	// force; nil if there are none (contract 6.42).
	DryRun *Outlook
}

// Miss is a rule that doesn't match, and the first attribute for which it doesn't.
type Miss struct {
	Rule string
	On   Attribute
}

// Foresee judges an attempt of which only some attributes are known; for the
// others t is not looked at. A t without a Request is a connection that isn't
// HTTP, as for [Access.Judge], whose clauses this compares with. If all is known
// both say the same.
func (a *Access) Foresee(t *Attempt, known func(Attribute) bool) Outlook {
	switch {
	case a == nil:
		return Outlook{Allowed: Always}
	case a.pending != "":
		return Outlook{Rule: a.pending, Pending: true}
	}
	b := &a.tcp
	if t.Request != nil {
		b = &a.http
	}
	f := foresight{attempt: t, known: known}
	denies := append(unagreed(b.custom, t), b.deny...)
	o := f.outlook(denies, b.allow, b.restricts)
	if audit := f.best(b.audit); audit.matches > Never {
		o.Audited = audit.rule
	}
	if b.dry {
		deny := append(slices.Clip(denies), b.dryDeny...)
		allow := append(slices.Clip(b.allow), b.dryAllow...)
		shadow := f.outlook(deny, allow, b.restricts || b.dryLimits)
		o.DryRun = &shadow
	}
	return o
}

type foresight struct {
	attempt *Attempt
	known   func(Attribute) bool
}

// sighting is how a rule, or the best of several, compares.
type sighting struct {
	matches Certainty
	rule    string
	on      []Attribute // that aren't known, if it matches sometimes
	misses  []Miss      // of several, if none can match
}

func (f *foresight) outlook(deny, allow []rule, restricts bool) Outlook {
	d := f.best(deny)
	if d.matches == Always {
		return Outlook{Rule: d.rule}
	}
	a := sighting{matches: Always}
	if restricts {
		a = f.best(allow)
	}
	switch {
	case a.matches == Never:
		return Outlook{Misses: a.misses}
	case d.matches == Sometimes:
		return Outlook{Allowed: Sometimes, Rule: d.rule, On: d.on}
	}
	return Outlook{Allowed: a.matches, Rule: a.rule, On: a.on}
}

// best is the rule that is the likeliest to match; their order is of no
// consequence for the outcome (contract 6.8).
func (f *foresight) best(rules []rule) sighting {
	var best sighting
	for i := range rules {
		r := &rules[i]
		s := sighting{matches: Always, rule: r.name}
		on := Attribute(0)
		for _, part := range []func() (Certainty, []Attribute){
			func() (Certainty, []Attribute) { return f.anyOf(r.from) }, func() (Certainty, []Attribute) { return f.anyOf(r.to) }, func() (Certainty, []Attribute) { return f.all(r.when) },
		} {
			c, why := part()
			if c == Never && s.matches > Never && len(why) > 0 {
				on = why[0]
			}
			if c == Sometimes {
				s.on = append(s.on, why...)
			}
			s.matches = min(s.matches, c)
		}
		switch {
		case s.matches == Always:
			return sighting{matches: Always, rule: r.name}
		case s.matches == Sometimes && best.matches == Never:
			best = s
		case s.matches == Never && best.matches == Never:
			best.misses = append(best.misses, Miss{r.name, on})
		}
	}
	return best
}

// anyOf returns with Never the first attribute that differs, with Sometimes
// those that aren't known.
func (f *foresight) anyOf(alternatives [][]clause) (best Certainty, on []Attribute) {
	if len(alternatives) == 0 {
		return Always, nil
	}
	for _, one := range alternatives {
		c, why := f.all(one)
		if c > best || (c == Never && best == Never && on == nil) {
			best, on = c, why
		}
	}
	return best, on
}

func (f *foresight) all(clauses []clause) (Certainty, []Attribute) {
	var unknown []Attribute
	for i := range clauses {
		c := &clauses[i]
		switch {
		case !f.known(c.on):
			unknown = append(unknown, c.on)
		case c.holds(f.attempt) == c.not:
			return Never, []Attribute{c.on}
		}
	}
	if len(unknown) > 0 {
		return Sometimes, unknown
	}
	return Always, nil
}
