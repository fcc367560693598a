package ca

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	securitypb "istio.io/api/security/v1alpha1"

	"podseal.io/podseal/internal/identity"
)

// token is what a cluster knows of a service account token.
type token struct {
	audience string
	expires  time.Time
	user     string // namespace/name
}

// cluster reviews tokens as an API server does (contract 4.17).
type cluster struct {
	tokens map[string]token
	now    func() time.Time
}

func (c *cluster) review(_ context.Context, text string) (Caller, error) {
	t, ok := c.tokens[text]
	switch {
	case !ok:
		return Caller{}, errors.New("reviewer detail: signature of an unknown issuer")
	case t.audience != "istio-ca":
		return Caller{}, errors.New("reviewer detail: audience " + t.audience)
	case c.now().After(t.expires):
		return Caller{}, errors.New("reviewer detail: expired")
	}
	ns, sa, _ := strings.Cut(t.user, "/")
	return Caller{Namespace: ns, ServiceAccount: sa, Pod: sa + "-7c9"}, nil
}

// call is a server with one well-behaved caller, to be spoilt by each test.
type call struct {
	cfg ServerConfig
	log bytes.Buffer
	md  map[string]string
	req *securitypb.IstioCertificateRequest
}

func newCall(t *testing.T) *call {
	i := newIssuer(t)
	k := &cluster{now: func() time.Time { return day0 }, tokens: map[string]token{
		"good":       {"istio-ca", day0.Add(time.Hour), "shop/web"},
		"stolen":     {"vault", day0.Add(time.Hour), "shop/web"},
		"api-server": {"https://kubernetes.default.svc", day0.Add(time.Hour), "shop/web"},
		"expired":    {"istio-ca", day0.Add(-time.Second), "shop/web"},
		"odd":        {"istio-ca", day0.Add(time.Hour), "shop/../../sa/x"},
		"user":       {"istio-ca", day0.Add(time.Hour), ""},
	}}
	c := &call{md: map[string]string{"authorization": "Bearer good"}, req: &securitypb.IstioCertificateRequest{Csr: string(newCSR(t))}}
	c.cfg = ServerConfig{
		Issuer:      func() (*Issuer, error) { return i, nil },
		Review:      k.review,
		TrustDomain: func() string { return "cluster.local" },
		Now:         func() time.Time { return day0 },
		Log:         slog.New(slog.NewJSONHandler(&c.log, nil)),
	}
	return c
}

func (c *call) do() (*securitypb.IstioCertificateResponse, error) {
	ctx := peer.NewContext(context.Background(), &peer.Peer{Addr: &net.TCPAddr{IP: net.IPv4(10, 0, 0, 7), Port: 4}})
	ctx = metadata.NewIncomingContext(ctx, metadata.New(c.md))
	return NewServer(c.cfg).CreateCertificate(ctx, c.req)
}

// line is the one line that a call leaves in the log.
func (c *call) line(t *testing.T) map[string]any {
	t.Helper()
	var line map[string]any
	if err := json.Unmarshal(c.log.Bytes(), &line); err != nil {
		t.Fatalf("want one log line: %v: %s", err, c.log.String())
	}
	return line
}

func TestServerIssues(t *testing.T) {
	c := newCall(t)
	// What the caller believes of the cluster and of itself doesn't count
	// (contract 4.3, 4.9, 4.16).
	c.md["clusterid"] = "Kubernetes"
	c.req.ValidityDuration = 3600
	c.req.Metadata = &structpb.Struct{Fields: map[string]*structpb.Value{"CertSigner": structpb.NewStringValue("x"), "TrustDomain": structpb.NewStringValue("evil")}}
	res, err := c.do()
	if err != nil {
		t.Fatal(err)
	}
	certs, err := identity.ParseCertificates([]byte(res.GetCertChain()[0]))
	if err != nil {
		t.Fatal(err)
	}
	if id, err := identity.FromCertificate(certs[0]); err != nil || id != web {
		t.Errorf("certified %v, %v", id, err)
	}
	line := c.line(t)
	for key, want := range map[string]any{
		"msg": "certificate issued", "identity": "cluster.local/ns/shop/sa/web", "pod": "shop/web-7c9",
		"serial": certs[0].SerialNumber.Text(16), "not_after": "2026-01-02T04:04:05Z", "from": "10.0.0.7:4",
	} {
		if line[key] != want {
			t.Errorf("log: %s is %v, want %v", key, line[key], want)
		}
	}
}

