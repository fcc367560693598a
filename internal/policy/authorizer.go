package policy

import (
	"slices"
	"time"
)

// Authorizer is somebody who is asked by policies of effect CUSTOM, over Envoy's
// protocol of external authorization (contract 6.44).
type Authorizer struct {
	Name string
	// Host is the full name of a service, and Port its port.
	Host          string
	Port          uint16
	HTTP          bool // asked over HTTP; else gRPC
	Timeout       time.Duration
	FailOpen      bool // what can't be asked may pass
	StatusOnError uint16
	// Unusable says why it can't be asked; then what would be asked is denied.
	Unusable string

	MaxBody     uint32 // so much of the body it gets, in bytes; 0 is nothing
	PartialBody bool   // it gets the beginning of a larger one; else that is refused
	BodyAsBytes bool

	// HTTP only. Names are in lower case, exact or with a star at one end.
	PathPrefix      string
	CheckHeaders    []string          // of the request, that it gets
	ExtraHeaders    map[string]string // that it gets besides
	UpstreamHeaders []string          // of its answer, that the application gets if it agrees
	DenyHeaders     []string          // of its answer, that the client gets if it doesn't; none is all
	AllowHeaders    []string          // of its answer, that the client gets if it agrees
}

// Consultation is an authorizer that must agree to an attempt, and the name of a
// rule that says so.
type Consultation struct{ Authorizer, Rule string }

// customRule is a rule of effect CUSTOM.
type customRule struct {
	rule       rule
	authorizer string
}

// Consult says who must agree to an attempt and hasn't, each once, in the order of
// their rules. It is nil, without allocation, where nobody must.
func (a *Access) Consult(t *Attempt) []Consultation {
	if a == nil {
		return nil
	}
	custom := a.tcp.custom
	if t.Request != nil {
		custom = a.http.custom
	}
	var out []Consultation
	for i := range custom {
		c := &custom[i]
		if !agreed(t, c.authorizer) && !asks(out, c.authorizer) && c.rule.matches(t) {
			c.rule.hits.note(OutcomeAsked)
			out = append(out, Consultation{c.authorizer, c.rule.name})
		}
	}
	return out
}

// Consults reports whether anybody is ever asked.
func (a *Access) Consults() bool {
	return a != nil && len(a.tcp.custom)+len(a.http.custom) > 0
}

func asks(all []Consultation, authorizer string) bool {
	for i := range all {
		if all[i].Authorizer == authorizer {
			return true
		}
	}
	return false
}

func agreed(t *Attempt, authorizer string) bool { return slices.Contains(t.Agreed, authorizer) }

// unagreed are the rules whose authorizer has not agreed.
func unagreed(custom []customRule, t *Attempt) []rule {
	var out []rule
	for i := range custom {
		if !agreed(t, custom[i].authorizer) {
			out = append(out, custom[i].rule)
		}
	}
	return out
}

// disagreed returns the first rule whose authorizer has not agreed.
func disagreed(custom []customRule, t *Attempt) *rule {
	for i := range custom {
		if c := &custom[i]; !agreed(t, c.authorizer) && c.rule.matches(t) {
			return &c.rule
		}
	}
	return nil
}
