package proxy

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/workload"
)

// fakeAPI is an API server that has Secrets, and says no by verb and name.
type fakeAPI struct {
	API
	server *httptest.Server

	mu      sync.Mutex
	secrets map[string]map[string][]byte
	denied  map[string]bool // "get <name>", "list <name>"
	broken  bool
	asked   []string
}

func newFakeAPI(t *testing.T) *fakeAPI {
	t.Helper()
	a := &fakeAPI{secrets: map[string]map[string][]byte{}, denied: map[string]bool{}}
	a.server = httptest.NewTLSServer(a)
	t.Cleanup(a.server.Close)
	dir := t.TempDir()
	a.API = API{Address: a.server.Listener.Addr().String(), RootFile: filepath.Join(dir, "ca.crt"), TokenFile: filepath.Join(dir, "token")}
	root := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.server.Certificate().Raw})
	for file, text := range map[string][]byte{a.RootFile: root, a.TokenFile: []byte("the-token\n")} {
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return a
}

func (a *fakeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	verb, name := "get", strings.TrimPrefix(r.URL.Path, "/api/v1/namespaces/shop/secrets/")
	if r.URL.Path == "/api/v1/namespaces/shop/secrets" {
		verb, name = "list", strings.TrimPrefix(r.URL.Query().Get("fieldSelector"), "metadata.name=")
	}
	a.asked = append(a.asked, verb+" "+name)
	data, ok := a.secrets[name]
	var answer any = map[string]any{"data": data}
	switch {
	case a.broken:
		w.WriteHeader(http.StatusInternalServerError)
	case r.Header.Get("Authorization") != "Bearer the-token":
		w.WriteHeader(http.StatusUnauthorized)
	case a.denied[verb+" "+name] || a.denied[verb]:
		w.WriteHeader(http.StatusForbidden)
	case verb == "list":
		items := []any{}
		if ok {
			items = append(items, answer)
		}
		answer = map[string]any{"items": items}
		fallthrough
	case ok:
		_ = json.NewEncoder(w).Encode(answer)
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

func (a *fakeAPI) do(f func()) { a.mu.Lock(); defer a.mu.Unlock(); f() }

func (ca *outsideCA) read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(ca.file(name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestSecrets: what is read of a Secret, by whom, and for how long it holds
// (contract 3.37).
func TestSecrets(t *testing.T) {
	ca := newOutsideCA(t)
	ca.issue(t, "client")
	crt, key, root := ca.read(t, "client.crt"), ca.read(t, "client.key"), ca.read(t, "ca.pem")
	for name, tt := range map[string]struct {
		secrets     map[string]map[string][]byte
		denied      []string
		cert, roots bool
		fails       string
	}{
		"of Kubernetes":             {secrets: map[string]map[string][]byte{"a": {"tls.crt": crt, "tls.key": key, "ca.crt": root}}, cert: true, roots: true},
		"of Istio":                  {secrets: map[string]map[string][]byte{"a": {"cert": crt, "key": key, "cacert": root}}, cert: true, roots: true},
		"roots stand apart":         {secrets: map[string]map[string][]byte{"a": {"cert": crt, "key": key}, "a-cacert": {"cacert": root}}, cert: true, roots: true},
		"roots alone":               {secrets: map[string]map[string][]byte{"a-cacert": {"ca.crt": root}}, roots: true},
		"no roots":                  {secrets: map[string]map[string][]byte{"a": {"cert": crt, "key": key}}, cert: true},
		"who may only list":         {secrets: map[string]map[string][]byte{"a": {"cert": crt, "key": key, "ca.crt": root}}, denied: []string{"get"}, cert: true, roots: true},
		"who may list, and nothing": {denied: []string{"get"}, fails: "no Secret a"},
		"who may not":               {secrets: map[string]map[string][]byte{"a": {"cert": crt, "key": key}}, denied: []string{"get", "list"}, fails: "neither get nor list"},
		"who may have only the one": {secrets: map[string]map[string][]byte{"a": {"cert": crt, "key": key, "ca.crt": root}}, denied: []string{"get a-cacert", "list"}, cert: true, roots: true},
		"nothing there":             {fails: "no Secret a"},
		"nothing in it":             {secrets: map[string]map[string][]byte{"a": {"x": crt}}, fails: "neither a certificate"},
		"another's key":             {secrets: map[string]map[string][]byte{"a": {"cert": root, "key": key}}, fails: "certificate and key"},
		"no roots in it":            {secrets: map[string]map[string][]byte{"a": {"ca.crt": key}}, fails: "roots of Secret"},
	} {
		api := newFakeAPI(t)
		maps.Copy(api.secrets, tt.secrets)
		for _, d := range tt.denied {
			api.denied[d] = true
		}
		m, err := newSecrets(api.API, "shop", time.Now).get(t.Context(), "a")
		switch {
		case tt.fails != "":
			if err == nil || !strings.Contains(err.Error(), tt.fails) || strings.Contains(err.Error(), strings.Split(string(key), "\n")[1]) {
				t.Errorf("%s: %v", name, err)
			}
		case err != nil || (m.cert != nil) != tt.cert || (m.roots != nil) != tt.roots:
			t.Errorf("%s: %+v, %v", name, m, err)
		}
	}
}

// TestSecretsOverTime: a Secret is read again after a while; what was read stays
// when nobody answers, and not when the answer is no.
func TestSecretsOverTime(t *testing.T) {
	ca, api := newOutsideCA(t), newFakeAPI(t)
	api.secrets["a"] = map[string][]byte{"ca.crt": ca.read(t, "ca.pem")}
	now := time.Unix(0, 0)
	s := newSecrets(api.API, "shop", func() time.Time { return now })
	get := func(ok bool, asked bool) {
		t.Helper()
		api.do(func() { api.asked = nil })
		_, err := s.get(t.Context(), "a")
		api.do(func() {
			if (err == nil) != ok || (len(api.asked) > 0) != asked {
				t.Errorf("%s: error %v, asked %q", now.Sub(time.Unix(0, 0)), err, api.asked)
			}
		})
	}
	get(true, true)
	get(true, false)
	now = now.Add(secretFresh)
	get(true, true)
	api.do(func() { api.broken = true })
	now = now.Add(secretFresh)
	get(true, true) // nobody answers: what was read stays
	get(true, false)
	api.do(func() { api.broken = false; api.denied["get"] = true; api.denied["list"] = true })
	now = now.Add(secretRetry)
	get(false, true) // it has been taken away
	get(false, false)
	api.do(func() { clear(api.denied) })
	now = now.Add(secretRetry)
	get(true, true)
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.get(cancelled, "b"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	for i := range 3 * maxSecrets {
		now = now.Add(time.Millisecond)
		_, _ = s.get(t.Context(), "x"+strings.Repeat("x", i))
	}
	if len(s.kept) != maxSecrets {
		t.Errorf("%d names are kept", len(s.kept))
	}
	if _, err := newSecrets(API{}, "shop", time.Now).get(t.Context(), "a"); !errors.Is(err, errNoAPI) {
		t.Errorf("without an API server: %v", err)
	}
	if _, err := newSecrets(API{Address: api.Address, RootFile: api.RootFile, TokenFile: "/nowhere"}, "shop", time.Now).get(t.Context(), "a"); !errors.Is(err, errNoAPI) {
		t.Errorf("without a token: %v", err)
	}
	stranger := newOutsideCA(t)
	if _, err := newSecrets(API{Address: api.Address, RootFile: stranger.file("ca.pem"), TokenFile: api.TokenFile}, "shop", time.Now).get(t.Context(), "a"); err == nil {
		t.Error("an API server that nobody vouches for was told the token")
	}
}

// TestOriginateWithSecret: MUTUAL with credentialName, and nothing but a refusal
// without it; no key is in what the proxy says (contract 3.37).
func TestOriginateWithSecret(t *testing.T) {
	ca, api := newOutsideCA(t), newFakeAPI(t)
	cert := ca.issue(t, "db.shop.svc.cluster.local")
	ca.issue(t, "client")
	pool, err := rootsOf(ca.file("ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	r := newRuled(t, cert, pool, func(cfg *Config) {
		cfg.API = api.API
		cfg.Log = slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	r.say(&workload.ClientTLS{Mode: workload.TLSMutual, Credential: "db-client"})
	c := r.connect(r.client.Addresses[0], vip(80))
	_, _ = io.WriteString(c, "secret")
	_ = ends(t, c)
	if got := record(t, r.proxy, withReason(policy.TLSSettings)); !strings.Contains(got.Error, "no Secret db-client") || got.Security == securityPlaintext {
		t.Errorf("record %+v", got)
	}
	r.say(&workload.ClientTLS{Mode: workload.TLSMutual, Credential: "db-client-2"})
	api.do(func() {
		api.secrets["db-client-2"] = map[string][]byte{"tls.crt": ca.read(t, "client.crt"), "tls.key": ca.read(t, "client.key"), "ca.crt": ca.read(t, "ca.pem")}
	})
	c = r.connect(r.client.Addresses[0], vip(80))
	exchange(t, c, "hello")
	if n := <-r.seen; n != 1 {
		t.Errorf("%d client certificates", n)
	}
	_ = c.CloseWrite()
	_ = ends(t, c)
	record(t, r.proxy, func(got Record) bool { return got.Security == securityTLS })
	r.stop()
	if key := strings.Split(string(ca.read(t, "client.key")), "\n")[1]; strings.Contains(log.String(), key) || strings.Contains(log.String(), "the-token") {
		t.Error("a key or a token is in the log")
	}
}
