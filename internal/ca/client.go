package ca

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	securitypb "istio.io/api/security/v1alpha1"

	"podseal.io/podseal/internal/identity"
)

// How a failed request is repeated: what passes by itself after 100 ms and then
// ever slower (contract 4.14), what needs a change somewhere after 5 s and then
// ever slower. Up to a fifth is added by chance.
const (
	quickPause    = 100 * time.Millisecond
	maxQuickPause = 10 * time.Second
	slowPause     = 5 * time.Second
	maxSlowPause  = 50 * time.Second
)

// Bounds of one request and of its answer.
const (
	requestTimeout = 10 * time.Second
	maxElements    = 32
	maxAnswer      = 1 << 20
)

// minWait is how long a new certificate is kept at least, whatever its life.
const minWait = time.Second

// look is how often the wall clock is compared with the time of renewal: timers
// stand still while a machine sleeps.
const look = time.Minute

// ClientConfig is what a [Client] needs.
type ClientConfig struct {
	Conn grpc.ClientConnInterface
	// Token returns the service account token; it is asked at every request,
	// for the kubelet replaces it (contract 4.18).
	Token     func() (string, error)
	TTL       time.Duration    // to ask for; 24 h if 0
	ClusterID string           // DefaultClusterID if empty
	Now       func() time.Time // time.Now if nil
	Rand      func() float64   // from 0 to below 1, for jitter; crypto/rand if nil
	Asked     func(error)      // told how each request ended; may be nil
	Log       *slog.Logger
}

// Client keeps a workload's certificate fresh.
type Client struct {
	cfg  ClientConfig
	told chan struct{} // published has changed

	mu        sync.Mutex
	published *identity.Bundle // nil until Trust was called
}

// NewClient returns a client; [Client.Run] makes it work.
func NewClient(cfg ClientConfig) *Client {
	if cfg.TTL <= 0 {
		cfg.TTL = DefaultTTL
	}
	if cfg.ClusterID == "" {
		cfg.ClusterID = DefaultClusterID
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Rand == nil {
		cfg.Rand = chance
	}
	return &Client{cfg: cfg, told: make(chan struct{}, 1)}
}

// Run asks for a certificate, hands it to set with the roots to trust, and asks
// again at half of its life, with a new key each time (contract 4.25, 4.26), or
// sooner when peers no longer accept it ([Client.Trust]). While requests fail what was set stays, and Run keeps trying until the context
// ends; it returns the cause of that. set is called from this goroutine.
func (c *Client) Run(ctx context.Context, set func(*identity.Credential, *identity.Bundle)) error {
	var current *identity.Credential
	failures, wasQuick := 0, false
	var ahead early
	for {
		var next time.Time
		ahead.begin(c.cfg.Now())
		cred, bundle, err := c.Request(ctx)
		now := c.cfg.Now()
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			c.asked(err)
			if q := quick(err); q != wasQuick {
				failures, wasQuick = 0, q
			}
			pause := c.pause(wasQuick, failures)
			failures++
			next = now.Add(pause)
			c.failed(current, err, pause, now)
		default:
			c.asked(nil)
			current, failures = cred, 0
			next = identity.RenewAt(now, cred.Leaf.NotAfter, 2*c.cfg.Rand()-1)
			if next.Before(now.Add(minWait)) {
				next = now.Add(minWait)
			}
			c.cfg.Log.Info("certificate received", slog.String("identity", cred.ID.String()),
				slog.String("serial", cred.Leaf.SerialNumber.Text(16)), slog.Time("not_after", cred.Leaf.NotAfter),
				slog.Time("renew_at", next), slog.String("bundle", bundle.Hash()))
			set(cred, bundle)
		}
		for due := false; !due; {
			at := next
			if failures == 0 {
				at = ahead.plan(c, current, next)
			}
			if due = c.waitUntil(ctx, at); ctx.Err() != nil {
				return context.Cause(ctx)
			}
		}
	}
}

func (c *Client) asked(err error) {
	if c.cfg.Asked != nil {
		c.cfg.Asked(err)
	}
}

