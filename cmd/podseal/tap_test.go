package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// Records are printed as they come, those that the filters want; what was left out
// is said; an old proxy, one that is full and one that ends are told apart.
func TestTap(t *testing.T) {
	const line = `{"start":"2026-11-01T12:00:00Z","direction":"inbound","src_addr":"10.0.0.9:4000","dst_addr":"10.0.0.7:80","src_workload":"shop/client-1","security":"mutual_tls","bytes_sent":5,"bytes_received":20000,"duration_ms":1500,"service":"web.shop.svc:80"}
{"start":"2026-11-01T12:00:00Z","direction":"inbound","src_addr":"10.0.0.8:4000","dst_addr":"10.0.0.7:80","security":"plaintext","bytes_sent":0,"bytes_received":9,"duration_ms":1,"reason":"plaintext_refused","missed":3}
{"start":"2026-11-01T12:00:00Z","direction":"outbound","src_addr":"10.0.0.7:4000","dst_addr":"192.0.2.1:443","endpoint":"192.0.2.1:443","security":"foreign_tls","bytes_sent":1,"bytes_received":9,"duration_ms":1}
`
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/jsonl")
		fmt.Fprint(w, line)
	}))
	defer s.Close()
	for _, c := range []struct {
		o    tapOptions
		want []string
	}{
		{tapOptions{}, []string{"shop/client-1", "left out", "plaintext_refused", "192.0.2.1"}},
		{tapOptions{direction: "outbound"}, []string{"left out", "192.0.2.1"}},
		{tapOptions{plaintext: true}, []string{"left out", "10.0.0.8"}},
		{tapOptions{refused: true}, []string{"left out", "plaintext_refused"}},
		{tapOptions{peer: "client"}, []string{"mutual_tls", "left out"}},
		{tapOptions{peer: "client", output: "json"}, []string{`"pod":"shop/web-1"`}},
	} {
		var b bytes.Buffer
		if c.o.output == "" {
			c.o.output = "table"
		}
		err := followRecords(t.Context(), s.URL, func(r *connectionRecord) { c.o.print(&b, &tapped{"shop/web-1", *r}) })
		if err == nil || !strings.Contains(err.Error(), "has ended") {
			t.Errorf("the end: %v", err)
		}
		lines := strings.Split(strings.TrimSpace(b.String()), "\n")
		if len(lines) != len(c.want) {
			t.Fatalf("%+v:\n%s", c.o, b.String())
		}
		for i := range lines {
			if !strings.Contains(lines[i], c.want[i]) {
				t.Errorf("%+v: %q lacks %q", c.o, lines[i], c.want[i])
			}
		}
	}
	old := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "[]") }))
	defer old.Close()
	full := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "too many follow the records", http.StatusTooManyRequests)
	}))
	defer full.Close()
	for url, want := range map[string]string{old.URL: "older than this program", full.URL: "too many"} {
		if err := followRecords(t.Context(), url, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

// Following ends with its context, while nothing comes.
func TestTapEnds(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/jsonl")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))
	defer s.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := followRecords(ctx, s.URL, nil); err == nil {
		t.Error("it ended without a reason")
	}
	if got := (&connectionRecord{Direction: "outbound", Destination: netip.MustParseAddrPort("192.0.2.1:1")}).peer(); got[2] != "192.0.2.1" {
		t.Errorf("%q", got)
	}
}
