package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"syscall"
	"time"

	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/tlsconn"
	"podseal.io/podseal/internal/workload"
)

// maxPEM bounds the size of a file that a DestinationRule names.
const maxPEM = 1 << 20

// errTLSSettings says that what a DestinationRule wants of TLS can't be done here.
var errTLSSettings = errors.New("the TLS settings of the DestinationRule can't be carried out")

// originate makes the TLS that a DestinationRule describes, SIMPLE or MUTUAL
// (contract 3.35, 3.36). Whatever fails, nothing is sent without it. Files are
// read for each connection, so that new ones hold at once.
func (p *proxy) originate(ctx context.Context, c *conn, to routing, server *net.TCPConn) (*tlsconn.Conn, error) {
	t := to.conduct.TLS
	m, err := p.material(ctx, t)
	if err != nil {
		if t.Credential == "" {
			p.metrics.FileSecretFailed()
		}
		return nil, fmt.Errorf("DestinationRule %s: %w: %w", to.conduct.Rule, errTLSSettings, err)
	}
	encrypted, err := p.tls.Client(server, originateConfig(t, m, to.sni, p.cfg.Now), time.Now().Add(handshakeTimeout))
	if err != nil {
		return nil, err
	}
	cs := encrypted.ConnectionState()
	c.note(func(r *Record) {
		r.tlsFacts(cs)
		r.Security = securityTLS
	})
	return encrypted, nil
}

// material is all that the mode needs: of a Secret, or of files.
func (p *proxy) material(ctx context.Context, t *workload.ClientTLS) (m credentialMaterial, err error) {
	if t.Credential != "" {
		if m, err = p.secrets.get(ctx, t.Credential); err != nil {
			return m, err
		}
	}
	switch {
	case t.Mode != workload.TLSMutual:
		m.cert = nil
	case t.Credential != "" && m.cert == nil:
		return m, fmt.Errorf("there is no certificate with its key (tls.crt and tls.key) in Secret %s", t.Credential)
	case t.Credential == "":
		if m.cert, err = ownCertificate(t); err != nil {
			return m, err
		}
	}
	switch {
	case t.SkipVerify:
	case t.Credential != "" && m.roots == nil:
		return m, fmt.Errorf("neither Secret %s nor %s has roots (ca.crt)", t.Credential, t.Credential+caSuffix)
	case t.Credential == "":
		m.roots, err = rootsOf(t.CACertificates)
	}
	return m, err
}

func originateConfig(t *workload.ClientTLS, m credentialMaterial, name string, now func() time.Time) *tls.Config {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: name, Time: now, SessionTicketsDisabled: true, RootCAs: m.roots}
	if m.cert != nil {
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return m.cert, nil }
	}
	if t.SkipVerify {
		cfg.InsecureSkipVerify = true // the rule says insecureSkipVerify, which admission warns of
		return cfg
	}
	if len(t.SubjectAltNames) > 0 {
		// VerifyConnection checks the chain and whether the name is one of those that the rule lists
		cfg.InsecureSkipVerify = true
		cfg.VerifyConnection = func(cs tls.ConnectionState) error { return verifyNames(cs, m.roots, t.SubjectAltNames, now()) }
	}
	return cfg
}

// verifyNames checks the chain, and that one of the names is the certificate's.
func verifyNames(cs tls.ConnectionState, roots *x509.CertPool, names []string, now time.Time) error {
	if len(cs.PeerCertificates) == 0 {
		return errors.New("the server presented no certificate")
	}
	leaf, between := cs.PeerCertificates[0], x509.NewCertPool()
	for _, c := range cs.PeerCertificates[1:] {
		between.AddCert(c)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now}); err != nil {
		return fmt.Errorf("verify the server's certificate: %w", err)
	}
	for _, u := range leaf.URIs {
		if slices.Contains(names, u.String()) {
			return nil
		}
	}
	if slices.ContainsFunc(names, func(name string) bool { return leaf.VerifyHostname(name) == nil }) {
		return nil
	}
	return fmt.Errorf("%w: it has none of the names %q", identity.ErrPeerIdentity, names)
}

// rootsOf reads roots from a file, or the system's if there is none. The proxy's
// image brings none, so that a pod must say whom it trusts.
func rootsOf(file string) (*x509.CertPool, error) {
	if file == "" {
		pool, err := x509.SystemCertPool()
		if err == nil && pool.Equal(x509.NewCertPool()) {
			err = errors.New("the proxy has none")
		}
		if err != nil {
			return nil, fmt.Errorf("system roots: %w: name a file in caCertificates", err)
		}
		return pool, nil
	}
	text, err := readPEM(file)
	if err != nil {
		return nil, err
	}
	certs, err := identity.ParseCertificates(text)
	if err != nil {
		return nil, fmt.Errorf("caCertificates %s: %w", file, err)
	}
	pool := x509.NewCertPool()
	for _, c := range certs {
		pool.AddCert(c)
	}
	return pool, nil
}

func ownCertificate(t *workload.ClientTLS) (*tls.Certificate, error) {
	chain, err := readPEM(t.ClientCertificate)
	if err != nil {
		return nil, err
	}
	key, err := readPEM(t.PrivateKey)
	if err != nil {
		return nil, err
	}
	cert, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return nil, fmt.Errorf("clientCertificate %s with privateKey %s: %w", t.ClientCertificate, t.PrivateKey, err)
	}
	return &cert, nil
}

// readPEM reads a file that a rule names, which anybody who may write rules can
// choose: it is bounded, and nothing of it is shown.
func readPEM(file string) ([]byte, error) {
	f, err := os.OpenFile(file, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe would wait for its writer
	if err != nil {
		return nil, fmt.Errorf("read: %w", err)
	}
	defer func() { _ = f.Close() }() // nothing was written
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, fmt.Errorf("read %s: no regular file", file)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxPEM+1))
	if err != nil {
		return nil, fmt.Errorf("read: %w", err)
	}
	if len(text) > maxPEM {
		return nil, fmt.Errorf("read %s: more than %d bytes", file, maxPEM)
	}
	return text, nil
}
