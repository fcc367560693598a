package h2

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testHandler is a handler that lets everything pass, unless it is told otherwise.
type testHandler struct {
	mu      sync.Mutex
	request func(r *Request) (*Answer, Ask)
	done    []string
}

// judge sets what is asked of each request.
func (h *testHandler) judge(f func(r *Request) (*Answer, Ask)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.request = f
}

func (h *testHandler) Request(r *Request) (*Answer, Ask) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.request != nil {
		return h.request(r)
	}
	return nil, nil
}

func (*testHandler) Messages(int, int) {}

func (*testHandler) Trailers(_ *Request, fields []Field) []Field { return fields }
func (*testHandler) Response(_ *Request, res *Response) {
	res.Fields = append(res.Fields, Field{Name: "x-relay", Value: "yes"})
}
func (*testHandler) Interim(*Response) {}
func (*testHandler) Fault(_ *Request, f Fault) *Answer {
	return &Answer{Status: [...]int{TooLarge: 431, Unreachable: 503, Ended: 503, NoHTTP2: 502}[f], Body: "fault", Flags: [...]string{"DPE", "UF", "UC", "UPE"}[f]}
}

func (h *testHandler) Done(r *Request, o Outcome) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.done = append(h.done, fmt.Sprintf("%s %d %s %s", r.Path, o.Status, o.GRPCStatus, o.Flags))
}

// finished waits for so many requests to end, and returns how they did.
func (h *testHandler) finished(t testing.TB, n int) []string {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		h.mu.Lock()
		done := append([]string(nil), h.done...)
		h.mu.Unlock()
		if len(done) >= n {
			return done
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d requests ended, want %d: %q", len(done), n, done)
		}
		runtime.Gosched()
	}
}

// rig is a relay in front of an application that listens.
type rig struct {
	t       testing.TB
	handler *testHandler
	app     net.Listener
	front   net.Listener
	change  func(cfg *Config)

	mu     sync.Mutex
	relays []*Relay
	errs   []error
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func newRig(t testing.TB, change func(cfg *Config)) *rig {
	t.Helper()
	r := &rig{t: t, handler: &testHandler{}, app: listen(t), front: listen(t), change: change}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	t.Cleanup(func() { cancel(); r.front.Close(); all.Wait() })
	buffers := &Buffers{}
	all.Go(func() {
		for {
			c, err := r.front.Accept()
			if err != nil {
				return
			}
			cfg := Config{Client: c.(*net.TCPConn), Handler: r.handler, Now: time.Now, Buffers: buffers, IdleTimeout: time.Hour}
			cfg.Dial = func(ctx context.Context) (Conn, error) {
				var d net.Dialer
				c, err := d.DialContext(ctx, "tcp", r.app.Addr().String())
				if err != nil {
					return nil, err
				}
				return c.(*net.TCPConn), nil
			}
			if r.change != nil {
				r.change(&cfg)
			}
			relay := New(cfg)
			r.mu.Lock()
			r.relays = append(r.relays, relay)
			r.mu.Unlock()
			all.Go(func() {
				err := relay.Serve(ctx)
				r.mu.Lock()
				r.errs = append(r.errs, err)
				r.mu.Unlock()
			})
		}
	})
	return r
}

// serve has net/http's HTTP/2 answer.
func (r *rig) serve(h http.HandlerFunc, change ...func(s *http.Server)) *rig {
	r.t.Helper()
	var conns sync.WaitGroup // net/http's Close doesn't wait for them
	s := &http.Server{Handler: h, Protocols: onlyH2C(), ErrorLog: log.New(io.Discard, "", 0), ConnState: func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			conns.Add(1)
		case http.StateClosed, http.StateHijacked:
			conns.Done()
		default:
		}
	}}
	for _, f := range change {
		f(s)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(r.app) }()
	r.t.Cleanup(func() { s.Close(); <-served; conns.Wait() })
	return r
}

func onlyH2C() *http.Protocols {
	p := &http.Protocols{}
	p.SetUnencryptedHTTP2(true)
	return p
}

// client is one of net/http's.
func (r *rig) client() *http.Client {
	tr := &http.Transport{Protocols: onlyH2C(), DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, r.front.Addr().String())
	}}
	r.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func TestRelay(t *testing.T) {
	r := newRig(t, nil).serve(func(w http.ResponseWriter, q *http.Request) {
		b, _ := io.ReadAll(q.Body)
		w.Header().Set("X-Len", fmt.Sprint(len(b)))
		w.Header().Set("Trailer", "X-End")
		_, _ = w.Write(b)
		w.Header().Set("X-End", "yes")
	})
	c := r.client()
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			body := strings.Repeat("x", i*10_000)
			res, err := c.Post("http://web/"+fmt.Sprint(i), "text/plain", strings.NewReader(body))
			if err != nil {
				t.Error(err)
				return
			}
			defer res.Body.Close()
			b, err := io.ReadAll(res.Body)
			if err != nil || string(b) != body || res.Trailer.Get("X-End") != "yes" || res.Header.Get("X-Relay") != "yes" {
				t.Errorf("%d: %v, %d bytes, %v", i, err, len(b), res.Trailer)
			}
		})
	}
	all.Wait()
	for _, o := range r.handler.finished(t, 50) {
		if !strings.HasSuffix(o, " 200  -") {
			t.Error(o)
		}
	}
}
