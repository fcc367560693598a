// Package edges knows who talks to whom, and how it is protected. It does no I/O.
//
// A proxy keeps a [Table]: one entry for each [Key], which is a peer, a port and
// what protected the bytes. The table is bounded. When it is full, the entry
// that was unused the longest is folded into the rest of its direction and
// security, so that sums and shares stay true while names are lost, and the rest
// says how many it stands for.
//
// [Table.Delta] says what has changed since a cursor; a new cursor gets all. The
// control plane keeps a [Mirror] of each table, equal to it after each delta, and
// [Build] makes one [Graph] of all of them:
//
//	proxy: Table ── Delta ──> (report/v1) ──> Mirror ── Build ──> Graph: people
//
// Invariants:
//
//   - Counts are totals and never go down, except that a folded entry is gone.
//   - An identity in a key was proved by a handshake. What an address belongs to is
//     a guess, and has fields of its own.
//   - What was not seen is [NotObserved], never [MutualTLS].
package edges

import (
	"fmt"
	"net/netip"
	"time"
)

// Direction is seen from the proxy that reports.
type Direction uint8

// The directions.
const (
	Inbound Direction = iota + 1
	Outbound
)

func (d Direction) String() string { return name(int(d), "", "inbound", "outbound") }

// Security is what protected the bytes.
type Security uint8

// The kinds of security. ForeignTLS is TLS that the applications speak
// themselves: it may be encrypted, but nobody of the mesh can say by whom.
const (
	NotObserved Security = iota // nothing was sent from which it could be known
	MutualTLS
	Plaintext
	ForeignTLS
)

func (s Security) String() string {
	return name(int(s), "not_observed", "mutual_tls", "plaintext", "foreign_tls")
}

func name(i int, names ...string) string {
	if i < len(names) {
		return names[i]
	}
	return fmt.Sprintf("unknown(%d)", i)
}

// TLS is what was negotiated, in crypto/tls's words; empty without mutual TLS.
type TLS struct {
	Version string `json:"version,omitempty"`
	Group   string `json:"group,omitempty"`
	Cipher  string `json:"cipher,omitempty"`
}

// Key names an edge of one proxy. It is comparable.
type Key struct {
	Direction Direction  `json:"direction"`
	Security  Security   `json:"security"`
	Protocol  string     `json:"protocol,omitempty"` // http or tcp; "" when nothing was carried
	Port      uint16     `json:"port"`               // where the server listens: of the pod, not of a service
	Identity  string     `json:"identity,omitempty"` // of the peer, if it proved one
	Workload  string     `json:"workload,omitempty"` // "<namespace>/<workload>" as the proxy knows the peer; "" unknown
	Address   netip.Addr `json:"address,omitzero"`   // of a peer that proved nothing
	TLS       TLS        `json:"tls,omitzero"`       //
	Rest      bool       `json:"rest,omitempty"`     // edges that there was no room for, of this direction and security
}

// About is what is known of the last connection of an edge.
type About struct {
	Pod         string     `json:"pod,omitempty"` // "<namespace>/<pod>" of the peer, if it is known
	Address     netip.Addr `json:"last_address,omitzero"`
	Service     string     `json:"service,omitempty"` // FQDN:port
	OwnIdentity string     `json:"own_identity,omitempty"`
	OwnSerial   string     `json:"own_serial,omitempty"` // hexadecimal, of this proxy's certificate
	PeerSerial  string     `json:"peer_serial,omitempty"`
}

// Counts are totals since the edge was first seen.
type Counts struct {
	Connections   uint64            `json:"connections"`
	Requests      uint64            `json:"requests,omitempty"`
	BytesSent     uint64            `json:"bytes_sent"`     // to the client
	BytesReceived uint64            `json:"bytes_received"` // from the client
	Refusals      map[string]uint64 `json:"refusals,omitempty"`
}

// add adds o to c.
func (c *Counts) add(o Counts) {
	c.Connections += o.Connections
	c.Requests += o.Requests
	c.BytesSent += o.BytesSent
	c.BytesReceived += o.BytesReceived
	for reason, n := range o.Refusals {
		c.refuse(reason, n)
	}
}

func (c *Counts) refuse(reason string, n uint64) {
	if c.Refusals == nil {
		c.Refusals = map[string]uint64{}
	}
	c.Refusals[reason] += n
}

// Edge is one entry of a table.
type Edge struct {
	ID     uint32    `json:"-"` // within one table; never 0
	Key    Key       `json:"key"`
	About  About     `json:"last"`
	Counts Counts    `json:"counts"`
	Open   uint32    `json:"open,omitempty"` // connections that are open now
	First  time.Time `json:"first_seen"`
	Last   time.Time `json:"last_seen"`
	Folded uint64    `json:"folded,omitempty"` // of the rest: how many edges it stands for
	Peer   Peer      `json:"peer,omitzero"`    // who the peer is taken to be, once resolved
}

// Delta is what has changed in a table.
type Delta struct {
	Edges     []Edge   // as they are now
	Forgotten []uint32 // IDs that are no more
	Complete  bool     // with this one, all of the table has been said
}

// Empty reports whether nothing has changed.
func (d *Delta) Empty() bool { return len(d.Edges) == 0 && len(d.Forgotten) == 0 && !d.Complete }
