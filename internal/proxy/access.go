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

// policyObject is an object that workloads follow by its key.
type policyObject interface {
	*policy.AuthorizationPolicy | *policy.RequestAuthentication
	Key() string
	Concerns(namespace string) bool
}

// policyTable holds the objects of one kind that may concern this proxy's own
// workload. The world's writer owns it.
type policyTable[P policyObject] struct {
	namespace string
	parse     func(body []byte) (P, error)
	concerns  func(body []byte, name, namespace string) bool

	known map[string]P
	// unreadable are objects that concern us, can't be read and have no version
	// that could: until that is mended nothing is let in.
	unreadable map[string]bool
	// gone are objects that were taken away while the own workload still follows
	// them: they stay in force until it says otherwise, for it is told afterwards.
	gone    map[string]bool
	changed bool
}

func newPolicyTable[P policyObject](namespace string, parse func([]byte) (P, error), concerns func([]byte, string, string) bool) policyTable[P] {
	return policyTable[P]{namespace: namespace, parse: parse, concerns: concerns, known: map[string]P{}, unreadable: map[string]bool{}, gone: map[string]bool{}}
}

// put takes an object in, or passes over one that can't concern us. It returns
// the version that was there before.
func (s *policyTable[P]) put(r xds.Resource) (now, before P, err error) {
	before = s.known[r.Name]
	p, err := s.parse(r.Body)
	if err == nil && p.Key() != r.Name {
		err = fmt.Errorf("policy %q is named %q", p.Key(), r.Name)
	}
	if err != nil {
		if before == nil && s.concerns(r.Body, r.Name, s.namespace) {
			s.unreadable[r.Name], s.changed = true, true
		}
		return nil, before, err
	}
	s.changed = s.changed || before != nil || s.unreadable[r.Name] || p.Concerns(s.namespace)
	delete(s.known, r.Name)
	delete(s.gone, r.Name)
	delete(s.unreadable, r.Name)
	if p.Concerns(s.namespace) {
		s.known[r.Name] = p
	}
	return p, before, nil
}

func (s *policyTable[P]) remove(name string) {
	if s.known[name] != nil || s.unreadable[name] {
		s.gone[name], s.changed = true, true
	}
	delete(s.unreadable, name)
}

// settle forgets what is gone and no longer followed, and adds to missing what
// can't be read.
func (s *policyTable[P]) settle(followed []string) {
	for name := range s.gone {
		if !slices.Contains(followed, name) {
			delete(s.known, name)
			delete(s.gone, name)
		}
	}
	s.changed = false
}

func (s *policyTable[P]) withUnreadable(missing []string) []string {
	for name := range s.unreadable {
		missing = append(missing, name)
	}
	return missing
}

// accessStore holds what says who may reach the own workload, and what it amounts
// to. The world's writer owns it.
type accessStore struct {
	namespace       string
	policies        policyTable[*policy.AuthorizationPolicy]
	authentications policyTable[*policy.RequestAuthentication]

	own            *workload.Workload // whose keys were used last
	trustDomains   []string
	access         *policy.Access
	authentication *policy.Authentication
}

func newAccessStore(self string) accessStore {
	namespace, _, _ := strings.Cut(self, "/")
	return accessStore{
		namespace:       namespace,
		policies:        newPolicyTable(namespace, wire.ParseAuthorizationPolicy, wire.AuthorizationConcerns),
		authentications: newPolicyTable(namespace, wire.ParseRequestAuthentication, wire.AuthenticationConcerns),
	}
}

func (s *accessStore) putPolicy(r xds.Resource) error {
	_, _, err := s.policies.put(r)
	return err
}

// putAuthentication keeps keys that can't be fetched at the moment.
func (s *accessStore) putAuthentication(r xds.Resource) error {
	now, before, err := s.authentications.put(r)
	if err == nil && before != nil {
		now.KeepKeys(before)
	}
	return err
}

// build returns who may reach the own workload, which is nil while it is not
// known, and whose tokens it takes.
func (s *accessStore) build(own *workload.Workload, trustDomains []string) (*policy.Access, *policy.Authentication) {
	if own == nil {
		return s.access, s.authentication
	}
	first := s.own == nil
	if first || s.policies.changed || !slices.Equal(s.trustDomains, trustDomains) || !slices.Equal(s.own.Policies, own.Policies) {
		s.policies.settle(own.Policies)
		hold, missing := policy.InForce(s.policies.known, s.namespace, own.Policies)
		access, err := policy.NewAccess(hold, s.policies.withUnreadable(missing), trustDomains)
		if err != nil { // they were checked one by one: a bug, which must not open anything
			access, _ = policy.NewAccess(nil, []string{err.Error()}, nil)
		}
		s.access = access
	}
	if first || s.authentications.changed || !slices.Equal(s.own.Authentications, own.Authentications) {
		s.authentications.settle(own.Authentications)
		hold, missing := policy.InForce(s.authentications.known, s.namespace, own.Authentications)
		authentication, err := policy.NewAuthentication(hold, s.authentications.withUnreadable(missing))
		if err != nil { // likewise
			authentication, _ = policy.NewAuthentication(nil, []string{err.Error()})
		}
		s.authentication = authentication
	}
	s.own, s.trustDomains = own, trustDomains
	return s.access, s.authentication
}