// TestServerRefuses checks codes and texts (contract 4.13) and that neither the
// caller nor the log learns what is not theirs.
// Contract 4.15.
func TestServerRefuses(t *testing.T) {
	const unauthenticated = "request authenticate failure"
	for _, c := range []struct {
		name   string
		spoil  func(*call)
		code   codes.Code
		text   string
		reason string
	}{
		{"no token", func(c *call) { c.md = nil }, codes.Unauthenticated, unauthenticated, "no_token"},
		{"empty token", func(c *call) { c.md["authorization"] = "Bearer  " }, codes.Unauthenticated, unauthenticated, "no_token"},
		{"another scheme", func(c *call) { c.md["authorization"] = "Basic good" }, codes.Unauthenticated, unauthenticated, "no_token"},
		{"huge token", func(c *call) { c.md["authorization"] = "Bearer " + strings.Repeat("x", MaxToken+1) }, codes.Unauthenticated, unauthenticated, "no_token"},
		{"stolen token of another audience", func(c *call) { c.md["authorization"] = "Bearer stolen" }, codes.Unauthenticated, unauthenticated, "token_refused"},
		{"token without the audience (4.18)", func(c *call) { c.md["authorization"] = "Bearer api-server" }, codes.Unauthenticated, unauthenticated, "token_refused"},
		{"expired token", func(c *call) { c.md["authorization"] = "Bearer expired" }, codes.Unauthenticated, unauthenticated, "token_refused"},
		{"foreign token", func(c *call) { c.md["authorization"] = "Bearer of-another-cluster" }, codes.Unauthenticated, unauthenticated, "token_refused"},
		{"foreign cluster (4.16)", func(c *call) { c.md["clusterid"] = "east" }, codes.Unauthenticated, unauthenticated, "foreign_cluster"},
		{"a name that is no identity", func(c *call) { c.md["authorization"] = "Bearer odd" }, codes.Unauthenticated, unauthenticated, "no_identity"},
		{"no service account", func(c *call) { c.md["authorization"] = "Bearer user" }, codes.Unauthenticated, unauthenticated, "no_identity"},
		{"impersonation (4.10)", func(c *call) {
			c.req.Metadata = &structpb.Struct{Fields: map[string]*structpb.Value{"ImpersonatedIdentity": structpb.NewStringValue("spiffe://cluster.local/ns/bank/sa/vault")}}
		}, codes.Unauthenticated, unauthenticated, "impersonation"},
		{"impersonation of another type", func(c *call) {
			c.req.Metadata = &structpb.Struct{Fields: map[string]*structpb.Value{"ImpersonatedIdentity": structpb.NewListValue(&structpb.ListValue{})}}
		}, codes.Unauthenticated, unauthenticated, "impersonation"},
		{"reviewer away", func(c *call) {
			c.cfg.Review = func(context.Context, string) (Caller, error) {
				return Caller{}, fmt.Errorf("%w: reviewer detail", ErrReviewUnavailable)
			}
		}, codes.Unavailable, "request authentication is unavailable, try again", "review_unavailable"},
		{"no issuer", func(c *call) { c.cfg.Issuer = func() (*Issuer, error) { return nil, errors.New("detail") } }, codes.Internal, "CSR signing error (certificate authority is not ready)", "not_ready"},
		{"expired issuer", func(c *call) { c.cfg.Now = func() time.Time { return day0.Add(2 * rootLife) } }, codes.Internal, "CSR signing error (certificate authority cannot sign)", "cannot_sign"},
		{"bad request", func(c *call) { c.req.Csr = "x" }, codes.InvalidArgument, "CSR signing error (bad certificate request: not PEM)", "bad_request"},
		{"too long a life (4.21)", func(c *call) { c.req.ValidityDuration = 90*86400 + 1 }, codes.InvalidArgument, "CSR signing error (lifetime too long: 2160h0m1s asked, at most 2160h0m0s allowed)", "bad_request"},
		{"far too long a life", func(c *call) { c.req.ValidityDuration = math.MaxInt64 }, codes.InvalidArgument, "CSR signing error (lifetime too long: 4320h0m0s asked, at most 2160h0m0s allowed)", "bad_request"},
	} {
		t.Run(c.name, func(t *testing.T) {
			call := newCall(t)
			c.spoil(call)
			_, err := call.do()
			if s := status.Convert(err); s.Code() != c.code || s.Message() != c.text {
				t.Errorf("told %v", err)
			}
			line := call.line(t)
			if line["msg"] != "certificate refused" || line["reason"] != c.reason || line["from"] != "10.0.0.7:4" {
				t.Errorf("log: %v", line)
			}
			if secret := strings.TrimPrefix(call.md["authorization"], "Bearer "); len(secret) > 4 && strings.Contains(call.log.String(), secret) && secret != "expired" {
				t.Errorf("the token is in the log: %s", call.log.String())
			}
		})
	}
	if _, err := BearerToken(withAuthorization("Bearer a", "Bearer b")); err == nil {
		t.Error("two tokens: which one counts?")
	}
	if got, err := BearerToken(withAuthorization("Basic x", "bearer a")); err != nil || got != "a" {
		t.Errorf("a token beside another scheme: %q, %v", got, err)
	}
}

