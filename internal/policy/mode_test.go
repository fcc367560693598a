package policy

import (
	"math/rand/v2"
	"testing"
	"time"
)

const root = "d8-istio"

func pa(ns, name string, age int, mode Mode, more ...func(*PeerAuthentication)) PeerAuthentication {
	p := PeerAuthentication{Namespace: ns, Name: name, Created: time.Unix(int64(1000-age), 0), Mode: mode}
	for _, f := range more {
		f(&p)
	}
	return p
}

func selects(kv ...string) func(*PeerAuthentication) {
	return func(p *PeerAuthentication) {
		p.Selector = map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			p.Selector[kv[i]] = kv[i+1]
		}
	}
}

func port(number uint16, mode Mode) func(*PeerAuthentication) {
	return func(p *PeerAuthentication) {
		if p.Ports == nil {
			p.Ports = map[uint16]Mode{}
		}
		p.Ports[number] = mode
	}
}

// TestResolve proves contract 1.7-1.14, 1.16-1.20.
func TestResolve(t *testing.T) {
	web := selects("app", "web")
	tests := []struct {
		name string // with the contract's number
		all  []PeerAuthentication
		want Modes
	}{
		{"1.14 no object: PERMISSIVE", nil, Modes{Default: Permissive}},
		{"1.7 no selector in the root namespace is the mesh's", []PeerAuthentication{pa(root, "default", 1, Strict)}, Modes{Default: Strict}},
		{"1.7 no selector is the namespace's", []PeerAuthentication{pa("shop", "default", 1, Strict)}, Modes{Default: Strict}},
		{"1.20 other namespaces don't count", []PeerAuthentication{pa("other", "default", 1, Strict)}, Modes{Default: Permissive}},
		{"1.8 workload over namespace over mesh", []PeerAuthentication{pa(root, "m", 1, Disable), pa("shop", "n", 1, Strict), pa("shop", "w", 1, Permissive, web)}, Modes{Default: Permissive}},
		{"1.10 namespace over mesh", []PeerAuthentication{pa(root, "m", 1, Strict), pa("shop", "n", 1, Permissive)}, Modes{Default: Permissive}},
		{"1.10 port over workload", []PeerAuthentication{pa("shop", "w", 1, Strict, web, port(8080, Disable))}, Modes{Strict, map[uint16]Mode{8080: Disable}}},
		{"1.9 a selector in the root namespace has no effect", []PeerAuthentication{pa(root, "w", 1, Strict, web)}, Modes{Default: Permissive}},
		{"1.11 UNSET in the namespace is the mesh's mode", []PeerAuthentication{pa(root, "m", 1, Strict), pa("shop", "n", 1, Unset)}, Modes{Default: Strict}},
		{"1.11 UNSET for the mesh is PERMISSIVE", []PeerAuthentication{pa(root, "m", 1, Unset)}, Modes{Default: Permissive}},
		{"1.11 UNSET for the workload is the namespace's mode", []PeerAuthentication{pa("shop", "n", 1, Disable), pa("shop", "w", 1, Unset, web)}, Modes{Default: Disable}},
		{"1.12 an UNSET port is the workload's effective mode", []PeerAuthentication{pa("shop", "n", 1, Disable), pa("shop", "w", 1, Unset, web, port(8001, Strict), port(8002, Unset))}, Modes{Disable, map[uint16]Mode{8001: Strict, 8002: Disable}}},
		{"1.13 ports without a selector don't count", []PeerAuthentication{pa("shop", "n", 1, Permissive, port(80, Strict))}, Modes{Default: Permissive}},
		{"1.16 the oldest of a namespace counts, the others are nothing", []PeerAuthentication{pa("shop", "b", 1, Strict), pa("shop", "a", 5, Unset)}, Modes{Default: Permissive}},
		{"1.16 1.18 equal ages: the name decides", []PeerAuthentication{pa("shop", "b", 1, Strict), pa("shop", "a", 1, Disable)}, Modes{Default: Disable}},
		{"1.17 the oldest that matches the workload, no merge of ports", []PeerAuthentication{pa("shop", "young", 1, Unset, web, port(1, Strict)), pa("shop", "old", 9, Strict, web, port(2, Disable))}, Modes{Strict, map[uint16]Mode{2: Disable}}},
		{"1.17 older but of other pods doesn't count", []PeerAuthentication{pa("shop", "w", 1, Strict, web), pa("shop", "x", 9, Disable, selects("app", "db"))}, Modes{Default: Strict}},
		{"1.19 every pair must match", []PeerAuthentication{pa("shop", "w", 1, Strict, selects("app", "web", "tier", "front"))}, Modes{Default: Permissive}},
		{"1.19 a subset of the labels is enough", []PeerAuthentication{pa("shop", "w", 1, Strict, selects("version", "v1"))}, Modes{Default: Strict}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for range 5 { // contract 1.15: the order in which they are listed is nothing
				rand.Shuffle(len(tt.all), func(i, j int) { tt.all[i], tt.all[j] = tt.all[j], tt.all[i] })
				got := Resolve(tt.all, root, "shop", map[string]string{"app": "web", "version": "v1"})
				if !got.Equal(tt.want) {
					t.Fatalf("got %v, want %v", got, tt.want)
				}
			}
		})
	}
}

func TestParseMode(t *testing.T) { // contract 1.2
	for i, name := range []string{"UNSET", "DISABLE", "PERMISSIVE", "STRICT"} {
		if m, err := ParseMode(name); err != nil || int(m) != i || m.String() != name {
			t.Errorf("ParseMode(%q) = %v, %v", name, m, err)
		}
	}
	for _, bad := range []string{"strict", "MUTUAL", "STRICT ", "0"} {
		if _, err := ParseMode(bad); err == nil {
			t.Errorf("ParseMode(%q) is accepted", bad)
		}
	}
}

func TestPortOfUnknownPort(t *testing.T) { // contract 1.26
	m := Modes{Default: Strict, Ports: map[uint16]Mode{9000: Disable}}
	if m.Port(9000) != Disable || m.Port(1) != Strict || (Modes{}).Port(1) != Permissive {
		t.Error("a named port has its own mode, others the default, and the zero value is PERMISSIVE")
	}
}
