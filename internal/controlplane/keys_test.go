package controlplane

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"podseal.io/podseal/internal/discovery"
	"podseal.io/podseal/internal/jwt"
	"podseal.io/podseal/internal/meshtest"
	"podseal.io/podseal/internal/wire"
)

// keyServer is an issuer's web server; what it answers can be changed.
type keyServer struct {
	*httptest.Server
	mu    sync.Mutex
	pages map[string]func(w http.ResponseWriter, r *http.Request)
	asked int
}

func newKeyServer(t *testing.T) *keyServer {
	t.Helper()
	s := &keyServer{pages: map[string]func(http.ResponseWriter, *http.Request){}}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.asked++
		page := s.pages[r.URL.Path]
		s.mu.Unlock()
		if page == nil {
			http.NotFound(w, r)
			return
		}
		page(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *keyServer) answer(path, body string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pages[path] = func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(body)) }
}

func (s *keyServer) redirect(path, to string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pages[path] = func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, to, http.StatusFound) }
}

func anywhere(netip.Addr) bool { return true }

// TestFetchKeys: where keys may come from, and what is refused. Contract 1.38.
func TestFetchKeys(t *testing.T) {
	s, other := newKeyServer(t), newKeyServer(t)
	set := string(meshtest.KeySet(t, meshtest.NewIssuer(t, "i", "k", "ES256")))
	s.answer("/keys", set)
	other.answer("/keys", set)
	s.answer("/issuer/.well-known/openid-configuration", fmt.Sprintf(`{"jwks_uri":%q}`, s.URL+"/keys"))
	s.answer("/odd/.well-known/openid-configuration", `{"jwks_uri":"file:///etc/passwd"}`)
	s.answer("/page", "<html>secret of somebody")
	s.answer("/large", set+strings.Repeat(" ", jwt.MaxKeySet))
	s.redirect("/moved", "/keys")
	s.redirect("/round", "/round")
	s.redirect("/away", other.URL+"/keys")
	tests := []struct {
		from  string
		fault string // "" is none
	}{
		{s.URL + "/keys", ""},
		{s.URL + "/moved", ""},
		{"issuer:" + s.URL + "/issuer", ""},
		{"issuer:" + s.URL + "/issuer/", ""},
		{"issuer:" + s.URL + "/odd", "jwks_uri"},
		{"issuer:joe@example.com", "not the URL"},
		{s.URL + "/none", "answers 404"},
		{s.URL + "/page", "not the JSON of a key set"},
		{s.URL + "/large", "more than"},
		{s.URL + "/round", "another server, or too often"},
		{s.URL + "/away", "another server"},
		{"gopher://x/keys", "not the URL"},
		{"http://127.0.0.1:1/keys", "connection refused"},
	}
	f := newKeyFetcher(keyFetcherConfig{Reachable: anywhere, Now: time.Now, Log: quietLog})
	for _, tt := range tests {
		got, _, err := f.fetch(t.Context(), discovery.KeySource{From: tt.from, Timeout: time.Minute})
		switch {
		case tt.fault == "" && (err != nil || string(got) != set):
			t.Errorf("%s: %v", tt.from, err)
		case tt.fault != "" && (err == nil || !strings.Contains(err.Error(), tt.fault) || strings.Contains(err.Error(), "secret")):
			t.Errorf("%s: %v, want %s", tt.from, err, tt.fault)
		}
	}
	guarded := newKeyFetcher(keyFetcherConfig{Reachable: reachable, Now: time.Now, Log: quietLog})
	if _, _, err := guarded.fetch(t.Context(), discovery.KeySource{From: s.URL + "/keys"}); err == nil || !strings.Contains(err.Error(), "address of this kind") {
		t.Errorf("keys from loopback: %v", err)
	}
	for addr, want := range map[string]bool{"10.0.0.1": true, "203.0.113.7": true, "fd00::1": true, "127.0.0.1": false, "::1": false, "169.254.169.254": false, "fe80::1": false, "0.0.0.0": false, "224.0.0.1": false} {
		if got := reachable(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: %v", addr, got)
		}
	}
}

