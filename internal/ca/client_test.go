package ca

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	securitypb "istio.io/api/security/v1alpha1"

	"podseal.io/podseal/internal/identity"
)

// front is a CA server that can be told to fail, and counts.
type front struct {
	securitypb.UnimplementedIstioCertificateServiceServer
	server *Server

	lock  sync.Mutex
	fail  error
	asked []time.Time
}

func (f *front) CreateCertificate(ctx context.Context, req *securitypb.IstioCertificateRequest) (*securitypb.IstioCertificateResponse, error) {
	f.lock.Lock()
	f.asked = append(f.asked, time.Now())
	fail := f.fail
	f.lock.Unlock()
	if fail != nil {
		return nil, fail
	}
	return f.server.CreateCertificate(ctx, req)
}

func (f *front) failWith(err error) {
	f.lock.Lock()
	defer f.lock.Unlock()
	f.fail, f.asked = err, nil
}

// pauses are the times between requests since failWith.
func (f *front) pauses() []time.Duration {
	f.lock.Lock()
	defer f.lock.Unlock()
	var out []time.Duration
	for i := 1; i < len(f.asked); i++ {
		out = append(out, f.asked[i].Sub(f.asked[i-1]))
	}
	return out
}

// received is one call of set.
type received struct {
	at     time.Time
	cred   *identity.Credential
	bundle *identity.Bundle
}

// pair is both ends in one bubble of fake time, which begins in 2000.
type pair struct {
	*front
	tokens map[string]token
	log    safeBuffer
	client *Client
	stop   func()

	mu     sync.Mutex
	issuer *Issuer
	slept  time.Duration // how far the wall clock is ahead of the timers
	taken  []received
}

func (p *pair) now() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Now().Add(p.slept)
}

func (p *pair) signer() (*Issuer, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.issuer, nil
}

// got is what the client handed on so far.
func (p *pair) got() []received {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.taken)
}

// safeBuffer is written by two ends.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) take() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.b.String()
	s.b.Reset()
	return out
}

