package xds

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/anypb"

	"podseal.io/podseal/internal/xds/xdspb"
)

// Resource is one named blob. Version is empty only where a resource has none.
type Resource struct {
	Name    string
	Version string
	Body    []byte
}

// Store holds the resources that a [Server] serves. Its methods may be called
// from any goroutine. NewStore makes one.
type Store struct {
	mu      sync.Mutex
	current view
}

// view is all types at one moment. It is immutable but for changed, which is
// closed when there is a newer view.
type view struct {
	types   map[string]*snapshot
	changed chan struct{}
}

// snapshot is all resources of one type at one moment. It is immutable.
type snapshot struct {
	generation uint64
	at         time.Time // when it came to be
	entries    map[string]*entry
}

// entry is a resource and how it travels. It is immutable and shared by all
// streams.
type entry struct {
	Resource
	wire *xdspb.Resource
}

// size is about what the entry takes in a response, in bytes.
func (e *entry) size() int { return len(e.Name) + len(e.Version) + len(e.Body) + 128 }

// NewStore returns a store that knows no types.
func NewStore() *Store {
	return &Store{current: view{types: map[string]*snapshot{}, changed: make(chan struct{})}}
}

// Replace makes all the whole content of a type, by name, and reports whether
// that changed anything. The bodies belong to the store afterwards. Until the
// first Replace of a type, possibly with nothing, its subscribers wait.
func (s *Store) Replace(typeURL string, all map[string][]byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.current.types[typeURL]
	next := &snapshot{generation: 1, at: time.Now(), entries: make(map[string]*entry, len(all))}
	same := old != nil && len(old.entries) == len(all)
	if old != nil {
		next.generation = old.generation + 1
	}
	for name, body := range all {
		if old != nil {
			if e := old.entries[name]; e != nil && bytes.Equal(e.Body, body) {
				next.entries[name] = e
				continue
			}
		}
		same = false
		next.entries[name] = newEntry(typeURL, name, body)
	}
	if same {
		return false
	}
	types := maps.Clone(s.current.types)
	types[typeURL] = next
	close(s.current.changed)
	s.current = view{types: types, changed: make(chan struct{})}
	return true
}

func newEntry(typeURL, name string, body []byte) *entry {
	r := Resource{Name: name, Version: versionOf(body), Body: body}
	return &entry{Resource: r, wire: &xdspb.Resource{
		Name:     name,
		Version:  r.Version,
		Resource: &anypb.Any{TypeUrl: typeURL, Value: body},
	}}
}

// versionOf is 22 characters that differ when the content does.
func versionOf(body []byte) string {
	sum := sha256.Sum256(body)
	return base64.RawURLEncoding.EncodeToString(sum[:16])
}

// Changed returns a channel that is closed at the next change of any type.
func (s *Store) Changed() <-chan struct{} { return s.view().changed }

// Generation counts the changes of a type; 0 is a type that was never given.
// [TypeStatus.Generation] is comparable to it.
func (s *Store) Generation(typeURL string) uint64 {
	if snap := s.view().types[typeURL]; snap != nil {
		return snap.generation
	}
	return 0
}

// Resources returns the content of a type, sorted by name. The bodies are the
// store's own: they are for reading.
func (s *Store) Resources(typeURL string) []Resource {
	snap := s.view().types[typeURL]
	if snap == nil {
		return nil
	}
	out := make([]Resource, 0, len(snap.entries))
	for _, e := range snap.entries {
		out = append(out, e.Resource)
	}
	slices.SortFunc(out, func(a, b Resource) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

func (s *Store) view() view {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current
}

// DebugJSON is the names and versions in the store, for people:
//
//	{"<type URL>": {"generation": 3, "resources": {"<name>": "<version>"}}}
func (s *Store) DebugJSON() ([]byte, error) {
	type content struct {
		Generation uint64            `json:"generation"`
		Resources  map[string]string `json:"resources"`
	}
	all := map[string]content{}
	for typeURL, snap := range s.view().types {
		c := content{Generation: snap.generation, Resources: make(map[string]string, len(snap.entries))}
		for name, e := range snap.entries {
			c.Resources[name] = e.Version
		}
		all[typeURL] = c
	}
	b, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("marshal store: %w", err)
	}
	return b, nil
}
