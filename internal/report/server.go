package report

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	reportv1 "podseal.io/podseal/api/report/v1"
	"podseal.io/podseal/internal/edges"
)

// Bounds of what is kept: of all pods together, and of pods that are gone.
const (
	maxEdges   = 1 << 18
	maxMatches = 1 << 18
	maxGone    = 1024
	keepGone   = time.Hour
)

// Bounds of what one stream may send: so many updates at once, then one per
// interval. A whole table is 9 updates.
const (
	burst  = 64
	refill = 250 * time.Millisecond
)

// How often proxies report: never more often than minInterval, and all of them
// together not more than once per spread.
const (
	minInterval = time.Second
	spread      = time.Millisecond
)

// Pod is who reports, from its credential.
type Pod struct{ Namespace, Name, Identity string }

// ServerConfig is what a [Server] needs.
type ServerConfig struct {
	// Authenticate says which pod opens a stream, from the metadata and the
	// connection in its context. Its error is logged, not sent.
	Authenticate func(ctx context.Context) (Pod, error)
	Log          *slog.Logger
}

// Server keeps what proxies report. It starts no goroutine before the first stream.
type Server struct {
	reportv1.UnimplementedReportingServer
	cfg     ServerConfig
	closing chan struct{}

	mu      sync.Mutex
	closed  bool
	running sync.WaitGroup
	live    map[Pod]*stream // the newest stream of each pod
	kept    map[Pod]*source // complete reports, of pods that are connected or were
	edges   int             // of all sources and streams
	matches int             // likewise
	refused uint64          // streams that were cut off because of a bound
	dropped uint64          // matches that there was no room for
}

// stream is one open stream.
type stream struct {
	ended chan struct{} // closed when another takes its place
	src   *source
}

// source is what one pod said. The server's mu guards it.
type source struct {
	mirror    *edges.Mirror
	matches   map[edges.MatchKey]time.Time
	proxy     *reportv1.Proxy
	connected time.Time
	gone      time.Time // zero while connected
	updated   time.Time
}

// Report is what one pod said, for readers.
type Report struct {
	Pod       Pod
	Proxy     *reportv1.Proxy // read only; never nil
	Connected time.Time
	Gone      time.Time // zero while connected
	Updated   time.Time
	Edges     []edges.Edge
	Matches   []edges.Match
}

// NewServer returns a server; [Server.Register] puts it on a gRPC server.
func NewServer(cfg ServerConfig) *Server {
	return &Server{cfg: cfg, closing: make(chan struct{}), live: map[Pod]*stream{}, kept: map[Pod]*source{}}
}

// Register offers the service on g.
func (s *Server) Register(g grpc.ServiceRegistrar) { reportv1.RegisterReportingServer(g, s) }

// Shutdown ends all streams with Unavailable, so that proxies go to another
// server, and refuses new ones. It returns at once; [Server.Wait] waits.
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

// Reports returns what is known, by pod. Pods whose first report is not complete
// are missing.
func (s *Server) Reports() []Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget(time.Now())
	out := make([]Report, 0, len(s.kept))
	for pod, src := range s.kept {
		out = append(out, reportOf(pod, src))
	}
	sortReports(out)
	return out
}

// ReportsOf is of some pods, "<namespace>/<name>".
func (s *Server) ReportsOf(pods []string) []Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget(time.Now())
	var out []Report
	for pod, src := range s.kept {
		if slices.Contains(pods, pod.Namespace+"/"+pod.Name) {
			out = append(out, reportOf(pod, src))
		}
	}
	sortReports(out)
	return out
}

func reportOf(pod Pod, src *source) Report {
	r := Report{Pod: pod, Proxy: src.proxy, Connected: src.connected, Gone: src.gone, Updated: src.updated, Edges: src.mirror.All()}
	for key, at := range src.matches {
		r.Matches = append(r.Matches, edges.Match{MatchKey: key, Last: at})
	}
	for i := range r.Edges {
		if !r.Gone.IsZero() {
			r.Edges[i].Open = 0
		}
	}
	return r
}

