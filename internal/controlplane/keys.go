package controlplane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	_ "golang.org/x/crypto/x509roots/fallback" // the image has no roots of its own

	"podseal.io/podseal/internal/discovery"
	"podseal.io/podseal/internal/jwt"
)

const (
	keysFresh       = 5 * time.Minute // how long fetched keys are good before they are fetched again, at most
	keysFreshLeast  = 10 * time.Second
	keysRetryFirst  = time.Second // after a failure; then twice as long each time,
	keysRetryMost   = time.Minute // up to this
	maxFetching     = 8           // at a time
	maxKeySources   = 1000
	maxRedirects    = 3
	maxKeysMetadata = 64 << 10
)

type keyFetcherConfig struct {
	// Reachable says whether keys may be fetched from an address: what is asked for
	// is written by whoever may write policies.
	Reachable func(netip.Addr) bool
	Changed   func() // called when there is something new
	Now       func() time.Time
	Log       *slog.Logger
}

// keyFetcher fetches the keys of issuers of tokens, and fetches them again as
// they change. Keys that it once had stay while they can't be fetched.
type keyFetcher struct {
	cfg    keyFetcherConfig
	client *http.Client
	wake   chan struct{}

	mu      sync.Mutex
	sources map[string]*keyState
}

// keyState is what is known of one source.
type keyState struct {
	source   discovery.KeySource
	keys     discovery.FetchedKeys
	due      time.Time
	failures int
	busy     bool
}

func newKeyFetcher(cfg keyFetcherConfig) *keyFetcher {
	dialer := &net.Dialer{Timeout: 10 * time.Second, ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
		at, err := netip.ParseAddrPort(address)
		if err != nil || !cfg.Reachable(at.Addr().Unmap()) {
			return errors.New("keys are not fetched from an address of this kind")
		}
		return nil
	}}
	return &keyFetcher{
		cfg: cfg, wake: make(chan struct{}, 1), sources: map[string]*keyState{},
		client: &http.Client{
			Transport:     &http.Transport{DialContext: dialer.DialContext, DisableKeepAlives: true, MaxResponseHeaderBytes: 32 << 10, ForceAttemptHTTP2: true},
			CheckRedirect: checkRedirect,
		},
	}
}

// checkRedirect follows a server to another of its own pages, and never from
// https to http.
func checkRedirect(to *http.Request, via []*http.Request) error {
	from := via[0].URL
	if len(via) > maxRedirects || to.URL.Host != from.Host || (to.URL.Scheme != from.Scheme && to.URL.Scheme != "https") {
		return errors.New("redirects to another server, or too often")
	}
	return nil
}

// reachable leaves out what is only this machine's or the link's: the API of a
// cloud that gives out credentials, for one.
func reachable(a netip.Addr) bool {
	return !a.IsLoopback() && !a.IsLinkLocalUnicast() && !a.IsMulticast() && !a.IsUnspecified()
}

// Keys says which keys are wanted from now on, and returns what there is of them.
func (f *keyFetcher) Keys(wanted []discovery.KeySource) map[string]discovery.FetchedKeys {
	f.mu.Lock()
	defer f.mu.Unlock()
	kept := make(map[string]*keyState, len(wanted))
	out := make(map[string]discovery.FetchedKeys, len(wanted))
	added := false
	for _, s := range wanted {
		state := f.sources[s.From]
		switch {
		case len(kept) == maxKeySources:
			out[s.From] = discovery.FetchedKeys{Err: fmt.Sprintf("keys of more than %d issuers are not fetched", maxKeySources)}
			continue
		case state == nil:
			state, added = &keyState{due: f.cfg.Now()}, true
		}
		state.source = s
		kept[s.From], out[s.From] = state, state.keys
	}
	f.sources = kept
	if added {
		select {
		case f.wake <- struct{}{}:
		default: // it is awake
		}
	}
	return out
}

// Run fetches what is due until the context ends.
func (f *keyFetcher) Run(ctx context.Context) error {
	var all sync.WaitGroup
	defer all.Wait()
	room := make(chan struct{}, maxFetching)
	for {
		due, next := f.due()
		for _, source := range due {
			select {
			case room <- struct{}{}:
			case <-ctx.Done():
				return nil
			}
			all.Go(func() {
				defer func() { <-room }()
				f.refresh(ctx, source)
			})
		}
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
		case <-f.wake:
		case <-timer.C:
		}
		timer.Stop()
		if ctx.Err() != nil {
			return nil
		}
	}
}

// due takes what is to be fetched now, and says when to look again.
func (f *keyFetcher) due() (now []discovery.KeySource, next time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	at, next := f.cfg.Now(), keysFresh
	for state := range maps.Values(f.sources) {
		switch wait := state.due.Sub(at); {
		case state.busy:
		case wait <= 0:
			state.busy = true
			now = append(now, state.source)
		default:
			next = min(next, wait)
		}
	}
	return now, next
}

