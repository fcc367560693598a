package wire

import (
	"fmt"
	"strings"

	meshv1 "podseal.io/podseal/api/mesh/v1"
	"podseal.io/podseal/internal/policy"
)

// AppendRequestAuthentication appends the encoding of r, which is the same for
// equal values. The selector doesn't travel. It refuses what
// ParseRequestAuthentication would refuse, with all faults joined.
func AppendRequestAuthentication(b []byte, r *policy.RequestAuthentication) ([]byte, error) {
	m := &meshv1.RequestAuthentication{Name: r.Name, Namespace: r.Namespace, Scope: meshv1.AuthorizationPolicy_Scope(r.Scope)}
	for i := range r.Rules {
		rule := &r.Rules[i]
		p := &meshv1.RequestAuthentication_Rule{
			Issuer: rule.Issuer, Audiences: rule.Audiences, Keys: rule.Keys, KeysFrom: rule.KeysFrom, Params: rule.Params, Cookies: rule.Cookies,
			PayloadHeader: rule.PayloadHeader, Forward: rule.Forward, Spaced: rule.Spaced,
		}
		for _, h := range rule.Headers {
			p.Headers = append(p.Headers, &meshv1.RequestAuthentication_Header{Name: h.Name, Prefix: h.Prefix})
		}
		for _, h := range rule.ClaimHeaders {
			p.ClaimHeaders = append(p.ClaimHeaders, &meshv1.RequestAuthentication_ClaimHeader{Header: h.Header, Claim: h.Claim})
		}
		m.Rules = append(m.Rules, p)
	}
	if _, err := authenticationFromProto(m); err != nil {
		return nil, fmt.Errorf("encode request authentication %q: %w", r.Key(), err)
	}
	return appendProto(b, m)
}

// ParseRequestAuthentication is the reverse of AppendRequestAuthentication. What it
// returns passes policy.CheckAuthentication. All faults come joined.
func ParseRequestAuthentication(b []byte) (*policy.RequestAuthentication, error) {
	m := &meshv1.RequestAuthentication{}
	if err := parseProto(b, m); err != nil {
		return nil, fmt.Errorf("parse request authentication: %w", err)
	}
	r, err := authenticationFromProto(m)
	if err != nil {
		return nil, fmt.Errorf("parse request authentication %q: %w", m.GetNamespace()+"/"+m.GetName(), err)
	}
	return r, nil
}

// AuthenticationConcerns is what AuthorizationConcerns is, for a
// RequestAuthentication.
func AuthenticationConcerns(b []byte, name, namespace string) bool {
	m := &meshv1.RequestAuthentication{}
	if err := parseProto(b, m); err != nil || m.GetNamespace()+"/"+m.GetName() != name {
		return strings.HasPrefix(name, namespace+"/")
	}
	_, known := meshv1.AuthorizationPolicy_Scope_name[int32(m.GetScope())]
	r := &policy.RequestAuthentication{Namespace: m.GetNamespace(), Scope: policy.Scope(m.GetScope())}
	return !known || (r.Concerns(namespace) && !r.Scope.Selective())
}

func authenticationFromProto(m *meshv1.RequestAuthentication) (*policy.RequestAuthentication, error) {
	var f faults
	f.resourceName(m.GetNamespace(), m.GetName())
	_, scope := meshv1.AuthorizationPolicy_Scope_name[int32(m.GetScope())]
	f.require(scope, "scope %d is unknown", m.GetScope())
	r := &policy.RequestAuthentication{Namespace: m.GetNamespace(), Name: m.GetName(), Scope: policy.Scope(m.GetScope())}
	for _, p := range m.GetRules() {
		rule := policy.TokenRule{
			Issuer: p.GetIssuer(), Audiences: p.GetAudiences(), Keys: p.GetKeys(), KeysFrom: p.GetKeysFrom(), Params: p.GetParams(), Cookies: p.GetCookies(),
			PayloadHeader: p.GetPayloadHeader(), Forward: p.GetForward(), Spaced: p.GetSpaced(),
		}
		for _, h := range p.GetHeaders() {
			rule.Headers = append(rule.Headers, policy.TokenHeader{Name: h.GetName(), Prefix: h.GetPrefix()})
		}
		for _, h := range p.GetClaimHeaders() {
			rule.ClaimHeaders = append(rule.ClaimHeaders, policy.ClaimHeader{Header: h.GetHeader(), Claim: h.GetClaim()})
		}
		r.Rules = append(r.Rules, rule)
	}
	f.add(policy.CheckAuthentication(r))
	return r, f.err()
}
