package controlplane

import (
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	securitypb "istio.io/api/security/v1alpha1"

	"podseal.io/podseal/internal/xds"
)

// Garbage on 15012, before and inside TLS, ends cleanly and disturbs nobody.
func TestGarbageOn15012(t *testing.T) {
	a := readyAuthority(t)
	known := reviews{"web-token": accepted("shop", "web", "web-1")}
	s := newGRPC(grpcConfig{Authority: a, Reviewer: newReviewer(reviewerConfig{Create: known.create, Now: time.Now}), Store: xds.NewStore(), Counts: newCounts(), Log: slog.New(slog.DiscardHandler)})
	conn := startGRPC(t, s, a)
	hello := "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + strings.Repeat("\x00", 64)
	for name, tc := range map[string]struct {
		inside bool
		text   string
	}{
		"nothing":                 {false, ""},
		"bytes":                   {false, "\x00\xff garbage\n"},
		"plaintext HTTP":          {false, "GET / HTTP/1.1\r\nHost: istiod\r\n\r\n"},
		"plaintext HTTP/2":        {false, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"},
		"a ClientHello, cut":      {false, hello},
		"inside TLS: nothing":     {true, ""},
		"inside TLS: bytes":       {true, strings.Repeat("\x00\xff garbage\n", 100)},
		"inside TLS: HTTP/1":      {true, "GET / HTTP/1.1\r\nHost: istiod\r\n\r\n"},
		"inside TLS: a bad frame": {true, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\x01\x00\x00\x00\x00\x01"},
	} {
		raw, err := net.Dial("tcp", conn.Target())
		if err != nil {
			t.Fatal(err)
		}
		_ = raw.SetDeadline(time.Now().Add(20 * time.Second))
		var c interface {
			net.Conn
			CloseWrite() error
		} = raw.(*net.TCPConn)
		if tc.inside {
			c = tls.Client(raw, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
		}
		if _, err := io.WriteString(c, tc.text); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if secure, ok := c.(*tls.Conn); ok && tc.text == "" {
			_ = secure.Handshake()
		}
		_ = c.CloseWrite()
		if _, err := io.Copy(io.Discard, c); err != nil && strings.Contains(err.Error(), "timeout") {
			t.Errorf("%s: it stays open", name)
		}
		_ = raw.Close()
		if _, err := securitypb.NewIstioCertificateServiceClient(conn).CreateCertificate(withToken(t.Context(), "web-token"), &securitypb.IstioCertificateRequest{Csr: csr(t)}); err != nil {
			t.Errorf("after %s: %v", name, err)
		}
	}
}