// refresh fetches once, and keeps what comes.
func (f *keyFetcher) refresh(ctx context.Context, source discovery.KeySource) {
	ctx, cancel := context.WithTimeout(ctx, source.Timeout)
	defer cancel()
	set, fresh, err := f.fetch(ctx, source)
	f.mu.Lock()
	state := f.sources[source.From]
	if state == nil { // nobody wants it any more
		f.mu.Unlock()
		return
	}
	before := state.keys
	state.busy = false
	if err == nil {
		state.keys, state.failures, state.due = discovery.FetchedKeys{Set: set}, 0, f.cfg.Now().Add(fresh)
	} else {
		state.keys.Err = err.Error()
		state.due = f.cfg.Now().Add(min(keysRetryFirst<<min(state.failures, 10), keysRetryMost))
		state.failures++
	}
	changed := string(before.Set) != string(state.keys.Set) || before.Err != state.keys.Err
	f.mu.Unlock()
	select {
	case f.wake <- struct{}{}: // when it is due next has changed
	default:
	}
	if !changed {
		return
	}
	if err != nil {
		f.cfg.Log.Warn("keys of an issuer not fetched", slog.String("source", source.From), slog.String("error", err.Error()))
	} else {
		f.cfg.Log.Info("keys of an issuer fetched", slog.String("source", source.From))
	}
	f.cfg.Changed()
}

// fetch returns a key set that can be used, and how long it is good. The error is for
// people, and holds nothing of what a server answered.
func (f *keyFetcher) fetch(ctx context.Context, source discovery.KeySource) (set []byte, fresh time.Duration, err error) {
	u, metadata, err := source.URL()
	if err != nil {
		return nil, 0, err
	}
	if metadata {
		if u, err = f.keysOf(ctx, u, source); err != nil {
			return nil, 0, err
		}
	}
	set, fresh, err = f.get(ctx, u, jwt.MaxKeySet)
	if err != nil {
		return nil, 0, err
	}
	if _, err := jwt.ParseKeys(set); err != nil {
		return nil, 0, fmt.Errorf("%s: what it answers %w", u.Redacted(), err)
	}
	return set, fresh, nil
}

// freshness is how long a server wants its answer to be kept (RFC 9111, 5.2.2), within
// our own bounds.
func freshness(h http.Header) time.Duration {
	for directive := range strings.SplitSeq(strings.Join(h.Values("Cache-Control"), ","), ",") {
		name, value, _ := strings.Cut(strings.ToLower(strings.TrimSpace(directive)), "=")
		switch name {
		case "no-cache", "no-store":
			return keysFreshLeast
		case "max-age":
			if n, err := strconv.ParseUint(strings.Trim(value, `"`), 10, 31); err == nil {
				return min(max(time.Duration(n)*time.Second, keysFreshLeast), keysFresh)
			}
		}
	}
	return keysFresh
}

// keysOf reads the metadata of an issuer (OpenID Connect Discovery 4.2).
func (f *keyFetcher) keysOf(ctx context.Context, u *url.URL, source discovery.KeySource) (*url.URL, error) {
	body, _, err := f.get(ctx, u, maxKeysMetadata)
	if err != nil {
		return nil, err
	}
	var metadata struct {
		Keys string `json:"jwks_uri"`
	}
	if err := json.Unmarshal(body, &metadata); err != nil {
		return nil, fmt.Errorf("%s: what it answers is not JSON", u.Redacted())
	}
	keys, _, err := discovery.KeySource{From: metadata.Keys, Timeout: source.Timeout}.URL()
	if err != nil {
		return nil, fmt.Errorf("%s: its jwks_uri is not the URL of a web server", u.Redacted())
	}
	return keys, nil
}

func (f *keyFetcher) get(ctx context.Context, u *url.URL, most int64) (body []byte, fresh time.Duration, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, 0, fmt.Errorf("ask %s: %w", u.Redacted(), err)
	}
	resp, err := f.client.Do(req)
	if err != nil {
		return nil, 0, fmt.Errorf("ask %s: %w", u.Redacted(), bare(err))
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, 0, fmt.Errorf("ask %s: it answers %d", u.Redacted(), resp.StatusCode)
	}
	body, err = io.ReadAll(io.LimitReader(resp.Body, most+1))
	switch {
	case err != nil:
		return nil, 0, fmt.Errorf("read from %s: %w", u.Redacted(), bare(err))
	case int64(len(body)) > most:
		return nil, 0, fmt.Errorf("read from %s: it answers more than %d bytes", u.Redacted(), most)
	}
	return body, freshness(resp.Header), nil
}

// bare is an error without the URL, which may have a password in it, and in words
// that stay the same from one attempt to the next, for the status.
func bare(err error) error {
	if failed, ok := errors.AsType[*url.Error](err); ok {
		err = failed.Err
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Err != nil {
		return fmt.Errorf("%s: %w", op.Op, op.Err) // without the port that we had
	}
	return err
}
