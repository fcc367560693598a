package edges

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	reportv1 "podseal.io/podseal/api/report/v1"
	"podseal.io/podseal/internal/identity"
)

// Bounds of one delta and of its parts. A proxy keeps within them; whoever
// doesn't is refused.
const (
	MaxDelta   = 256 // edges
	maxText    = 640 // bytes: an identity is the longest thing that is said
	maxReasons = 64
)

// ToProto encodes a delta. Edges that known has are sent without what never
// changes; the others are added to it.
func ToProto(d Delta, known map[uint32]bool) *reportv1.Update {
	u := &reportv1.Update{Forgotten: d.Forgotten, Complete: d.Complete}
	for _, id := range d.Forgotten {
		delete(known, id)
	}
	for i := range d.Edges {
		e := &d.Edges[i]
		m := edgeToProto(e)
		if !known[e.ID] {
			known[e.ID] = true
			m.Facts = keyToProto(e.Key)
		}
		u.Edges = append(u.Edges, m)
	}
	return u
}

func edgeToProto(e *Edge) *reportv1.Edge {
	m := &reportv1.Edge{
		Id: e.ID, Connections: e.Counts.Connections, Open: e.Open, Requests: e.Counts.Requests,
		BytesSent: e.Counts.BytesSent, BytesReceived: e.Counts.BytesReceived,
		FirstSeen: e.First.UnixMilli(), LastSeen: e.Last.UnixMilli(), Folded: e.Folded,
		Last: &reportv1.Last{
			Pod: e.About.Pod, Address: e.About.Address.AsSlice(), Service: e.About.Service,
			OwnIdentity: e.About.OwnIdentity, OwnSerial: e.About.OwnSerial, PeerSerial: e.About.PeerSerial,
		},
	}
	for reason, n := range e.Counts.Refusals {
		m.Refusals = append(m.Refusals, &reportv1.Refusal{Reason: reason, Count: n})
	}
	slices.SortFunc(m.Refusals, func(a, b *reportv1.Refusal) int { return strings.Compare(a.GetReason(), b.GetReason()) })
	return m
}

func keyToProto(k Key) *reportv1.Facts {
	return &reportv1.Facts{
		Direction: reportv1.Direction(k.Direction), Security: reportv1.Security(k.Security), Protocol: k.Protocol, Port: uint32(k.Port),
		Identity: k.Identity, Workload: k.Workload, Address: k.Address.AsSlice(),
		TlsVersion: k.TLS.Version, TlsGroup: k.TLS.Group, TlsCipher: k.TLS.Cipher, Rest: k.Rest,
	}
}

// ParseUpdate is the reverse of ToProto: it needs to know the keys by ID that
// came earlier, and changes nothing. What a proxy of ours never says is an error.
func ParseUpdate(u *reportv1.Update, known func(id uint32) (Key, bool)) (Delta, error) {
	if n := len(u.GetEdges()); n > MaxDelta {
		return Delta{}, fmt.Errorf("%d edges in one update, at most %d are allowed", n, MaxDelta)
	}
	if n := len(u.GetForgotten()); n > 2*MaxEdges {
		return Delta{}, fmt.Errorf("%d edges are forgotten at once", n)
	}
	d := Delta{Forgotten: u.GetForgotten(), Complete: u.GetComplete()}
	seen := make(map[uint32]bool, len(u.GetEdges()))
	for _, m := range u.GetEdges() {
		e, err := edgeFromProto(m, known)
		switch {
		case err != nil:
			return Delta{}, fmt.Errorf("edge %d: %w", m.GetId(), err)
		case seen[e.ID]:
			return Delta{}, fmt.Errorf("edge %d: twice in one update", e.ID)
		}
		seen[e.ID] = true
		d.Edges = append(d.Edges, e)
	}
	return d, nil
}

