package discovery

import (
	"slices"

	corev1 "k8s.io/api/core/v1"

	"podseal.io/podseal/internal/policy"
)

// Governs lists by object the running pods of the mesh, "<namespace>/<name>", that
// are to carry it out: of a PeerAuthentication, an AuthorizationPolicy and a
// RequestAuthentication those that it holds for, of a DestinationRule and a ServiceEntry those whose connections it
// may be about.
func Governs(c Cluster) map[Key][]string {
	verdicts := Verdicts{}
	peers, access, rules := buildPolicies(c, verdicts), buildAccess(c, verdicts), buildRules(c, verdicts)
	entries, tokens := buildEntries(c, verdicts), buildTokens(c, verdicts)
	out := map[Key][]string{}
	for _, pod := range c.Pods {
		if terminal(pod) || !InMesh(pod) {
			continue
		}
		name := pod.Namespace + "/" + pod.Name
		for _, key := range slices.Concat(peers.following(pod), access.holding(pod), tokens.holding(pod), rules.about(pod), entries.about(pod)) {
			out[key] = append(out[key], name)
		}
	}
	return out
}

// following are the PeerAuthentications that a pod follows (contract 1.7-1.20).
func (s *policySet) following(pod *corev1.Pod) []Key {
	sc := s.scopes[pod.Namespace]
	if sc == nil {
		sc = s.add(pod.Namespace, nil)
	}
	mesh, ns, own := policy.Select(sc.policies, s.root, pod.Namespace, pod.Labels)
	var out []Key
	for _, p := range []*policy.PeerAuthentication{mesh, ns, own} {
		if p != nil {
			out = append(out, keyOf(p))
		}
	}
	return out
}

// holding are the AuthorizationPolicies that hold for a pod (contract 6.1).
func (s *accessSet) holding(pod *corev1.Pod) []Key {
	var out []Key
	for _, ns := range slices.Compact([]string{pod.Namespace, s.root}) {
		for _, g := range s.byNamespace[ns] {
			if g.policy.Applies(s.root, pod.Namespace, pod.Labels) {
				out = append(out, g.key())
			}
		}
	}
	return out
}

// holding are the RequestAuthentications that hold for a pod (contract 6.1).
func (s *tokenSet) holding(pod *corev1.Pod) []Key {
	var out []Key
	for _, ns := range slices.Compact([]string{pod.Namespace, s.root}) {
		for _, a := range s.byNamespace[ns] {
			if a.object.Applies(s.root, pod.Namespace, pod.Labels) {
				out = append(out, a.key())
			}
		}
	}
	return out
}

// about are the ServiceEntries that are exported to a pod.
func (s *entrySet) about(pod *corev1.Pod) []Key {
	var out []Key
	for i := range s.all {
		if x := s.all[i].entry; x.ExportedTo(pod.Namespace) {
			out = append(out, Key{KindServiceEntry, x.Namespace, x.Name})
		}
	}
	return out
}

// about are the DestinationRules that a pod's connections may follow (contract 3.39,
// 3.41).
func (s *ruleSet) about(pod *corev1.Pod) []Key {
	var out []Key
	for i := range s.all {
		d := &s.all[i]
		if d.rule.Selective && (d.rule.Namespace != pod.Namespace || !selects(d.selector, pod.Labels)) {
			continue
		}
		if slices.Contains(d.rule.ExportTo, "*") || slices.Contains(d.rule.ExportTo, pod.Namespace) {
			out = append(out, Key{KindDestinationRule, d.rule.Namespace, d.rule.Name})
		}
	}
	return out
}
