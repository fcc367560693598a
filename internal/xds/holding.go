package xds

// Holding says how far a client is with one resource.
type Holding int

// The holdings. A resource that is gone is Held by who has let go of it.
const (
	Unasked  Holding = iota // the client has not subscribed to it
	Waiting                 // the client has not acknowledged the present version yet
	Held                    // it has
	Rejected                // it has refused it, and goes on with what it had
)

// Each calls visit for every connected client; holding is good until visit
// returns. A client that is just coming back may be there twice: Connected says
// which is the newer. visit must not call the server.
func (s *Server) Each(visit func(peer PeerStatus, holding func(typeURL, name string) Holding)) {
	s.mu.Lock()
	streams := make([]*stream, 0, len(s.streams))
	for st := range s.streams {
		streams = append(streams, st)
	}
	s.mu.Unlock()
	now := s.cfg.Store.view()
	for _, st := range streams {
		st.visit(now, visit)
	}
}

func (st *stream) visit(now view, visit func(peer PeerStatus, holding func(typeURL, name string) Holding)) {
	st.mu.Lock()
	defer st.mu.Unlock()
	visit(PeerStatus{Peer: st.peer, Node: st.node, Connected: st.connected}, func(typeURL, name string) Holding {
		return st.session.subs[typeURL].holding(now.types[typeURL], name)
	})
}

func (sub *subscription) holding(snap *snapshot, name string) Holding {
	if sub == nil || (!sub.wildcard && !sub.names[name]) {
		return Unasked
	}
	have, waiting := sub.sent[name], sub.inflight != nil && sub.inflight.names[name]
	if snap == nil || snap.entries[name] == nil {
		if have == "" && sub.seen == snap {
			return Held
		}
		return Waiting
	}
	version := snap.entries[name].Version
	switch {
	case sub.rejected[name] == version:
		return Rejected
	case have == version && !waiting:
		return Held
	default:
		return Waiting
	}
}
