package ca

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	securitypb "istio.io/api/security/v1alpha1"

	"podseal.io/podseal/internal/identity"
)

// Bounds of what an unauthenticated caller can make the server do.
const (
	maxReviews    = 64
	reviewTimeout = 10 * time.Second
)

// MaxToken bounds the length of a token, in bytes.
const MaxToken = 16 << 10

// DefaultClusterID is the cluster that callers name, or leave out, when they
// mean this one (contract 4.16).
const DefaultClusterID = "Kubernetes"

// ErrReviewUnavailable is wrapped by a Review that could not ask: the caller is
// then told to try again instead of being refused.
var ErrReviewUnavailable = errors.New("token review is unavailable")

// Caller is whom a token was reviewed to belong to.
type Caller struct {
	Namespace      string
	ServiceAccount string
	Pod            string // for the audit log; may be empty
}

// ServerConfig is what a [Server] needs.
type ServerConfig struct {
	// Issuer returns what signs now, or why nothing does.
	Issuer func() (*Issuer, error)
	// Review says to whom a token belongs, if it is valid and meant for this
	// authority (contract 4.17). Its error is logged, not sent. At most 64 run at
	// a time, each for at most 10 s.
	Review func(ctx context.Context, token string) (Caller, error)
	// TrustDomain is the mesh's own, whatever a caller believes (contract 4.3).
	TrustDomain func() string
	Now         func() time.Time
	ClusterID   string // of this cluster; DefaultClusterID if empty
	Log         *slog.Logger
}

// Server hands out workload certificates. It starts no goroutine.
type Server struct {
	securitypb.UnimplementedIstioCertificateServiceServer
	cfg     ServerConfig
	reviews chan struct{}
}

// NewServer returns a server; [Server.Register] puts it on a gRPC server.
func NewServer(cfg ServerConfig) *Server {
	if cfg.ClusterID == "" {
		cfg.ClusterID = DefaultClusterID
	}
	return &Server{cfg: cfg, reviews: make(chan struct{}, maxReviews)}
}

// Register offers the service on g.
func (s *Server) Register(g grpc.ServiceRegistrar) {
	securitypb.RegisterIstioCertificateServiceServer(g, s)
}

// What callers are told. It says nothing of tokens or of the reviewer
// (contract 4.13).
var (
	errUnauthenticated = status.Error(codes.Unauthenticated, "request authenticate failure")
	errUnavailable     = status.Error(codes.Unavailable, "request authentication is unavailable, try again")
	errBusy            = status.Error(codes.ResourceExhausted, "too many requests, try again")
	errNotReady        = status.Error(codes.Internal, "CSR signing error (certificate authority is not ready)")
	errSigning         = status.Error(codes.Internal, "CSR signing error (certificate authority cannot sign)")
)

// refusal is why a request fails: what the caller is told and what is logged.
type refusal struct {
	told   error
	reason string
	cause  error
}

// CreateCertificate certifies the key of the request as the identity of the
// caller's token. Each call leaves one line in the log.
func (s *Server) CreateCertificate(ctx context.Context, req *securitypb.IstioCertificateRequest) (*securitypb.IstioCertificateResponse, error) {
	caller, no := s.authenticate(ctx, req)
	if no != nil {
		return nil, s.refuse(ctx, caller, no)
	}
	id, err := identity.New(s.cfg.TrustDomain(), caller.Namespace, caller.ServiceAccount)
	if err != nil {
		return nil, s.refuse(ctx, caller, &refusal{errUnauthenticated, "no_identity", err})
	}
	issuer, err := s.cfg.Issuer()
	if err != nil {
		return nil, s.refuse(ctx, caller, &refusal{errNotReady, "not_ready", err})
	}
	issued, err := issuer.Sign([]byte(req.GetCsr()), id, seconds(req.GetValidityDuration()), s.cfg.Now())
	switch {
	case errors.Is(err, ErrCSR), errors.Is(err, ErrTTL):
		told := status.Errorf(codes.InvalidArgument, "CSR signing error (%s)", err.Error())
		return nil, s.refuse(ctx, caller, &refusal{told, "bad_request", err})
	case err != nil:
		return nil, s.refuse(ctx, caller, &refusal{errSigning, "cannot_sign", err})
	}
	s.cfg.Log.Info("certificate issued",
		slog.String("identity", id.String()),
		slog.String("pod", caller.Namespace+"/"+caller.Pod),
		slog.String("serial", issued.Leaf.SerialNumber.Text(16)),
		slog.Time("not_after", issued.Leaf.NotAfter),
		slog.String("from", address(ctx)))
	return &securitypb.IstioCertificateResponse{CertChain: issued.Chain}, nil
}

// authenticate says who calls, by the token alone.
func (s *Server) authenticate(ctx context.Context, req *securitypb.IstioCertificateRequest) (Caller, *refusal) {
	token, err := BearerToken(ctx)
	if err != nil {
		return Caller{}, &refusal{errUnauthenticated, "no_token", err}
	}
	md, _ := metadata.FromIncomingContext(ctx)
	for _, cluster := range md.Get("clusterid") {
		if cluster != "" && cluster != s.cfg.ClusterID {
			return Caller{}, &refusal{errUnauthenticated, "foreign_cluster", errors.New("the caller names another cluster")}
		}
	}
	// Contract 4.10: nobody is trusted to ask in another's name.
	if v, ok := req.GetMetadata().GetFields()["ImpersonatedIdentity"]; ok && v.AsInterface() != "" {
		return Caller{}, &refusal{errUnauthenticated, "impersonation", errors.New("the caller asks for another's identity")}
	}
	ctx, cancel := context.WithTimeout(ctx, reviewTimeout)
	defer cancel()
	select {
	case s.reviews <- struct{}{}:
		defer func() { <-s.reviews }()
	case <-ctx.Done():
		return Caller{}, &refusal{errBusy, "busy", context.Cause(ctx)}
	}
	caller, err := s.cfg.Review(ctx, token)
	switch {
	case err == nil:
		return caller, nil
	case errors.Is(err, ErrReviewUnavailable), ctx.Err() != nil:
		return Caller{}, &refusal{errUnavailable, "review_unavailable", err}
	default:
		return Caller{}, &refusal{errUnauthenticated, "token_refused", err}
	}
}

func (s *Server) refuse(ctx context.Context, caller Caller, no *refusal) error {
	s.cfg.Log.Warn("certificate refused",
		slog.String("reason", no.reason),
		slog.String("error", no.cause.Error()),
		slog.String("pod", caller.Namespace+"/"+caller.Pod),
		slog.String("from", address(ctx)))
	return no.told
}

// BearerToken picks the one bearer token out of the metadata of a call
// (contract 4.16). Its errors never show the token.
func BearerToken(ctx context.Context) (string, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	var token string
	for _, v := range md.Get("authorization") {
		scheme, t, ok := strings.Cut(v, " ")
		if !ok || !strings.EqualFold(scheme, "bearer") {
			continue
		}
		if token != "" {
			return "", errors.New("more than one bearer token")
		}
		token = strings.TrimSpace(t)
	}
	switch {
	case token == "":
		return "", errors.New("no bearer token")
	case len(token) > MaxToken:
		return "", errors.New("the bearer token is too long")
	default:
		return token, nil
	}
}

// seconds is a duration that is too long in any case where it would overflow.
func seconds(n int64) time.Duration {
	return time.Duration(max(-1, min(n, int64(2*MaxTTL/time.Second)))) * time.Second
}

func address(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		return p.Addr.String()
	}
	return ""
}
