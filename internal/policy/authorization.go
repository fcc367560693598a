package policy

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Effect is what an AuthorizationPolicy does with what it matches (contract 6.3).
type Effect int

// The effects. Custom asks somebody else; without one to ask it denies
// (contract 6.44).
const (
	Allow Effect = iota
	Deny
	Audit
	Custom
)

var effectNames = [...]string{"ALLOW", "DENY", "AUDIT", "CUSTOM"}

func (e Effect) String() string {
	if e < 0 || int(e) >= len(effectNames) {
		return fmt.Sprintf("Effect(%d)", int(e))
	}
	return effectNames[e]
}

// ParseEffect reads an action's name; "" is ALLOW.
func ParseEffect(s string) (Effect, error) {
	if s == "" {
		return Allow, nil
	}
	if i := slices.Index(effectNames[:], s); i >= 0 {
		return Effect(i), nil
	}
	return Allow, fmt.Errorf("action %q is not one of %s", s, strings.Join(effectNames[:], ", "))
}

// AuthorizationPolicy is one such object, already valid.
type AuthorizationPolicy struct {
	Namespace, Name string
	// Selector is empty for the whole namespace, or the mesh (contract 6.1). Proxies
	// are told the Scope instead.
	Selector map[string]string
	Scope    Scope
	Effect   Effect
	DryRun   bool // contract 6.42
	// Authorizer is the name of whom effect CUSTOM asks (contract 6.44).
	Authorizer string
	Rules      []Rule
}

// Scope is which workloads a policy holds for.
type Scope int

// The scopes.
const (
	Workloads     Scope = iota // those of its namespace that are told its key
	Namespace                  // all of its namespace
	Mesh                       // all
	MeshWorkloads              // those of any namespace that are told its key
)

// Selective reports whether the policy holds only for who is told its key.
func (s Scope) Selective() bool { return s == Workloads || s == MeshWorkloads }

// Concerns reports whether the policy may hold for a workload of the namespace.
func (p *AuthorizationPolicy) Concerns(namespace string) bool {
	return p.Scope == Mesh || p.Scope == MeshWorkloads || p.Namespace == namespace
}

// scoped is an object that holds for some workloads.
type scoped interface {
	Concerns(namespace string) bool
	selective() bool
}

func (p *AuthorizationPolicy) selective() bool { return p.Scope.Selective() }

// InForce gives the objects that hold for a workload of this namespace that was
// told these keys, in the order of their keys, and the keys that are not among
// them.
func InForce[P scoped](known map[string]P, namespace string, keys []string) (hold []P, missing []string) {
	for _, key := range slices.Sorted(maps.Keys(known)) {
		p := known[key]
		if p.Concerns(namespace) && (!p.selective() || slices.Contains(keys, key)) {
			hold = append(hold, p)
		}
	}
	for _, key := range keys {
		if _, ok := known[key]; !ok {
			missing = append(missing, key)
		}
	}
	return hold, missing
}

// Key is "<namespace>/<name>".
func (p *AuthorizationPolicy) Key() string { return p.Namespace + "/" + p.Name }

// Rule matches if any of From and any of To and all of When do (contract 6.12).
// No From is any source, and no To any operation; each element is a conjunction.
type Rule struct {
	From, To [][]Match
	When     []Match
	// Never says that the rule can't be understood and matches nothing
	// (contract 6.16).
	Never bool
}

// Match compares one attribute: it has one of Values, if there are any, and none
// of NotValues (contract 6.13).
type Match struct {
	On Attribute
	// Key is the header's name for RequestHeader, or the claim's path for RequestClaim.
	Key               []string
	Values, NotValues []string
}

// Attribute is what a Match looks at.
type Attribute int

// The attributes. Those from RequestHost on exist in HTTP only (contract 6.32).
const (
	SourcePrincipal      Attribute = iota + 1 // contract 6.18
	SourceNamespace                           // contract 6.21
	SourceServiceAccount                      // contract 6.22
	SourceTrustDomain                         // contract 6.23
	SourceIP                                  // contract 6.28
	RemoteIP                                  // contract 6.28
	DestinationIP
	DestinationPort // contract 6.27
	ConnectionSNI
	RequestHost      // contract 6.25
	RequestMethod    // contract 6.26
	RequestPath      // contract 6.24
	RequestHeader    // contract 6.31
	RequestPrincipal // contract 6.29
	RequestAudiences
	RequestPresenter
	RequestClaim
)

