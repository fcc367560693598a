package workload

import (
	"slices"
	"strings"
	"time"
)

// TLSMode says how a client's proxy encrypts (contract 3.30, 3.32).
type TLSMode int

// The modes. TLSAuto is what holds without a rule: mutual TLS where the peer has
// a sidecar (contract 3.16, 3.31).
const (
	TLSAuto TLSMode = iota
	TLSDisable
	TLSSimple
	TLSMutual
	TLSIstioMutual
)

var tlsModeNames = [...]string{"auto", "DISABLE", "SIMPLE", "MUTUAL", "ISTIO_MUTUAL"}

func (m TLSMode) String() string {
	if m < 0 || int(m) >= len(tlsModeNames) {
		return "unknown"
	}
	return tlsModeNames[m]
}

// Balance says how an endpoint is chosen.
type Balance int

// The ways to choose. The zero value is by fewest connections (contract 3.58).
// Passthrough leaves the choice to the cluster; SourceHash gives all connections
// from one address to the same endpoint for as long as it is there.
const (
	LeastRequest Balance = iota
	RoundRobin
	Random
	Passthrough
	SourceHash
)

// ClientTLS is a rule's word on encryption. Files are paths in the proxy's
// container.
type ClientTLS struct {
	Mode              TLSMode  // never TLSAuto
	SNI               string   // "": as the mode has it
	SubjectAltNames   []string // who may answer; empty: as the mode has it
	CACertificates    string   // file; "" are the system's roots
	ClientCertificate string   // file, for TLSMutual
	PrivateKey        string   // file, for TLSMutual
	SkipVerify        bool     // whoever answers is trusted
	// Credential is a Secret in the rule's namespace, which is the client's, instead
	// of files; "" is none.
	Credential string
	// Unusable says why this can't be carried out, "" if it can. Connections are
	// then refused: nothing is ever sent with less than what was asked for.
	Unusable string
}

// TrafficPolicy is how connections to a destination are made. The zero value is
// what holds without a rule.
type TrafficPolicy struct {
	TLS            *ClientTLS // nil: TLSAuto
	Balance        Balance
	ConnectTimeout time.Duration // 0: 10 s (contract 3.74)
	MaxConnections uint32        // of one proxy to one service port; 0: no bound
	Keepalive      *Keepalive    // nil: as the kernel has it
	IdleTimeout    time.Duration // 0: the mesh's (contract 2.36)
	MaxDuration    time.Duration // a connection is cut after so long; 0: never
	Outlier        *Outlier      // nil: an endpoint that fails is tried again and again
}

// Outlier says when an endpoint that can't be connected to is left out for a while.
type Outlier struct {
	Failures   uint32        // so many in a row, at least 1
	Ejection   time.Duration // left out for so long, times how often it has been
	Interval   time.Duration // each of these that goes well is one time less
	MaxPercent uint32        // of the endpoints are left out at most, but one always may
	MinHealthy uint32        // percent: when fewer are left, none is left out
}

// Keepalive is TCP's. Zero values are the kernel's.
type Keepalive struct {
	Probes         uint32
	Time, Interval time.Duration
}

// DestinationRule says how clients talk to services of a host. Its name in the
// table is "<namespace>/<name>".
type DestinationRule struct {
	Namespace, Name string
	Host            string    // full name of a service, or "*" and the end of one
	ExportTo        []string  // namespaces whose clients it is for; "*" is all
	Selective       bool      // only for workloads that name it in Rules
	Created         time.Time // in whole seconds
	Policy          *TrafficPolicy
	Ports           map[uint16]TrafficPolicy // by service port; replaces Policy whole
}

func (r *DestinationRule) key() string { return r.Namespace + "/" + r.Name }

// Conduct is what rules say about connections of one client to one service port.
type Conduct struct {
	TrafficPolicy
	// Beneath is the mode of the rule itself where its entry for the port has none
	// (contract 3.45): TLS is then nil, and the endpoint still looks at this.
	Beneath TLSMode
	Rule    string // "<namespace>/<name>" of the rule; "" when there is none
}

// rulebook finds rules by namespace and host.
type rulebook map[string]*rulesOfNamespace

type rulesOfNamespace struct {
	exact     map[string][]*DestinationRule // by host
	wildcards []wildcard                    // longest first
}

type wildcard struct {
	suffix string // of "*.shop.svc.cluster.local", what follows the star
	rules  []*DestinationRule
}

