package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"

	"podseal.io/podseal/internal/proof"
	"podseal.io/podseal/internal/proxy"
)

// Bounds of one look.
const (
	maxObserve    = time.Hour
	maxClaims     = 1 << 16
	settleTime    = 500 * time.Millisecond // the proxy's word on what has just ended
	askProxyEvery = 2 * time.Second        // for what is open
)

// observer looks at the wire of its own network namespace, and asks the proxy there.
type observer struct {
	admin  string // URL of the proxy's admin port
	claims map[proof.Claim]struct{}
	missed uint64
}

// runObserve captures for a while and prints a [proof.Observation] as JSON, the
// last line on stderr. With -pcap, stdout is the capture. It begins when a line
// comes on stdin, so that whoever attaches misses nothing, and ends early when
// stdin ends.
func runObserve(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	fs := flag.NewFlagSet("podseal-proxy observe", flag.ContinueOnError)
	fs.SetOutput(stderr)
	length := fs.Duration("for", 30*time.Second, "how long to look")
	pcap := fs.Bool("pcap", false, "write the packets to stdout")
	admin := fs.String("admin", "http://127.0.0.1:15000", "the proxy's admin port")
	if code := parse(fs, args); code >= 0 {
		return code
	}
	if *length <= 0 || *length > maxObserve {
		fmt.Fprintf(stderr, "podseal-proxy observe: -for %s: must be more than 0 and at most %s\n", *length, maxObserve)
		return 2
	}
	ctx, cancel := context.WithTimeout(ctx, *length+maxObserve) // nobody may ever send the line
	defer cancel()
	lines := bufio.NewReader(io.LimitReader(stdin, 1<<10))
	if _, err := lines.ReadString('\n'); err != nil {
		fmt.Fprintln(stderr, "podseal-proxy observe: stdin ended before the line that begins it")
		return 1
	}
	ctx, stop := context.WithTimeout(ctx, *length)
	defer stop()
	go func() { // it ends with the process at the latest
		_, _ = io.Copy(io.Discard, lines)
		stop()
	}()
	packets := io.Discard
	if *pcap {
		packets = stdout
	}
	o := observer{admin: *admin, claims: map[proof.Claim]struct{}{}}
	seen, err := o.observe(ctx, packets)
	if err != nil {
		fmt.Fprintf(stderr, "podseal-proxy observe: %v\n", err)
		return 1
	}
	if err := json.NewEncoder(stderr).Encode(seen); err != nil {
		return 1
	}
	return 0
}

// observe looks until ctx ends. The packets go to w as well.
func (o *observer) observe(ctx context.Context, w io.Writer) (proof.Observation, error) {
	own, err := addresses()
	if err != nil {
		return proof.Observation{}, err
	}
	version := o.version(ctx)
	follow, endFollow := context.WithCancel(context.WithoutCancel(ctx))
	defer endFollow()
	followed := make(chan struct{})
	go func() {
		defer close(followed)
		if version != "" {
			o.follow(follow)
		}
	}()
	sniffer, err := proof.OpenSniffer()
	if err != nil {
		return proof.Observation{}, err
	}
	began := time.Now()
	summary, lost, err := sniff(ctx, sniffer, w)
	if err != nil {
		return proof.Observation{}, err
	}
	ended := time.Now()
	time.Sleep(settleTime)
	endFollow()
	<-followed
	seen := proof.NewObservation(summary, own)
	seen.From, seen.To, seen.Lost, seen.Proxy, seen.ProxyLost = began, ended, lost, version, o.missed
	for c := range o.claims {
		seen.Claims = append(seen.Claims, c)
	}
	return seen, nil
}

// sniff reads the packets that a sniffer records, and sums them up.
func sniff(ctx context.Context, s *proof.Sniffer, w io.Writer) (proof.Summary, uint64, error) {
	r, pipe := io.Pipe()
	type result struct {
		lost uint64
		err  error
	}
	done := make(chan result, 1)
	buffered := bufio.NewWriterSize(io.MultiWriter(pipe, w), 1<<18)
	go func() {
		lost, err := s.Run(ctx, buffered)
		err = errors.Join(err, buffered.Flush())
		_ = pipe.CloseWithError(err) // nil is the end
		done <- result{lost, err}
	}()
	summary, err := proof.Read(r, proof.Options{})
	_ = r.CloseWithError(err) // if it gave up, the sniffer does
	run := <-done
	if err == nil {
		err = run.err
	}
	return summary, run.lost, err
}

// addresses are those of this network namespace.
func addresses() ([]netip.Addr, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var own []netip.Addr
	for _, a := range all {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil {
			own = append(own, prefix.Addr().Unmap())
		}
	}
	return own, nil
}

// claimOf is what a proxy's record claims of the wire.
func claimOf(r *proxy.Record) proof.Claim {
	if r.Direction == "outbound" {
		return proof.Claim{Outbound: true, Client: r.Local, Server: r.Endpoint, Security: r.Security, Reason: string(r.Reason), Peer: r.DestinationIdentity}
	}
	return proof.Claim{Client: r.Source, Server: r.Destination, Security: r.Security, Reason: string(r.Reason), Peer: r.SourceIdentity}
}

func (o *observer) take(r *proxy.Record) {
	c := claimOf(r)
	if _, there := o.claims[c]; !there && len(o.claims) >= maxClaims {
		o.missed++
		return
	}
	o.claims[c] = struct{}{}
}

// version asks the proxy who it is; "" means that there is none.
func (o *observer) version(ctx context.Context) string {
	var status struct {
		Version string `json:"version"`
	}
	if o.get(ctx, "/status", func(d *json.Decoder) error { return d.Decode(&status) }) != nil {
		return ""
	}
	return status.Version
}

// follow keeps what the proxy says of connections that end and, from time to time
// and at the end, of those that are open.
func (o *observer) follow(ctx context.Context) {
	records := make(chan proxy.Followed, 1024)
	streaming := make(chan struct{})
	go func() {
		defer close(streaming)
		_ = o.get(ctx, "/records?follow", func(d *json.Decoder) error { // what is missing then is reported as unproven
			for {
				r := proxy.Followed{Record: &proxy.Record{}}
				if err := d.Decode(&r); err != nil {
					return err
				}
				records <- r
			}
		})
		close(records)
	}()
	tick := time.NewTicker(askProxyEvery)
	defer tick.Stop()
	o.open(ctx)
	for {
		select {
		case r, ok := <-records:
			if !ok {
				if ctx.Err() == nil {
					o.missed++ // the stream broke
				}
				<-streaming
				o.open(context.WithoutCancel(ctx))
				return
			}
			o.missed += r.Missed
			o.take(r.Record)
		case <-tick.C:
			o.open(ctx)
		}
	}
}

// open asks for the connections that are open, and for those between proxies that
// carry them.
func (o *observer) open(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	for _, path := range []string{"/connections", "/tunnels"} {
		var open []proxy.Record
		if err := o.get(ctx, path, func(d *json.Decoder) error { return d.Decode(&open) }); err != nil {
			continue // the next time, or its end, tells
		}
		for i := range open {
			o.take(&open[i])
		}
	}
}

func (o *observer) get(ctx context.Context, path string, read func(*json.Decoder) error) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, o.admin+path, http.NoBody)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answered %s", path, res.Status)
	}
	return read(json.NewDecoder(res.Body))
}
