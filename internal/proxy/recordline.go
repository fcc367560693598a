package proxy

import (
	"context"
	"log/slog"
	"net/netip"
	"strconv"
	"sync"
	"time"
)

// recordLog writes records as lines of the log: byte for byte what [slog.JSONHandler]
// makes of [Record.attrs], at a tenth of its time, as every connection leaves one.
type recordLog struct {
	mu   sync.Mutex
	line recordLine
}

// write leaves the line of a record.
func (l *recordLog) write(ctx context.Context, r *Record, cfg *Config) {
	if !cfg.Log.Enabled(ctx, slog.LevelInfo) {
		return
	}
	now := time.Now()
	if cfg.RecordLog != nil && l.writeJSON(r, now, cfg) {
		return
	}
	line := slog.NewRecord(now, slog.LevelInfo, "connection", 0) // where in the program says nothing, and takes time
	line.AddAttrs(r.attrs()...)
	_ = cfg.Log.Handler().Handle(ctx, line) // as slog.Logger does
}

// writeJSON reports false, having written nothing, where a text would have to be
// escaped: package slog knows how.
func (l *recordLog) writeJSON(r *Record, now time.Time, cfg *Config) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	line := &l.line
	line.strange = false
	line.b = append(line.b[:0], `{"time":"`...)
	line.b = append(now.AppendFormat(line.b, time.RFC3339Nano), `","level":"INFO","msg":"connection"`...)
	r.visit(line)
	line.b = append(line.b, "}\n"...)
	if line.strange {
		return false
	}
	_, _ = cfg.RecordLog.Write(line.b) // whoever reads the log may be gone
	return true
}

// recordVisitor is told of what a record has, in the order of the line.
type recordVisitor interface {
	text(key, value string) // not empty
	addr(key string, a netip.AddrPort)
	number(key string, n int64)
	yes(key string)
}

// recordLine makes a line of JSON.
type recordLine struct {
	b       []byte
	strange bool // something must be escaped
}

// Keys are this program's own and need no escaping.
func (l *recordLine) key(key string) {
	l.b = append(l.b, `,"`...)
	l.b = append(l.b, key...)
	l.b = append(l.b, `":`...)
}

func (l *recordLine) text(key, value string) {
	for i := range len(value) {
		if c := value[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			l.strange = true
			return
		}
	}
	l.key(key)
	l.b = append(l.b, '"')
	l.b = append(l.b, value...)
	l.b = append(l.b, '"')
}

func (l *recordLine) addr(key string, a netip.AddrPort) {
	if a.Addr().Zone() != "" {
		l.strange = true // a zone's name is the system's
		return
	}
	l.key(key)
	l.b = append(l.b, '"')
	l.b = append(a.AppendTo(l.b), '"')
}

func (l *recordLine) number(key string, n int64) {
	l.key(key)
	l.b = strconv.AppendInt(l.b, n, 10)
}

func (l *recordLine) yes(key string) {
	l.key(key)
	l.b = append(l.b, "true"...)
}

// recordAttrs makes attributes for package slog.
type recordAttrs []slog.Attr

func (a *recordAttrs) text(key, value string) { *a = append(*a, slog.String(key, value)) }

func (a *recordAttrs) addr(key string, at netip.AddrPort) { a.text(key, at.String()) }

func (a *recordAttrs) number(key string, n int64) { *a = append(*a, slog.Int64(key, n)) }

func (a *recordAttrs) yes(key string) { *a = append(*a, slog.Bool(key, true)) }

func (r *Record) attrs() []slog.Attr {
	all := make(recordAttrs, 0, 40)
	r.visit(&all)
	return all
}

// visit tells of all that the line of a record has.
func (r *Record) visit(v recordVisitor) {
	text := func(key, value string) {
		if value != "" {
			v.text(key, value)
		}
	}
	addr := func(key string, a netip.AddrPort) {
		if a.IsValid() {
			v.addr(key, a)
		}
	}
	text("direction", r.Direction)
	addr("src_addr", r.Source)
	addr("dst_addr", r.Destination)
	addr("endpoint", r.Endpoint)
	text("src_workload", r.SourceWorkload)
	text("src_identity", r.SourceIdentity)
	text("dst_workload", r.DestinationWorkload)
	text("dst_identity", r.DestinationIdentity)
	text("service", r.Service)
	text("protocol", r.Protocol)
	text("security", r.Security)
	text("rule", r.Rule)
	text("tls_version", r.TLSVersion)
	text("tls_group", r.TLSGroup)
	text("tls_cipher", r.TLSCipher)
	text("src_serial", r.SourceSerial)
	text("dst_serial", r.DestinationSerial)
	text("alpn", r.ALPN)
	text("sni", r.SNI)
	if r.Reused {
		v.yes("reused")
	}
	if r.Resumed {
		v.yes("resumed")
	}
	v.number("bytes_sent", r.BytesSent)
	v.number("bytes_received", r.BytesReceived)
	if r.Requests > 0 {
		v.number("requests", r.Requests)
	}
	if r.RequestsDenied > 0 {
		v.number("requests_denied", r.RequestsDenied)
	}
	v.number("duration_ms", r.DurationMS)
	text("policy", r.Policy)
	text("audited", r.Audited)
	text("dry_run", r.DryRun)
	text("dry_run_policy", r.DryRunPolicy)
	text("reason", string(r.Reason))
	text("error", r.Error)
}
