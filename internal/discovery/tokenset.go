package discovery

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"podseal.io/podseal/internal/jwt"
	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/wire"
)

// tokenSet holds the RequestAuthentications that are in force, and counts whom
// each governs.
type tokenSet struct {
	root        string
	byNamespace map[string][]*authenticating
}

// authenticating is one object and the pods that it governs.
type authenticating struct {
	object  policy.RequestAuthentication
	inMesh  int
	outside int      // are selected, but have no proxy
	keyless []string // issuers without keys, and why
	stale   []string // issuers whose keys can't be fetched at the moment
}

func (a *authenticating) key() Key {
	return Key{KindRequestAuthentication, a.object.Namespace, a.object.Name}
}

// KeySources are all places that keys must be fetched from, each once, in order.
func KeySources(c Cluster) []KeySource {
	byName := map[string]KeySource{}
	for _, obj := range c.RequestAuthentications {
		r := inForce(obj, c)
		if r == nil || r.targeted {
			continue
		}
		for _, s := range r.sources {
			if old, ok := byName[s.From]; !ok || old.Timeout < s.Timeout {
				byName[s.From] = s
			}
		}
	}
	sources := make([]KeySource, 0, len(byName))
	for _, s := range byName {
		sources = append(sources, s)
	}
	slices.SortFunc(sources, func(a, b KeySource) int { return strings.Compare(a.From, b.From) })
	return sources
}

// inForce reads what is in force of an object: as it is, its last good version,
// or as much of it as can be understood; nil if that is nothing.
func inForce(obj *unstructured.Unstructured, c Cluster) *authenticationReader {
	if rev := obj.GetLabels()[labelRevision]; rev != "" && !c.Settings.Serves(rev) {
		return nil // another control plane's: contract 1.37
	}
	r := readRequestAuthentication(obj)
	if len(r.faults) == 0 {
		return r
	}
	if old := c.LastGood[Key{KindRequestAuthentication, obj.GetNamespace(), obj.GetName()}]; old != nil {
		if last := readRequestAuthentication(old); len(last.faults) == 0 {
			return last
		}
	}
	if r.unusable {
		return nil
	}
	return r
}

func buildTokens(c Cluster, verdicts Verdicts) *tokenSet {
	s := &tokenSet{root: c.RootNamespace, byNamespace: map[string][]*authenticating{}}
	for _, obj := range c.RequestAuthentications {
		key := Key{KindRequestAuthentication, obj.GetNamespace(), obj.GetName()}
		if rev := obj.GetLabels()[labelRevision]; rev != "" && !c.Settings.Serves(rev) {
			continue
		}
		now, r := readRequestAuthentication(obj), inForce(obj, c)
		if len(now.faults) > 0 {
			outcome := "a rule with a fault refuses the tokens of its issuer"
			switch {
			case r == nil:
				outcome = "it is left out"
			case len(r.faults) == 0:
				outcome = "the last good version stays in force"
			}
			verdicts[key] = Verdict{Reason: ReasonInvalid, Message: Describe(now.faults) + " · " + outcome}
		}
		switch {
		case r == nil:
		case r.targeted:
			verdicts[key] = Verdict{Reason: ReasonNoEffect, Message: "targetRef is for gateways and waypoints, which Podseal has none of: select pods by spec.selector"}
		default:
			s.add(r.result, c.Keys)
		}
	}
	return s
}

// add puts the keys that were fetched into an object.
func (s *tokenSet) add(object policy.RequestAuthentication, fetched map[string]FetchedKeys) {
	object.Scope = scopeOf(object.Selector, object.Namespace, s.root)
	a := &authenticating{object: object}
	for i := range a.object.Rules {
		rule := &a.object.Rules[i]
		if rule.KeysFrom == "" {
			continue
		}
		keys := fetched[rule.KeysFrom]
		if _, err := jwt.ParseKeys(keys.Set); len(keys.Set) > 0 && err == nil {
			rule.Keys = keys.Set
		}
		why := keys.Err
		if why == "" {
			why = "they are not fetched yet"
		}
		switch {
		case len(rule.Keys) == 0:
			a.keyless = append(a.keyless, fmt.Sprintf("%s (%s)", rule.Issuer, why))
		case keys.Err != "":
			a.stale = append(a.stale, fmt.Sprintf("%s (%s)", rule.Issuer, why))
		}
	}
	s.byNamespace[object.Namespace] = append(s.byNamespace[object.Namespace], a)
}

// scopeOf says for whom an object is (contract 6.1).
func scopeOf(selector map[string]string, namespace, root string) policy.Scope {
	switch {
	case len(selector) > 0 && namespace == root:
		return policy.MeshWorkloads
	case len(selector) > 0:
		return policy.Workloads
	case namespace == root:
		return policy.Mesh
	default:
		return policy.Namespace
	}
}

// keys are those of the objects that select a pod, in order. It counts the pod for
// all that govern it.
func (s *tokenSet) keys(pod *corev1.Pod) []string {
	inMesh := pod.Labels[labelTLSMode] == "istio"
	var keys []string
	namespaces := []string{pod.Namespace}
	if pod.Namespace != s.root {
		namespaces = append(namespaces, s.root)
	}
	for _, ns := range namespaces {
		for _, a := range s.byNamespace[ns] {
			if !a.object.Applies(s.root, pod.Namespace, pod.Labels) {
				continue
			}
			selective := a.object.Scope.Selective()
			switch {
			case !inMesh && selective:
				a.outside++
			case inMesh && selective:
				keys = append(keys, a.object.Key())
				fallthrough
			case inMesh:
				a.inMesh++
			}
		}
	}
	slices.Sort(keys)
	return keys
}

// put encodes what proxies are told, and says what becomes of each object.
func (s *tokenSet) put(into map[string][]byte, verdicts Verdicts) {
	for _, all := range s.byNamespace {
		for _, a := range all {
			if bad, isBad := verdicts[a.key()]; isBad {
				bad.Workloads = a.inMesh
				verdicts[a.key()] = bad
			} else {
				verdicts[a.key()] = a.judge()
			}
			put(into, verdicts, a.key(), &a.object, wire.AppendRequestAuthentication)
		}
	}
}

func (a *authenticating) judge() Verdict {
	v := Verdict{Accepted: true, Reason: ReasonAccepted, Workloads: a.inMesh, Message: "in force at " + workloads(a.inMesh)}
	if a.outside > 0 {
		v.Message += fmt.Sprintf("; %d selected have no sidecar", a.outside)
	}
	if len(a.stale) > 0 {
		v.Message += "; keys can't be fetched at the moment, the last good ones stay: " + strings.Join(a.stale, ", ")
	}
	if len(a.keyless) > 0 {
		v.Accepted, v.Reason = false, ReasonNoKeys
		v.Message += "; there are no keys, so every token is refused, of: " + strings.Join(a.keyless, ", ")
	}
	return v
}
