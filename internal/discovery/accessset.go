package discovery

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/wire"
	"podseal.io/podseal/internal/workload"
)

// accessSet holds the AuthorizationPolicies that are in force, and counts whom
// each governs.
type accessSet struct {
	root        string
	byNamespace map[string][]*governing
	idle        map[Key]Verdict // that are valid and govern nobody
	authorizers []policy.Authorizer
}

// governing is one policy and the pods that it governs.
type governing struct {
	policy  *policy.AuthorizationPolicy
	inMesh  int
	outside int             // are selected, but have no proxy
	tcp     map[uint16]bool // ports declared as TCP on which a rule of it looks at HTTP
}

func buildAccess(c Cluster, verdicts Verdicts) *accessSet {
	s := &accessSet{root: c.RootNamespace, byNamespace: map[string][]*governing{}, idle: map[Key]Verdict{}}
	s.authorizers, _, _ = Authorizers(c.MeshConfig, c.Settings.ClusterDomain)
	for _, obj := range c.AuthorizationPolicies {
		if rev := obj.GetLabels()[labelRevision]; rev != "" && !c.Settings.Serves(rev) {
			continue // another control plane's: contract 1.37
		}
		key := Key{KindAuthorizationPolicy, obj.GetNamespace(), obj.GetName()}
		r := readAuthorizationPolicy(obj)
		if len(r.faults) > 0 {
			r = s.instead(r, c.LastGood[key], key, verdicts)
		}
		switch {
		case r == nil:
		case r.targeted: // contract 6.2
			s.idle[key] = Verdict{Reason: ReasonNoEffect, Message: "targetRef is for gateways and waypoints, which Podseal has none of: select pods by spec.selector"}
		default:
			s.add(&r.policy)
		}
	}
	return s
}

// instead says what is in force in place of an object with faults: its last good
// version, or if there is none as much of it as can be understood, which allows
// less and denies more than was meant (contract 6.16).
func (s *accessSet) instead(r *authorizationReader, lastGood *unstructured.Unstructured, key Key, verdicts Verdicts) *authorizationReader {
	outcome := "it is enforced as far as it can be understood: a rule with a fault allows nothing, and denies more than it says"
	next := r
	if r.unusable {
		outcome, next = "it is left out", nil
	}
	if lastGood != nil {
		if last := readAuthorizationPolicy(lastGood); len(last.faults) == 0 {
			outcome, next = "the last good version stays in force", last
		}
	}
	verdicts[key] = Verdict{Reason: ReasonInvalid, Message: Describe(r.faults) + " · " + outcome}
	return next
}

func (s *accessSet) add(p *policy.AuthorizationPolicy) {
	p.Scope = scopeOf(p.Selector, p.Namespace, s.root)
	s.byNamespace[p.Namespace] = append(s.byNamespace[p.Namespace], &governing{policy: p, tcp: map[uint16]bool{}})
}

// keys are those of the policies that select a pod (contract 6.1), in order. It
// counts the pod for all that govern it.
func (s *accessSet) keys(pod *corev1.Pod, ports []workload.Port) []string {
	inMesh := pod.Labels[labelTLSMode] == "istio"
	var keys []string
	visit := func(all []*governing) {
		for _, g := range all {
			if !g.policy.Applies(s.root, pod.Namespace, pod.Labels) {
				continue
			}
			if !inMesh {
				if g.policy.Scope.Selective() {
					g.outside++
				}
				continue
			}
			if g.policy.Scope.Selective() {
				keys = append(keys, g.policy.Key())
			}
			g.inMesh++
			g.notePorts(ports)
		}
	}
	visit(s.byNamespace[pod.Namespace])
	if pod.Namespace != s.root {
		visit(s.byNamespace[s.root])
	}
	slices.Sort(keys)
	return keys
}

// notePorts finds the ports on which some of the policy can't be compared.
func (g *governing) notePorts(ports []workload.Port) {
	for i := range g.policy.Rules {
		r := &g.policy.Rules[i]
		if r.Never || !r.NeedsHTTP() {
			continue
		}
		for _, p := range ports {
			if p.Protocol == policy.TCP && reaches(r, p.Target) {
				g.tcp[p.Target] = true
			}
		}
	}
}

// reaches reports whether a rule can match on a port.
func reaches(r *policy.Rule, port uint16) bool {
	text := strconv.Itoa(int(port))
	fits := func(all []policy.Match) bool {
		for _, m := range all {
			if m.On == policy.DestinationPort && ((len(m.Values) > 0 && !slices.Contains(m.Values, text)) || slices.Contains(m.NotValues, text)) {
				return false
			}
		}
		return true
	}
	return fits(r.When) && (len(r.To) == 0 || slices.ContainsFunc(r.To, fits))
}

// resources encodes what proxies are told.
func (s *accessSet) resources(into map[string][]byte, verdicts Verdicts) {
	for _, all := range s.byNamespace {
		for _, g := range all {
			b, err := wire.AppendAuthorizationPolicy(nil, g.policy)
			if err != nil {
				verdicts[g.key()] = Verdict{Reason: ReasonUnencoded, Message: fmt.Sprintf("left out: %v", err)}
				continue
			}
			into[g.policy.Key()] = b
		}
	}
}

func (g *governing) key() Key {
	return Key{KindAuthorizationPolicy, g.policy.Namespace, g.policy.Name}
}

// report writes the verdicts of the policies that have no fault; of the others it
// adds whom they govern all the same.
func (s *accessSet) report(verdicts Verdicts) {
	maps.Copy(verdicts, s.idle)
	for _, all := range s.byNamespace {
		for _, g := range all {
			v := s.judge(g)
			if bad, isBad := verdicts[g.key()]; isBad {
				bad.Workloads = v.Workloads
				v = bad
			}
			verdicts[g.key()] = v
		}
	}
}

func (s *accessSet) judge(g *governing) Verdict {
	where := ""
	switch g.policy.Scope {
	case policy.Mesh:
		where = "for the mesh, "
	case policy.Namespace:
		where = "for namespace " + g.policy.Namespace + ", "
	case policy.Workloads, policy.MeshWorkloads:
	}
	v := Verdict{Accepted: true, Reason: ReasonAccepted, Workloads: g.inMesh}
	v.Message = fmt.Sprintf("in force %sat %s", where, workloads(g.inMesh))
	if g.policy.DryRun && (g.policy.Effect == policy.Allow || g.policy.Effect == policy.Deny) {
		v.Message = fmt.Sprintf("dry run %sat %s: what it would do is in the proxies' records", where, workloads(g.inMesh))
	}
	if g.outside > 0 {
		v.Message += fmt.Sprintf("; %d selected have no sidecar", g.outside)
	}
	if g.policy.Effect == policy.Custom {
		if text := custom(g.policy, s.authorizers); text != "" {
			v.Accepted, v.Reason = false, ReasonNoProvider
			v.Message += "; " + text
		}
	}
	if text := g.partly(); text != "" {
		if v.Accepted {
			v.Reason = ReasonPartly
		}
		v.Message += "; " + text
	}
	return v
}

// partly says which rules can't be compared in full where (contract 6.33, 6.34).
func (g *governing) partly() string {
	if len(g.tcp) == 0 {
		return ""
	}
	var ports []string
	for _, p := range slices.Sorted(maps.Keys(g.tcp)) {
		ports = append(ports, strconv.Itoa(int(p)))
	}
	on := "on port " + strings.Join(ports, ", ") + ", declared as TCP, "
	if g.policy.Effect == policy.Allow {
		return on + "its rules that look at HTTP allow nothing"
	}
	return on + "its rules that look at HTTP are compared without that, and match more"
}
