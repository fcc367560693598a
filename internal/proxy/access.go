package proxy

import (
	"fmt"
	"slices"
	"strings"

	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/wire"
	"podseal.io/podseal/internal/workload"
	"podseal.io/podseal/internal/xds"
)

// accessStore holds the AuthorizationPolicies that may concern this proxy's own
// workload, and what they amount to. The world's writer owns it.
type accessStore struct {
	namespace string
	known     map[string]*policy.AuthorizationPolicy
	// unreadable are policies that concern us, can't be read and have no version
	// that could: until that is mended nothing is let in.
	unreadable map[string]bool
	// gone are policies that were taken away while the own workload still follows
	// them: they stay in force until it says otherwise, for it is told afterwards.
	gone map[string]bool

	own          *workload.Workload
	trustDomains []string
	changed      bool
	current      *policy.Access
}

func newAccessStore(self string) accessStore {
	namespace, _, _ := strings.Cut(self, "/")
	return accessStore{namespace: namespace, known: map[string]*policy.AuthorizationPolicy{}, unreadable: map[string]bool{}, gone: map[string]bool{}}
}

// put takes a policy in, or passes over one that can't concern us.
func (s *accessStore) put(r xds.Resource) error {
	p, err := wire.ParseAuthorizationPolicy(r.Body)
	if err == nil && p.Key() != r.Name {
		err = fmt.Errorf("authorization policy %q is named %q", p.Key(), r.Name)
	}
	if err != nil {
		if s.known[r.Name] == nil && wire.AuthorizationConcerns(r.Body, r.Name, s.namespace) {
			s.unreadable[r.Name], s.changed = true, true
		}
		return err
	}
	s.changed = s.changed || s.known[r.Name] != nil || s.unreadable[r.Name] || p.Concerns(s.namespace)
	delete(s.known, r.Name)
	delete(s.gone, r.Name)
	delete(s.unreadable, r.Name)
	if p.Concerns(s.namespace) {
		s.known[r.Name] = p
	}
	return nil
}

func (s *accessStore) remove(name string) {
	if s.known[name] != nil || s.unreadable[name] {
		s.gone[name], s.changed = true, true
	}
	delete(s.unreadable, name)
}

// build returns who may reach the own workload, which is nil while it is not known.
func (s *accessStore) build(own *workload.Workload, trustDomains []string) *policy.Access {
	if own == nil {
		return s.current
	}
	if !s.changed && slices.Equal(s.trustDomains, trustDomains) && s.own != nil && slices.Equal(s.own.Policies, own.Policies) {
		return s.current
	}
	s.own, s.trustDomains, s.changed = own, trustDomains, false
	for name := range s.gone {
		if !slices.Contains(own.Policies, name) {
			delete(s.known, name)
			delete(s.gone, name)
		}
	}
	hold, missing := policy.InForce(s.known, s.namespace, own.Policies)
	for name := range s.unreadable {
		missing = append(missing, name)
	}
	access, err := policy.NewAccess(hold, missing, trustDomains)
	if err != nil { // they were checked one by one: a bug, which must not open anything
		access, _ = policy.NewAccess(nil, []string{err.Error()}, nil)
	}
	s.current = access
	return access
}
