package proxy

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"podseal.io/podseal/internal/xds"
)

// defaultGrace is how long, after a restart, the control plane is waited for
// before what was known then is believed. Connections wait for longer
// ([worldTimeout]).
const defaultGrace = 5 * time.Second

// bootFile names this run of the node's kernel: after another one the addresses
// of pods mean nothing any more.
const bootFile = "/proc/sys/kernel/random/boot_id"

// memory is what the proxy remembers of the world across its own restart (design
// D16). It is of no use to a thief: keys are not in it. A nil memory remembers
// nothing.
type memory struct {
	log *slog.Logger

	mu      sync.Mutex
	journal *xds.Journal
}

// remember opens the memory and takes what it knows into force, unconfirmed.
// versions is what is in force now, for the control plane.
func (p *proxy) remember(types []string) (m *memory, versions map[string]map[string]string) {
	if p.cfg.Control.StateFile == "" {
		return nil, nil
	}
	boot, err := os.ReadFile(bootFile)
	if err != nil {
		p.log.Info("nothing is remembered across a restart", slog.String("error", err.Error()))
		return nil, nil
	}
	owner := fmt.Sprintf("%s %s %v", strings.TrimSpace(string(boot)), p.worlds.self, p.cfg.Addresses)
	journal, held, err := xds.OpenJournal(p.cfg.Control.StateFile, owner, types)
	if err != nil {
		p.log.Info("nothing is remembered across a restart", slog.String("error", err.Error()))
		return nil, nil
	}
	if held != nil {
		versions = p.worlds.recall(types, held)
	}
	return &memory{log: p.log, journal: journal}, versions
}

// note writes down a change that is in force, less what was rejected.
func (m *memory) note(typeURL string, upserts []xds.Resource, removed []string, rejected map[string]error) {
	if m == nil {
		return
	}
	accepted := upserts
	if len(rejected) > 0 {
		accepted = nil
		for _, u := range upserts {
			if rejected[u.Name] == nil {
				accepted = append(accepted, u)
			}
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failed(m.journal.Note(typeURL, accepted, removed))
}

// whole writes down that the control plane has told everything.
func (m *memory) whole() {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failed(m.journal.Whole())
}

func (m *memory) close() {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failed(m.journal.Close())
}

func (m *memory) failed(err error) {
	if err != nil {
		m.log.Warn("nothing is remembered across a restart any more", slog.String("error", err.Error()))
	}
}

// confirm waits for the control plane's word on what is in force; if it doesn't
// come, what was remembered has to do.
func (p *proxy) confirm(ctx context.Context, client *xds.Client, m *memory) {
	wait := cmp.Or(p.cfg.Control.Grace, defaultGrace)
	grace := time.NewTimer(wait)
	defer grace.Stop()
	for {
		select {
		case <-client.Synced():
			p.worlds.synced()
			m.whole()
			return
		case <-grace.C:
			if p.worlds.believe() {
				p.log.Warn("the control plane does not answer: what was known before the restart is in force", slog.Duration("waited", wait))
			}
		case <-ctx.Done():
			return
		}
	}
}

// recall takes into force what was known before a restart, type by type. It
// counts as known only once the control plane has confirmed it, or is believed.
func (s *worldStore) recall(types []string, held map[string][]xds.Resource) (versions map[string]map[string]string) {
	s.mu.Lock()
	s.unconfirmed = true
	s.mu.Unlock()
	versions = map[string]map[string]string{}
	for _, t := range types {
		rejected := s.handle(t, held[t], nil)
		versions[t] = map[string]string{}
		for _, r := range held[t] {
			if rejected[r.Name] == nil {
				versions[t][r.Name] = r.Version
			}
		}
	}
	return versions
}

// believe makes known what was recalled, and reports whether there is anything.
func (s *worldStore) believe() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.unconfirmed {
		return false
	}
	s.unconfirmed = false
	s.announce()
	return s.ready
}
