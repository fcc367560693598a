// Package policy decides whether a connection or request may pass.
//
// Everything here is pure. A PeerAuthentication gives each port of a workload
// one effective [Mode] ([Resolve]); the mode, what is known of the port's
// protocol and what the first bytes look like give one [Action] ([Decide]), by
// the table of contract 2.13. The AuthorizationPolicies that apply to a workload
// are one [Access], which judges each connection or request ([Access.Judge]).
// What is refused is refused with a [Reason] of one closed set: the same word in
// the log, the metric and the CLI.
package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Mode says which traffic a port accepts (contract 1.2, 1.28).
type Mode int

// The modes. Unset means "the parent's" until resolved (contract 1.11).
const (
	Unset Mode = iota
	Disable
	Permissive
	Strict
)

var modeNames = [...]string{"UNSET", "DISABLE", "PERMISSIVE", "STRICT"}

func (m Mode) String() string {
	if m < 0 || int(m) >= len(modeNames) {
		return fmt.Sprintf("Mode(%d)", int(m))
	}
	return modeNames[m]
}

// ParseMode reads a mode's name; "" is UNSET.
func ParseMode(s string) (Mode, error) {
	if s == "" {
		return Unset, nil
	}
	if i := slices.Index(modeNames[:], s); i >= 0 {
		return Mode(i), nil
	}
	return Unset, fmt.Errorf("mode %q is not one of %s", s, strings.Join(modeNames[:], ", "))
}

// or returns m, or the parent's mode when m is unset.
func (m Mode) or(parent Mode) Mode {
	if m == Unset {
		return parent
	}
	return m
}

// Modes are the effective modes of one workload: Default for every port that
// Ports doesn't name. None of them is Unset.
type Modes struct {
	Default Mode
	Ports   map[uint16]Mode
}

// Port is the effective mode of a workload (target) port (contract 1.22).
func (m Modes) Port(port uint16) Mode {
	if p, ok := m.Ports[port]; ok {
		return p
	}
	return m.Default.or(Permissive)
}

// Equal reports whether both give every port the same mode.
func (m Modes) Equal(o Modes) bool {
	return m.Default == o.Default && maps.Equal(m.Ports, o.Ports)
}

// PeerAuthentication is one such object, already valid.
type PeerAuthentication struct {
	Namespace, Name string
	Created         time.Time
	Selector        map[string]string // empty: the whole namespace, or the mesh (contract 1.7)
	Mode            Mode
	Ports           map[uint16]Mode // of workload ports (contract 1.22)
}

// Resolve gives the effective modes of a workload with these labels in this
// namespace (contract 1.7-1.21). The order of all does not matter.
func Resolve(all []PeerAuthentication, rootNamespace, namespace string, labels map[string]string) Modes {
	mesh, ns, own := Select(all, rootNamespace, namespace, labels)
	m := Modes{Default: Permissive}
	for _, p := range []*PeerAuthentication{mesh, ns, own} {
		if p != nil {
			m.Default = p.Mode.or(m.Default)
		}
	}
	if own != nil && len(own.Ports) > 0 { // only the selected one's ports count (contract 1.13)
		m.Ports = make(map[uint16]Mode, len(own.Ports))
		for port, mode := range own.Ports {
			m.Ports[port] = mode.or(m.Default) // contract 1.12
		}
	}
	return m
}

// Select gives the policies that a workload follows: the mesh's, its
// namespace's and its own, each nil if there is none (contract 1.7-1.9,
// 1.15-1.20). The order of all does not matter.
func Select(all []PeerAuthentication, rootNamespace, namespace string, labels map[string]string) (mesh, ns, own *PeerAuthentication) {
	first := func(slot **PeerAuthentication, p *PeerAuthentication) {
		if *slot == nil || older(*p, **slot) < 0 {
			*slot = p
		}
	}
	for i := range all {
		p := &all[i]
		switch {
		case len(p.Selector) == 0 && p.Namespace == rootNamespace:
			first(&mesh, p)
		case len(p.Selector) == 0 && p.Namespace == namespace:
			first(&ns, p)
		case p.Namespace == rootNamespace: // a selector there has no effect (contract 1.9)
		case p.Namespace == namespace && matches(p.Selector, labels):
			first(&own, p)
		}
	}
	return mesh, ns, own
}

// older orders by age, then name, then namespace (contract 1.15).
func older(a, b PeerAuthentication) int {
	if c := a.Created.Compare(b.Created); c != 0 {
		return c
	}
	if c := strings.Compare(a.Name, b.Name); c != 0 {
		return c
	}
	return strings.Compare(a.Namespace, b.Namespace)
}

// matches reports whether every pair of the selector is among the labels (contract 1.19).
func matches(selector, labels map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}
