// Package explain says what the mesh does with a connection or request, and why.
//
// A [Mesh] is made of the resources that proxies are told. [Mesh.Can] answers for
// one pair of pods as their two proxies would: the client's by what it knows of
// the destination and by DestinationRules, the server's by the mode of the port
// and by AuthorizationPolicies, which the proxies' own evaluator compares. What
// isn't known of the traffic is left open: the answer is then "depends", with
// what it depends on. [Mesh.Policies] lists what holds for a pod.
//
// Everything here is pure.
package explain

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/wire"
	"podseal.io/podseal/internal/workload"
)

// Mesh is what proxies are told, read. It is immutable.
type Mesh struct {
	world    *workload.World
	mesh     workload.Mesh
	pods     map[string]*workload.Workload
	leading  map[string][]lead // by pod
	policies map[string]*policy.AuthorizationPolicy
	captures func(pod string, port uint16) bool
}

// lead is a service port that leads to a port of a pod.
type lead struct {
	service *workload.Service
	port    workload.ServicePort
	target  uint16
}

// Read reads resources: encoded, by type and name. A resource that can't be read
// is an error, and left out. captures reports whether connections to a port of a
// pod reach its proxy.
func Read(resources map[string]map[string][]byte, captures func(pod string, port uint16) bool) (*Mesh, error) {
	m := &Mesh{captures: captures, pods: map[string]*workload.Workload{}, leading: map[string][]lead{}, policies: map[string]*policy.AuthorizationPolicy{}}
	var faults []error
	pods := readAll(resources[wire.TypeWorkload], wire.ParseWorkload, &faults)
	services := readAll(resources[wire.TypeService], wire.ParseService, &faults)
	rules := readAll(resources[wire.TypeDestinationRule], wire.ParseDestinationRule, &faults)
	for _, p := range readAll(resources[wire.TypeAuthorizationPolicy], wire.ParseAuthorizationPolicy, &faults) {
		m.policies[p.Key()] = p
	}
	for _, mesh := range readAll(resources[wire.TypeMesh], wire.ParseMesh, &faults) {
		m.mesh = *mesh
	}
	m.world = workload.NewWorld(m.mesh, pods, services, rules...)
	for _, p := range pods {
		m.pods[p.UID] = p
	}
	for _, s := range services {
		m.index(s)
	}
	return m, errors.Join(faults...)
}

func readAll[T any](encoded map[string][]byte, parse func([]byte) (*T, error), faults *[]error) []*T {
	out := make([]*T, 0, len(encoded))
	for _, name := range slices.Sorted(maps.Keys(encoded)) {
		v, err := parse(encoded[name])
		if err != nil {
			*faults = append(*faults, fmt.Errorf("read %s: %w", name, err))
			continue
		}
		out = append(out, v)
	}
	return out
}

// index finds which ports of which pods a service leads to.
func (m *Mesh) index(s *workload.Service) {
	for _, e := range s.Endpoints {
		at, known := m.world.WorkloadAt(e.Address)
		if !known || (e.Workload != "" && e.Workload != at.UID) {
			continue
		}
		for _, p := range s.Ports {
			l := lead{s, p, e.Targets[p.Port]}
			if l.target != 0 && !slices.Contains(m.leading[at.UID], l) {
				m.leading[at.UID] = append(m.leading[at.UID], l)
			}
		}
	}
}

// Applied is an AuthorizationPolicy that holds for a pod.
type Applied struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Action    string `json:"action"`
	Scope     string `json:"scope"` // mesh, namespace or selector
	Rules     int    `json:"rules"`
	DryRun    bool   `json:"dry_run,omitempty"`
	// Unknown: it holds, and what it says isn't known; until it is, nothing is let in.
	Unknown bool `json:"unknown,omitempty"`
}

// Key is "<namespace>/<name>".
func (a *Applied) Key() string { return a.Namespace + "/" + a.Name }

// evaluated is the order in which effects are looked at (contract 6.4).
var evaluated = []policy.Effect{policy.Custom, policy.Audit, policy.Deny, policy.Allow}

// Policies are the AuthorizationPolicies that hold for the pod "<namespace>/<name>",
// in the order in which they are looked at.
func (m *Mesh) Policies(pod string) []Applied {
	to := m.pods[pod]
	if to == nil {
		return nil
	}
	hold, missing := policy.InForce(m.policies, to.Namespace, to.Policies)
	slices.SortStableFunc(hold, func(a, b *policy.AuthorizationPolicy) int {
		return cmp.Compare(slices.Index(evaluated, a.Effect), slices.Index(evaluated, b.Effect))
	})
	out := make([]Applied, 0, len(hold)+len(missing))
	for _, key := range missing {
		ns, name, _ := strings.Cut(key, "/")
		out = append(out, Applied{Namespace: ns, Name: name, Action: "unknown", Scope: "selector", Unknown: true})
	}
	for _, p := range hold {
		scope := map[policy.Scope]string{policy.Mesh: "mesh", policy.Namespace: "namespace"}[p.Scope]
		out = append(out, Applied{
			Namespace: p.Namespace, Name: p.Name, Action: p.Effect.String(), Scope: cmp.Or(scope, "selector"), Rules: len(p.Rules), DryRun: p.DryRun,
		})
	}
	return out
}
