package netns

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"podseal.io/podseal/internal/proxy"
)

const (
	mostTold     = 5     // of an errand's disturbances are looked into
	mostRecalled = 20000 // connections with an error that each proxy is remembered to have had
)

// follow remembers what a proxy says of connections that didn't end as they should.
func (p *subject) follow(ctx context.Context) error {
	return p.pod.try(app, func() error {
		c, err := net.Dial("tcp", "127.0.0.1:15000")
		if err != nil {
			return err
		}
		stop := context.AfterFunc(ctx, func() { c.Close() })
		defer stop()
		defer c.Close()
		if _, err := fmt.Fprint(c, "GET /records?follow HTTP/1.0\r\nHost: proxy\r\n\r\n"); err != nil {
			return err
		}
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		for d := json.NewDecoder(res.Body); ; {
			var r proxy.Record
			if err := d.Decode(&r); err != nil {
				return err
			}
			if r.Error != "" || r.Reason != "" {
				p.remember(r)
			}
		}
	})
}

func (p *subject) remember(r proxy.Record) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.broken) == mostRecalled {
		p.broken = append(p.broken[:0], p.broken[mostRecalled/2:]...)
	}
	p.broken = append(p.broken, r)
}

// recall returns those of them that are as asked.
func (p *subject) recall(is func(proxy.Record) bool) (found []proxy.Record) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.broken {
		if is(r) {
			found = append(found, r)
		}
	}
	return found
}

// disturbed says that an honest exchange was, and what the proxies know of it: the
// client's of connections to that address, as the source may have been exchanged on
// its way, and both of what ended about then on the same connection between them.
func (s *soak) disturbed(t *testing.T, e *errand, err error) {
	t.Errorf("%s: %s: %v", time.Now().UTC().Format(time.TimeOnly), e.name, err)
	var op *net.OpError
	if e.failed.Load() > mostTold || !errors.As(err, &op) || op.Addr == nil {
		return
	}
	rest(t.Context(), time.Second) // until both proxies have said what they know
	to := op.Addr.(*net.TCPAddr).AddrPort()
	to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	known := s.proxies["client"].recall(func(r proxy.Record) bool { return r.Destination == to && time.Since(ended(r)) < time.Minute })
	for _, own := range known[max(0, len(known)-mostTold):] {
		t.Logf("client: ended %s: %+v", ended(own).UTC().Format(time.StampMilli), own)
		for name, p := range s.proxies {
			for _, r := range p.recall(func(r proxy.Record) bool {
				return (r.Local == own.Local || r.Source == own.Local) && r.Source != own.Source && ended(r).Sub(ended(own)).Abs() < time.Second
			}) {
				t.Logf("%s, on the same connection between them: ended %s: %+v", name, ended(r).UTC().Format(time.StampMilli), r)
			}
		}
	}
}

func ended(r proxy.Record) time.Time {
	return r.Start.Add(time.Duration(r.DurationMS) * time.Millisecond)
}
