package controlplane

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"podseal.io/podseal/internal/ca"
	"podseal.io/podseal/internal/settings"
)

// Bounds of what is kept of reviews: how long one holds and how many are kept. And
// how many are asked for at a time: whoever reaches port 15012 can make us ask,
// and the API server must not feel it.
const (
	reviewHolds = time.Minute
	maxReviews  = 4096
	maxAsking   = 64
)

// userPrefix begins the user name of a service account.
const userPrefix = "system:serviceaccount:"

type reviewerConfig struct {
	// Create asks the API server and fills in the status.
	Create func(ctx context.Context, review *authenticationv1.TokenReview) error
	Now    func() time.Time
}

// reviewer says to whom a service-account token belongs (contract 4.17). What
// was accepted holds for a minute, or until the token expires if that is sooner;
// what was refused is asked again.
type reviewer struct {
	cfg    reviewerConfig
	asking chan struct{} // an element for each question that is under way

	mu   sync.Mutex
	kept map[[sha256.Size]byte]kept
}

type kept struct {
	caller ca.Caller
	until  time.Time
}

func newReviewer(cfg reviewerConfig) *reviewer {
	return &reviewer{cfg: cfg, asking: make(chan struct{}, maxAsking), kept: map[[sha256.Size]byte]kept{}}
}

func reviewThrough(c client.Client) func(context.Context, *authenticationv1.TokenReview) error {
	return func(ctx context.Context, review *authenticationv1.TokenReview) error { return c.Create(ctx, review) }
}

// Review returns whom the token belongs to.
func (r *reviewer) Review(ctx context.Context, token string) (ca.Caller, error) {
	if token == "" || len(token) > ca.MaxToken {
		return ca.Caller{}, fmt.Errorf("a token has 1 to %d bytes, this one has %d", ca.MaxToken, len(token))
	}
	hash, now := sha256.Sum256([]byte(token)), r.cfg.Now()
	if caller, ok := r.recall(hash, now); ok {
		return caller, nil
	}
	review := &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{settings.TokenAudience}}}
	if err := r.ask(ctx, review); err != nil {
		return ca.Caller{}, fmt.Errorf("%w: %w", ca.ErrReviewUnavailable, err)
	}
	caller, err := callerOf(&review.Status)
	if err != nil {
		return ca.Caller{}, err
	}
	r.keep(hash, kept{caller, earliest(now.Add(reviewHolds), expiry(token))}, now)
	return caller, nil
}

func (r *reviewer) ask(ctx context.Context, review *authenticationv1.TokenReview) error {
	select {
	case r.asking <- struct{}{}:
		defer func() { <-r.asking }()
	case <-ctx.Done():
		return fmt.Errorf("wait for other reviews: %w", context.Cause(ctx))
	}
	return r.cfg.Create(ctx, review)
}

func (r *reviewer) recall(hash [sha256.Size]byte, now time.Time) (ca.Caller, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	k, ok := r.kept[hash]
	return k.caller, ok && now.Before(k.until)
}

// keep forgets what has expired, and everything when that is not enough: what is
// forgotten is only asked again.
func (r *reviewer) keep(hash [sha256.Size]byte, k kept, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.kept) >= maxReviews {
		for h, old := range r.kept {
			if !now.Before(old.until) {
				delete(r.kept, h)
			}
		}
		if len(r.kept) >= maxReviews {
			clear(r.kept)
		}
	}
	r.kept[hash] = k
}

// callerOf reads a review's answer (contract 4.17, 4.18).
func callerOf(s *authenticationv1.TokenReviewStatus) (ca.Caller, error) {
	if !s.Authenticated {
		return ca.Caller{}, fmt.Errorf("the token is not valid: %s", s.Error)
	}
	if !slices.Contains(s.Audiences, settings.TokenAudience) {
		return ca.Caller{}, fmt.Errorf("the token is for audiences %q, not for %q", s.Audiences, settings.TokenAudience)
	}
	if !slices.Contains(s.User.Groups, "system:serviceaccounts") {
		return ca.Caller{}, errors.New("the token is not a service account's")
	}
	rest, ok := strings.CutPrefix(s.User.Username, userPrefix)
	ns, account, both := strings.Cut(rest, ":")
	if !ok || !both || ns == "" || account == "" || strings.Contains(account, ":") {
		return ca.Caller{}, fmt.Errorf("user %q is not a service account", s.User.Username)
	}
	caller := ca.Caller{Namespace: ns, ServiceAccount: account}
	if pod := s.User.Extra["authentication.kubernetes.io/pod-name"]; len(pod) == 1 {
		caller.Pod = pod[0]
	}
	return caller, nil
}

// expiry reads when a JWT expires without verifying anything: it is asked only
// of tokens that the API server has accepted. Zero if it doesn't say.
func expiry(token string) time.Time {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return time.Time{}
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return time.Time{}
	}
	var claims struct {
		Exp int64 `json:"exp"`
	}
	if json.Unmarshal(payload, &claims) != nil || claims.Exp <= 0 {
		return time.Time{}
	}
	return time.Unix(claims.Exp, 0)
}

// earliest returns the earlier of two times; a zero b is no time.
func earliest(a, b time.Time) time.Time {
	if b.IsZero() || a.Before(b) {
		return a
	}
	return b
}
