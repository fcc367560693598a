package xds

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"

	"podseal.io/podseal/internal/xds/xdspb"
)

// The pause before a client connects again: it doubles from minPause to
// maxPause and begins anew after a stream that lasted longer than maxPause.
const (
	minPause = 100 * time.Millisecond
	maxPause = 15 * time.Second
)

// ClientConfig is what a [Client] needs.
type ClientConfig struct {
	Conn     grpc.ClientConnInterface // see [DialOptions]
	NodeID   string
	Metadata map[string]string // of the node
	Types    []string          // type URLs; everything of each is asked for
	// Held is what Handle has in force already, from an earlier run: the
	// version by name by type URL. It may be nil.
	Held map[string]map[string]string
	// Handle takes a change into force and returns what it rejects, by name.
	// An earlier version of what it rejects must stay in force, and so must the
	// rest of the change. removed has only names that were in force. Calls come
	// one at a time, from the goroutine of Run.
	Handle func(typeURL string, upserts []Resource, removed []string) (rejected map[string]error)
	// Token is asked at every connect and sent as a bearer token; nil if Conn
	// brings its own credentials.
	Token func() (string, error)
	// Rand returns a number from 0 to below 1, for jitter; nil is crypto/rand.
	Rand func() float64
	Log  *slog.Logger
}

// Client keeps what Handle has in force equal to a server's store.
type Client struct {
	cfg    ClientConfig
	synced chan struct{}

	mu     sync.Mutex
	status ClientStatus
}

// ClientStatus is how the client is doing.
type ClientStatus struct {
	Connected  bool           `json:"connected"`            // a stream is open and was answered
	Since      time.Time      `json:"since,omitzero"`       // of Connected
	LastUpdate time.Time      `json:"last_update,omitzero"` // of the last response
	LastError  string         `json:"last_error,omitempty"` // why the last stream ended
	Synced     bool           `json:"synced"`
	Held       map[string]int `json:"held"` // resources by type URL
}

// NewClient returns a client; [Client.Run] connects it.
func NewClient(cfg ClientConfig) *Client {
	if cfg.Rand == nil {
		cfg.Rand = chance
	}
	return &Client{cfg: cfg, synced: make(chan struct{})}
}

// DialOptions are the options for a connection that carries this: message
// sizes, pings that notice a dead server, and reconnects as fast as Run's.
func DialOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxSend)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: minPause, Multiplier: 2, Jitter: 0.2, MaxDelay: 5 * time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
	}
}

// Synced returns a channel that is closed once every type was answered and
// handled for the first time.
func (c *Client) Synced() <-chan struct{} { return c.synced }

// Status returns how the client is doing. It may be called at any time.
func (c *Client) Status() ClientStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status
}

// Run connects, again and again, until the context ends, and then returns its
// cause. It is called once.
func (c *Client) Run(ctx context.Context) error {
	r := newReplica(c.cfg.Types, c.cfg.Held)
	waiting := make(map[string]bool, len(c.cfg.Types))
	for _, t := range c.cfg.Types {
		waiting[t] = true
	}
	c.update(r, func(s *ClientStatus) {})
	pause := minPause
	for {
		began := time.Now()
		err := c.stream(ctx, r, waiting)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if time.Since(began) > maxPause {
			pause = minPause
		}
		// Half of the pause is chance, so that the clients of a server that went
		// away don't come back all at once.
		wait := pause/2 + time.Duration(c.cfg.Rand()*float64(pause/2))
		c.update(r, func(s *ClientStatus) { s.Connected, s.Since, s.LastError = false, time.Time{}, err.Error() })
		c.cfg.Log.Warn("stream to the control plane ended", slog.String("error", err.Error()), slog.Duration("retry_in", wait))
		if !sleep(ctx, wait) {
			return context.Cause(ctx)
		}
		pause = min(2*pause, maxPause)
	}
}

// stream runs one stream to its end and returns why it ended.
func (c *Client) stream(ctx context.Context, r *replica, waiting map[string]bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if c.cfg.Token != nil {
		token, err := c.cfg.Token()
		if err != nil {
			return fmt.Errorf("read token: %w", err)
		}
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	g, err := xdspb.NewAggregatedDiscoveryServiceClient(c.cfg.Conn).DeltaAggregatedResources(ctx, grpc.MaxCallRecvMsgSize(maxSend))
	if err != nil {
		return fmt.Errorf("open stream: %w", err)
	}
	// Receiving goes on while requests are sent, or two ends that both wait to
	// be read would wait for ever. The server has one response per type in
	// flight, so the channel doesn't fill up.
	responses, failed := make(chan *xdspb.DeltaDiscoveryResponse, len(r.types)), make(chan error, 1)
	var receiver sync.WaitGroup
	defer receiver.Wait()
	defer cancel()
	receiver.Go(func() {
		defer cancel()
		failed <- receiveResponses(ctx, g, responses)
	})
	for _, req := range r.open(c.cfg.NodeID, c.cfg.Metadata) {
		if err := g.Send(req); err != nil {
			return because(err, responses, failed)
		}
	}
	for {
		select {
		case res := <-responses:
			if err := c.take(g, r, res, waiting); err != nil {
				return because(err, responses, failed)
			}
		case err := <-failed:
			return err
		}
	}
}

// take applies one response and answers it.
func (c *Client) take(g grpc.BidiStreamingClient[xdspb.DeltaDiscoveryRequest, xdspb.DeltaDiscoveryResponse], r *replica, res *xdspb.DeltaDiscoveryResponse, waiting map[string]bool) error {
	answer := r.apply(res, c.cfg.Handle)
	if answer.GetErrorDetail() != nil {
		c.cfg.Log.Warn("response rejected", slog.String("type", res.GetTypeUrl()), slog.String("error", truncate(answer.GetErrorDetail().GetMessage(), 4*maxReason)))
	}
	done := len(waiting) > 0
	delete(waiting, res.GetTypeUrl())
	done = done && len(waiting) == 0
	now := time.Now()
	c.update(r, func(s *ClientStatus) {
		if !s.Connected {
			s.Connected, s.Since = true, now
		}
		s.LastUpdate, s.Synced = now, s.Synced || done
	})
	if done {
		close(c.synced)
	}
	return g.Send(answer)
}

// update changes the status and counts what is held anew.
func (c *Client) update(r *replica, change func(*ClientStatus)) {
	held := make(map[string]int, len(r.held))
	for t, names := range r.held {
		held[t] = len(names)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	change(&c.status)
	c.status.Held = held
}

// because returns why the stream ended: a failed Send says only EOF, the
// receiver knows the status.
func because(err error, responses <-chan *xdspb.DeltaDiscoveryResponse, failed <-chan error) error {
	if !errors.Is(err, io.EOF) {
		return err
	}
	for {
		select {
		case <-responses:
		case err := <-failed:
			return err
		}
	}
}

// receiveResponses hands on what the server sends; it returns when the stream
// ends.
func receiveResponses(ctx context.Context, g grpc.BidiStreamingClient[xdspb.DeltaDiscoveryRequest, xdspb.DeltaDiscoveryResponse], responses chan<- *xdspb.DeltaDiscoveryResponse) error {
	for {
		res, err := g.Recv()
		if errors.Is(err, io.EOF) {
			return errors.New("the server closed the stream")
		}
		if err != nil {
			return err
		}
		select {
		case responses <- res:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// sleep waits and reports whether the context is still alive.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// chance is a random number from 0 to below 1.
func chance() float64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // it never fails: it would end the program
	return float64(binary.LittleEndian.Uint64(b[:])>>11) / math.Exp2(53)
}