func sortReports(all []Report) {
	slices.SortFunc(all, func(a, b Report) int {
		return cmp.Or(cmp.Compare(a.Pod.Namespace, b.Pod.Namespace), cmp.Compare(a.Pod.Name, b.Pod.Name), cmp.Compare(a.Pod.Identity, b.Pod.Identity))
	})
}

// Counts is how much is kept, for metrics.
func (s *Server) Counts() (streams, kept, refused uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return uint64(len(s.live)), uint64(s.edges), s.refused
}

// Dropped is how many matches there was no room for.
func (s *Server) Dropped() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dropped
}

var (
	errClosing  = status.Error(codes.Unavailable, "the server is shutting down")
	errReplaced = status.Error(codes.Aborted, "the pod has a newer stream")
)

type reportStream = grpc.BidiStreamingServer[reportv1.Update, reportv1.Directive]

// Report takes one proxy's updates until either end leaves.
func (s *Server) Report(g reportStream) error {
	pod, err := s.cfg.Authenticate(g.Context())
	if err != nil {
		s.cfg.Log.Warn("report refused", slog.String("reason", "unauthenticated"), slog.String("error", err.Error()))
		return status.Error(codes.Unauthenticated, "request authenticate failure")
	}
	updates, failed := make(chan *reportv1.Update), make(chan error, 1)
	st, interval, ok := s.begin(pod, func() { receive(g, updates, failed) })
	if !ok {
		return errClosing
	}
	defer s.running.Done()
	defer s.end(pod, st)
	if err := g.Send(&reportv1.Directive{IntervalMilliseconds: uint32(interval.Milliseconds())}); err != nil {
		return err
	}
	err = s.serve(g.Context(), pod, st, updates, failed)
	if code := status.Code(err); code == codes.InvalidArgument || code == codes.ResourceExhausted {
		s.cfg.Log.Warn("report cut off", slog.String("pod", pod.Namespace+"/"+pod.Name), slog.String("error", err.Error()))
	}
	return err
}

func (s *Server) serve(ctx context.Context, pod Pod, st *stream, updates <-chan *reportv1.Update, failed <-chan error) error {
	pace := newPace(burst, refill, time.Now())
	for {
		select {
		case u := <-updates:
			if err := s.take(pod, st, u); err != nil {
				return err
			}
		case err := <-failed:
			return err
		case <-st.ended:
			return errReplaced
		case <-s.closing:
			return errClosing
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
		// what comes faster waits in the connection, whose window is bounded
		wait := time.NewTimer(pace.spend(time.Now()))
		select {
		case <-wait.C:
		case <-st.ended:
		case <-s.closing:
		case <-ctx.Done():
		}
		wait.Stop()
	}
}

// begin registers a stream, starts its receiver and says how often to report.
func (s *Server) begin(pod Pod, receiver func()) (*stream, time.Duration, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, 0, false
	}
	if old := s.live[pod]; old != nil {
		close(old.ended)
	}
	now := time.Now()
	st := &stream{ended: make(chan struct{}), src: &source{mirror: edges.NewMirror(), matches: map[edges.MatchKey]time.Time{}, proxy: &reportv1.Proxy{}, connected: now, updated: now}}
	s.live[pod] = st
	s.running.Add(1)
	// The receiver ends when the stream does, which is after the handler has
	// returned: Wait waits for both.
	s.running.Go(receiver)
	return st, max(minInterval, time.Duration(len(s.live))*spread), true
}

// end keeps what a pod said that is gone.
func (s *Server) end(pod Pod, st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.live[pod] == st {
		delete(s.live, pod)
	}
	if s.kept[pod] == st.src {
		st.src.gone = time.Now()
	} else {
		s.release(st.src)
	}
}

// release gives back what a source took of the bounds. Callers hold mu.
func (s *Server) release(src *source) {
	s.edges -= src.mirror.Len()
	s.matches -= len(src.matches)
}

