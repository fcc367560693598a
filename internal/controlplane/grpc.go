package controlplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	peerv1 "podseal.io/podseal/api/peer/v1"
	"podseal.io/podseal/internal/ca"
	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/report"
	"podseal.io/podseal/internal/xds"
)

// Metadata of a node by which a proxy says whose it is (contract 4.20).
const (
	nodeNamespace      = "NAMESPACE"
	nodeServiceAccount = "SERVICE_ACCOUNT"
)

// maxStreams bounds the streams of one connection; a proxy has three.
const maxStreams = 64

type grpcConfig struct {
	Authority *authority
	Reviewer  *reviewer
	Store     *xds.Store
	Counts    *counts
	Log       *slog.Logger
}

// grpcServer is port 15012: configuration and certificates for proxies, and what
// they report.
type grpcServer struct {
	cfg    grpcConfig
	server *grpc.Server
	xds    *xds.Server
	report *report.Server
}

func newGRPC(cfg grpcConfig) *grpcServer {
	s := &grpcServer{cfg: cfg}
	tlsConfig := cfg.Authority.TLSConfig()
	tlsConfig.NextProtos = []string{"h2"}
	opts := append(xds.ServerOptions(),
		grpc.Creds(credentials.NewTLS(tlsConfig)),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.ConnectionTimeout(10*time.Second),
		grpc.UnaryInterceptor(cfg.Counts.countCSR),
	)
	s.server = grpc.NewServer(opts...)
	s.xds = xds.NewServer(xds.ServerConfig{Store: cfg.Store, Authenticate: s.authenticate, Authorize: authorize, Converged: cfg.Counts.converged, Log: cfg.Log})
	s.xds.Register(s.server)
	s.report = report.NewServer(report.ServerConfig{Authenticate: s.reporter, Log: cfg.Log})
	s.report.Register(s.server)
	ca.NewServer(ca.ServerConfig{
		Issuer: cfg.Authority.Issuer, Review: cfg.Reviewer.Review, TrustDomain: cfg.Authority.TrustDomain, Now: time.Now, Log: cfg.Log,
	}).Register(s.server)
	return s
}

// answerPeers offers other replicas what this one knows. It is called before serve.
func (s *grpcServer) answerPeers(cfg Config, own *viewer, asked *explainer, states *stateReader, matches *matchReader) {
	peerv1.RegisterPeersServer(s.server, &peerServer{
		self: cfg.Replica, namespace: cfg.Namespace, issuer: s.cfg.Authority.Issuer, domain: s.cfg.Authority.TrustDomain,
		view: own.view, explain: asked.explain, states: func() *policyStates {
			p, _ := states.read()
			return p
		},
		matches: matches.read,
		asking:  make(chan struct{}, maxPeerQuestions), now: time.Now, log: cfg.Log,
	})
}

// authenticate returns the identity of a stream's token.
func (s *grpcServer) authenticate(ctx context.Context) (string, error) {
	id, _, err := s.caller(ctx)
	return id.String(), err
}

// reporter returns the pod of a stream's token: only a token that is bound to a
// pod may report, and for that pod alone.
func (s *grpcServer) reporter(ctx context.Context) (report.Pod, error) {
	id, caller, err := s.caller(ctx)
	if err == nil && caller.Pod == "" {
		err = errors.New("the token is not bound to a pod")
	}
	return report.Pod{Namespace: caller.Namespace, Name: caller.Pod, Identity: id.String()}, err
}

func (s *grpcServer) caller(ctx context.Context) (identity.ID, ca.Caller, error) {
	token, err := ca.BearerToken(ctx)
	if err != nil {
		return identity.ID{}, ca.Caller{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	caller, err := s.cfg.Reviewer.Review(ctx, token)
	if err != nil {
		return identity.ID{}, ca.Caller{}, fmt.Errorf("review token: %w", err)
	}
	id, err := identity.New(s.cfg.Authority.TrustDomain(), caller.Namespace, caller.ServiceAccount)
	if err != nil {
		return identity.ID{}, ca.Caller{}, fmt.Errorf("identity of the token: %w", err)
	}
	return id, caller, nil
}

// authorize reports why an identity may not be a node: a proxy is of its own
// namespace and service account only (contract 4.20).
func authorize(peer string, node xds.Node) error {
	id, err := identity.Parse(peer)
	if err != nil {
		return fmt.Errorf("authorize: %w", err)
	}
	for _, claim := range []struct{ what, said, is string }{
		{"node ID", namespaceOf(node.ID), id.Namespace()},
		{"metadata " + nodeNamespace, node.Metadata[nodeNamespace], id.Namespace()},
		{"metadata " + nodeServiceAccount, node.Metadata[nodeServiceAccount], id.ServiceAccount()},
	} {
		if claim.said != claim.is {
			return fmt.Errorf("%s says %q, the token says %q", claim.what, claim.said, claim.is)
		}
	}
	return nil
}

// namespaceOf reads the namespace out of a node ID: `sidecar~<ip>~<pod>.<ns>~<domain>`.
func namespaceOf(nodeID string) string {
	parts := strings.Split(nodeID, "~")
	if len(parts) != 4 {
		return ""
	}
	return parts[2][strings.LastIndex(parts[2], ".")+1:]
}

// serve runs until the context ends. Streams are told to go elsewhere; what
// doesn't end in time is cut.
func (s *grpcServer) serve(ctx context.Context, l net.Listener) error {
	failed := make(chan error, 1)
	go func() { failed <- s.server.Serve(l) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve gRPC: %w", err)
	case <-ctx.Done():
	}
	s.xds.Shutdown()
	s.report.Shutdown()
	cut := time.AfterFunc(shutdownTimeout, s.server.Stop)
	defer cut.Stop()
	s.server.GracefulStop()
	s.xds.Wait()
	s.report.Wait()
	if err := <-failed; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve gRPC: %w", err)
	}
	return nil
}
