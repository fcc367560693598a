package xds

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"podseal.io/podseal/internal/xds/xdspb"
)

// Bounds of a journal, in bytes. It is written anew when it is larger than
// smallJournal and has grown to a multiple of what it then held; one that would
// be larger than maxJournal is given up.
const (
	smallJournal  = 1 << 20
	maxJournal    = 64 << 20
	journalGrowth = 4
)

// Type URLs of frames that carry no resources.
const (
	frameHeader = "journal"
	frameWhole  = "whole"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errTorn says that a journal is not what was written.
var errTorn = errors.New("the journal is damaged")

// Journal is a file of what a client has in force, so that it has it again after
// a restart without a server. It holds resources and nothing that is secret.
//
// The file is a list of frames, each the length of its payload and its CRC-32C,
// four bytes each and big-endian, and the payload, a DeltaDiscoveryResponse. The
// first names whose journal it is. What doesn't hold together is not used at all:
// a change that is missing may be the one that mattered.
//
// A Journal belongs to one goroutine.
type Journal struct {
	path  string
	owner string
	types []string
	file  *os.File // nil when the journal has been given up
	size  int64
	floor int64 // size when it was written anew
	limit int64 // maxJournal outside tests
}

// OpenJournal opens the journal at path, or makes it. owner names whose it is
// and since when: another's is not used. held is what it says of all types, or nil
// when it can't be used or has never been whole.
func OpenJournal(path, owner string, types []string) (j *Journal, held map[string][]Resource, err error) {
	j = &Journal{path: path, owner: owner, types: slices.Clone(types), limit: maxJournal}
	state, err := j.read()
	if err != nil || !state.whole {
		state = newJournalState() // it is begun anew; why is of no use to anybody
	}
	if err := j.rewrite(state); err != nil {
		return nil, nil, j.giveUp(err)
	}
	if !state.whole {
		return j, nil, nil
	}
	held = make(map[string][]Resource, len(types))
	for _, t := range types {
		held[t] = slices.Collect(maps.Values(state.held[t]))
	}
	return j, held, nil
}

// Note writes down a change that is in force. After an error the journal is
// gone, and Note does nothing any more.
func (j *Journal) Note(typeURL string, upserts []Resource, removed []string) error {
	if j.file == nil || len(upserts)+len(removed) == 0 {
		return nil
	}
	frame := &xdspb.DeltaDiscoveryResponse{TypeUrl: typeURL, RemovedResources: removed}
	for _, u := range upserts {
		frame.Resources = append(frame.Resources, &xdspb.Resource{Name: u.Name, Version: u.Version, Resource: &anypb.Any{Value: u.Body}})
	}
	if err := j.append(frame); err != nil {
		return j.giveUp(err)
	}
	if j.size > smallJournal && j.size > journalGrowth*j.floor {
		state, err := j.read()
		if err == nil {
			err = j.rewrite(state)
		}
		if err != nil {
			return j.giveUp(err)
		}
	}
	return nil
}

// Whole writes down that the server has answered every type: from here on the
// journal can be used.
func (j *Journal) Whole() error {
	if j.file == nil {
		return nil
	}
	if err := j.append(&xdspb.DeltaDiscoveryResponse{TypeUrl: frameWhole, RemovedResources: j.types}); err != nil {
		return j.giveUp(err)
	}
	return nil
}

// Close closes the file and leaves it.
func (j *Journal) Close() error {
	if j.file == nil {
		return nil
	}
	defer func() { j.file = nil }()
	return j.file.Close()
}

// giveUp removes a journal that is not, or can't be kept, what is in force.
func (j *Journal) giveUp(cause error) error {
	if j.file != nil {
		cause = errors.Join(cause, j.file.Truncate(0), j.file.Close())
		j.file = nil
	}
	if err := os.Remove(j.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		cause = errors.Join(cause, err)
	}
	return fmt.Errorf("journal: %w", cause)
}

func (j *Journal) append(frame *xdspb.DeltaDiscoveryResponse) error {
	b, err := appendFrame(nil, frame)
	if err != nil {
		return err
	}
	if j.size+int64(len(b)) > j.limit {
		return fmt.Errorf("it would have more than %d bytes", j.limit)
	}
	n, err := j.file.Write(b)
	j.size += int64(n)
	return err
}

// appendFrame appends a frame to b.
func appendFrame(b []byte, frame *xdspb.DeltaDiscoveryResponse) ([]byte, error) {
	start := len(b)
	b, err := proto.MarshalOptions{}.MarshalAppend(append(b, make([]byte, 8)...), frame)
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	payload := b[start+8:]
	binary.BigEndian.PutUint32(b[start:], uint32(len(payload)))
	binary.BigEndian.PutUint32(b[start+4:], crc32.Checksum(payload, castagnoli))
	return b, nil
}

// nextFrame splits a frame off.
func nextFrame(b []byte) (frame *xdspb.DeltaDiscoveryResponse, rest []byte, err error) {
	if len(b) < 8 {
		return nil, nil, errTorn
	}
	size, sum := int64(binary.BigEndian.Uint32(b)), binary.BigEndian.Uint32(b[4:])
	b = b[8:]
	if size > int64(len(b)) || crc32.Checksum(b[:size], castagnoli) != sum {
		return nil, nil, errTorn
	}
	frame = &xdspb.DeltaDiscoveryResponse{}
	if err := proto.Unmarshal(b[:size], frame); err != nil {
		return nil, nil, errTorn
	}
	return frame, b[size:], nil
}

// journalState is what a journal's frames come to.
type journalState struct {
	held  map[string]map[string]Resource // by type URL and name
	whole bool
}

func newJournalState() *journalState {
	return &journalState{held: map[string]map[string]Resource{}}
}

func (s *journalState) fold(frame *xdspb.DeltaDiscoveryResponse, types []string) {
	if frame.GetTypeUrl() == frameWhole {
		s.whole = s.whole || slices.Equal(frame.GetRemovedResources(), types)
		return
	}
	of := s.held[frame.GetTypeUrl()]
	if of == nil {
		of = map[string]Resource{}
		s.held[frame.GetTypeUrl()] = of
	}
	for _, name := range frame.GetRemovedResources() {
		delete(of, name)
	}
	for _, x := range frame.GetResources() {
		of[x.GetName()] = Resource{Name: x.GetName(), Version: x.GetVersion(), Body: x.GetResource().GetValue()}
	}
}

// read reads the file from its beginning to its end.
func (j *Journal) read() (*journalState, error) {
	f, err := os.Open(j.path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // nothing was written
	b, err := io.ReadAll(io.LimitReader(f, j.limit+1))
	switch {
	case err != nil:
		return nil, err
	case int64(len(b)) > j.limit:
		return nil, errTorn
	}
	return foldJournal(b, j.owner, j.types)
}

func foldJournal(b []byte, owner string, types []string) (*journalState, error) {
	frame, b, err := nextFrame(b)
	if err != nil || frame.GetTypeUrl() != frameHeader || frame.GetNonce() != owner {
		return nil, errTorn
	}
	state := newJournalState()
	for len(b) > 0 {
		if frame, b, err = nextFrame(b); err != nil {
			return nil, err
		}
		state.fold(frame, types)
	}
	return state, nil
}

// rewrite puts a file in place that says this and nothing else.
func (j *Journal) rewrite(state *journalState) error {
	b, err := appendFrame(nil, &xdspb.DeltaDiscoveryResponse{TypeUrl: frameHeader, Nonce: j.owner})
	for _, t := range slices.Sorted(maps.Keys(state.held)) {
		for _, name := range slices.Sorted(maps.Keys(state.held[t])) {
			x := state.held[t][name]
			frame := &xdspb.DeltaDiscoveryResponse{TypeUrl: t, Resources: []*xdspb.Resource{{Name: x.Name, Version: x.Version, Resource: &anypb.Any{Value: x.Body}}}}
			if err == nil {
				b, err = appendFrame(b, frame)
			}
		}
	}
	if state.whole && err == nil {
		b, err = appendFrame(b, &xdspb.DeltaDiscoveryResponse{TypeUrl: frameWhole, RemovedResources: j.types})
	}
	if err != nil {
		return err
	}
	fresh := j.path + ".new"
	f, err := os.OpenFile(fresh, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.Write(b); err == nil {
		err = os.Rename(fresh, j.path)
	}
	if err != nil {
		return errors.Join(err, f.Close(), os.Remove(fresh))
	}
	if j.file != nil {
		_ = j.file.Close() // it has been replaced
	}
	j.file, j.size, j.floor = f, int64(len(b)), int64(len(b))
	return nil
}