// take puts an update in force.
func (s *Server) take(pod Pod, st *stream, u *reportv1.Update) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	src := st.src
	delta, err := edges.ParseUpdate(u, src.mirror.Key)
	var matches []edges.Match
	now := time.Now()
	if err == nil {
		matches, err = edges.ParseMatches(u.GetMatches(), now)
	}
	if err == nil {
		err = checkProxy(u.GetProxy())
	}
	if err != nil {
		s.refused++
		return status.Error(codes.InvalidArgument, err.Error())
	}
	if s.live[pod] != st {
		return errReplaced
	}
	before := src.mirror.Len()
	err = src.mirror.Apply(delta)
	s.edges += src.mirror.Len() - before
	s.match(src, matches)
	if err == nil && s.edges > maxEdges {
		s.makeRoom(now)
		if s.edges > maxEdges {
			err = errors.New("all proxies together have more edges than are kept")
		}
	}
	if err != nil {
		s.refused++
		return status.Error(codes.ResourceExhausted, err.Error())
	}
	if p := u.GetProxy(); p != nil {
		src.proxy = p
	}
	src.updated = now
	if src.mirror.Complete && s.kept[pod] != src {
		if old := s.kept[pod]; old != nil {
			s.release(old)
		}
		s.kept[pod] = src
	}
	return nil
}

// match keeps the newest of each. A proxy keeps no more than it may tell of: beyond
// that it is the oldest that it tells of no more. Callers hold mu.
func (s *Server) match(src *source, all []edges.Match) {
	before := len(src.matches)
	for _, m := range all {
		if _, there := src.matches[m.MatchKey]; !there && s.matches+len(src.matches)-before >= maxMatches {
			s.dropped++
			continue
		}
		src.matches[m.MatchKey] = m.Last
	}
	if len(src.matches) > edges.MaxMatches {
		keys := slices.SortedFunc(maps.Keys(src.matches), func(a, b edges.MatchKey) int { return src.matches[a].Compare(src.matches[b]) })
		for _, key := range keys[:len(keys)-edges.MaxMatches] {
			delete(src.matches, key)
		}
	}
	s.matches += len(src.matches) - before
}

// checkProxy reports what a proxy of ours never says of itself.
func checkProxy(p *reportv1.Proxy) error {
	for _, text := range []string{p.GetVersion(), p.GetIdentity(), p.GetSerial(), p.GetBundle(), p.GetNotReady()} {
		if !edges.IsText(text) {
			return errors.New("proxy: a text is too long or not printable")
		}
	}
	return nil
}

// forget drops what gone pods said too long ago, or too many of them said.
// Callers hold mu.
func (s *Server) forget(now time.Time) {
	var gone []Pod
	for pod, src := range s.kept {
		switch {
		case src.gone.IsZero():
		case now.Sub(src.gone) > keepGone:
			s.drop(pod)
		default:
			gone = append(gone, pod)
		}
	}
	if len(gone) <= maxGone {
		return
	}
	slices.SortFunc(gone, func(a, b Pod) int { return s.kept[a].gone.Compare(s.kept[b].gone) })
	for _, pod := range gone[:len(gone)-maxGone] {
		s.drop(pod)
	}
}

// makeRoom drops all that gone pods said. Callers hold mu.
func (s *Server) makeRoom(now time.Time) {
	s.forget(now)
	for pod, src := range s.kept {
		if !src.gone.IsZero() {
			s.drop(pod)
		}
	}
}

func (s *Server) drop(pod Pod) {
	s.release(s.kept[pod])
	delete(s.kept, pod)
}

// receive hands on what the proxy sends until the stream ends; then it gives one
// error, nil if the proxy left in good order.
func receive(g reportStream, updates chan<- *reportv1.Update, failed chan<- error) {
	for {
		u, err := g.Recv()
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			failed <- err
			return
		}
		select {
		case updates <- u:
		case <-g.Context().Done():
			return
		}
	}
}

// pace bounds how fast updates are taken.
type pace struct {
	left   int
	burst  int
	refill time.Duration
	at     time.Time // of the last refill
}

func newPace(burst int, refill time.Duration, now time.Time) *pace {
	return &pace{left: burst, burst: burst, refill: refill, at: now}
}

// spend takes one and returns how long to wait before the next.
func (p *pace) spend(now time.Time) time.Duration {
	if n := int(now.Sub(p.at) / p.refill); n > 0 {
		p.left, p.at = min(p.burst, p.left+n), p.at.Add(time.Duration(n)*p.refill)
	}
	if p.left--; p.left > 0 {
		return 0
	}
	return p.refill
}
