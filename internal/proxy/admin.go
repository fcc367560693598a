package proxy

import (
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"time"

	"podseal.io/podseal/internal/xds"
)

// Status is what GET /status on the admin port says.
type Status struct {
	Version     string            `json:"version"`
	Workload    string            `json:"workload"`
	NotReady    string            `json:"not_ready,omitempty"`
	Draining    bool              `json:"draining"`
	Workloads   int               `json:"workloads"`
	Services    int               `json:"services"`
	Connections int               `json:"connections"`
	IdleOut     int               `json:"idle_tunnels_out"` // TLS connections to other proxies that wait for use
	IdleIn      int               `json:"idle_tunnels_in"`  // and from others
	Mode        string            `json:"mode,omitempty"`   // of ports without one of their own
	PortModes   map[uint16]string `json:"port_modes,omitempty"`
	Identity    string            `json:"identity,omitempty"`
	Serial      string            `json:"serial,omitempty"`
	NotBefore   time.Time         `json:"not_before,omitzero"`
	NotAfter    time.Time         `json:"not_after,omitzero"`
	Bundle      string            `json:"bundle,omitempty"` // short hash of the roots in force
	Trusted     []string          `json:"trust_domains,omitempty"`
	Control     *xds.ClientStatus `json:"control_plane,omitempty"`
}

// adminHandler serves people and the CLI, from within the pod only.
func (p *proxy) adminHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "/status       who this proxy is and what it knows\n/connections  open connections\n/tunnels      TLS connections between proxies that carry them\n/records      the last finished connections; ?follow: each one as it ends\n/edges        who talks to this pod and to whom it talks\n/ready        200 when ready\n")
	})
	mux.HandleFunc("GET /ready", p.serveReady)
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { p.writeJSON(w, p.status()) })
	mux.HandleFunc("GET /records", p.serveRecords)
	mux.HandleFunc("GET /edges", func(w http.ResponseWriter, _ *http.Request) { p.writeJSON(w, p.graph()) })
	mux.HandleFunc("GET /tunnels", func(w http.ResponseWriter, _ *http.Request) { p.writeJSON(w, p.allTunnels()) })
	mux.HandleFunc("GET /connections", func(w http.ResponseWriter, _ *http.Request) {
		now := time.Now()
		all := []Record{}
		for _, c := range p.conns.all() {
			all = append(all, c.snapshot(now))
		}
		p.writeJSON(w, all)
	})
	return mux
}

func (p *proxy) status() Status {
	world := p.worlds.world()
	s := Status{
		Version: p.cfg.Version, Workload: p.worlds.self, NotReady: p.notReady(), Draining: p.draining.Load(),
		Connections: len(p.conns.all()), IdleOut: p.tunnels.idle(), IdleIn: p.lobby.idle(),
	}
	s.Workloads, s.Services = world.Len()
	if own, ok := p.worlds.own(); ok {
		s.Mode = own.Modes.Port(0).String()
		for port, mode := range own.Modes.Ports {
			if s.PortModes == nil {
				s.PortModes = map[uint16]string{}
			}
			s.PortModes[port] = mode.String()
		}
	}
	if snap := p.creds.current.Load(); snap != nil {
		leaf := snap.Credential.Leaf
		s.Identity, s.Serial = snap.Credential.ID.String(), leaf.SerialNumber.Text(16)
		s.NotBefore, s.NotAfter = leaf.NotBefore, leaf.NotAfter
		s.Bundle, s.Trusted = snap.Bundle.Hash(), snap.TrustDomains
	}
	if c := p.control.Load(); c != nil {
		status := c.Status()
		s.Control = &status
	}
	return s
}

// Followed is a line of GET /records?follow: a record, or how many were left out
// since the last line because the reader was too slow.
type Followed struct {
	*Record
	Missed uint64 `json:"missed,omitempty"`
}

// serveRecords answers with the last records or, when the query has follow, with
// each one as it ends, a line of JSON each.
func (p *proxy) serveRecords(w http.ResponseWriter, r *http.Request) {
	if !r.URL.Query().Has("follow") {
		p.writeJSON(w, p.records.last())
		return
	}
	f := p.records.follow()
	if f == nil {
		http.Error(w, "too many follow the records", http.StatusTooManyRequests)
		return
	}
	defer p.records.unfollow(f)
	w.Header().Set("Content-Type", "application/jsonl")
	rc, out := http.NewResponseController(w), json.NewEncoder(w)
	// the limits of the server are for short answers; here each line has its own
	if errors.Join(rc.SetReadDeadline(time.Time{}), rc.SetWriteDeadline(time.Now().Add(answerTimeout)), rc.Flush()) != nil {
		return
	}
	for {
		select {
		case <-r.Context().Done():
			return
		case rec := <-f.records:
			if errors.Join(rc.SetWriteDeadline(time.Now().Add(answerTimeout)), out.Encode(Followed{&rec, f.missed.Swap(0)}), rc.Flush()) != nil {
				return
			}
		}
	}
}

func (p *proxy) writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		p.log.Debug("admin answer failed", slog.String("error", err.Error()))
	}
}
