package controlplane

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	peerv1 "podseal.io/podseal/api/peer/v1"
	"podseal.io/podseal/internal/ca"
	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/settings"
)

// What a replica can be asked by another.
const (
	peerView    = "view"    // viewQuestion: what it knows of proxies and edges
	peerExplain = "explain" // ExplainRequest: how far its proxies are with what holds for pods
	peerStates  = "states"  // nothing: how far its proxies are with every policy
	peerMatches = "matches" // nothing: when policies last mattered at its proxies
)

// Bounds of asking others: how many, how long each may take, how much it may say,
// in bytes, and how old a question may be.
const (
	maxPeers      = 16
	peerTimeout   = 5 * time.Second
	maxPeerAnswer = 256 << 20
	peerQuestion  = time.Minute
)

// peerKind is what a [credential] is.
const peerKind = "podseal.io/peer/v1"

// PeerView is another replica that was asked for what it knows.
type PeerView struct {
	Replica string `json:"replica"`
	Version string `json:"version,omitempty"`
	Error   string `json:"error,omitempty"` // what it knows is missing, and why
}

// credential is what a replica signs with the mesh's key to ask another: it is good
// for one question, at one replica, for a moment.
type credential struct {
	Kind string    `json:"kind"`
	From string    `json:"from"`
	To   string    `json:"to"` // the replica that is asked
	At   time.Time `json:"at"`
	Of   string    `json:"of"`
	Hash []byte    `json:"hash"` // SHA-256 of the question's body
}

// address is where another replica is asked.
type address struct{ replica, ip string }

// peerClient asks the other replicas. It asks each what it knows itself, so a
// question never goes on from there.
type peerClient struct {
	self      string // "" asks nobody
	namespace string
	others    func(ctx context.Context) ([]address, error)
	issuer    func() (*ca.Issuer, error)
	domain    func() string
	dial      func(a address, roots *identity.Bundle) (*grpc.ClientConn, error)
	timeout   time.Duration
	now       func() time.Time
	log       *slog.Logger
}

func newPeerClient(self, namespace string, cache client.Reader, auth *authority, log *slog.Logger) *peerClient {
	p := &peerClient{self: self, namespace: namespace, issuer: auth.Issuer, domain: auth.TrustDomain, timeout: peerTimeout, now: time.Now, log: log}
	p.others = func(ctx context.Context) ([]address, error) { return otherReplicas(ctx, cache, namespace, self) }
	p.dial = func(a address, roots *identity.Bundle) (*grpc.ClientConn, error) {
		cfg := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots.Pool(), ServerName: serviceHost(namespace)}
		return grpc.NewClient("passthrough:///"+net.JoinHostPort(a.ip, "15012"), grpc.WithTransportCredentials(credentials.NewTLS(cfg)))
	}
	return p
}

// otherReplicas are the pods of the control plane that run, but for this one.
func otherReplicas(ctx context.Context, cache client.Reader, namespace, self string) ([]address, error) {
	var pods corev1.PodList
	if err := cache.List(ctx, &pods, client.InNamespace(namespace), client.MatchingLabels{"app": settings.ServiceName}); err != nil {
		return nil, fmt.Errorf("list replicas: %w", err)
	}
	var out []address
	for i := range pods.Items {
		p := &pods.Items[i]
		if p.Name != self && p.Status.Phase == corev1.PodRunning && p.DeletionTimestamp == nil && p.Status.PodIP != "" {
			out = append(out, address{p.Name, p.Status.PodIP})
		}
	}
	slices.SortFunc(out, func(a, b address) int { return cmp.Compare(a.replica, b.replica) })
	return out, nil
}

// peerAnswer is what another replica answered; nil with an Error.
type peerAnswer[T any] struct {
	PeerView
	answer *T
}

