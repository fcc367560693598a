package controlplane

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	securitypb "istio.io/api/security/v1alpha1"
	authenticationv1 "k8s.io/api/authentication/v1"

	"podseal.io/podseal/internal/ca"
	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/xds"
	"podseal.io/podseal/internal/xds/xdspb"
)

func unsignedJWT(exp int64) string {
	return "h." + base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"exp":%d}`, exp)) + ".s"
}

// TestReview is contract 4.17 and 4.18.
func TestReview(t *testing.T) {
	good := accepted("shop", "web", "web-1")
	change := func(f func(*authenticationv1.TokenReviewStatus)) authenticationv1.TokenReviewStatus {
		s := good
		f(&s)
		return s
	}
	for name, tc := range map[string]struct {
		status authenticationv1.TokenReviewStatus
		err    string
	}{
		"good":             {good, ""},
		"not valid":        {authenticationv1.TokenReviewStatus{Error: "expired"}, "not valid"},
		"other audience":   {change(func(s *authenticationv1.TokenReviewStatus) { s.Audiences = []string{"https://kubernetes.default.svc"} }), "audiences"},
		"no audience":      {change(func(s *authenticationv1.TokenReviewStatus) { s.Audiences = nil }), "audiences"},
		"a person":         {change(func(s *authenticationv1.TokenReviewStatus) { s.User.Username = "admin" }), "not a service account"},
		"a person's group": {change(func(s *authenticationv1.TokenReviewStatus) { s.User.Groups = []string{"system:authenticated"} }), "not a service account's"},
		"too many parts":   {change(func(s *authenticationv1.TokenReviewStatus) { s.User.Username = userPrefix + "a:b:c" }), "not a service account"},
		"no account":       {change(func(s *authenticationv1.TokenReviewStatus) { s.User.Username = userPrefix + "a:" }), "not a service account"},
	} {
		r := newReviewer(reviewerConfig{Create: reviews{"tok": tc.status}.create, Now: at(epoch)})
		caller, err := r.Review(t.Context(), "tok")
		if tc.err == "" {
			if err != nil || caller != (ca.Caller{Namespace: "shop", ServiceAccount: "web", Pod: "web-1"}) {
				t.Errorf("%s: %+v %v", name, caller, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), tc.err) || errors.Is(err, ca.ErrReviewUnavailable) {
			t.Errorf("%s: %v, want %s", name, err, tc.err)
		}
		if err != nil && strings.Contains(err.Error(), "tok ") {
			t.Errorf("%s: the error shows the token: %v", name, err)
		}
	}
	r := newReviewer(reviewerConfig{Create: reviews{}.create, Now: at(epoch)})
	if _, err := r.Review(t.Context(), "unreachable"); !errors.Is(err, ca.ErrReviewUnavailable) {
		t.Errorf("API server down: %v", err)
	}
	for _, token := range []string{"", strings.Repeat("x", ca.MaxToken+1)} {
		if _, err := r.Review(t.Context(), token); err == nil {
			t.Errorf("a token of %d bytes was reviewed", len(token))
		}
	}
}

// TestReviewIsKept for a minute at most, never beyond the token's own end, and
// refusals never.
func TestReviewIsKept(t *testing.T) {
	now, asked := epoch, 0
	short := unsignedJWT(epoch.Add(20 * time.Second).Unix())
	known := reviews{"tok": accepted("shop", "web", ""), short: accepted("shop", "web", "")}
	r := newReviewer(reviewerConfig{Now: func() time.Time { return now }, Create: func(ctx context.Context, tr *authenticationv1.TokenReview) error {
		asked++
		return known.create(ctx, tr)
	}})
	for i, step := range []struct {
		after time.Duration
		token string
		asked int
	}{
		{0, "tok", 1},
		{59 * time.Second, "tok", 1},
		{time.Minute, "tok", 2},
		{time.Minute, "no", 3},
		{time.Minute, "no", 4},
	} {
		now = epoch.Add(step.after)
		_, _ = r.Review(t.Context(), step.token)
		if asked != step.asked {
			t.Errorf("step %d: asked %d times, want %d", i, asked, step.asked)
		}
	}
	asked, now = 0, epoch
	for _, after := range []time.Duration{0, 19 * time.Second, 20 * time.Second} {
		now = epoch.Add(after)
		_, _ = r.Review(t.Context(), short)
	}
	if asked != 2 {
		t.Errorf("a token that expires after 20 s was asked for %d times, want 2", asked)
	}
}

func TestReviewsAreBounded(t *testing.T) {
	now := epoch
	r := newReviewer(reviewerConfig{Now: func() time.Time { return now }, Create: func(_ context.Context, tr *authenticationv1.TokenReview) error {
		tr.Status = accepted("a", "b", "")
		return nil
	}})
	for i := range maxReviews + 10 {
		if _, err := r.Review(t.Context(), fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
		if len(r.kept) > maxReviews {
			t.Fatalf("%d reviews are kept", len(r.kept))
		}
	}
	now = now.Add(2 * time.Minute)
	for i := range maxReviews {
		_, _ = r.Review(t.Context(), fmt.Sprint("x", i))
	}
	if len(r.kept) > maxReviews {
		t.Errorf("%d reviews are kept", len(r.kept))
	}
}

// A crowd of strangers is not passed on to the API server all at once.
func TestReviewsAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now, most atomic.Int32
		r := newReviewer(reviewerConfig{Now: at(epoch), Create: func(context.Context, *authenticationv1.TokenReview) error {
			most.Store(max(most.Load(), now.Add(1)))
			defer now.Add(-1)
			<-time.After(time.Second)
			return nil
		}})
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		defer cancel()
		var refused, late atomic.Int32
		var all sync.WaitGroup
		for i := range 3 * maxAsking {
			all.Go(func() {
				_, err := r.Review(ctx, fmt.Sprint("stranger ", i))
				if errors.Is(err, ca.ErrReviewUnavailable) {
					late.Add(1)
				} else if err != nil {
					refused.Add(1)
				}
			})
		}
		all.Wait()
		if most.Load() != maxAsking || refused.Load() != 2*maxAsking || late.Load() != maxAsking {
			t.Errorf("%d at a time, %d refused, %d too late", most.Load(), refused.Load(), late.Load())
		}
	})
}

func FuzzExpiry(f *testing.F) {
	seed := unsignedJWT(1_700_000_000)
	for i := range len(seed) + 1 { // cut at every byte
		f.Add(seed[:i])
	}
	f.Fuzz(func(t *testing.T, token string) {
		if e := expiry(token); !e.IsZero() && e.Unix() <= 0 {
			t.Errorf("expiry %v", e)
		}
	})
}

// TestAuthorize is contract 4.20.
func TestAuthorize(t *testing.T) {
	const peer = "cluster.local/ns/shop/sa/web"
	node := func(id, ns, account string) xds.Node {
		return xds.Node{ID: id, Metadata: map[string]string{nodeNamespace: ns, nodeServiceAccount: account}}
	}
	for name, tc := range map[string]struct {
		peer string
		node xds.Node
		ok   bool
	}{
		"own":              {peer, node("sidecar~10.0.0.1~web-1.shop~shop.svc", "shop", "web"), true},
		"dots in the name": {peer, node("sidecar~10.0.0.1~web.1.shop~shop.svc", "shop", "web"), true},
		"other namespace":  {peer, node("sidecar~10.0.0.1~web-1.shop~shop.svc", "bank", "web"), false},
		"other account":    {peer, node("sidecar~10.0.0.1~web-1.shop~shop.svc", "shop", "root"), false},
		"other node ID":    {peer, node("sidecar~10.0.0.1~web-1.bank~bank.svc", "shop", "web"), false},
		"odd node ID":      {peer, node("web", "shop", "web"), false},
		"no metadata":      {peer, xds.Node{ID: "sidecar~10.0.0.1~web-1.shop~shop.svc"}, false},
		"no identity":      {"", node("sidecar~10.0.0.1~web-1.shop~shop.svc", "shop", "web"), false},
	} {
		if err := authorize(tc.peer, tc.node); (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func csr(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{"bank"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

func withToken(ctx context.Context, token string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}

// TestPort15012 goes over TLS: certificates and configuration for the right
// token, neither for a stolen, expired or foreign one (contract 4.5, 4.16-4.20).
func TestPort15012(t *testing.T) {
	a := readyAuthority(t)
	foreign := accepted("shop", "web", "web-1")
	foreign.Audiences = []string{"vault"}
	known := reviews{
		"web-token":     accepted("shop", "web", "web-1"),
		"expired-token": {Error: "token has expired"},
		"foreign-token": foreign,
		"unbound-token": accepted("shop", "web", ""),
	}
	counts, store := newCounts(), xds.NewStore()
	store.Replace("type/a", map[string][]byte{"x": []byte("body")})
	s := newGRPC(grpcConfig{Authority: a, Reviewer: newReviewer(reviewerConfig{Create: known.create, Now: time.Now}), Store: store, Counts: counts, Log: slog.New(slog.DiscardHandler)})
	counts.observe(a, s.xds, s.report, time.Now)
	conn := startGRPC(t, s, a)
	certificates := securitypb.NewIstioCertificateServiceClient(conn)

	for name, tc := range map[string]struct {
		token string
		req   *securitypb.IstioCertificateRequest
		code  codes.Code
	}{
		"own token":       {"web-token", &securitypb.IstioCertificateRequest{Csr: csr(t)}, codes.OK},
		"expired token":   {"expired-token", &securitypb.IstioCertificateRequest{Csr: csr(t)}, codes.Unauthenticated},
		"foreign token":   {"foreign-token", &securitypb.IstioCertificateRequest{Csr: csr(t)}, codes.Unauthenticated},
		"made-up token":   {"x", &securitypb.IstioCertificateRequest{Csr: csr(t)}, codes.Unauthenticated},
		"garbage for CSR": {"web-token", &securitypb.IstioCertificateRequest{Csr: "x"}, codes.InvalidArgument},
		"too long a life": {"web-token", &securitypb.IstioCertificateRequest{Csr: csr(t), ValidityDuration: 1 << 40}, codes.InvalidArgument},
	} {
		res, err := certificates.CreateCertificate(withToken(t.Context(), tc.token), tc.req)
		if status.Code(err) != tc.code {
			t.Errorf("%s: %v, want %s", name, err, tc.code)
			continue
		}
		if err != nil {
			continue
		}
		certs, err := identity.ParseCertificates([]byte(res.GetCertChain()[0]))
		if err != nil {
			t.Fatal(err)
		}
		id, err := identity.FromCertificate(certs[0])
		if err != nil || id.String() != "cluster.local/ns/shop/sa/web" || len(certs[0].DNSNames) > 0 { // contract 4.8
			t.Errorf("%s: identity %s, DNS names %v, %v", name, id, certs[0].DNSNames, err)
		}
	}
	if _, err := certificates.CreateCertificate(t.Context(), &securitypb.IstioCertificateRequest{Csr: csr(t)}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("without a token: %v", err)
	}
	if got := testutil.ToFloat64(counts.csr); got != 7 { // contract 7.15
		t.Errorf("counted %v certificate requests", got)
	}
	if issued, refused := testutil.ToFloat64(counts.issued), testutil.ToFloat64(counts.unauthenticated); issued != 1 || refused != 4 {
		t.Errorf("counted %v issued, %v unauthenticated", issued, refused)
	}
	testStreams(t, conn, s)
	testReports(t, conn, s)
}

// testStreams opens configuration streams as the proxy of one pod, with the
// tokens of that pod and of others.
func testStreams(t *testing.T, conn *grpc.ClientConn, s *grpcServer) {
	open := func(token, ns string) (xdspb.AggregatedDiscoveryService_DeltaAggregatedResourcesClient, error) {
		stream, err := xdspb.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(withToken(t.Context(), token))
		if err != nil {
			t.Fatal(err)
		}
		node := &xdspb.Node{Id: "sidecar~10.0.0.1~web-1." + ns + "~" + ns + ".svc", Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{
			nodeNamespace: structpb.NewStringValue(ns), nodeServiceAccount: structpb.NewStringValue("web"),
		}}}
		_ = stream.Send(&xdspb.DeltaDiscoveryRequest{Node: node, TypeUrl: "type/a"}) // a stream that was refused says so on receiving
		res, err := stream.Recv()
		if err == nil && (len(res.GetResources()) != 1 || string(res.GetResources()[0].GetResource().GetValue()) != "body") {
			t.Errorf("resources %v", res.GetResources())
		}
		return stream, err
	}
	if _, err := open("expired-token", "shop"); status.Code(err) != codes.Unauthenticated {
		t.Errorf("expired token: %v", err)
	}
	if _, err := open("web-token", "bank"); status.Code(err) != codes.PermissionDenied { // contract 4.20: a stolen token opens no other node
		t.Errorf("stolen token: %v", err)
	}
	stream, err := open("web-token", "shop")
	if err != nil {
		t.Fatalf("own token: %v", err)
	}
	if peers := s.xds.Peers(); len(peers) != 1 || peers[0].Peer != "cluster.local/ns/shop/sa/web" {
		t.Errorf("peers %+v", peers)
	}
	if err := stream.CloseSend(); err != nil {
		t.Error(err)
	}
}
