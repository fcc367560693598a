package wire

import (
	"fmt"
	"strings"

	meshv1 "podseal.io/podseal/api/mesh/v1"
	"podseal.io/podseal/internal/policy"
)

// AppendAuthorizationPolicy appends the encoding of p, which is the same for
// equal values. The selector doesn't travel. It refuses what
// ParseAuthorizationPolicy would refuse, with all faults joined.
func AppendAuthorizationPolicy(b []byte, p *policy.AuthorizationPolicy) ([]byte, error) {
	m := &meshv1.AuthorizationPolicy{
		Name:      p.Name,
		Namespace: p.Namespace,
		Scope:     meshv1.AuthorizationPolicy_Scope(p.Scope),
		Effect:    meshv1.AuthorizationPolicy_Effect(p.Effect),
		DryRun:    p.DryRun,

		Authorizer: p.Authorizer,
	}
	for i := range p.Rules {
		r := &p.Rules[i]
		m.Rules = append(m.Rules, &meshv1.AuthorizationPolicy_Rule{From: alternativesToProto(r.From), To: alternativesToProto(r.To), When: matchesToProto(r.When), Never: r.Never})
	}
	if _, err := authorizationFromProto(m); err != nil {
		return nil, fmt.Errorf("encode authorization policy %q: %w", p.Key(), err)
	}
	return appendProto(b, m)
}

// ParseAuthorizationPolicy is the reverse of AppendAuthorizationPolicy. What it
// returns passes policy.Check. All faults come joined.
func ParseAuthorizationPolicy(b []byte) (*policy.AuthorizationPolicy, error) {
	m := &meshv1.AuthorizationPolicy{}
	if err := parseProto(b, m); err != nil {
		return nil, fmt.Errorf("parse authorization policy: %w", err)
	}
	p, err := authorizationFromProto(m)
	if err != nil {
		return nil, fmt.Errorf("parse authorization policy %q: %w", m.GetNamespace()+"/"+m.GetName(), err)
	}
	return p, nil
}

// AuthorizationConcerns reports whether an encoded policy may hold for workloads of
// a namespace, also if the rest of it can't be understood; if nothing can be, by
// its name.
func AuthorizationConcerns(b []byte, name, namespace string) bool {
	m := &meshv1.AuthorizationPolicy{}
	if err := parseProto(b, m); err != nil || m.GetNamespace()+"/"+m.GetName() != name {
		return strings.HasPrefix(name, namespace+"/")
	}
	_, known := meshv1.AuthorizationPolicy_Scope_name[int32(m.GetScope())]
	p := &policy.AuthorizationPolicy{Namespace: m.GetNamespace(), Scope: policy.Scope(m.GetScope())}
	return !known || (p.Concerns(namespace) && !p.Scope.Selective())
}

// authorizationFromProto is strict where a newer control plane would be
// misunderstood: an attribute or effect that isn't known makes the policy one that
// can't be read, rather than one that says less.
func authorizationFromProto(m *meshv1.AuthorizationPolicy) (*policy.AuthorizationPolicy, error) {
	var f faults
	f.resourceName(m.GetNamespace(), m.GetName())
	_, scope := meshv1.AuthorizationPolicy_Scope_name[int32(m.GetScope())]
	f.require(scope, "scope %d is unknown", m.GetScope())
	p := &policy.AuthorizationPolicy{
		Namespace: m.GetNamespace(),
		Name:      m.GetName(),
		Scope:     policy.Scope(m.GetScope()),
		Effect:    policy.Effect(m.GetEffect()),
		DryRun:    m.GetDryRun(),

		Authorizer: m.GetAuthorizer(),
	}
	for _, r := range m.GetRules() {
		p.Rules = append(p.Rules, policy.Rule{From: alternativesFromProto(r.GetFrom()), To: alternativesFromProto(r.GetTo()), When: matchesFromProto(r.GetWhen()), Never: r.GetNever()})
	}
	f.add(policy.Check(p))
	return p, f.err()
}

func alternativesToProto(parts [][]policy.Match) []*meshv1.AuthorizationPolicy_Matches {
	var out []*meshv1.AuthorizationPolicy_Matches
	for _, all := range parts {
		out = append(out, &meshv1.AuthorizationPolicy_Matches{All: matchesToProto(all)})
	}
	return out
}

func alternativesFromProto(parts []*meshv1.AuthorizationPolicy_Matches) [][]policy.Match {
	var out [][]policy.Match
	for _, all := range parts {
		out = append(out, matchesFromProto(all.GetAll()))
	}
	return out
}

func matchesToProto(all []policy.Match) []*meshv1.AuthorizationPolicy_Match {
	var out []*meshv1.AuthorizationPolicy_Match
	for _, m := range all {
		out = append(out, &meshv1.AuthorizationPolicy_Match{On: meshv1.AuthorizationPolicy_Attribute(m.On), Key: m.Key, Values: m.Values, NotValues: m.NotValues})
	}
	return out
}

func matchesFromProto(all []*meshv1.AuthorizationPolicy_Match) []policy.Match {
	var out []policy.Match
	for _, m := range all {
		out = append(out, policy.Match{On: policy.Attribute(m.GetOn()), Key: m.GetKey(), Values: m.GetValues(), NotValues: m.GetNotValues()})
	}
	return out
}
