package report

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	reportv1 "podseal.io/podseal/api/report/v1"
	"podseal.io/podseal/internal/edges"
)

// The pause before a client connects again: it doubles from minPause to
// maxPause. A control plane that knows no reports is asked again after longPause.
const (
	minPause  = 100 * time.Millisecond
	maxPause  = 15 * time.Second
	longPause = 5 * time.Minute
)

// maxInterval is how seldom a control plane may ask us to report, and lastWords
// how long the last update of a proxy that ends may take.
const (
	maxInterval = time.Minute
	lastWords   = time.Second
)

// How often matches are asked for, and by how much one must be later to be told
// again: what matches all the time is told a few times a minute.
const (
	matchEvery = 5 * time.Second
	matchAgain = 10 * time.Second
)

// ClientConfig is what a [Client] needs.
type ClientConfig struct {
	Conn  grpc.ClientConnInterface
	Table *edges.Table
	// Token is asked at every connect and sent as a bearer token.
	Token func() (string, error)
	// Sweep brings the table up to date with what is open; it is called before
	// each update.
	Sweep func()
	// Proxy says how the proxy is.
	Proxy func() *reportv1.Proxy
	// Matches are when what policies say last mattered; nil without any. It is asked
	// once in matchEvery.
	Matches func() []edges.Match
	Rand    func() float64 // from 0 to below 1, for jitter
	Log     *slog.Logger
}

// Client reports a table to the control plane.
type Client struct{ cfg ClientConfig }

// NewClient returns a client; [Client.Run] connects it.
func NewClient(cfg ClientConfig) *Client { return &Client{cfg} }

// Run reports, over one stream after the other, until the context ends, and then
// once more. It returns the context's cause.
func (c *Client) Run(ctx context.Context) error {
	pause := minPause
	for {
		began := time.Now()
		err := c.stream(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if time.Since(began) > maxPause {
			pause = minPause
		}
		wait := pause/2 + time.Duration(c.cfg.Rand()*float64(pause/2))
		level := slog.LevelDebug // the stream for configuration says so too
		if status.Code(err) == codes.Unimplemented {
			wait, level = longPause, slog.LevelInfo
		} else if code := status.Code(err); code == codes.InvalidArgument || code == codes.ResourceExhausted {
			level = slog.LevelWarn
		}
		c.cfg.Log.LogAttrs(ctx, level, "report of edges ended", slog.String("error", err.Error()), slog.Duration("retry_in", wait))
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
		pause = min(2*pause, maxPause)
	}
}

type clientStream = grpc.BidiStreamingClient[reportv1.Update, reportv1.Directive]

// stream runs one stream to its end and returns why it ended.
func (c *Client) stream(ctx context.Context) error {
	// what is open when the context ends has a last word
	streamCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	over := context.AfterFunc(ctx, func() { time.AfterFunc(lastWords, cancel) })
	defer over()
	token, err := c.cfg.Token()
	if err != nil {
		return fmt.Errorf("read token: %w", err)
	}
	g, err := reportv1.NewReportingClient(c.cfg.Conn).Report(metadata.AppendToOutgoingContext(streamCtx, "authorization", "Bearer "+token))
	if err != nil {
		return fmt.Errorf("open stream: %w", err)
	}
	directives, failed := make(chan *reportv1.Directive), make(chan error, 1)
	var receiver sync.WaitGroup
	defer receiver.Wait()
	defer cancel()
	receiver.Go(func() {
		for {
			d, err := g.Recv()
			if err != nil {
				failed <- err
				return
			}
			select {
			case directives <- d:
			case <-streamCtx.Done():
				failed <- context.Cause(streamCtx)
				return
			}
		}
	})
	// Nothing is counted for a server that doesn't want it.
	select {
	case d := <-directives:
		return c.report(ctx, g, d, directives, failed)
	case err := <-failed:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// report sends everything, and then what has changed.
func (c *Client) report(ctx context.Context, g clientStream, d *reportv1.Directive, directives <-chan *reportv1.Directive, failed <-chan error) error {
	cursor := c.cfg.Table.Follow()
	defer c.cfg.Table.Unfollow(cursor)
	t := &telling{known: map[uint32]bool{}, matches: map[edges.MatchKey]time.Time{}}
	ticker := time.NewTicker(interval(d))
	defer ticker.Stop()
	for {
		c.cfg.Sweep()
		if err := c.send(g, cursor, t); err != nil {
			if errors.Is(err, io.EOF) { // the receiver knows why
				err = <-failed
			}
			return err
		}
		select {
		case <-ticker.C:
		case d := <-directives:
			ticker.Reset(interval(d))
		case err := <-failed:
			return err
		case <-ctx.Done():
			c.cfg.Sweep()
			if c.send(g, cursor, t) == nil && g.CloseSend() == nil {
				<-failed //nolint:errcheck // whatever it says: the server has taken it, or the time is over
			}
			return context.Cause(ctx)
		}
	}
}

var errMissed = errors.New("the reader of the table was too slow")

// telling is what the other end has been told on one stream.
type telling struct {
	known   map[uint32]bool // edges
	said    *reportv1.Proxy
	matches map[edges.MatchKey]time.Time
	asked   time.Time // for matches
}

// news are the matches that are to be told now.
func (t *telling) news(all func() []edges.Match, now time.Time) []edges.Match {
	if all == nil || now.Sub(t.asked) < matchEvery {
		return nil
	}
	t.asked = now
	var out []edges.Match
	there := all()
	for _, m := range there {
		if last, told := t.matches[m.MatchKey]; !told || m.Last.Sub(last) >= matchAgain {
			t.matches[m.MatchKey] = m.Last
			out = append(out, m)
		}
	}
	if len(t.matches) > 2*edges.MaxMatches { // most of them are no more
		clear(t.matches)
		for _, m := range there {
			t.matches[m.MatchKey] = m.Last
		}
	}
	return out
}

// send sends what has changed, in as many updates as it takes; nothing if nothing
// has.
func (c *Client) send(g clientStream, cursor *edges.Cursor, t *telling) error {
	now := c.cfg.Proxy()
	matches := t.news(c.cfg.Matches, time.Now())
	first := !same(now, t.said) || len(matches) > 0
	for {
		delta, ok := c.cfg.Table.Delta(cursor, edges.MaxDelta)
		if !ok {
			return errMissed
		}
		if !first && delta.Empty() {
			return nil // most of the time: no need to look closer
		}
		u := edges.ToProto(delta, t.known)
		if first {
			u.Proxy, t.said, first = now, now, false
			u.Matches, matches = edges.MatchesToProto(matches), nil
		}
		if err := g.Send(u); err != nil {
			return err
		}
		if len(delta.Edges) < edges.MaxDelta {
			return nil
		}
	}
}

// same reports whether two say the same. It is asked every second, so it does
// without reflection, whose pages would then stay in memory.
func same(a, b *reportv1.Proxy) bool {
	return b != nil && a.Version == b.Version && a.Identity == b.Identity && a.Serial == b.Serial && a.NotBefore == b.NotBefore && a.NotAfter == b.NotAfter &&
		a.Bundle == b.Bundle && a.Connections == b.Connections && a.NotReady == b.NotReady && a.Draining == b.Draining && a.Started == b.Started &&
		a.LoopbackSegmentBytes == b.LoopbackSegmentBytes
}

func interval(d *reportv1.Directive) time.Duration {
	return min(max(time.Duration(d.GetIntervalMilliseconds())*time.Millisecond, minInterval), maxInterval)
}
