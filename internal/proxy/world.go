package proxy

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"podseal.io/podseal/internal/wire"
	"podseal.io/podseal/internal/workload"
	"podseal.io/podseal/internal/xds"
)

// worldStore holds the world in force. It has one writer, handle; readers take
// the pointer once per decision and never lock.
type worldStore struct {
	self      string // UID of this proxy's own workload
	changed   func(*workload.World)
	current   atomic.Pointer[workload.World]
	known     chan struct{} // closed once mesh, services, policies, rules and the own workload are known
	mu        sync.Mutex
	mesh      workload.Mesh
	workloads map[string]*workload.Workload
	services  map[string]*workload.Service
	access    accessStore
	rules     map[string]*workload.DestinationRule
	entries   map[string]*workload.Entry
	got       map[string]bool // types that were handled at least once
	ready     bool

	unconfirmed bool // what is in force is from before a restart, and may be out of date
}

// newWorldStore starts with an empty world. changed is called after every swap.
func newWorldStore(self string, changed func(*workload.World)) *worldStore {
	s := &worldStore{
		self: self, changed: changed, known: make(chan struct{}),
		access:    newAccessStore(self),
		workloads: map[string]*workload.Workload{}, services: map[string]*workload.Service{}, got: map[string]bool{},
		rules: map[string]*workload.DestinationRule{}, entries: map[string]*workload.Entry{},
	}
	s.current.Store(workload.NewWorld(workload.Mesh{}, nil, nil))
	return s
}

// world is what is in force now; it is never nil.
func (s *worldStore) world() *workload.World { return s.current.Load() }

// own is this proxy's own workload, if it is known yet.
func (s *worldStore) own() (*workload.Workload, bool) { return s.world().Workload(s.self) }

// handle takes resources into force, all at once, and returns those that it
// can't read; their earlier versions stay in force.
//
// The own workload and the mesh stay as they were when the control plane takes
// them away: a pod that is terminating keeps its policy until it is gone (design D16).
func (s *worldStore) handle(typeURL string, upserts []xds.Resource, removed []string) map[string]error {
	s.mu.Lock()
	defer s.mu.Unlock()
	rejected := map[string]error{}
	for _, r := range upserts {
		if err := s.put(typeURL, r); err != nil {
			rejected[r.Name] = err
		}
	}
	for _, name := range removed {
		switch {
		case typeURL == wire.TypeWorkload && name != s.self:
			delete(s.workloads, name)
		case typeURL == wire.TypeService:
			delete(s.services, name)
		case typeURL == wire.TypeAuthorizationPolicy:
			s.access.policies.remove(name)
		case typeURL == wire.TypeRequestAuthentication:
			s.access.authentications.remove(name)
		case typeURL == wire.TypeDestinationRule:
			delete(s.rules, name)
		case typeURL == wire.TypeServiceEntry:
			delete(s.entries, name)
		}
	}
	s.got[typeURL] = true
	s.swap()
	return rejected
}

func (s *worldStore) put(typeURL string, r xds.Resource) error {
	switch typeURL {
	case wire.TypeWorkload:
		w, err := wire.ParseWorkload(r.Body)
		if err != nil {
			return err
		}
		if w.UID != r.Name {
			return fmt.Errorf("workload %q is named %q", w.UID, r.Name)
		}
		s.workloads[r.Name] = w
	case wire.TypeService:
		v, err := wire.ParseService(r.Body)
		if err != nil {
			return err
		}
		if name := v.Namespace + "/" + v.Name; name != r.Name {
			return fmt.Errorf("service %q is named %q", name, r.Name)
		}
		s.services[r.Name] = v
	case wire.TypeDestinationRule:
		v, err := wire.ParseDestinationRule(r.Body)
		if err != nil {
			return err
		}
		if name := v.Namespace + "/" + v.Name; name != r.Name {
			return fmt.Errorf("destination rule %q is named %q", name, r.Name)
		}
		s.rules[r.Name] = v
	case wire.TypeServiceEntry:
		v, err := wire.ParseServiceEntry(r.Body)
		if err != nil {
			return err
		}
		if v.Key() != r.Name {
			return fmt.Errorf("service entry %q is named %q", v.Key(), r.Name)
		}
		s.entries[r.Name] = v
	case wire.TypeMesh:
		m, err := wire.ParseMesh(r.Body)
		if err != nil {
			return err
		}
		s.mesh = *m
	case wire.TypeAuthorizationPolicy:
		return s.access.putPolicy(r)
	case wire.TypeRequestAuthentication:
		return s.access.putAuthentication(r)
	default:
		return fmt.Errorf("type %q is not one that a proxy asks for", typeURL)
	}
	return nil
}

// swap builds the new world and puts it in force. Callers hold mu.
func (s *worldStore) swap() {
	workloads := make([]*workload.Workload, 0, len(s.workloads))
	for _, w := range s.workloads {
		workloads = append(workloads, w)
	}
	services := make([]*workload.Service, 0, len(s.services))
	for _, v := range s.services {
		services = append(services, v)
	}
	w := workload.NewWorld(s.mesh, workloads, services, slices.Collect(maps.Values(s.rules))...).AddEntries(slices.Collect(maps.Values(s.entries)))
	w.Access, w.Authentication = s.access.build(s.workloads[s.self], s.mesh.TrustDomains)
	s.current.Store(w)
	s.announce()
	s.changed(w)
}

// synced says that every type was answered: what is not there doesn't exist.
func (s *worldStore) synced() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unconfirmed = false
	for _, typeURL := range wire.Types() {
		s.got[typeURL] = true
	}
	s.announce()
}

// untold are the kinds that were not told of while others were: an older control
// plane doesn't know them, and nothing may be decided without them.
func (s *worldStore) untold() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var kinds []string
	for _, typeURL := range wire.Types() {
		if !s.got[typeURL] {
			kinds = append(kinds, wire.KindOf(typeURL))
		}
	}
	if !s.got[wire.TypeWorkload] || !s.got[wire.TypeService] || !s.got[wire.TypeMesh] {
		return nil // it is about to
	}
	return kinds
}

// announce closes known once all is known that a decision needs. Callers hold mu.
func (s *worldStore) announce() {
	_, own := s.workloads[s.self]
	told := true
	for _, typeURL := range wire.Types() {
		told = told && (s.got[typeURL] || typeURL == wire.TypeWorkload) // of which the own one is enough
	}
	if !s.ready && !s.unconfirmed && own && told {
		s.ready = true
		close(s.known)
	}
}
