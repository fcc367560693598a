package controlplane

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"podseal.io/podseal/internal/ca"
	"podseal.io/podseal/internal/settings"
)

const testNamespace = settings.Namespace

var epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// newSelfSigned makes a root.
func newSelfSigned(t testing.TB, now time.Time) *ca.Issuer {
	t.Helper()
	issuer, err := ca.NewSelfSigned("cluster.local", now, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return issuer
}

func secret(name string, data map[string][]byte) *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: testNamespace, Name: name}, Data: data}
}

func settingsSecret(t testing.TB, s settings.Settings) *corev1.Secret {
	t.Helper()
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return secret(settings.SettingsSecret, map[string][]byte{settingsKey: b})
}

// newTestAuthority has seen the Secrets and decided.
func newTestAuthority(t testing.TB, now func() time.Time, secrets ...*corev1.Secret) *authority {
	t.Helper()
	a := newAuthority(authorityConfig{Namespace: testNamespace, Now: now, Log: slog.New(slog.DiscardHandler)})
	for _, s := range secrets {
		a.see(s, false)
	}
	a.start()
	return a
}

// readyAuthority has default settings and a root of its own.
func readyAuthority(t testing.TB) *authority {
	t.Helper()
	return newTestAuthority(t, time.Now, settingsSecret(t, settings.Default("")), secret(settings.CASecret, newSelfSigned(t, time.Now()).Files().Data()))
}

func fakeClient(objs ...client.Object) client.WithWatch {
	return fake.NewClientBuilder().WithScheme(newScheme()).WithReturnManagedFields().WithObjects(objs...).Build()
}

func namespace(name string, labels map[string]string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
}

// reviews is an API server that knows these tokens.
type reviews map[string]authenticationv1.TokenReviewStatus

func (r reviews) create(_ context.Context, review *authenticationv1.TokenReview) error {
	if review.Spec.Token == "unreachable" {
		return fmt.Errorf("connection refused")
	}
	status, ok := r[review.Spec.Token]
	if !ok {
		status = authenticationv1.TokenReviewStatus{Error: "invalid bearer token"}
	}
	review.Status = status
	return nil
}

// accepted is what the API server says of a pod's token for our audience.
func accepted(ns, account, pod string) authenticationv1.TokenReviewStatus {
	return authenticationv1.TokenReviewStatus{
		Authenticated: true, Audiences: []string{settings.TokenAudience},
		User: authenticationv1.UserInfo{
			Username: userPrefix + ns + ":" + account, Groups: []string{"system:serviceaccounts", "system:authenticated"},
			Extra: map[string]authenticationv1.ExtraValue{"authentication.kubernetes.io/pod-name": {pod}},
		},
	}
}

// startGRPC serves on loopback until the test ends and returns a connection that
// trusts the mesh root.
func startGRPC(t *testing.T, s *grpcServer, a *authority) *grpc.ClientConn {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.serve(ctx, l) }()
	bundle, err := a.Bundle()
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(bundle)
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(credentials.NewClientTLSFromCert(pool, serviceHost(testNamespace))))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return conn
}