// askPeers asks all other replicas at the same time.
func askPeers[T any](ctx context.Context, p *peerClient, of string, question any) []peerAnswer[T] {
	if p == nil || p.self == "" {
		return nil
	}
	others, err := p.others(ctx)
	if err != nil {
		return []peerAnswer[T]{{PeerView: PeerView{Replica: "(all others)", Error: err.Error()}}}
	}
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	all := make([]peerAnswer[T], len(others))
	var each sync.WaitGroup
	for i, a := range others {
		all[i].Replica = a.replica
		if i >= maxPeers {
			all[i].Error = fmt.Sprintf("not asked: at most %d replicas are", maxPeers)
			continue
		}
		each.Go(func() {
			answer := new(T)
			version, err := p.ask(ctx, a, of, question, answer)
			all[i].Version = version
			if err != nil {
				all[i].Error = peerError(err, p.timeout)
				p.log.Warn("another replica does not say what it knows", slog.String("replica", a.replica), slog.String("of", of), slog.String("error", err.Error()))
				return
			}
			all[i].answer = answer
		})
	}
	each.Wait()
	return all
}

// named are the other replicas, without a question.
func (p *peerClient) named(ctx context.Context) []PeerView {
	out := []PeerView{}
	if p == nil || p.self == "" {
		return out
	}
	others, err := p.others(ctx)
	if err != nil {
		return append(out, PeerView{Replica: "(all others)", Error: err.Error()})
	}
	for _, a := range others {
		out = append(out, PeerView{Replica: a.replica})
	}
	return out
}

// peerError is why a replica did not answer, for people.
func peerError(err error, timeout time.Duration) string {
	switch status.Code(err) {
	case codes.Unimplemented:
		return "it is of a version that can't be asked by other replicas"
	case codes.DeadlineExceeded:
		return fmt.Sprintf("it did not answer within %s", timeout)
	default:
		return err.Error()
	}
}

// ask asks one replica.
func (p *peerClient) ask(ctx context.Context, a address, of string, question, answer any) (version string, err error) {
	body, err := json.Marshal(question)
	if err != nil {
		return "", fmt.Errorf("write the question: %w", err)
	}
	issuer, err := p.issuer()
	if err != nil {
		return "", err
	}
	proof, err := p.sign(issuer, &credential{Kind: peerKind, From: p.self, To: a.replica, At: p.now(), Of: of, Hash: hashOf(body)})
	if err != nil {
		return "", err
	}
	conn, err := p.dial(a, issuer.Bundle())
	if err != nil {
		return "", fmt.Errorf("dial: %w", err)
	}
	defer func() { _ = conn.Close() }() // the answer has come, or never will
	stream, err := peerv1.NewPeersClient(conn).Ask(ctx, &peerv1.Question{Of: of, Body: body, Credential: proof})
	if err != nil {
		return "", err
	}
	parts := &partReader{stream: stream, left: maxPeerAnswer}
	err = json.NewDecoder(parts).Decode(answer)
	if parts.err != nil && !errors.Is(parts.err, io.EOF) {
		err = parts.err // why there is no more of the answer
	}
	return brief(parts.version), err
}

func hashOf(body []byte) []byte {
	h := sha256.Sum256(body)
	return h[:]
}

func (p *peerClient) sign(issuer *ca.Issuer, c *credential) ([]byte, error) {
	id, err := identity.New(p.domain(), p.namespace, Signer)
	if err != nil {
		return nil, fmt.Errorf("ask as the control plane: %w", err)
	}
	text, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("write the credential: %w", err)
	}
	a, err := issuer.Attest(text, id, p.now())
	if err != nil {
		return nil, err
	}
	return json.Marshal(a)
}

// brief keeps what another says of its version short and printable.
func brief(version string) string {
	const most = 64
	out := make([]rune, 0, most)
	for _, r := range version {
		if len(out) < most && r > ' ' && r < 0x7f {
			out = append(out, r)
		}
	}
	return string(out)
}

// partReader reads an answer in parts, and no more than left bytes of it.
type partReader struct {
	stream  grpc.ServerStreamingClient[peerv1.Part]
	rest    []byte
	left    int
	version string
	err     error // why nothing more comes
}

var errPeerTooMuch = errors.New("it says more than can be taken")

func (r *partReader) Read(b []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		part, err := r.stream.Recv()
		if err != nil {
			r.err = err
			return 0, err
		}
		if r.left -= len(part.GetJson()); r.left < 0 {
			r.err = errPeerTooMuch
			return 0, r.err
		}
		r.version = cmp.Or(r.version, part.GetVersion())
		r.rest = part.GetJson()
	}
	n := copy(b, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}
