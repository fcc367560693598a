package ca

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"net"
	"net/url"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/encoding/protowire"

	"podseal.io/podseal/internal/identity"
)

// rawCodec passes messages as the bytes that they are.
type rawCodec struct{}

func (rawCodec) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }
func (rawCodec) Unmarshal(b []byte, v any) error {
	*v.(*[]byte) = bytes.Clone(b)
	return nil
}
func (rawCodec) Name() string { return "proto" }

// TestAgentBytes is a request as an agent of Istio makes it, byte by byte, with the
// RSA key and the names that agents ask for; and its answer.
// Contract 4.5, 4.8, 4.9, 4.11, 4.16.
func TestAgentBytes(t *testing.T) {
	c := newCall(t)
	g := grpc.NewServer()
	NewServer(c.cfg).Register(g)
	l := bufconn.Listen(1 << 16)
	done := make(chan error, 1)
	go func() { done <- g.Serve(l) }()
	defer func() { g.Stop(); <-done }()

	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	csr := csrFor(t, key, &x509.CertificateRequest{
		Subject: pkix.Name{Organization: []string{""}}, URIs: []*url.URL{{Scheme: "spiffe", Host: "cluster.local", Path: "/ns/shop/sa/admin"}},
	})
	field := func(b []byte, number protowire.Number, value []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(b, number, protowire.BytesType), value)
	}
	entry := field(field(nil, 1, []byte("CertSigner")), 2, field(nil, 3, nil))
	request := field(nil, 1, csr)
	request = protowire.AppendVarint(protowire.AppendTag(request, 3, protowire.VarintType), 86400)
	request = field(request, 4, field(nil, 1, entry))

	conn, err := grpc.NewClient("passthrough:///ca", grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), "Authorization", "Bearer good", "ClusterID", "Kubernetes"), 10*time.Second)
	defer cancel()
	var answer []byte
	if err := conn.Invoke(ctx, "/istio.v1.auth.IstioCertificateService/CreateCertificate", &request, &answer, grpc.ForceCodec(rawCodec{})); err != nil {
		t.Fatal(err)
	}
	var chain [][]byte // field 1, repeated, and nothing else
	for len(answer) > 0 {
		number, kind, n := protowire.ConsumeTag(answer)
		if n < 0 || number != 1 || kind != protowire.BytesType {
			t.Fatalf("field %d of kind %d", number, kind)
		}
		value, m := protowire.ConsumeBytes(answer[n:])
		if m < 0 {
			t.Fatal("cut off")
		}
		chain, answer = append(chain, value), answer[n+m:]
	}
	if len(chain) != 2 { // the leaf, and the bundle last
		t.Fatalf("%d certificates", len(chain))
	}
	leaf, err := identity.ParseCertificates(chain[0])
	if err != nil || len(leaf) != 1 {
		t.Fatal(err)
	}
	if id, err := identity.FromCertificate(leaf[0]); err != nil || id != web {
		t.Errorf("certified %v, %v", id, err)
	}
	if !key.PublicKey.Equal(leaf[0].PublicKey) || len(leaf[0].Subject.Organization) != 0 {
		t.Errorf("key %T, subject %s", leaf[0].PublicKey, leaf[0].Subject)
	}
	bundle, err := identity.ParseBundle(chain[1])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := leaf[0].Verify(x509.VerifyOptions{Roots: bundle.Pool(), CurrentTime: day0, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		t.Error(err)
	}
	if bytes.Contains(c.log.Bytes(), []byte("good")) {
		t.Error("the token is in the log")
	}
}
