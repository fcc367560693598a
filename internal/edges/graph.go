package edges

import (
	"cmp"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"time"

	"podseal.io/podseal/internal/identity"
)

// The kinds of a [Peer].
const (
	KindWorkload     = "workload"      // pods, by what they were made from
	KindIdentity     = "identity"      // proved who it is, from an address that no known pod has
	KindNode         = "node"          // a node: host network, or an address that the node put in place of the sender's
	KindKubelet      = "kubelet"       // the node that the pod is on: its kubelet, or what else is in its host network
	KindAPIServer    = "api-server"    //
	KindLoadBalancer = "load-balancer" //
	KindService      = "service"       // a cluster address that no pod stands behind
	KindGone         = "gone"          // an address of pods that no present pod had at that time
	KindOutside      = "outside"       // no address of this cluster
	KindRest         = "rest"          // edges that there was no room for
)

// Peer is one end of a link. Name is that of the workload, node, service account
// or service; Address is set where there is no better name.
type Peer struct {
	Kind      string     `json:"kind"`
	Namespace string     `json:"namespace,omitempty"`
	Name      string     `json:"name,omitempty"`
	Address   netip.Addr `json:"address,omitzero"`
}

// String is how people see a peer.
func (p Peer) String() string {
	switch {
	case p.Kind == KindWorkload:
		return p.Name
	case p.Kind == KindIdentity:
		return "sa/" + p.Name
	case p.Kind == KindRest:
		return "(others)"
	case p.Name != "":
		return p.Kind + "/" + p.Name
	default:
		return p.Kind + "/" + p.Address.String()
	}
}

func (p Peer) compare(o Peer) int {
	return cmp.Or(strings.Compare(p.Namespace, o.Namespace), strings.Compare(p.Name, o.Name), strings.Compare(p.Kind, o.Kind), p.Address.Compare(o.Address))
}

// Report is what one proxy says.
type Report struct {
	Pod      string `json:"pod"` // "<namespace>/<pod>", from its credential
	Workload Peer   `json:"workload"`
	Node     string `json:"node,omitempty"`
	Edges    []Edge `json:"edges"`
}

// Resolver says what an address belonged to at a time, seen from a pod on node.
type Resolver func(a netip.Addr, node string, d Direction, at time.Time) Peer

// Resolve says of each edge who its peer is taken to be.
func (r *Report) Resolve(resolve Resolver) {
	for i := range r.Edges {
		r.Edges[i].Peer = peerOf(r, &r.Edges[i], resolve)
	}
}

// Share is what went over a link under one security.
type Share struct {
	Security Security `json:"security"`
	TLS
	Protocol            string            `json:"protocol,omitempty"` // of the last connection: http or tcp
	SourceIdentity      string            `json:"source_identity,omitempty"`
	DestinationIdentity string            `json:"destination_identity,omitempty"`
	SourceSerial        string            `json:"source_serial,omitempty"`
	DestinationSerial   string            `json:"destination_serial,omitempty"`
	Connections         uint64            `json:"connections"`
	Open                uint64            `json:"open"`
	Requests            uint64            `json:"requests"`
	BytesSent           uint64            `json:"bytes_sent"`     // to the source
	BytesReceived       uint64            `json:"bytes_received"` // from the source
	Refusals            map[string]uint64 `json:"refusals,omitempty"`
	First               time.Time         `json:"first_seen"`
	Last                time.Time         `json:"last_seen"`
	Reporters           []string          `json:"reporters"` // source, destination
	Folded              uint64            `json:"folded,omitempty"`
}

// The states of a [Link].
const (
	StateMutualTLS   = "mutual_tls"
	StatePlaintext   = "plaintext"
	StateForeignTLS  = "foreign_tls"
	StateMixed       = "mixed"
	StateNotObserved = "not_observed"
)

// Link is all that was seen between two peers towards one port.
type Link struct {
	Source      Peer    `json:"source"`
	Destination Peer    `json:"destination"`
	Port        uint16  `json:"port"`
	OwnPort     bool    `json:"own_port,omitempty"` // of the proxy itself, for health and metrics: plaintext by design
	Service     string  `json:"service,omitempty"`  // FQDN:port, of the last connection by one
	State       string  `json:"state"`
	Shares      []Share `json:"shares"` // the most connections first
}

// Graph is all links, sorted.
type Graph []Link

type linkKey struct {
	source, destination Peer
	port                uint16
}

type shareKey struct {
	security Security
	tls      TLS
}