func withAuthorization(values ...string) context.Context {
	return metadata.NewIncomingContext(context.Background(), metadata.MD{"authorization": values})
}

func TestServerNegativeLife(t *testing.T) {
	c := newCall(t)
	c.req.ValidityDuration = math.MinInt64
	res, err := c.do()
	if err != nil {
		t.Fatal(err)
	}
	certs, err := identity.ParseCertificates([]byte(res.GetCertChain()[0]))
	if err != nil || !certs[0].NotAfter.Equal(day0.Add(DefaultTTL)) {
		t.Errorf("a life of %v, %v", certs, err)
	}
}

// TestServerBounds has a reviewer that hangs: callers that are too many are
// told so, and none waits for ever.
func TestServerBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		call := newCall(t)
		reviewing := make(chan struct{}, 1000)
		call.cfg.Review = func(ctx context.Context, _ string) (Caller, error) {
			reviewing <- struct{}{}
			<-ctx.Done()
			return Caller{}, ctx.Err()
		}
		call.cfg.Log = slog.New(slog.DiscardHandler)
		s := NewServer(call.cfg)
		ctx := metadata.NewIncomingContext(t.Context(), metadata.New(call.md))
		var mu sync.Mutex
		got := map[codes.Code]int{}
		var callers sync.WaitGroup
		for range maxReviews + 10 {
			callers.Go(func() {
				_, err := s.CreateCertificate(ctx, call.req)
				mu.Lock()
				defer mu.Unlock()
				got[status.Code(err)]++
			})
		}
		synctest.Wait()
		if n := len(reviewing); n != maxReviews {
			t.Errorf("%d reviews at a time, want %d", n, maxReviews)
		}
		began := time.Now()
		callers.Wait()
		if d := time.Since(began); d > reviewTimeout {
			t.Errorf("the last caller waited %s", d)
		}
		if got[codes.Unavailable]+got[codes.ResourceExhausted] != maxReviews+10 || got[codes.Unavailable] < maxReviews {
			t.Errorf("callers were told %v", got)
		}
	})
}

// TestAnswers is what our client refuses (contract 4.12).
func TestAnswers(t *testing.T) {
	i, key := newIssuer(t), newKey(t)
	sign := func(i *Issuer) []string {
		got, err := i.Sign(csrFor(t, key, &x509.CertificateRequest{}), web, 0, day0)
		if err != nil {
			t.Fatal(err)
		}
		return got.Chain
	}
	good, deep := sign(i), sign(intermediateOf(t, i))
	serving, err := i.ServingCertificate([]string{"a"}, 0, day0)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		elements []string
		now      time.Time
		want     string
	}{
		"nothing":           {nil, day0, "0 elements"},
		"no bundle":         {good[:1], day0, "1 elements"},
		"far too many":      {append(make([]string, maxElements), good...), day0, "34 elements"},
		"empty elements":    {[]string{"", ""}, day0, "no PEM"},
		"garbage":           {[]string{"x", good[1]}, day0, "no PEM"},
		"leaf as bundle":    {[]string{good[0], good[0]}, day0, "not a CA"},
		"another bundle":    {[]string{good[0], string(newIssuer(t).Bundle().PEM())}, day0, "unknown authority"},
		"no identity":       {[]string{string(certificatePEM(serving.Leaf.Raw)), good[1]}, day0, "URI SANs"},
		"a gap":             {[]string{deep[0], deep[2]}, day0, "unknown authority"},
		"expired":           {good, day0.Add(25 * time.Hour), "expired"},
		"not yet valid":     {good, day0.Add(-time.Hour), "not yet valid"},
		"root first":        {[]string{good[1], good[0]}, day0, "not a CA"},
		"not the issued":    {[]string{good[1], good[1]}, day0, "URI SANs"},
		"a key in a bundle": {[]string{good[0], string(i.Files().Key)}, day0, "where a CERTIFICATE is expected"},
	} {
		if _, _, err := parseAnswer(c.elements, key, c.now); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	if _, _, err := parseAnswer(good, newKey(t), day0); err == nil {
		t.Error("a certificate of another key was taken")
	}
	// Elements may lack their last newline and carry several certificates.
	for name, elements := range map[string][]string{
		"good": good, "deep": deep,
		"without newlines": {strings.TrimSpace(deep[0]), strings.TrimSpace(deep[1]), strings.TrimSpace(deep[2])},
		"in one element":   {deep[0] + deep[1], deep[2]},
		"with the root":    {deep[0], deep[1], deep[2], deep[2]},
	} {
		cred, bundle, err := parseAnswer(elements, key, day0)
		if err != nil || cred.ID != web || len(bundle.Roots()) != 1 {
			t.Errorf("%s: %v", name, err)
		}
	}
}
