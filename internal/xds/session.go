package xds

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"podseal.io/podseal/internal/xds/xdspb"
)

// wildcard is the name that subscribes to everything of a type.
const wildcard = "*"

// What a stream may ask for. A name longer than maxName, more than maxNames
// names or more than maxTypes types end it.
const (
	maxName  = 1024
	maxNames = 100_000
	maxTypes = 32
)

// maxResponse bounds the resources of one response, in bytes; what doesn't fit
// goes into the next one. It leaves room below maxSend for the framing.
const maxResponse = 60 << 20

// event is what a session reacts to: a request, or a newer view, or both.
type event struct {
	req  *xdspb.DeltaDiscoveryRequest
	view view
	now  time.Time
}

// session is what the server knows of one stream: per type what the client
// subscribed to and what it was sent. It does no I/O and reads no clock.
type session struct {
	subs  map[string]*subscription
	order []string // the types, in the order in which they were asked for
	nonce uint64
	limit int // bytes of a response; maxResponse outside tests

	converged func(time.Duration) // told how long each change took; may be nil
}

// subscription is one type of a session.
type subscription struct {
	wildcard bool
	names    map[string]bool // asked for by name
	// sent is what the client holds or was offered: the version by name. The
	// version is "" for a name whose absence the client was told.
	sent     map[string]string
	seen     *snapshot // that sent was last compared with
	dirty    bool      // sent was changed by a request since
	answered bool      // the first request was
	inflight *flight   // nil when no response waits for its ACK
	behind   time.Time // since when there is a change that no response has, zero if none is
	rejected map[string]string
	status   TypeStatus
}

// flight is a response that waits for its ACK.
type flight struct {
	nonce string
	names map[string]bool // of the resources in it
	since time.Time       // when the first change in it came to be; zero if the client has asked for something
}

func newSession() *session {
	return &session{subs: map[string]*subscription{}, limit: maxResponse}
}

// step takes in an event and returns the responses to send, in order. An error
// carries a gRPC status and ends the stream.
func (s *session) step(ev event) ([]*xdspb.DeltaDiscoveryResponse, error) {
	if ev.req != nil {
		if err := s.request(ev.req, ev.now); err != nil {
			return nil, err
		}
	}
	var out []*xdspb.DeltaDiscoveryResponse
	for _, typeURL := range s.order {
		if r := s.respond(typeURL, ev); r != nil {
			out = append(out, r)
		}
	}
	return out, nil
}

func (s *session) request(req *xdspb.DeltaDiscoveryRequest, now time.Time) error {
	if err := s.check(req); err != nil {
		return err
	}
	sub, known := s.subs[req.GetTypeUrl()]
	if !known {
		sub = &subscription{names: map[string]bool{}, sent: map[string]string{}, rejected: map[string]string{}}
		s.subs[req.GetTypeUrl()] = sub
		s.order = append(s.order, req.GetTypeUrl())
		sub.first(req)
	} else {
		for _, name := range req.GetResourceNamesSubscribe() {
			sub.subscribe(name)
		}
	}
	for _, name := range req.GetResourceNamesUnsubscribe() {
		sub.unsubscribe(name)
	}
	// A nonce of an earlier response says nothing of the one in flight; the
	// names in the same request count all the same, for they are increments.
	if sub.inflight != nil && req.GetResponseNonce() == sub.inflight.nonce {
		since := sub.inflight.since
		sub.acknowledge(req.GetErrorDetail(), now)
		if !since.IsZero() && req.GetErrorDetail() == nil && s.converged != nil {
			s.converged(now.Sub(since))
		}
	}
	return nil
}

