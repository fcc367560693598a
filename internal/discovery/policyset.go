package discovery

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"podseal.io/podseal/internal/policy"
)

// labelRevision narrows an object to one control plane (contract 1.37).
const labelRevision = "istio.io/rev"

// policySet holds the valid policies, by the namespaces that they can matter to,
// and counts whom each governs.
type policySet struct {
	root   string
	mesh   []policy.PeerAuthentication // of the root namespace
	scopes map[string]*scope           // by namespace
	tally  map[Key]*tally              // of every valid policy
}

// scope is what matters in one namespace.
type scope struct {
	policies  []policy.PeerAuthentication // of the namespace and of the mesh
	selective bool                        // some of them have selectors
	common    policy.Modes                // of every workload if not selective
}

// tally counts the pods of one policy.
type tally struct {
	policy   policy.PeerAuthentication
	governed int // follow it
	eclipsed int // are selected, but follow an older one
	outside  int // are selected, but have no proxy
}

func buildPolicies(c Cluster, verdicts Verdicts) *policySet {
	s := &policySet{root: c.RootNamespace, scopes: map[string]*scope{}, tally: map[Key]*tally{}}
	own := map[string][]policy.PeerAuthentication{}
	for _, obj := range c.PeerAuthentications {
		p, ok := readInForce(&c, KindPeerAuthentication, obj, verdicts, readPeerAuthentication)
		if !ok {
			continue
		}
		s.tally[keyOf(&p)] = &tally{policy: p}
		own[p.Namespace] = append(own[p.Namespace], p)
	}
	s.mesh = own[s.root]
	for ns, policies := range own {
		if ns != s.root {
			s.add(ns, policies)
		}
	}
	return s
}

func (s *policySet) add(ns string, own []policy.PeerAuthentication) *scope {
	sc := &scope{}
	sc.policies = append(append(sc.policies, s.mesh...), own...)
	for i := range own {
		sc.selective = sc.selective || len(own[i].Selector) > 0
	}
	if !sc.selective {
		sc.common = policy.Resolve(sc.policies, s.root, ns, nil)
	}
	s.scopes[ns] = sc
	return sc
}

// resolve gives a pod its modes (contract 1.7-1.21) and counts it.
func (s *policySet) resolve(pod *corev1.Pod) policy.Modes {
	sc := s.scopes[pod.Namespace]
	if sc == nil {
		sc = s.add(pod.Namespace, nil)
	}
	s.count(sc, pod)
	if !sc.selective {
		return sc.common
	}
	return policy.Resolve(sc.policies, s.root, pod.Namespace, pod.Labels)
}

func (s *policySet) count(sc *scope, pod *corev1.Pod) {
	if len(sc.policies) == 0 {
		return
	}
	inMesh := pod.Labels[labelTLSMode] == "istio"
	mesh, ns, own := policy.Select(sc.policies, s.root, pod.Namespace, pod.Labels)
	for _, p := range []*policy.PeerAuthentication{mesh, ns, own} {
		if p != nil && inMesh {
			s.tally[keyOf(p)].governed++
		}
	}
	if !sc.selective {
		return
	}
	for i := range sc.policies {
		p := &sc.policies[i]
		if len(p.Selector) == 0 || p.Namespace != pod.Namespace || p.Namespace == s.root || !selects(p.Selector, pod.Labels) {
			continue
		}
		switch {
		case !inMesh:
			s.tally[keyOf(p)].outside++
		case own == nil || keyOf(own) != keyOf(p):
			s.tally[keyOf(p)].eclipsed++
		}
	}
}

func keyOf(p *policy.PeerAuthentication) Key {
	return Key{KindPeerAuthentication, p.Namespace, p.Name}
}

// report writes the verdicts of the valid policies.
func (s *policySet) report(verdicts Verdicts) {
	for key, t := range s.tally {
		v := s.judge(key, t)
		if bad, isBad := verdicts[key]; isBad {
			bad.Workloads = v.Workloads
			v = bad
		}
		verdicts[key] = v
	}
}

func (s *policySet) judge(key Key, t *tally) Verdict {
	if len(t.policy.Selector) > 0 && key.Namespace == s.root { // contract 1.9
		return Verdict{Reason: ReasonNoEffect, Message: fmt.Sprintf("a selector has no effect in the root namespace %s: leave it out for the whole mesh, or move the object to the pods' namespace", s.root)}
	}
	if len(t.policy.Selector) == 0 {
		return s.judgeWide(key, t)
	}
	message := fmt.Sprintf("in force at %s", workloads(t.governed))
	var besides []string
	if t.eclipsed > 0 {
		besides = append(besides, fmt.Sprintf("%d selected follow an older PeerAuthentication", t.eclipsed))
	}
	if t.outside > 0 {
		besides = append(besides, fmt.Sprintf("%d selected have no sidecar", t.outside))
	}
	if len(besides) > 0 {
		message += "; " + strings.Join(besides, "; ")
	}
	return Verdict{Accepted: true, Reason: ReasonAccepted, Message: message, Workloads: t.governed}
}

// judgeWide is for policies of the mesh or a namespace, of which the oldest
// counts and the others are dropped whole (contract 1.16).
func (s *policySet) judgeWide(key Key, t *tally) Verdict {
	policies, where := s.mesh, "the mesh"
	if key.Namespace != s.root {
		policies, where = s.scopes[key.Namespace].policies, "namespace "+key.Namespace
	}
	mesh, ns, _ := policy.Select(policies, s.root, key.Namespace, nil)
	winner := ns
	if key.Namespace == s.root {
		winner = mesh
	}
	if winner != nil && keyOf(winner) != key {
		return Verdict{Reason: ReasonShadowed, Message: fmt.Sprintf("%s is older (or first by name) and is the one in force for %s: remove one of the two", winner.Name, where)}
	}
	return Verdict{Accepted: true, Reason: ReasonAccepted, Message: fmt.Sprintf("in force for %s, at %s", where, workloads(t.governed)), Workloads: t.governed}
}

func workloads(n int) string {
	if n == 1 {
		return "1 workload"
	}
	return fmt.Sprintf("%d workloads", n)
}