func newRulebook(rules []*DestinationRule) rulebook {
	ordered := slices.Clone(rules)
	slices.SortFunc(ordered, func(a, b *DestinationRule) int { // the oldest first (contract 3.42)
		if c := a.Created.Compare(b.Created); c != 0 {
			return c
		}
		return strings.Compare(a.key(), b.key())
	})
	book := rulebook{}
	for _, r := range ordered {
		of := book[r.Namespace]
		if of == nil {
			of = &rulesOfNamespace{exact: map[string][]*DestinationRule{}}
			book[r.Namespace] = of
		}
		of.add(r)
	}
	for _, of := range book {
		slices.SortFunc(of.wildcards, func(a, b wildcard) int { return len(b.suffix) - len(a.suffix) })
	}
	return book
}

func (n *rulesOfNamespace) add(r *DestinationRule) {
	suffix, wild := strings.CutPrefix(r.Host, "*")
	if !wild {
		n.exact[r.Host] = append(n.exact[r.Host], r)
		return
	}
	i := slices.IndexFunc(n.wildcards, func(w wildcard) bool { return w.suffix == suffix })
	if i < 0 {
		i = len(n.wildcards)
		n.wildcards = append(n.wildcards, wildcard{suffix: suffix})
	}
	n.wildcards[i].rules = append(n.wildcards[i].rules, r)
}

// find returns the rules of the most specific host that has any which counts:
// the name itself, then the longest wildcard (contract 3.40).
func (n *rulesOfNamespace) find(host string, counts func(*DestinationRule) bool) []*DestinationRule {
	if n == nil {
		return nil
	}
	if rules := n.exact[host]; slices.ContainsFunc(rules, counts) {
		return rules
	}
	for _, w := range n.wildcards {
		if strings.HasSuffix(host, w.suffix) && slices.ContainsFunc(w.rules, counts) {
			return w.rules
		}
	}
	return nil
}

// Conduct says how a client connects to a port of a service: by the rules of its
// own namespace, else of the service's, else of the root's (contract 3.39). A
// client that isn't known has no rules of its own.
func (w *World) Conduct(client *Workload, s *Service, port uint16) Conduct {
	if len(w.rules) == 0 || s == nil {
		return Conduct{}
	}
	r := w.rule(client, s)
	if r == nil {
		return Conduct{}
	}
	c := Conduct{Rule: r.key()}
	if r.Policy != nil {
		c.TrafficPolicy = *r.Policy
	}
	if at, ok := r.Ports[port]; ok { // contract 3.44
		if at.TLS == nil && c.TLS != nil {
			c.Beneath = c.TLS.Mode
		}
		c.TrafficPolicy = at
	}
	return c
}

func (w *World) rule(client *Workload, s *Service) *DestinationRule {
	namespace := ""
	if client != nil {
		namespace = client.Namespace
	}
	root := w.Mesh.RootNamespace
	if namespace != "" && namespace != root {
		all := w.rules[namespace].find(s.Hostname, func(*DestinationRule) bool { return true })
		if len(all) > 0 {
			return choose(all, func(r *DestinationRule) int {
				switch {
				case !r.Selective:
					return 1
				case slices.Contains(client.Rules, r.key()): // contract 3.41
					return 2
				default:
					return 0
				}
			})
		}
	}
	for _, ns := range []string{s.Namespace, root} {
		if ns == "" || (ns == namespace && ns != root) {
			continue
		}
		all := w.rules[ns].find(s.Hostname, func(r *DestinationRule) bool { return !slices.Equal(r.ExportTo, []string{ns}) })
		if r := choose(all, func(r *DestinationRule) int {
			if !r.Selective && (slices.Contains(r.ExportTo, "*") || slices.Contains(r.ExportTo, namespace)) {
				return 1
			}
			return 0
		}); r != nil {
			return r
		}
	}
	return nil
}

// choose returns the best of rules for one host: of the highest rank above 0,
// the oldest that has a policy, or the oldest (contract 3.42).
func choose(oldestFirst []*DestinationRule, rank func(*DestinationRule) int) *DestinationRule {
	var best *DestinationRule
	bestRank := 0
	for _, r := range oldestFirst {
		n := rank(r)
		if n > bestRank || (n == bestRank && n > 0 && best.silent() && !r.silent()) {
			best, bestRank = r, n
		}
	}
	return best
}

// silent reports whether a rule says nothing about connections.
func (r *DestinationRule) silent() bool { return r.Policy == nil && len(r.Ports) == 0 }