var attributeNames = [...]string{
	"", "source.principal", "source.namespace", "source.serviceAccount", "source.trustDomain", "source.ip", "remote.ip", "destination.ip",
	"destination.port", "connection.sni", "request.host", "request.method", "request.path", "request.headers", "request.auth.principal",
	"request.auth.audiences", "request.auth.presenter", "request.auth.claims",
}

func (a Attribute) String() string {
	if a < SourcePrincipal || int(a) >= len(attributeNames) {
		return fmt.Sprintf("Attribute(%d)", int(a))
	}
	return attributeNames[a]
}

// Valid reports whether a is one of the attributes.
func (a Attribute) Valid() bool { return a >= SourcePrincipal && a <= RequestClaim }

// HTTPOnly reports whether a connection that isn't HTTP lacks the attribute (contract 6.32).
func (a Attribute) HTTPOnly() bool { return a >= RequestHost }

// OfIdentity reports whether the attribute comes from a proved identity or a token.
func (a Attribute) OfIdentity() bool {
	return a <= SourceTrustDomain || a >= RequestPrincipal
}

// ParseCondition reads the key of a `when` (contract 6.15) into a Match without
// values.
func ParseCondition(key string) (Match, error) {
	name, rest, bracketed := strings.Cut(key, "[")
	on := Attribute(slices.Index(attributeNames[:], name))
	switch {
	case on == RequestHeader, on == RequestClaim:
		path, ok := brackets("[" + rest)
		if !bracketed || !ok || (on == RequestHeader && len(path) != 1) {
			return Match{}, fmt.Errorf("%q must have the form %s[name]", key, name)
		}
		if on == RequestHeader {
			path[0] = strings.ToLower(path[0])
		}
		return Match{On: on, Key: path}, nil
	case bracketed, !on.Valid(), on == RequestHost, on == RequestMethod, on == RequestPath:
		return Match{}, fmt.Errorf("%q is not known", key)
	}
	return Match{On: on}, nil
}

// brackets splits "[a][b]" into a and b.
func brackets(s string) ([]string, bool) {
	var parts []string
	for s != "" {
		inner, rest, ok := strings.Cut(strings.TrimPrefix(s, "["), "]")
		if s[0] != '[' || !ok || inner == "" || strings.Contains(inner, "[") {
			return nil, false
		}
		parts = append(parts, inner)
		s = rest
	}
	return parts, len(parts) > 0
}

// ruleName is what logs call a rule (contract 6.11).
func (p *AuthorizationPolicy) ruleName(i int) string {
	return p.name() + "-rule[" + strconv.Itoa(i) + "]"
}

func (p *AuthorizationPolicy) name() string {
	name := "ns[" + p.Namespace + "]-policy[" + p.Name + "]"
	if p.Effect == Custom {
		return "istio-ext-authz-" + name
	}
	return name
}

// NeedsHTTP reports whether the rule looks at what only HTTP has (contract 6.32).
func (r *Rule) NeedsHTTP() bool {
	for m := range r.Matches() {
		if m.On.HTTPOnly() {
			return true
		}
	}
	return false
}

// Matches yields every Match of the rule.
func (r *Rule) Matches() func(yield func(*Match) bool) {
	return func(yield func(*Match) bool) {
		for _, part := range [][][]Match{r.From, r.To, {r.When}} {
			for _, all := range part {
				for i := range all {
					if !yield(&all[i]) {
						return
					}
				}
			}
		}
	}
}

// Applies reports whether the policy counts for a workload with these labels in
// this namespace: unlike a PeerAuthentication, one of the root namespace may
// select there and everywhere (contract 6.1).
func (p *AuthorizationPolicy) Applies(rootNamespace, namespace string, labels map[string]string) bool {
	return (p.Namespace == namespace || p.Namespace == rootNamespace) && matches(p.Selector, labels)
}
