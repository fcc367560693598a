package proxy

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"podseal.io/podseal/internal/meshtest"
	"podseal.io/podseal/internal/policy"
)

// GET /records?follow has each record as it ends, for longer than a short answer
// may take, and ends with its reader.
func TestFollowRecords(t *testing.T) {
	p := newPair(t, policy.TCP, meshtest.Echo)
	s := httptest.NewUnstartedServer(p.clientSide.adminHandler())
	s.Config.ReadTimeout, s.Config.WriteTimeout = 300*time.Millisecond, 300*time.Millisecond // a busy machine answers within it
	s.Start()
	defer s.Close()
	res, err := http.Get(s.URL + "/records?follow")
	if err != nil {
		t.Fatal(err)
	}
	lines := json.NewDecoder(res.Body)
	for range 3 {
		<-time.After(310 * time.Millisecond) // beyond the server's limits
		c := p.dial()
		if _, err := io.WriteString(c, "hello"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		c.Close()
		var got Followed
		if err := lines.Decode(&got); err != nil || got.Security != securityMutualTLS || got.BytesReceived != 5 || !got.Local.IsValid() || got.Missed != 0 {
			t.Fatalf("%+v %+v, %v", got, got.Record, err)
		}
	}
	res.Body.Close()
	eventually(t, func() bool {
		p.clientSide.records.mu.Lock()
		defer p.clientSide.records.mu.Unlock()
		return len(p.clientSide.records.followers) == 0
	})
}

// Who reads too slowly misses records, is told how many, and holds nobody up; there
// are never more than so many.
func TestFollowersAreBounded(t *testing.T) {
	var g ring
	f := g.follow()
	for range followBuffer + 7 {
		g.add(Record{})
	}
	if f.missed.Load() != 7 || len(f.records) != followBuffer {
		t.Errorf("missed %d, has %d", f.missed.Load(), len(f.records))
	}
	for range maxFollowers - 1 {
		if g.follow() == nil {
			t.Error("refused")
		}
	}
	if g.follow() != nil {
		t.Error("one more than allowed")
	}
	g.unfollow(f)
	if g.follow() == nil {
		t.Error("the place of one that left is lost")
	}
}