// draft is a link while it is made: what each end says is summed up by itself.
type draft struct {
	service string
	at      time.Time // of service
	own     bool      // the destination's proxy says that the port is its own
	views   [2]map[shareKey]*Share
}

// Build makes one graph of what all proxies say, whose edges are resolved. Where both ends of a link
// report it, each share has the larger count of the two: both saw the same
// connections, and what only one of them saw is there too.
func Build(reports []Report) Graph {
	drafts := map[linkKey]*draft{}
	for i := range reports {
		r := &reports[i]
		for j := range r.Edges {
			addEdge(drafts, r, &r.Edges[j])
		}
	}
	graph := make(Graph, 0, len(drafts))
	for key, d := range drafts {
		l := Link{Source: key.source, Destination: key.destination, Port: key.port, Service: d.service, OwnPort: d.own, Shares: d.shares()}
		l.State = stateOf(l.Shares)
		graph = append(graph, l)
	}
	slices.SortFunc(graph, func(a, b Link) int {
		return cmp.Or(a.Source.compare(b.Source), a.Destination.compare(b.Destination), cmp.Compare(a.Port, b.Port))
	})
	return graph
}

func addEdge(drafts map[linkKey]*draft, r *Report, e *Edge) {
	key, view := linkKey{e.Peer, r.Workload, e.Key.Port}, 1
	if e.Key.Direction == Outbound {
		key, view = linkKey{r.Workload, e.Peer, e.Key.Port}, 0
	}
	d := drafts[key]
	if d == nil {
		d = &draft{views: [2]map[shareKey]*Share{{}, {}}}
		drafts[key] = d
	}
	d.own = d.own || view == 1 && OwnPort(e.Key.Port)
	if e.About.Service != "" && !e.Last.Before(d.at) {
		d.service, d.at = e.About.Service, e.Last
	}
	sk := shareKey{e.Key.Security, e.Key.TLS}
	s := d.views[view][sk]
	if s == nil {
		s = &Share{Security: sk.security, TLS: sk.tls, First: e.First, Reporters: []string{[2]string{"source", "destination"}[view]}}
		d.views[view][sk] = s
	}
	s.add(e)
}

// OwnPort reports whether a port of a pod that has a proxy is the proxy's own, which is
// never captured (contract 5.26).
func OwnPort(port uint16) bool { return port == 15020 || port == 15021 || port == 15090 }

// Exposed reports whether something was carried, or refused, without the mesh's mutual
// TLS that could have it: all but health and metrics of proxies.
func (l *Link) Exposed() bool {
	n, _ := l.Of(func(s *Share) bool { return s.Security == Plaintext || s.Security == ForeignTLS })
	refused := l.Refusals()
	return !l.OwnPort && n+refused["plaintext_refused"]+refused["foreign_tls_refused"] > 0
}

// add counts an edge of the same side.
func (s *Share) add(e *Edge) {
	if !e.Last.Before(s.Last) {
		s.Last, s.Protocol = e.Last, cmp.Or(e.Key.Protocol, s.Protocol)
		s.SourceIdentity, s.DestinationIdentity = e.About.OwnIdentity, e.Key.Identity
		s.SourceSerial, s.DestinationSerial = e.About.OwnSerial, e.About.PeerSerial
		if e.Key.Direction == Inbound {
			s.SourceIdentity, s.DestinationIdentity = s.DestinationIdentity, s.SourceIdentity
			s.SourceSerial, s.DestinationSerial = s.DestinationSerial, s.SourceSerial
		}
	}
	if e.First.Before(s.First) {
		s.First = e.First
	}
	s.Connections += e.Counts.Connections
	s.Requests += e.Counts.Requests
	s.BytesSent += e.Counts.BytesSent
	s.BytesReceived += e.Counts.BytesReceived
	s.Open += uint64(e.Open)
	s.Folded += e.Folded
	for reason, n := range e.Counts.Refusals {
		if s.Refusals == nil {
			s.Refusals = map[string]uint64{}
		}
		s.Refusals[reason] += n
	}
}

// with joins what the two ends say of the same connections.
func (s *Share) with(o *Share) {
	if o.Last.After(s.Last) {
		s.Last, s.Protocol = o.Last, cmp.Or(o.Protocol, s.Protocol)
	}
	if s.Protocol == "tcp" && o.Protocol != "" {
		s.Protocol = o.Protocol // the destination looks inside
	}
	if o.First.Before(s.First) {
		s.First = o.First
	}
	s.Connections, s.Open = max(s.Connections, o.Connections), max(s.Open, o.Open)
	s.Requests, s.Folded = max(s.Requests, o.Requests), max(s.Folded, o.Folded)
	s.BytesSent, s.BytesReceived = max(s.BytesSent, o.BytesSent), max(s.BytesReceived, o.BytesReceived)
	for reason, n := range o.Refusals {
		if s.Refusals == nil {
			s.Refusals = map[string]uint64{}
		}
		s.Refusals[reason] = max(s.Refusals[reason], n)
	}
	s.Reporters = append(s.Reporters, o.Reporters...)
}