// TestKeysStayFresh: keys are fetched when they are wanted, again when they are
// old, and stay when they can't be fetched.
func TestKeysStayFresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old := string(meshtest.KeySet(t, meshtest.NewIssuer(t, "i", "old", "EdDSA")))
		next := string(meshtest.KeySet(t, meshtest.NewIssuer(t, "i", "next", "EdDSA")))
		answer := &roundTrips{body: ""}
		changes := 0
		f := newKeyFetcher(keyFetcherConfig{Reachable: anywhere, Changed: func() { changes++ }, Now: time.Now, Log: quietLog})
		f.client.Transport = answer
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- f.Run(ctx) }()
		source := discovery.KeySource{From: "https://i/keys", Timeout: time.Second}
		want := func(set string, failed bool) {
			t.Helper()
			synctest.Wait()
			got := f.Keys([]discovery.KeySource{source})[source.From]
			if string(got.Set) != set || (got.Err != "") != failed {
				t.Errorf("%q %q", got.Set, got.Err)
			}
		}
		want("", false)
		want("", true)
		answer.set(old)
		time.Sleep(keysRetryMost)
		want(old, false)
		answer.set(next)
		time.Sleep(keysFresh)
		want(next, false)
		answer.keep("max-age=20")
		time.Sleep(keysFresh)
		answer.set(old) // soon again, since the issuer says so
		time.Sleep(20 * time.Second)
		want(old, false)
		answer.keep("")
		answer.set(next)
		time.Sleep(20 * time.Second)
		want(next, false)
		answer.set("")
		time.Sleep(keysFresh)
		want(next, true)
		n := answer.count()
		time.Sleep(time.Hour)
		if more := answer.count() - n; more < 50 || more > 70 { // once a minute
			t.Errorf("asked %d times in an hour", more)
		}
		if changes != 6 { // failed, old, next, old, next, failed again
			t.Errorf("%d changes", changes)
		}
		f.Keys(nil) // nobody wants them any more
		time.Sleep(keysFresh)
		n = answer.count()
		time.Sleep(time.Hour)
		if answer.count() != n {
			t.Error("what nobody wants is fetched")
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestFreshness: what issuers say of the age of their keys, within bounds.
func TestFreshness(t *testing.T) {
	for said, want := range map[string]time.Duration{
		"": keysFresh, "public, max-age=60": time.Minute, "Max-Age=\"30\"": 30 * time.Second, "max-age=86400": keysFresh, "max-age=0": keysFreshLeast,
		"no-cache": keysFreshLeast, "private,no-store": keysFreshLeast, "max-age=99999999999999999999": keysFresh, "max-age=-1": keysFresh, "max-age": keysFresh, "s-maxage=1": keysFresh,
	} {
		h := http.Header{}
		if said != "" {
			h.Set("Cache-Control", said)
		}
		if got := freshness(h); got != want {
			t.Errorf("%q: %s", said, got)
		}
	}
}

// roundTrips is a web server without a network: "" is a server that is broken.
type roundTrips struct {
	mu   sync.Mutex
	body string
	age  string // Cache-Control
	n    int
}

func (r *roundTrips) keep(age string) { r.mu.Lock(); defer r.mu.Unlock(); r.age = age }

func (r *roundTrips) set(body string) { r.mu.Lock(); defer r.mu.Unlock(); r.body = body }

func (r *roundTrips) count() int { r.mu.Lock(); defer r.mu.Unlock(); return r.n }

func (r *roundTrips) RoundTrip(*http.Request) (*http.Response, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.n++
	w := httptest.NewRecorder()
	if r.age != "" {
		w.Header().Set("Cache-Control", r.age)
	}
	if r.body == "" {
		w.WriteHeader(http.StatusBadGateway)
	}
	_, _ = w.WriteString(r.body)
	return w.Result(), nil
}

// TestPublishKeys: a key that was exchanged reaches the store, without a restart of
// anything.
func TestPublishKeys(t *testing.T) {
	s := newKeyServer(t)
	sets := []string{string(meshtest.KeySet(t, meshtest.NewIssuer(t, "i", "1", "EdDSA"))), string(meshtest.KeySet(t, meshtest.NewIssuer(t, "i", "2", "EdDSA")))}
	ra := policyObject("shop", "p", map[string]any{"jwtRules": []any{map[string]any{"issuer": "i", "jwksUri": s.URL + "/keys"}}})
	ra.SetKind(discovery.KindRequestAuthentication)
	p := newTestPublisher(readyAuthority(t), fakeClient(runningPod("shop", "a", "10.0.0.1"), ra))
	changed := make(chan struct{}, 10)
	at := time.Now()
	var mu sync.Mutex
	f := newKeyFetcher(keyFetcherConfig{Reachable: anywhere, Changed: func() { changed <- struct{}{} }, Log: quietLog, Now: func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return at
	}})
	p.cfg.Keys = f.Keys
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	defer func() { stop(); <-done; f.client.CloseIdleConnections() }()
	told := func() (string, discovery.Verdict) {
		t.Helper()
		if _, err := p.publish(t.Context()); err != nil {
			t.Fatal(err)
		}
		got, err := wire.ParseRequestAuthentication(p.cfg.Store.Resources(wire.TypeRequestAuthentication)[0].Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(got.Rules[0].Keys), (<-p.verdicts)[discovery.Key{Kind: discovery.KindRequestAuthentication, Namespace: "shop", Name: "p"}]
	}
	if keys, v := told(); keys != "" || v.Reason != discovery.ReasonNoKeys || v.Accepted {
		t.Errorf("%q, %+v", keys, v)
	}
	for i, set := range sets {
		if i == 0 {
			<-changed // which is that they can't be fetched
		}
		s.answer("/keys", set)
		mu.Lock()
		at = at.Add(keysFresh)
		mu.Unlock()
		f.wake <- struct{}{}
		<-changed
		if keys, v := told(); keys != set || !v.Accepted {
			t.Errorf("%q, %+v", keys, v)
		}
	}
}
