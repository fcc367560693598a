package xds

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"podseal.io/podseal/internal/xds/xdspb"
)

// maxRequest and maxSend bound one message, maxHeader the metadata of a call, in
// bytes. Without the last a stranger may send 16 MB before anybody asks who it is.
const (
	maxRequest = 1 << 20
	maxSend    = 64 << 20
	maxHeader  = 64 << 10
)

// maxIdle is how long a connection without a stream stays open.
const maxIdle = 5 * time.Minute

// hello is how long a new stream may take to send its first request.
const hello = 30 * time.Second

// Node is what a client says of itself in its first request. It is a claim
// until [ServerConfig.Authorize] has accepted it (contract 4.20).
type Node struct {
	ID       string            `json:"id"`
	Cluster  string            `json:"cluster,omitempty"`
	Metadata map[string]string `json:"metadata,omitempty"` // the fields that are strings
}

// ServerConfig is what a [Server] needs.
type ServerConfig struct {
	Store *Store
	// Authenticate says who opens a stream, from the metadata and the
	// connection in its context. It is asked once per stream; a stream may
	// outlast the token that opened it. Its error is logged, not sent.
	Authenticate func(ctx context.Context) (peer string, err error)
	// Authorize says whether peer may be node; nil accepts every node. Its
	// error is logged, not sent.
	Authorize func(peer string, node Node) error
	// Converged is told how long it took from a change of the store until a client
	// that had been answered before acknowledged it; it may be nil.
	Converged func(time.Duration)
	Log       *slog.Logger
}

// Server serves the store to any number of streams. It starts no goroutine
// before the first stream.
type Server struct {
	xdspb.UnimplementedAggregatedDiscoveryServiceServer
	cfg     ServerConfig
	closing chan struct{}

	mu      sync.Mutex
	closed  bool
	streams map[*stream]bool
	running sync.WaitGroup
}

// stream is one connected client.
type stream struct {
	peer      string
	node      Node
	connected time.Time

	mu      sync.Mutex
	session *session
}

// PeerStatus is what the server knows of one connected client.
type PeerStatus struct {
	Peer      string                `json:"peer"` // from Authenticate
	Node      Node                  `json:"node"`
	Connected time.Time             `json:"connected"`
	Types     map[string]TypeStatus `json:"types"` // by type URL
}

// TypeStatus is how far one client is with one type.
type TypeStatus struct {
	Wildcard bool `json:"wildcard"` // subscribed to everything
	Names    int  `json:"names"`    // subscribed by name
	Sent     int  `json:"sent"`     // resources that the client has or was offered
	Waiting  bool `json:"waiting"`  // a response waits for its ACK
	// Generation is the newest generation of the store ([Store.Generation])
	// that the client has answered whole, except for what is in Rejected.
	Generation uint64    `json:"generation"`
	LastSent   time.Time `json:"last_sent,omitzero"`
	LastAck    time.Time `json:"last_ack,omitzero"`
	LastNack   time.Time `json:"last_nack,omitzero"`
	NackText   string    `json:"nack_text,omitempty"` // of the last NACK
	Rejected   []string  `json:"rejected,omitempty"`  // names whose present version the client rejected, sorted
}

// NewServer returns a server; [Server.Register] puts it on a gRPC server.
func NewServer(cfg ServerConfig) *Server {
	return &Server{cfg: cfg, closing: make(chan struct{}), streams: map[*stream]bool{}}
}

// Register offers the service on g.
func (s *Server) Register(g grpc.ServiceRegistrar) {
	xdspb.RegisterAggregatedDiscoveryServiceServer(g, s)
}

// ServerOptions are the options that a gRPC server needs to serve this:
// sizes of messages and headers, pings that tell a dead client from a silent one,
// and an end for connections that nobody uses.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxRequest),
		grpc.MaxSendMsgSize(maxSend),
		grpc.MaxHeaderListSize(maxHeader),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: maxIdle, Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
	}
}

// Shutdown ends all streams with Unavailable, so that clients go to another
// server, and refuses new ones. It returns at once; [Server.Wait] waits for the
// last stream, which a client that doesn't read may delay until the gRPC server
// stops.
func (s *Server) Shutdown() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.closed = true
		close(s.closing)
	}
}

// Wait returns when no stream is left. It is called after [Server.Shutdown].
func (s *Server) Wait() { s.running.Wait() }

// Peers returns the connected clients, sorted by node ID, the newest stream of
// a node first.
func (s *Server) Peers() []PeerStatus {
	s.mu.Lock()
	streams := make([]*stream, 0, len(s.streams))
	for st := range s.streams {
		streams = append(streams, st)
	}
	s.mu.Unlock()
	out := make([]PeerStatus, 0, len(streams))
	for _, st := range streams {
		st.mu.Lock()
		out = append(out, PeerStatus{Peer: st.peer, Node: st.node, Connected: st.connected, Types: st.session.types()})
		st.mu.Unlock()
	}
	slices.SortFunc(out, func(a, b PeerStatus) int {
		return cmp.Or(cmp.Compare(a.Node.ID, b.Node.ID), b.Connected.Compare(a.Connected))
	})
	return out
}