// Request asks for one certificate and checks the answer.
func (c *Client) Request(ctx context.Context) (*identity.Credential, *identity.Bundle, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("generate key: %w", err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, nil, fmt.Errorf("make certificate request: %w", err)
	}
	token, err := c.cfg.Token()
	if err != nil {
		return nil, nil, fmt.Errorf("read token: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token, "clusterid", c.cfg.ClusterID)
	res, err := securitypb.NewIstioCertificateServiceClient(c.cfg.Conn).CreateCertificate(ctx, &securitypb.IstioCertificateRequest{
		Csr:              string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})),
		ValidityDuration: int64(c.cfg.TTL / time.Second),
	}, grpc.MaxCallRecvMsgSize(maxAnswer))
	if err != nil {
		return nil, nil, fmt.Errorf("request certificate: %w", err)
	}
	cred, bundle, err := parseAnswer(res.GetCertChain(), key, c.cfg.Now())
	if err != nil {
		return nil, nil, fmt.Errorf("answer to certificate request: %w", err)
	}
	return cred, bundle, nil
}

// parseAnswer checks that an answer is of use: a leaf for our key with an
// identity, that leads to the bundle in its last element (contract 4.12).
func parseAnswer(elements []string, key crypto.Signer, now time.Time) (*identity.Credential, *identity.Bundle, error) {
	if len(elements) < 2 || len(elements) > maxElements {
		return nil, nil, fmt.Errorf("%d elements, want 2 to %d", len(elements), maxElements)
	}
	last := len(elements) - 1
	bundle, err := identity.ParseBundle([]byte(elements[last]))
	if err != nil {
		return nil, nil, err
	}
	cred, err := identity.NewCredential([]byte(strings.Join(elements[:last], "\n")), key)
	if err != nil {
		return nil, nil, err
	}
	if err := verifyOwn(cred, bundle, now); err != nil {
		return nil, nil, err
	}
	return cred, bundle, nil
}

// verifyOwn says why a peer that trusts the bundle would not accept our
// certificate.
func verifyOwn(cred *identity.Credential, bundle *identity.Bundle, now time.Time) error {
	chain := make([]*x509.Certificate, 0, len(cred.TLS().Certificate))
	for _, raw := range cred.TLS().Certificate {
		x, err := x509.ParseCertificate(raw)
		if err != nil {
			return err
		}
		chain = append(chain, x)
	}
	snap := &identity.Snapshot{Credential: cred, Bundle: bundle, TrustDomains: []string{cred.ID.TrustDomain()}}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		if _, err := identity.VerifyPeer(snap, chain, usage, now); err != nil {
			return err
		}
	}
	return nil
}

// pause is how long to wait after a failure that so many of its kind preceded.
func (c *Client) pause(quick bool, failures int) time.Duration {
	first, most := slowPause, maxSlowPause
	if quick {
		first, most = quickPause, maxQuickPause
	}
	base := most
	if shift := min(failures, 20); first<<shift < most {
		base = first << shift
	}
	return base + time.Duration(c.cfg.Rand()*float64(base)/5)
}

// quick reports whether an error is likely to pass by itself (contract 4.14).
func quick(err error) bool {
	if errors.Is(err, context.DeadlineExceeded) {
		return true
	}
	s, ok := status.FromError(err)
	if !ok {
		return false
	}
	switch s.Code() {
	case codes.Canceled, codes.DeadlineExceeded, codes.ResourceExhausted, codes.Aborted, codes.Internal, codes.Unavailable:
		return true
	default:
		return false
	}
}

func (c *Client) failed(current *identity.Credential, err error, pause time.Duration, now time.Time) {
	cause, retry := slog.String("error", err.Error()), slog.Duration("retry_in", pause)
	if current == nil {
		c.cfg.Log.Warn("no certificate yet", cause, retry)
		return
	}
	end := slog.Time("not_after", current.Leaf.NotAfter)
	if now.After(current.Leaf.NotAfter) {
		c.cfg.Log.Error("certificate expired and not renewed", cause, retry, end)
		return
	}
	c.cfg.Log.Warn("certificate not renewed", cause, retry, end)
}

// waitUntil waits for a moment of the wall clock and reports whether it has
// come; it returns before that when the context ends or Trust was called.
func (c *Client) waitUntil(ctx context.Context, at time.Time) bool {
	for {
		left := at.Round(0).Sub(c.cfg.Now().Round(0))
		if left <= 0 {
			return true
		}
		timer := time.NewTimer(min(left, look))
		select {
		case <-timer.C:
			continue
		case <-c.told:
		case <-ctx.Done():
		}
		timer.Stop()
		return false
	}
}

// chance is a random number from 0 to below 1.
func chance() float64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // it never fails: it would end the program
	return float64(binary.LittleEndian.Uint64(b[:])>>11) / math.Exp2(53)
}
