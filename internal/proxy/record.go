package proxy

import (
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"podseal.io/podseal/internal/policy"
)

// keptRecords is how many of the last records the admin port shows.
const keptRecords = 200

// Bounds, in bytes, of what a record takes from strangers: names in a ClientHello,
// and errors, which may quote a certificate.
const (
	maxName  = 256
	maxError = 1 << 10
)

// What a connection's bytes were protected by.
const (
	securityMutualTLS  = "mutual_tls"
	securityPlaintext  = "plaintext"
	securityForeignTLS = "foreign_tls"
	securityTLS        = "tls" // made by this proxy as a DestinationRule describes it
)

// Record is what happened on one connection: a log line ([recordLog]), and an entry of
// GET /records on the admin port. Empty fields are unknown or don't apply.
type Record struct {
	Start     time.Time `json:"start"`
	Direction string    `json:"direction"` // inbound or outbound

	Source      netip.AddrPort `json:"src_addr"`
	Destination netip.AddrPort `json:"dst_addr,omitzero"` // as the client dialled it
	Endpoint    netip.AddrPort `json:"endpoint,omitzero"` // as this proxy dialled it
	Local       netip.AddrPort `json:"local,omitzero"`    // this proxy's end of an outbound connection on the network

	SourceWorkload      string `json:"src_workload,omitempty"` // "<namespace>/<pod>"
	SourceIdentity      string `json:"src_identity,omitempty"` // proved, not guessed
	DestinationWorkload string `json:"dst_workload,omitempty"`
	DestinationIdentity string `json:"dst_identity,omitempty"`

	SourceSerial      string `json:"src_serial,omitempty"` // of the certificates, hexadecimal
	DestinationSerial string `json:"dst_serial,omitempty"`

	Service    string `json:"service,omitempty"`  // FQDN:port
	Protocol   string `json:"protocol,omitempty"` // http or tcp: how it was carried
	Security   string `json:"security,omitempty"` // mutual_tls, plaintext, foreign_tls or tls; "" when nothing was sent
	Rule       string `json:"rule,omitempty"`     // "<namespace>/<name>" of the DestinationRule that was followed
	TLSVersion string `json:"tls_version,omitempty"`
	TLSGroup   string `json:"tls_group,omitempty"`
	TLSCipher  string `json:"tls_cipher,omitempty"`
	ALPN       string `json:"alpn,omitempty"` // what the client offered
	SNI        string `json:"sni,omitempty"`
	Reused     bool   `json:"reused,omitempty"`  // the handshake was an earlier connection's
	Resumed    bool   `json:"resumed,omitempty"` // the handshake continued an earlier session

	BytesSent     int64 `json:"bytes_sent"`     // to the client
	BytesReceived int64 `json:"bytes_received"` // from the client
	Requests      int64 `json:"requests,omitempty"`
	DurationMS    int64 `json:"duration_ms"`

	// What AuthorizationPolicies said, by names of rules (contract 6.11). Policy
	// denied; DryRun is allowed or denied, as the dry-run policies would have it
	// (contract 6.42).
	Policy         string `json:"policy,omitempty"`
	RequestsDenied int64  `json:"requests_denied,omitempty"`
	Audited        string `json:"audited,omitempty"`
	DryRun         string `json:"dry_run,omitempty"`
	DryRunPolicy   string `json:"dry_run_policy,omitempty"`

	Reason policy.Reason `json:"reason,omitempty"`
	Error  string        `json:"error,omitempty"`
}

// brief cuts a text to at most n bytes, and copies what it cuts so that the rest
// isn't held.
func brief(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(strings.Clone(s[:n]), "")
}

// Bounds of those who follow the records.
const (
	maxFollowers = 16
	followBuffer = 1024 // records that a follower may be behind
)

// ring keeps the last records, and hands new ones to those who follow.
type ring struct {
	mu        sync.Mutex
	kept      []Record
	next      int
	followers map[*follower]struct{}
}

// follower is somebody who wants every record from now on. Who is too slow misses
// some, and is told how many.
type follower struct {
	records chan Record
	missed  atomic.Uint64
}

func (g *ring) add(r Record) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for f := range g.followers {
		select {
		case f.records <- r:
		default:
			f.missed.Add(1)
		}
	}
	if len(g.kept) < keptRecords {
		g.kept = append(g.kept, r)
		return
	}
	g.kept[g.next] = r
	g.next = (g.next + 1) % keptRecords
}

// last returns the records, oldest first.
func (g *ring) last() []Record {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Concat(g.kept[g.next:], g.kept[:g.next])
}

// follow adds a follower; it returns nil when there are too many.
func (g *ring) follow() *follower {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.followers) >= maxFollowers {
		return nil
	}
	if g.followers == nil {
		g.followers = map[*follower]struct{}{}
	}
	f := &follower{records: make(chan Record, followBuffer)}
	g.followers[f] = struct{}{}
	return f
}

func (g *ring) unfollow(f *follower) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.followers, f)
}