type deltaStream = grpc.BidiStreamingServer[xdspb.DeltaDiscoveryRequest, xdspb.DeltaDiscoveryResponse]

// DeltaAggregatedResources serves one stream until either end leaves.
func (s *Server) DeltaAggregatedResources(g deltaStream) error {
	peer, err := s.cfg.Authenticate(g.Context())
	if err != nil {
		s.cfg.Log.Warn("stream refused", slog.String("reason", "unauthenticated"), slog.String("error", err.Error()))
		return status.Error(codes.Unauthenticated, "request authenticate failure")
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return errClosing
	}
	requests, failed := make(chan *xdspb.DeltaDiscoveryRequest), make(chan error, 1)
	// The receiver ends when the stream does, which is after this handler has
	// returned: Wait waits for both.
	s.running.Go(func() { receive(g, requests, failed) })
	s.running.Add(1)
	s.mu.Unlock()
	defer s.running.Done()

	st := &stream{peer: peer, connected: time.Now(), session: newSession()}
	st.session.converged = s.cfg.Converged
	req, err := s.first(g.Context(), requests, failed)
	if err != nil {
		return err
	}
	st.node = nodeOf(req.GetNode())
	if s.cfg.Authorize != nil {
		if err := s.cfg.Authorize(peer, st.node); err != nil {
			s.cfg.Log.Warn("stream refused", slog.String("reason", "node_not_authorized"), slog.String("peer", peer),
				slog.String("node", st.node.ID), slog.String("error", err.Error()))
			return status.Error(codes.PermissionDenied, "the authenticated identity may not be this node")
		}
	}
	s.add(st)
	defer s.remove(st)
	err = s.serve(g, st, req, requests, failed)
	s.cfg.Log.Info("stream ended", slog.String("peer", peer), slog.String("node", st.node.ID), slog.String("error", text(err)))
	return err
}

var errClosing = status.Error(codes.Unavailable, "the server is shutting down")

// serve runs the session over the stream.
func (s *Server) serve(g deltaStream, st *stream, req *xdspb.DeltaDiscoveryRequest, requests <-chan *xdspb.DeltaDiscoveryRequest, failed <-chan error) error {
	for {
		now := s.cfg.Store.view()
		if req != nil && req.GetErrorDetail() != nil {
			s.cfg.Log.Warn("response rejected", slog.String("peer", st.peer), slog.String("node", st.node.ID),
				slog.String("type", req.GetTypeUrl()), slog.String("error", truncate(req.GetErrorDetail().GetMessage(), 4*maxReason)))
		}
		st.mu.Lock()
		responses, err := st.session.step(event{req: req, view: now, now: time.Now()})
		st.mu.Unlock()
		if err != nil {
			return err
		}
		for _, r := range responses {
			if err := g.Send(r); err != nil {
				return err
			}
		}
		select {
		case req = <-requests:
		case <-now.changed:
			req = nil
		case err := <-failed:
			return err
		case <-s.closing:
			return errClosing
		case <-g.Context().Done():
			return status.FromContextError(g.Context().Err()).Err()
		}
	}
}

// first waits for the first request, which names the node.
func (s *Server) first(ctx context.Context, requests <-chan *xdspb.DeltaDiscoveryRequest, failed <-chan error) (*xdspb.DeltaDiscoveryRequest, error) {
	timer := time.NewTimer(hello)
	defer timer.Stop()
	select {
	case req := <-requests:
		return req, nil
	case err := <-failed:
		return nil, err
	case <-timer.C:
		return nil, status.Errorf(codes.DeadlineExceeded, "no request within %s", hello)
	case <-s.closing:
		return nil, errClosing
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
}

// receive hands on what the client sends until the stream ends; then it gives
// one error, nil if the client left in good order.
func receive(g deltaStream, requests chan<- *xdspb.DeltaDiscoveryRequest, failed chan<- error) {
	for {
		req, err := g.Recv()
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			failed <- err
			return
		}
		select {
		case requests <- req:
		case <-g.Context().Done():
			return
		}
	}
}

func (s *Server) add(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.streams[st] = true
}

func (s *Server) remove(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.streams, st)
}

func nodeOf(n *xdspb.Node) Node {
	out := Node{ID: truncate(n.GetId(), maxName), Cluster: truncate(n.GetCluster(), maxName), Metadata: map[string]string{}}
	for key, v := range n.GetMetadata().GetFields() {
		if text := v.GetStringValue(); text != "" {
			out.Metadata[key] = text
		}
	}
	return out
}

// text is an error as an attribute: "" for none.
func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
