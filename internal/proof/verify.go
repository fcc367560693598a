package proof

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// What a proxy says that a connection was protected by, as in its records.
const (
	SaidMutualTLS  = "mutual_tls"
	SaidForeignTLS = "foreign_tls"
	SaidTLS        = "tls"
	SaidPlaintext  = "plaintext"
	SaidNothing    = "" // nothing was sent
)

// Claim is what a proxy says of one connection that it has on the network.
type Claim struct {
	Outbound bool           `json:"outbound,omitempty"`
	Client   netip.AddrPort `json:"client"` // of an outbound connection: the proxy's own end; invalid if it isn't known
	Server   netip.AddrPort `json:"server"`
	Security string         `json:"security"`
	Reason   string         `json:"reason,omitempty"` // why it was refused or cut
	Peer     string         `json:"peer,omitempty"`   // the identity that the other side proved
}

// Seen is one connection as it was on the wire.
type Seen struct {
	Inbound    bool           `json:"inbound"` // the pod is the server
	Client     netip.AddrPort `json:"client"`
	Server     netip.AddrPort `json:"server"`
	Start      time.Time      `json:"start"`
	Kind       string         `json:"kind"` // a Kind's name
	Protocol   string         `json:"protocol,omitempty"`
	SNI        string         `json:"sni,omitempty"`
	TLSVersion uint16         `json:"tls_version,omitempty"`
	Group      string         `json:"group,omitempty"`
	TLSBytes   int64          `json:"tls_bytes"`
	PlainBytes int64          `json:"plain_bytes"`
	Missed     int64          `json:"missed_bytes,omitempty"` // not captured, or not to be told what they are
	Reset      bool           `json:"reset,omitempty"`
}

// Observation is what was seen at one pod, and what its proxy said of it.
type Observation struct {
	From      time.Time `json:"from"`
	To        time.Time `json:"to"`
	Packets   int       `json:"packets"`
	Lost      uint64    `json:"lost"`       // packets that there was no time for
	Unread    int       `json:"unread"`     // packets that can't be read: fragments and broken headers
	Proxy     string    `json:"proxy"`      // its version; "" when there is none
	ProxyLost uint64    `json:"proxy_lost"` // claims that could not be kept
	Seen      []Seen    `json:"seen"`
	Claims    []Claim   `json:"claims,omitempty"`
}

// NewObservation makes one of a capture in the network of a pod with these
// addresses.
func NewObservation(s Summary, own []netip.Addr) Observation {
	o := Observation{From: s.Start, To: s.End, Packets: s.Packets, Unread: s.Undecoded + s.Fragments, Seen: []Seen{}}
	for _, f := range s.Flows {
		group := ""
		if f.Group != 0 {
			group = f.Group.String()
		}
		o.Seen = append(o.Seen, Seen{
			Inbound: slices.Contains(own, f.Server.Addr()), Client: f.Client, Server: f.Server, Start: f.Start, Kind: f.Kind.String(), Protocol: f.Protocol,
			SNI: printable(f.SNI), TLSVersion: f.TLSVersion, Group: group, TLSBytes: f.TLSBytes(), PlainBytes: f.PlainBytes(), Reset: f.Reset,
			Missed: f.Sent.LostBytes + f.Received.LostBytes + f.Sent.Unsorted + f.Received.Unsorted,
		})
	}
	return o
}

// Verdict is what comparing the wire with the proxy's word brings, worst last.
type Verdict int

// The verdicts.
const (
	Agrees     Verdict = iota // the wire is as the proxy says
	Expected                  // the proxy doesn't carry it, and is known not to
	Unreported                // TLS that the proxy says nothing of
	Unproven                  // a part is missing: it can't be told
	Differs                   // the wire is not as the proxy says, but no worse
	Leak                      // plaintext where the proxy says otherwise, or says nothing
)

var verdicts = [...]string{"agrees", "expected", "unreported", "unproven", "differs", "LEAK"}

func (v Verdict) String() string { return verdicts[v] }

// MarshalText makes JSON say the name.
func (v Verdict) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// Finding is the verdict on one connection.
type Finding struct {
	Seen
	Said    []string `json:"said"` // what the proxy says of it; empty: nothing
	Peer    string   `json:"peer,omitempty"`
	Verdict Verdict  `json:"verdict"`
	Why     string   `json:"why,omitempty"`
}