func newPair(t *testing.T, change func(*ClientConfig)) *pair {
	t.Helper()
	p := &pair{tokens: map[string]token{
		"t":  {"istio-ca", time.Now().Add(1000 * time.Hour), "shop/web"},
		"t4": {"istio-ca", time.Now().Add(time.Hour), "shop/web"},
	}}
	var err error
	if p.issuer, err = NewSelfSigned("cluster.local", time.Now(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	k := &cluster{tokens: p.tokens, now: p.now}
	p.front = &front{server: NewServer(ServerConfig{
		Issuer:      p.signer,
		Review:      k.review,
		TrustDomain: func() string { return "cluster.local" },
		Now:         p.now,
		Log:         slog.New(slog.DiscardHandler),
	})}
	g := grpc.NewServer()
	securitypb.RegisterIstioCertificateServiceServer(g, p.front)
	l := bufconn.Listen(1 << 16)
	conn, err := grpc.NewClient("passthrough:///ca", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	cfg := ClientConfig{
		Conn:  conn,
		Token: func() (string, error) { return "t", nil },
		Now:   p.now,
		Rand:  func() float64 { return 0.5 },
		Log:   slog.New(slog.NewTextHandler(&p.log, nil)),
	}
	if change != nil {
		change(&cfg)
	}
	p.client = NewClient(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := g.Serve(l); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	running.Go(func() {
		err := p.client.Run(ctx, func(cred *identity.Credential, bundle *identity.Bundle) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.taken = append(p.taken, received{time.Now(), cred, bundle})
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("run: %v", err)
		}
	})
	p.stop = func() {
		cancel()
		if err := conn.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		g.Stop()
		running.Wait()
	}
	synctest.Wait()
	return p
}

// TestClientRenews is contract 4.25 and 4.26: half-way through the life, with a
// new key each time.
func TestClientRenews(t *testing.T) {
	for _, chance := range []float64{0, 0.5, 0.999} {
		synctest.Test(t, func(t *testing.T) {
			p := newPair(t, func(cfg *ClientConfig) { cfg.Rand = func() float64 { return chance } })
			defer p.stop()
			if len(p.got()) != 1 {
				t.Fatalf("%d certificates at the start, want 1:\n%s", len(p.got()), p.log.take())
			}
			time.Sleep(60 * time.Hour)
			synctest.Wait()
			if n := len(p.got()); n < 5 || n > 6 {
				t.Fatalf("%d certificates after 60 hours", n)
			}
			serials, root := map[string]bool{}, p.issuer.Bundle().Hash()
			for i, g := range p.got() {
				if g.cred.ID != web || g.bundle.Hash() != root {
					t.Errorf("certificate of %v, bundle %s", g.cred.ID, g.bundle.Hash())
				}
				serials[g.cred.Leaf.SerialNumber.Text(16)] = true
				if i == 0 {
					continue
				}
				if d := g.at.Sub(p.got()[i-1].at); d < 12*time.Hour-15*time.Minute || d > 12*time.Hour+15*time.Minute {
					t.Errorf("renewed after %s", d)
				}
				if k, ok := g.cred.Leaf.PublicKey.(*ecdsa.PublicKey); !ok || k.Equal(p.got()[i-1].cred.Leaf.PublicKey) {
					t.Error("the same key again, or none of ECDSA")
				}
			}
			if len(serials) != len(p.got()) {
				t.Error("a serial number twice")
			}
		})
	}
}

// TestClientKeepsTrying fails for longer than the certificate lives (contract
// 4.28): what was set stays, the log says when it expires, and the first answer
// after that is taken.
func TestClientKeepsTrying(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, nil)
		defer p.stop()
		p.failWith(status.Error(codes.Unavailable, "away"))
		time.Sleep(12*time.Hour + time.Minute)
		synctest.Wait()
		if log := p.log.take(); len(p.got()) != 1 || !strings.Contains(log, "certificate not renewed") || !strings.Contains(log, "not_after=2000-01-02T00:00:00") {
			t.Errorf("%d certificates, log %s", len(p.got()), log)
		}
		// Contract 4.14: from 100 ms, ever slower.
		want := quickPause
		for i, d := range p.pauses() {
			if d < want || d > want+want/5 {
				t.Fatalf("pause %d is %s, want %s (all: %v)", i, d, want, p.pauses())
			}
			want = min(2*want, maxQuickPause)
		}
		time.Sleep(12 * time.Hour)
		synctest.Wait()
		if log := p.log.take(); len(p.got()) != 1 || !strings.Contains(log, "level=ERROR") || !strings.Contains(log, "certificate expired and not renewed") {
			t.Errorf("%d certificates after the expiry", len(p.got()))
		}
		p.failWith(nil)
		time.Sleep(2 * maxQuickPause)
		synctest.Wait()
		if len(p.got()) != 2 || !p.got()[1].cred.Leaf.NotAfter.After(time.Now().Add(23*time.Hour)) {
			t.Errorf("%d certificates after the recovery", len(p.got()))
		}
	})
}

// TestClientPauses tells errors that pass from those that need somebody
// (contract 4.14).
func TestClientPauses(t *testing.T) {
	for code, quick := range map[codes.Code]bool{
		codes.Canceled: true, codes.DeadlineExceeded: true, codes.ResourceExhausted: true, codes.Aborted: true, codes.Internal: true, codes.Unavailable: true,
		codes.Unauthenticated: false, codes.InvalidArgument: false, codes.PermissionDenied: false, codes.Unimplemented: false,
	} {
		t.Run(code.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPair(t, func(cfg *ClientConfig) { cfg.TTL = time.Hour })
				defer p.stop()
				p.failWith(status.Error(code, "no"))
				time.Sleep(40 * time.Minute)
				synctest.Wait()
				pauses := p.pauses()
				first, most := slowPause, time.Minute
				if quick {
					first, most = quickPause, 12*time.Second
				}
				if len(pauses) < 5 || pauses[0] < first || pauses[0] > first+first/5 || pauses[len(pauses)-1] > most {
					t.Errorf("pauses %v", pauses)
				}
				if len(p.got()) != 1 {
					t.Errorf("%d certificates", len(p.got()))
				}
			})
		})
	}
}

