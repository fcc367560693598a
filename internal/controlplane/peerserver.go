package controlplane

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	peerv1 "podseal.io/podseal/api/peer/v1"
	"podseal.io/podseal/internal/ca"
	"podseal.io/podseal/internal/version"
)

// Bounds of answering others: how many questions at a time, how long one may take,
// and the size of a part of an answer, in bytes.
const (
	maxPeerQuestions = 4
	peerAnswerTime   = 20 * time.Second
	peerPart         = 256 << 10
)

// viewQuestion is the body of a question for a view.
type viewQuestion struct {
	Namespace string   `json:"namespace,omitempty"`
	Parts     []string `json:"parts,omitempty"`
}

// The bodies of questions that say nothing more.
type (
	statesQuestion  struct{}
	matchesQuestion struct{}
)

// peerServer answers other replicas from what this one knows. It holds nothing that
// could ask on.
type peerServer struct {
	peerv1.UnimplementedPeersServer
	self, namespace string
	issuer          func() (*ca.Issuer, error)
	domain          func() string
	view            func(ctx context.Context, namespace string, parts []string) (*View, error)
	explain         func(q *ExplainRequest) (*ExplainAnswer, error)
	states          func() *policyStates
	matches         func() []objectMatch
	asking          chan struct{}
	now             func() time.Time
	log             *slog.Logger
}

// Ask answers one question.
func (s *peerServer) Ask(q *peerv1.Question, stream grpc.ServerStreamingServer[peerv1.Part]) error {
	from, err := s.authenticate(q)
	if err != nil {
		s.log.Warn("question of another replica refused", slog.String("error", err.Error()))
		return status.Error(codes.Unauthenticated, "request authenticate failure")
	}
	ctx, cancel := context.WithTimeout(stream.Context(), peerAnswerTime)
	defer cancel()
	select {
	case s.asking <- struct{}{}:
		defer func() { <-s.asking }()
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	}
	answer, err := s.answer(ctx, q)
	if err != nil {
		return err
	}
	s.log.Debug("another replica is answered", slog.String("replica", from), slog.String("of", q.GetOf()))
	out := &partWriter{stream: stream}
	buffered := bufio.NewWriterSize(out, peerPart)
	return errors.Join(json.NewEncoder(buffered).Encode(answer), buffered.Flush())
}

func (s *peerServer) answer(ctx context.Context, q *peerv1.Question) (answer any, err error) {
	question := map[string]any{peerView: &viewQuestion{}, peerExplain: &ExplainRequest{}, peerStates: &statesQuestion{}, peerMatches: &matchesQuestion{}}[q.GetOf()]
	if question == nil {
		return nil, status.Errorf(codes.Unimplemented, "%.40q is not known", q.GetOf())
	}
	if err := json.Unmarshal(q.GetBody(), question); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "read the question: %v", err)
	}
	switch x := question.(type) {
	case *viewQuestion:
		answer, err = s.view(ctx, x.Namespace, x.Parts)
	case *ExplainRequest:
		answer, err = s.explain(x)
	case *statesQuestion:
		answer = s.states()
	case *matchesQuestion:
		answer = s.matches()
	}
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	return answer, nil
}

// authenticate says which replica asks: only the control plane has the key.
func (s *peerServer) authenticate(q *peerv1.Question) (from string, err error) {
	issuer, err := s.issuer()
	if err != nil {
		return "", err
	}
	a, c := &ca.Attestation{}, &credential{}
	if err := json.Unmarshal(q.GetCredential(), a); err != nil {
		return "", fmt.Errorf("read the credential: %w", err)
	}
	now := s.now()
	id, err := a.Verify(issuer.Bundle(), now)
	if err != nil {
		return "", err
	}
	if id.Namespace() != s.namespace || id.ServiceAccount() != Signer || id.TrustDomain() != s.domain() {
		return "", fmt.Errorf("it is signed by %s, which is not the control plane", id)
	}
	if err := json.Unmarshal(a.Statement, c); err != nil {
		return "", fmt.Errorf("read what is signed: %w", err)
	}
	switch old := now.Sub(c.At).Abs(); {
	case c.Kind != peerKind:
		return "", errors.New("what is signed is something else")
	case c.To != s.self || c.Of != q.GetOf() || !bytes.Equal(c.Hash, hashOf(q.GetBody())):
		return "", errors.New("what is signed is another question, or for another replica")
	case old > peerQuestion:
		return "", fmt.Errorf("the question is of %s ago", old)
	}
	return c.From, nil
}

// partWriter sends an answer in parts.
type partWriter struct {
	stream grpc.ServerStreamingServer[peerv1.Part]
	said   bool
}

func (w *partWriter) Write(b []byte) (int, error) {
	for sent := 0; sent < len(b); sent += peerPart {
		part := &peerv1.Part{Json: b[sent:min(sent+peerPart, len(b))]}
		if !w.said {
			part.Version, w.said = version.Version, true
		}
		if err := w.stream.Send(part); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}
