package proxy

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"podseal.io/podseal/internal/ca"
	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/report"
	"podseal.io/podseal/internal/wire"
	"podseal.io/podseal/internal/xds"
)

// maxToken bounds the size of a token file.
const maxToken = 64 << 10

// Control says where the control plane is and how it is known.
type Control struct {
	Address    string // host:port of xDS and CA
	ServerName string // in its certificate; the host of Address if empty
	RootFile   string // PEM, read at each connect (contract 4.30)
	TokenFile  string // read at each request (contract 4.18)
	TTL        time.Duration
	StateFile  string        // what the control plane has told is kept here for a restart; "" keeps nothing
	Grace      time.Duration // after a restart it is waited for so long before that is believed; 0 is 5 s
}

// runControl keeps world and certificates fresh until the context ends. Nothing
// that fails here ends what is in force (design D16).
func (p *proxy) runControl(ctx context.Context) {
	c := p.cfg.Control
	if c.Address == "" {
		<-ctx.Done()
		return
	}
	conn, err := dialControl(c)
	if err != nil {
		p.log.Error("control plane can't be dialled", slog.String("address", c.Address), slog.String("error", err.Error()))
		<-ctx.Done()
		return
	}
	defer conn.Close()
	token := func() (string, error) { return readToken(c.TokenFile) }
	types := wire.Types()
	remembered, held := p.remember(types)
	defer remembered.close()
	client := xds.NewClient(xds.ClientConfig{
		Conn: conn, NodeID: p.nodeID(), Metadata: p.cfg.Metadata, Token: token, Log: p.log, Types: types, Held: held,
		Handle: func(typeURL string, upserts []xds.Resource, removed []string) map[string]error {
			rejected := p.worlds.handle(typeURL, upserts, removed)
			remembered.note(typeURL, upserts, removed, rejected)
			return rejected
		},
	})
	p.control.Store(client)
	issuing := ca.NewClient(ca.ClientConfig{Conn: conn, Token: token, TTL: c.TTL, ClusterID: p.cfg.Cluster, Now: p.cfg.Now, Asked: p.metrics.CertificateAsked, Log: p.log})
	p.creds.follow(issuing.Trust) // a root that was exchanged must not wait for half of a certificate's life
	var all sync.WaitGroup
	all.Go(func() { _ = client.Run(ctx) }) // it returns the context's cause and nothing else
	all.Go(func() { p.confirm(ctx, client, remembered) })
	all.Go(func() {
		_ = issuing.Run(ctx, func(cred *identity.Credential, bundle *identity.Bundle) { // likewise
			p.metrics.CertificateExpires(cred.Leaf.NotAfter)
			p.creds.renewed(cred, bundle)
		})
	})
	reporting := report.NewClient(report.ClientConfig{
		Conn: conn, Table: p.edges, Token: token, Sweep: p.sweep, Proxy: p.report, Matches: p.matches.all, Rand: p.chance, Log: p.log,
	})
	all.Go(func() { _ = reporting.Run(ctx) }) // likewise
	all.Go(func() { p.matches.run(ctx, p.worlds.world) })
	all.Wait()
}

// chance is a number from 0 to below 1.
func (p *proxy) chance() float64 { return float64(p.cfg.Random(1<<30)) / (1 << 30) }

// nodeID names this proxy to the control plane (contract 8.24 has the shape).
func (p *proxy) nodeID() string {
	ip := ""
	if len(p.cfg.Addresses) > 0 {
		ip = p.cfg.Addresses[0].String()
	}
	return fmt.Sprintf("sidecar~%s~%s.%s~%s.svc", ip, p.cfg.Pod, p.cfg.Namespace, p.cfg.Namespace)
}

// dialControl prepares the one connection for xDS, CA and reports.
func dialControl(c Control) (*grpc.ClientConn, error) {
	name := c.ServerName
	if name == "" {
		host, _, err := net.SplitHostPort(c.Address)
		if err != nil {
			return nil, fmt.Errorf("control plane address %q: %w", c.Address, err)
		}
		name = host
	}
	transport := &rootFileCredentials{rootFile: c.RootFile, name: name}
	options := append(xds.DialOptions(), grpc.WithTransportCredentials(transport))
	conn, err := grpc.NewClient("passthrough:///"+c.Address, options...)
	if err != nil {
		return nil, fmt.Errorf("prepare connection to the control plane: %w", err)
	}
	return conn, nil
}

// rootFileCredentials verifies the server against a file that is read anew for
// each connection: roots change while we run.
type rootFileCredentials struct{ rootFile, name string }

// ClientHandshake implements credentials.TransportCredentials.
func (r *rootFileCredentials) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	pem, err := os.ReadFile(r.rootFile)
	if err != nil {
		return nil, nil, fmt.Errorf("read the root of the control plane: %w", err)
	}
	bundle, err := identity.ParseBundle(pem)
	if err != nil {
		return nil, nil, fmt.Errorf("root of the control plane in %s: %w", r.rootFile, err)
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: bundle.Pool(), ServerName: r.name}
	return credentials.NewTLS(cfg).ClientHandshake(ctx, authority, raw)
}

// ServerHandshake implements credentials.TransportCredentials; it is never asked.
func (r *rootFileCredentials) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errDetail("these are credentials of a client")
}

// Info implements credentials.TransportCredentials.
func (r *rootFileCredentials) Info() credentials.ProtocolInfo {
	//nolint:staticcheck // deprecated for callers of Info; an implementation still has to say it, or :authority is the address
	return credentials.ProtocolInfo{SecurityProtocol: "tls", ServerName: r.name}
}

// Clone implements credentials.TransportCredentials.
func (r *rootFileCredentials) Clone() credentials.TransportCredentials {
	clone := *r
	return &clone
}

// OverrideServerName implements credentials.TransportCredentials.
func (r *rootFileCredentials) OverrideServerName(name string) error {
	r.name = name
	return nil
}

// readToken reads the service account token, which the kubelet replaces.
func readToken(file string) (string, error) {
	b, err := os.ReadFile(file)
	switch {
	case err != nil:
		return "", fmt.Errorf("read service account token: %w", err)
	case len(b) > maxToken:
		return "", fmt.Errorf("service account token in %s is too large", file)
	}
	token := strings.TrimSpace(string(b))
	if token == "" {
		return "", fmt.Errorf("service account token in %s is empty", file)
	}
	return token, nil
}