// Ports of the proxy that are not captured (contract 5.26): health, metrics and the
// answers to probes are plaintext, by design.
var uncaptured = []uint16{15020, 15021, 15090}

// controlPort is the control plane's, to which the proxy itself speaks TLS.
const controlPort = 15012

// Compare holds what was on the wire against what the proxy says, connection by
// connection. Connections without content are left out.
func (o *Observation) Compare() []Finding {
	said := map[[2]netip.AddrPort][]Claim{}
	anyEnd := map[netip.AddrPort][]Claim{} // of claims that don't know their own end
	for _, c := range o.Claims {
		if c.Client.IsValid() {
			key := [2]netip.AddrPort{c.Client, c.Server}
			said[key] = append(said[key], c)
		} else {
			anyEnd[c.Server] = append(anyEnd[c.Server], c)
		}
	}
	findings := []Finding{}
	for _, s := range o.Seen {
		if s.TLSBytes+s.PlainBytes+s.Missed == 0 {
			continue
		}
		claims := said[[2]netip.AddrPort{s.Client, s.Server}]
		if len(claims) == 0 && !s.Inbound {
			claims = anyEnd[s.Server]
		}
		findings = append(findings, judge(s, claims, o.Proxy != "", o.Lost+o.ProxyLost > 0))
	}
	return findings
}

// judge says what to think of one connection. With losses, what the proxy doesn't
// say proves nothing.
func judge(s Seen, claims []Claim, proxy, losses bool) Finding {
	f := Finding{Seen: s, Said: []string{}}
	if slices.ContainsFunc(claims, func(c Claim) bool { return c.Security != SaidNothing }) { // what was said before anything had come
		claims = slices.DeleteFunc(slices.Clone(claims), func(c Claim) bool { return c.Security == SaidNothing && c.Reason == "" })
	}
	for _, c := range claims {
		if !slices.Contains(f.Said, c.Security) {
			f.Said = append(f.Said, c.Security)
		}
		f.Peer = cmp.Or(f.Peer, c.Peer)
	}
	switch {
	case !proxy:
		f.Verdict, f.Why = Expected, "the pod has no proxy"
	case len(claims) == 0:
		f.unreported(losses)
	case slices.ContainsFunc(claims, func(c Claim) bool { return c.agrees(s) }):
		f.Verdict = Agrees
		if s.Missed > 0 {
			f.Verdict, f.Why = Unproven, "a part was not captured"
		}
	case s.PlainBytes > 0 && !slices.Contains(f.Said, SaidPlaintext) && !slices.Contains(f.Said, SaidNothing):
		f.Verdict, f.Why = Leak, "plaintext on the wire, which the proxy says was protected"
	case s.TLSBytes+s.PlainBytes == 0:
		f.Verdict, f.Why = Unproven, "nothing of it was captured whole"
	default:
		f.Verdict, f.Why = Differs, "the wire and the proxy don't say the same"
	}
	return f
}

func (f *Finding) unreported(losses bool) {
	switch {
	case f.Inbound && slices.Contains(uncaptured, f.Server.Port()):
		f.Verdict, f.Why = Expected, "health and metrics of the proxy are not captured"
	case !f.Inbound && f.Server.Port() == controlPort && f.PlainBytes == 0:
		f.Verdict, f.Why = Expected, "the proxy's own connection to the control plane"
	case losses:
		f.Verdict, f.Why = Unproven, "the proxy's word on it may have been lost"
	case f.PlainBytes > 0:
		f.Verdict, f.Why = Leak, "plaintext that does not go through the proxy"
	default:
		f.Verdict, f.Why = Unreported, "it does not go through the proxy"
	}
}

// agrees reports whether the wire is as the claim says.
func (c Claim) agrees(s Seen) bool {
	lateTLS := s.Kind == UnknownTLS.String()
	switch c.Security {
	case SaidMutualTLS:
		return s.PlainBytes == 0 && (s.Kind == MeshTLS.String() || lateTLS)
	case SaidForeignTLS, SaidTLS:
		return s.PlainBytes == 0 && (s.Kind == ForeignTLS.String() || lateTLS)
	case SaidPlaintext:
		return s.Kind == Plaintext.String()
	case SaidNothing: // it was refused before anything was carried: what came was not passed on
		return s.Kind == Empty.String() || c.Reason != ""
	}
	return false
}
