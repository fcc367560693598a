package proxy

import (
	"cmp"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"podseal.io/podseal/internal/accesslog"
	"podseal.io/podseal/internal/h2"
	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/workload"
)

// blackHoleCluster is what Envoy calls what nothing may reach (contract 7.6).
const blackHoleCluster = "BlackHoleCluster"

// accessLog writes a line for each request, and for each connection that is carried
// as bytes or fails before a request, if the mesh wants it (contract 7.10).
type accessLog struct {
	out      io.Writer // one Write is one line
	hostname string

	format atomic.Pointer[logFormat]

	mu   sync.Mutex
	line []byte
}

type logFormat struct {
	spec   workload.AccessLog
	parsed *accesslog.Format // nil writes nothing
}

// set puts a format in force.
func (l *accessLog) set(spec workload.AccessLog, log *slog.Logger) {
	if now := l.format.Load(); now != nil && now.spec == spec {
		return
	}
	f := &logFormat{spec: spec}
	if spec.Format != "" && l.out != nil {
		parsed, _, err := accesslog.Parse(spec.Format, spec.JSON)
		if err != nil {
			log.Error("the format of the access log can't be read, nothing is written", slog.String("error", err.Error()))
		}
		f.parsed = parsed
	}
	l.format.Store(f)
}

// on reports whether lines are wanted.
func (l *accessLog) on() bool {
	f := l.format.Load()
	return f != nil && f.parsed != nil
}

func (l *accessLog) write(e *accesslog.Entry) {
	f := l.format.Load()
	if f == nil || f.parsed == nil {
		return
	}
	e.Hostname = l.hostname
	l.mu.Lock()
	defer l.mu.Unlock()
	l.line = f.parsed.Append(l.line[:0], e)
	_, _ = l.out.Write(l.line) // whoever reads the log may be gone
}

// logEntry is what is known of a connection.
func logEntry(c *conn, r *Record) *accesslog.Entry {
	e := &accesslog.Entry{
		Start: r.Start, Duration: time.Duration(r.DurationMS) * time.Millisecond, Received: r.BytesReceived, Sent: r.BytesSent,
		Flags: connectionFlags(r.Reason), Termination: termination(r), UpstreamHost: r.Endpoint, Upstream: c.serverLocal(), Local: r.Destination, Remote: r.Source,
		SNI: r.SNI, Cluster: clusterOf(r),
	}
	t := accesslog.TLS{Version: strings.Replace(r.TLSVersion, "TLS ", "TLSv", 1), Cipher: r.TLSCipher}
	source, destination := spiffe(r.SourceIdentity), spiffe(r.DestinationIdentity)
	if r.Direction == directionInbound {
		t.PeerURI, t.LocalURI, t.PeerSerial = source, destination, r.SourceSerial
		e.Peer = t
		if isHandshake(r.Reason) {
			e.ClientTLS = r.Error
		}
		return e
	}
	t.PeerURI, t.LocalURI, t.PeerSerial = destination, source, r.DestinationSerial
	e.PeerUpstream = t
	if isHandshake(r.Reason) {
		e.UpstreamTLS = r.Error
	}
	return e
}

func spiffe(id string) string {
	if id == "" {
		return ""
	}
	return "spiffe://" + id
}

// clusterOf names the destination as Envoy does (contract 2.31, 7.6).
func clusterOf(r *Record) string {
	host, port, known := strings.Cut(r.Service, ":")
	switch {
	case r.Direction == directionInbound && known:
		return fmt.Sprintf("inbound|%d||", r.Destination.Port())
	case r.Direction == directionInbound:
		return inboundPassthroughCluster
	case known:
		return "outbound|" + port + "||" + host
	case r.Reason == policy.RegistryOnly:
		return blackHoleCluster
	default:
		return passthroughCluster
	}
}

// connectionFlags is Envoy's flag for why a connection was refused or cut.
func connectionFlags(reason policy.Reason) string {
	switch {
	case isHandshake(reason), reason == policy.ConnectFailed, reason == policy.ConnectTimeout:
		return "UF"
	case reason == policy.PlaintextRefused, reason == policy.ForeignTLSRefused, reason == policy.NoDestination, reason == policy.RegistryOnly:
		return "NR"
	case reason == policy.Overloaded:
		return "UO"
	case reason == policy.NoEndpoint:
		return "UH"
	default:
		return "-"
	}
}

func isHandshake(reason policy.Reason) bool {
	switch reason {
	case policy.HandshakeFailed, policy.HandshakeTimeout, policy.PeerIdentity, policy.PeerUnverified, policy.PeerRevoked, policy.ForeignTrustDomain, policy.NoIdentity, policy.TLSSettings:
		return true
	default:
		return false
	}
}

// termination says why a connection ended: by the rule that denied it, as Envoy says
// it (contract 6.40), or by a reason of our own.
func termination(r *Record) string {
	if r.Policy != "" && r.Requests == 0 {
		return deniedDetails(r.Policy)
	}
	return string(r.Reason)
}

// deniedDetails is what Envoy says of a denial (contract 6.40).
func deniedDetails(rule string) string {
	return "rbac_access_denied_matched_policy[" + cmp.Or(rule, "none") + "]"
}

// logConnection writes the line of a connection that has ended.
func (p *proxy) logConnection(c *conn, r *Record) {
	if !p.accessLog.on() || (r.Protocol == "http" && (r.Requests > 0 || r.Reason == policy.None)) {
		return
	}
	p.accessLog.write(logEntry(c, r))
}

// logRequest writes the line of a request on this connection.
func (in *inbound) logRequest(r *RequestInfo) {
	if !in.p.accessLog.on() {
		return
	}
	about := in.c.snapshot(time.Now())
	e := logEntry(in.c, &about)
	e.Start, e.Duration, e.Termination = r.Start, r.Duration, ""
	e.Protocol, e.Code, e.CodeDetails, e.Flags = r.Protocol, int64(r.Status), r.Details, r.Flags
	e.Received, e.Sent = r.RequestBody, r.ResponseBody
	var asked judgedRequest
	asked.read(r.Request)
	e.Method, e.Path, e.Authority = string(asked.Request.Method), string(asked.Request.Path), string(asked.Request.Host)
	e.Request = lookIn(&asked.fields)
	_, answered, _ := strings.Cut(string(r.Response), "\r\n")
	fields := headFields(answered)
	e.Response = lookIn(&fields)
	in.p.accessLog.write(e)
}

// logRequest2 does so of a request of HTTP/2.
func (in *inbound) logRequest2(r *h2.Request, o *h2.Outcome) {
	if !in.p.accessLog.on() {
		return
	}
	now := time.Now()
	about := in.c.snapshot(now)
	e := logEntry(in.c, &about)
	e.Start, e.Duration, e.Termination = now.Add(-o.Duration), o.Duration, ""
	e.Protocol, e.Code, e.GRPCStatus, e.Flags = "HTTP/2", int64(o.Status), o.GRPCStatus, o.Flags
	e.Received, e.Sent = o.RequestBytes, o.ResponseBytes
	e.Method, e.Path, e.Authority = r.Method, r.Path, r.Authority
	e.Request = r.Field
	q, _ := r.Note.(*http2Request)
	if q == nil {
		q = &http2Request{}
	}
	e.CodeDetails = cmp.Or(q.details, "via_upstream")
	e.Response = (&h2.Request{Fields: q.reply}).Field
	in.p.accessLog.write(e)
}

func lookIn(f *headFields) func(string) (string, bool) {
	return func(name string) (string, bool) {
		v, ok := f.Field(name)
		return string(v), ok
	}
}