func (d *draft) shares() []Share {
	all := d.views[0]
	for key, seen := range d.views[1] {
		if s := all[key]; s != nil {
			s.with(seen)
		} else {
			all[key] = seen
		}
	}
	out := make([]Share, 0, len(all))
	for _, s := range all {
		out = append(out, *s)
	}
	slices.SortFunc(out, func(a, b Share) int {
		return cmp.Or(cmp.Compare(b.Connections, a.Connections), cmp.Compare(a.Security, b.Security), strings.Compare(a.Version+a.Group+a.Cipher, b.Version+b.Group+b.Cipher))
	})
	return out
}

// stateOf is the state of a link: mutual TLS only if nothing else was carried.
func stateOf(shares []Share) string {
	state := StateNotObserved
	for i := range shares {
		s := &shares[i]
		if s.Connections == 0 || s.Security == NotObserved {
			continue
		}
		switch state {
		case StateNotObserved, s.Security.String():
			state = s.Security.String()
		default:
			return StateMixed
		}
	}
	return state
}

// peerOf says who the other end of an edge is: by the workload that the proxy
// knew it as, which it was at that time; else by what it proved; else by address.
func peerOf(r *Report, e *Edge, resolve Resolver) Peer {
	if e.Key.Rest {
		return Peer{Kind: KindRest}
	}
	if ns, workload, ok := strings.Cut(e.Key.Workload, "/"); ok {
		return Peer{Kind: KindWorkload, Namespace: ns, Name: workload}
	}
	if e.Key.Identity != "" {
		if id, err := identity.Parse(e.Key.Identity); err == nil {
			return Peer{Kind: KindIdentity, Namespace: id.Namespace(), Name: id.ServiceAccount()}
		}
	}
	return resolve(e.Key.Address, r.Node, e.Key.Direction, e.Last)
}

// Since leaves out the shares that were last seen before t, and the links that
// then have none.
func (g Graph) Since(t time.Time) Graph {
	out := make(Graph, 0, len(g))
	for _, l := range g {
		l.Shares = slices.DeleteFunc(slices.Clone(l.Shares), func(s Share) bool { return s.Last.Before(t) })
		if len(l.Shares) > 0 {
			l.State = stateOf(l.Shares)
			out = append(out, l)
		}
	}
	return out
}

// Filter keeps the links that keep reports true for.
func (g Graph) Filter(keep func(*Link) bool) Graph {
	out := make(Graph, 0, len(g))
	for i := range g {
		if keep(&g[i]) {
			out = append(out, g[i])
		}
	}
	return out
}

// Of sums up the shares that keep reports true for.
func (l *Link) Of(keep func(*Share) bool) (connections, bytes uint64) {
	for i := range l.Shares {
		if s := &l.Shares[i]; keep(s) {
			connections += s.Connections
			bytes += s.BytesSent + s.BytesReceived
		}
	}
	return connections, bytes
}

// Refusals sums up why connections were refused, by reason.
func (l *Link) Refusals() map[string]uint64 {
	all := map[string]uint64{}
	for i := range l.Shares {
		for reason, n := range l.Shares[i].Refusals {
			all[reason] += n
		}
	}
	return all
}

// Last is when the link was last seen.
func (l *Link) Last() time.Time {
	var last time.Time
	for i := range l.Shares {
		if l.Shares[i].Last.After(last) {
			last = l.Shares[i].Last
		}
	}
	return last
}

var (
	errSecurity  = errors.New("not a kind of security")
	errDirection = errors.New("not a direction")
)

// MarshalText implements encoding.TextMarshaler.
func (s Security) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Security) UnmarshalText(b []byte) error {
	for i := NotObserved; i <= ForeignTLS; i++ {
		if i.String() == string(b) {
			*s = i
			return nil
		}
	}
	return errSecurity
}

// MarshalText implements encoding.TextMarshaler.
func (d Direction) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Direction) UnmarshalText(b []byte) error {
	for i := Inbound; i <= Outbound; i++ {
		if i.String() == string(b) {
			*d = i
			return nil
		}
	}
	return errDirection
}