// check refuses what exceeds the limits.
func (s *session) check(req *xdspb.DeltaDiscoveryRequest) error {
	typeURL := req.GetTypeUrl()
	if typeURL == "" || len(typeURL) > maxName {
		return status.Errorf(codes.InvalidArgument, "a type URL has 1 to %d bytes, this one has %d", maxName, len(typeURL))
	}
	if s.subs[typeURL] == nil && len(s.subs) >= maxTypes {
		return status.Errorf(codes.ResourceExhausted, "more than %d types on one stream", maxTypes)
	}
	total := len(req.GetResourceNamesSubscribe()) + len(req.GetInitialResourceVersions())
	for _, sub := range s.subs {
		total += len(sub.names)
	}
	if total > maxNames {
		return status.Errorf(codes.ResourceExhausted, "more than %d names on one stream", maxNames)
	}
	for _, names := range [][]string{req.GetResourceNamesSubscribe(), req.GetResourceNamesUnsubscribe()} {
		for _, name := range names {
			if name == "" || len(name) > maxName {
				return status.Errorf(codes.InvalidArgument, "a resource name has 1 to %d bytes, this one has %d", maxName, len(name))
			}
		}
	}
	for name, version := range req.GetInitialResourceVersions() {
		if len(name) > maxName || len(version) > maxName {
			return status.Errorf(codes.InvalidArgument, "an initial resource version has more than %d bytes", maxName)
		}
	}
	return nil
}

// first takes the first request of a type on this stream: only here do initial
// versions count, and only here do no names mean all.
func (sub *subscription) first(req *xdspb.DeltaDiscoveryRequest) {
	sub.wildcard = len(req.GetResourceNamesSubscribe()) == 0
	for _, name := range req.GetResourceNamesSubscribe() {
		sub.subscribe(name)
	}
	for name, version := range req.GetInitialResourceVersions() {
		if version != "" && (sub.wildcard || sub.names[name]) {
			sub.sent[name] = version
		}
	}
}

// subscribe adds a name. One that is subscribed already is sent again.
func (sub *subscription) subscribe(name string) {
	sub.dirty = true
	if name == wildcard {
		sub.wildcard = true
		return
	}
	sub.names[name] = true
	if sub.sent[name] == "" {
		delete(sub.sent, name)
	} else {
		sub.sent[name] = resend
	}
}

// unsubscribe takes a name out; the client forgets the resource by itself. A
// name that the wildcard still covers is sent again, so that the client knows
// that it is still subscribed to it.
func (sub *subscription) unsubscribe(name string) {
	if name == wildcard {
		sub.wildcard = false
		for n := range sub.sent {
			if !sub.names[n] {
				sub.forget(n)
			}
		}
		return
	}
	if !sub.names[name] {
		return
	}
	delete(sub.names, name)
	sub.dirty = true
	switch {
	case !sub.wildcard:
		sub.forget(name)
	case sub.sent[name] == "":
		delete(sub.sent, name)
	default:
		sub.sent[name] = resend
	}
}

// resend stands in sent for a version that the client may hold and that is not
// to be relied on: no version equals it, so a resource that exists is sent again
// and one that is gone is reported as removed.
const resend = "\x00"

// forget drops what is no longer subscribed. What is on its way to the client
// may arrive after it has subscribed again, so it is dropped with the ACK.
func (sub *subscription) forget(name string) {
	delete(sub.rejected, name)
	if sub.inflight != nil && sub.inflight.names[name] {
		sub.sent[name] = resend
		return
	}
	delete(sub.sent, name)
}

// acknowledge takes the ACK or NACK of the response in flight.
func (sub *subscription) acknowledge(nack *xdspb.Status, now time.Time) {
	offered := sub.inflight.names
	sub.inflight = nil
	for name := range offered {
		delete(sub.rejected, name)
		if !sub.wildcard && !sub.names[name] {
			delete(sub.sent, name)
		}
	}
	if nack == nil {
		sub.status.LastAck = now
		return
	}
	sub.status.LastNack, sub.status.NackText = now, truncate(nack.GetMessage(), maxNackText)
	at := slices.DeleteFunc(parseNack(nack.GetMessage()), func(name string) bool { return !offered[name] })
	if len(at) == 0 {
		at = slices.Collect(maps.Keys(offered))
	}
	for _, name := range at {
		if version := sub.sent[name]; version != "" && version != resend {
			sub.rejected[name] = version
		}
	}
}

