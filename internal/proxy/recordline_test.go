package proxy

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"podseal.io/podseal/internal/policy"
)

// fullRecord has something in every field.
func fullRecord() Record {
	at := netip.MustParseAddrPort("[fd00::1]:80")
	r := Record{Start: time.Now(), Source: at, Destination: netip.MustParseAddrPort("10.0.0.1:8080"), Endpoint: at, Local: at, Reused: true, Resumed: true, BytesSent: 1, BytesReceived: 1 << 40, Requests: 3, DurationMS: -1, RequestsDenied: 2}
	v := reflect.ValueOf(&r).Elem()
	for i := range v.NumField() {
		if f := v.Field(i); f.Kind() == reflect.String {
			f.SetString("<" + v.Type().Field(i).Name + ">&'")
		}
	}
	return r
}

// TestRecordLine: a record is the same line whether this package or slog writes it.
func TestRecordLine(t *testing.T) {
	plain := fullRecord()
	records := map[string]Record{"all": plain, "nothing": {}, "short": {Direction: directionInbound, Reason: policy.IdleTimeout}}
	for name, strange := range map[string]string{
		"quote": `a "quote"`, "backslash": `a\b`, "newline": "a\nb", "control": "a\x00\x1f\x7f", "not ASCII": "ä\u2028", "not UTF-8": "a\xff",
	} {
		r := plain
		r.Error = strange
		records[name] = r
	}
	zoned := plain
	zoned.Source = netip.MustParseAddrPort(`[fe80::1%eth"0]:80`)
	records["zone"] = zoned
	for name, r := range records {
		now := time.Now()
		var want, got bytes.Buffer
		handler := slog.NewJSONHandler(&want, nil)
		line := slog.NewRecord(now, slog.LevelInfo, "connection", 0)
		line.AddAttrs(r.attrs()...)
		if err := handler.Handle(t.Context(), line); err != nil {
			t.Fatal(err)
		}
		var l recordLog
		switch known := l.writeJSON(&r, now, &Config{RecordLog: &got}); {
		case known && got.String() != want.String():
			t.Errorf("%s: got\n%swant\n%s", name, &got, &want)
		case !known && got.Len() > 0:
			t.Errorf("%s: half a line: %s", name, &got)
		case known != (name == "all" || name == "nothing" || name == "short"):
			t.Errorf("%s: written here: %t", name, known)
		}
	}
}

// TestRecordLineLevel: what the log doesn't want is not written, and each record is
// one line, strange or not.
func TestRecordLineLevel(t *testing.T) {
	for level, want := range map[slog.Level]int{slog.LevelInfo: 2, slog.LevelWarn: 0} {
		var out bytes.Buffer
		cfg := Config{Log: slog.New(slog.NewJSONHandler(&out, &slog.HandlerOptions{Level: level})), RecordLog: &out}
		var l recordLog
		l.write(t.Context(), &Record{Direction: directionInbound}, &cfg)
		l.write(t.Context(), &Record{Direction: directionInbound, SNI: "\n"}, &cfg)
		if got := bytes.Count(out.Bytes(), []byte("\n")); got != want {
			t.Errorf("%s: %d lines, want %d: %s", level, got, want, &out)
		}
	}
}

// TestRecordLineAllocations: the line of a record takes no memory of its own.
func TestRecordLineAllocations(t *testing.T) {
	out := io.Discard
	cfg := Config{Log: slog.New(slog.NewJSONHandler(out, nil)), RecordLog: out}
	r, ctx := fullRecord(), context.Background()
	var l recordLog
	if n := testing.AllocsPerRun(100, func() { l.write(ctx, &r, &cfg) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkRecordLine(b *testing.B) {
	away := io.Discard
	log := slog.New(slog.NewJSONHandler(away, nil))
	r, ctx := fullRecord(), context.Background()
	for name, out := range map[string]io.Writer{"slog": nil, "here": away} {
		b.Run(name, func(b *testing.B) {
			cfg := Config{Log: log, RecordLog: out}
			var l recordLog
			b.ReportAllocs()
			for b.Loop() {
				l.write(ctx, &r, &cfg)
			}
		})
	}
}