// TestClientReadsTheTokenEachTime is contract 4.18; a token that cannot be read
// or is refused stops nothing.
// Contract 4.19.
func TestClientReadsTheTokenEachTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		p := newPair(t, func(cfg *ClientConfig) {
			cfg.Token = func() (string, error) {
				if n++; n == 1 {
					return "", errors.New("no such file")
				}
				return fmt.Sprint("t", n), nil
			}
		})
		defer p.stop()
		time.Sleep(slowPause / 2)
		synctest.Wait()
		if log := p.log.take(); len(p.got()) != 0 || !strings.Contains(log, "no certificate yet") || !strings.Contains(log, "no such file") {
			t.Errorf("%d certificates, log %s", len(p.got()), log)
		}
		time.Sleep(slowPause * 9)
		synctest.Wait()
		log := p.log.take()
		if len(p.got()) != 1 || !strings.Contains(log, "request authenticate failure") {
			t.Errorf("%d certificates, log %s", len(p.got()), log)
		}
		if strings.Contains(log, "t2") || strings.Contains(log, "t4") {
			t.Errorf("a token is in the log: %s", log)
		}
	})
}

// TestClientNewRoot has the root bundle change between two certificates.
// Contract 4.37.
func TestClientNewRoot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, nil)
		defer p.stop()
		other, err := NewSelfSigned("cluster.local", time.Now(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		p.mu.Lock()
		p.issuer = other
		p.mu.Unlock()
		time.Sleep(13 * time.Hour)
		synctest.Wait()
		if len(p.got()) != 2 || p.got()[1].bundle.Hash() != other.Bundle().Hash() {
			t.Errorf("%d certificates", len(p.got()))
		}
	})
}

// TestClientShortLife doesn't let an authority with short certificates turn the
// client into a loop.
func TestClientShortLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, func(cfg *ClientConfig) { cfg.TTL = time.Second })
		defer p.stop()
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := len(p.got()); n < 55 || n > 62 {
			t.Errorf("%d certificates in a minute", n)
		}
	})
}

// TestClientWallClock moves the clock without the timers, as when a machine
// sleeps.
func TestClientWallClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, nil)
		defer p.stop()
		time.Sleep(time.Hour)
		p.mu.Lock()
		p.slept = 20 * time.Hour
		p.mu.Unlock()
		time.Sleep(look + time.Second)
		synctest.Wait()
		if len(p.got()) != 2 {
			t.Errorf("%d certificates a minute after waking up, want 2", len(p.got()))
		}
	})
}

// TestRequestsAreCounted: each request that got an answer or a refusal, once. Contract 7.15.
func TestRequestsAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked, failed := 0, 0
		p := newPair(t, func(cfg *ClientConfig) {
			cfg.Asked = func(err error) {
				if asked++; err != nil {
					failed++
				}
			}
		})
		if asked != 1 || failed != 0 {
			t.Errorf("at the start %d were counted, %d in vain", asked, failed)
		}
		p.failWith(status.Error(codes.Unavailable, "away"))
		time.Sleep(12*time.Hour + time.Minute)
		synctest.Wait()
		if attempts := len(p.pauses()) + 1; asked < 3 || asked != failed+1 || failed < attempts-1 || failed > attempts {
			t.Errorf("%d were counted, %d in vain, of %d attempts", asked, failed, attempts)
		}
		was := asked
		p.stop()
		if asked != was {
			t.Error("what the end has cut off counts")
		}
	})
}