// respond returns what the client must be told of a type now, or nil.
func (s *session) respond(typeURL string, ev event) *xdspb.DeltaDiscoveryResponse {
	sub, snap := s.subs[typeURL], ev.view.types[typeURL]
	if snap == nil {
		return nil
	}
	if sub.answered && sub.seen != snap && sub.behind.IsZero() {
		sub.behind = snap.at
	}
	if sub.inflight != nil {
		return nil
	}
	if sub.answered && sub.seen == snap && !sub.dirty {
		sub.status.Generation = snap.generation
		return nil
	}
	upserts, removed := sub.diff(snap)
	since := sub.behind
	sub.seen, sub.dirty, sub.behind = snap, false, time.Time{}
	out := &xdspb.DeltaDiscoveryResponse{TypeUrl: typeURL}
	names := sub.fill(out, upserts, removed, s.limit)
	if sub.answered && len(names) == 0 && len(out.GetRemovedResources()) == 0 {
		sub.status.Generation = snap.generation
		return nil
	}
	s.nonce++
	out.Nonce = strconv.FormatUint(s.nonce, 10)
	sub.answered, sub.inflight = true, &flight{nonce: out.GetNonce(), names: names, since: since}
	sub.status.LastSent = ev.now
	return out
}

// fill puts as much into a response as limit bytes allow, notes it as sent and
// returns the names of the resources in it. What is left over goes into the
// next response.
func (sub *subscription) fill(out *xdspb.DeltaDiscoveryResponse, upserts []*entry, removed []string, limit int) map[string]bool {
	names := make(map[string]bool, len(upserts))
	size := 0
	for _, name := range removed {
		if size += len(name) + 8; size > limit && len(out.RemovedResources) > 0 {
			sub.dirty = true
			return names
		}
		out.RemovedResources = append(out.RemovedResources, name)
		delete(sub.rejected, name)
		if delete(sub.sent, name); sub.names[name] {
			sub.sent[name] = ""
		}
	}
	for _, e := range upserts {
		if e.size() > limit {
			sub.sent[e.Name], sub.rejected[e.Name] = e.Version, e.Version
			sub.status.NackText = fmt.Sprintf("not sent: %q has %d bytes, a response carries at most %d", e.Name, len(e.Body), limit)
			continue
		}
		if size += e.size(); size > limit {
			sub.dirty = true
			break
		}
		out.Resources = append(out.Resources, e.wire)
		names[e.Name] = true
		sub.sent[e.Name] = e.Version
	}
	return names
}

// diff compares what the client was sent with what there is: what to send and
// what to report as gone, each sorted by name.
func (sub *subscription) diff(snap *snapshot) (upserts []*entry, removed []string) {
	if sub.wildcard {
		for name, e := range snap.entries {
			if sub.sent[name] != e.Version {
				upserts = append(upserts, e)
			}
		}
		for name, version := range sub.sent {
			if snap.entries[name] == nil && version != "" && !sub.names[name] {
				removed = append(removed, name)
			}
		}
	}
	for name := range sub.names {
		e := snap.entries[name]
		version, told := sub.sent[name]
		switch {
		case e == nil && (!told || version != ""):
			removed = append(removed, name)
		case e != nil && !sub.wildcard && version != e.Version:
			upserts = append(upserts, e)
		}
	}
	slices.SortFunc(upserts, func(a, b *entry) int { return cmp.Compare(a.Name, b.Name) })
	slices.Sort(removed)
	return upserts, removed
}

// types is the state of each type, for people and for the status of policies.
func (s *session) types() map[string]TypeStatus {
	out := make(map[string]TypeStatus, len(s.subs))
	for typeURL, sub := range s.subs {
		st := sub.status
		st.Wildcard, st.Names, st.Waiting = sub.wildcard, len(sub.names), sub.inflight != nil
		for _, version := range sub.sent {
			if version != "" {
				st.Sent++
			}
		}
		st.Rejected = slices.Sorted(maps.Keys(sub.rejected))
		out[typeURL] = st
	}
	return out
}

// truncate cuts a text to at most n bytes.
func truncate(s string, n int) string {
	if len(s) > n {
		return s[:n]
	}
	return s
}