func edgeFromProto(m *reportv1.Edge, known func(uint32) (Key, bool)) (Edge, error) {
	key, had := known(m.GetId())
	var err error
	switch {
	case m.GetId() == 0:
		err = errors.New("it has no ID")
	case m.GetFacts() == nil && !had:
		err = errors.New("it was not introduced")
	case m.GetFacts() != nil && had:
		err = errors.New("it was introduced twice")
	case m.GetFacts() != nil:
		key, err = keyFromProto(m.GetFacts())
	}
	if err != nil {
		return Edge{}, err
	}
	e := Edge{
		ID: m.GetId(), Key: key, Open: m.GetOpen(), Folded: m.GetFolded(),
		First: time.UnixMilli(m.GetFirstSeen()), Last: time.UnixMilli(m.GetLastSeen()),
		Counts: Counts{Connections: m.GetConnections(), Requests: m.GetRequests(), BytesSent: m.GetBytesSent(), BytesReceived: m.GetBytesReceived()},
	}
	if n := len(m.GetRefusals()); n > maxReasons {
		return Edge{}, fmt.Errorf("%d reasons", n)
	}
	for _, r := range m.GetRefusals() {
		if !isReason(r.GetReason()) {
			return Edge{}, fmt.Errorf("reason %.40q is not a word", r.GetReason())
		}
		e.Counts.refuse(r.GetReason(), r.GetCount())
	}
	e.About, err = aboutFromProto(m.GetLast())
	return e, err
}

func keyFromProto(m *reportv1.Facts) (Key, error) {
	k := Key{
		Direction: Direction(m.GetDirection()), Security: Security(m.GetSecurity()), Protocol: m.GetProtocol(), Port: uint16(m.GetPort()),
		Identity: m.GetIdentity(), Workload: m.GetWorkload(), Rest: m.GetRest(),
		TLS: TLS{Version: m.GetTlsVersion(), Group: m.GetTlsGroup(), Cipher: m.GetTlsCipher()},
	}
	switch {
	case m.GetDirection() != reportv1.Direction_DIRECTION_INBOUND && m.GetDirection() != reportv1.Direction_DIRECTION_OUTBOUND:
		return Key{}, fmt.Errorf("direction %d", m.GetDirection())
	case m.GetSecurity() < 0 || m.GetSecurity() > reportv1.Security_SECURITY_FOREIGN_TLS:
		return Key{}, fmt.Errorf("security %d", m.GetSecurity())
	case m.GetPort() > 65535:
		return Key{}, fmt.Errorf("port %d", m.GetPort())
	}
	if k.Rest && k != restOf(k) {
		return Key{}, errors.New("a rest has a peer")
	}
	if k.Identity != "" {
		id, err := identity.Parse(k.Identity)
		if err != nil {
			return Key{}, err
		}
		k.Identity = id.String()
	}
	if !areText(k.Protocol, k.Identity, k.Workload, k.TLS.Version, k.TLS.Group, k.TLS.Cipher) {
		return Key{}, errText
	}
	var err error
	k.Address, err = address(m.GetAddress())
	return k, err
}

func aboutFromProto(m *reportv1.Last) (About, error) {
	a := About{Pod: m.GetPod(), Service: m.GetService(), OwnIdentity: m.GetOwnIdentity(), OwnSerial: m.GetOwnSerial(), PeerSerial: m.GetPeerSerial()}
	if !areText(a.Pod, a.Service, a.OwnIdentity, a.OwnSerial, a.PeerSerial) {
		return About{}, errText
	}
	var err error
	a.Address, err = address(m.GetAddress())
	return a, err
}

var errText = errors.New("a text is too long or not printable")

func areText(all ...string) bool {
	for _, s := range all {
		if !IsText(s) {
			return false
		}
	}
	return true
}

// IsText reports whether s is short and safe to print on a terminal.
func IsText(s string) bool {
	if len(s) > maxText || !utf8.ValidString(s) {
		return false
	}
	for _, r := range s {
		if r < ' ' || (r >= 0x7f && r < 0xa0) {
			return false
		}
	}
	return true
}

// isReason reports whether s looks like one of the closed set; a newer proxy may
// have others than we know.
func isReason(s string) bool {
	if s == "" || len(s) > 40 {
		return false
	}
	for _, r := range s {
		if (r < 'a' || r > 'z') && r != '_' {
			return false
		}
	}
	return true
}

func address(b []byte) (netip.Addr, error) {
	if len(b) == 0 {
		return netip.Addr{}, nil
	}
	a, ok := netip.AddrFromSlice(b)
	if !ok || a != a.Unmap() {
		return netip.Addr{}, fmt.Errorf("an address of %d bytes", len(b))
	}
	return a, nil
}
