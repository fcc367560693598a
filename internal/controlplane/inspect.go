package controlplane

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"podseal.io/podseal/internal/ca"
	"podseal.io/podseal/internal/dashboard"
)

// What whoever wants to look at the mesh needs to know. The port is open on the
// pod's loopback address only: it is reached by forwarding, which Kubernetes
// allows or not, and then wants a token of this audience whose account may list
// edges.podseal.io, in the namespace that it asks for or in all.
const (
	InspectPort     = "15004"
	InspectAudience = "podseal.io"
	InspectAccount  = "podseal-viewer" // in the namespace of the control plane
	InspectPath     = "/v1/view"
)

// maxInspections is how many are answered at a time.
const maxInspections = 4

// inspector is port 15004.
type inspector struct {
	review    func(ctx context.Context, review *authenticationv1.TokenReview) error
	authorize func(ctx context.Context, review *authorizationv1.SubjectAccessReview) error
	view      func(ctx context.Context, namespace string, parts []string) (*View, error)
	explain   func(ctx context.Context, q *ExplainRequest) (*ExplainAnswer, error)
	attest    func(ctx context.Context, namespace string) (*ca.Attestation, error)
	asking    chan struct{}
	log       *slog.Logger
}

func newInspector(c client.Client, all *replicas, attest *attester, log *slog.Logger) *inspector {
	return &inspector{
		review: reviewThrough(c),
		authorize: func(ctx context.Context, review *authorizationv1.SubjectAccessReview) error {
			return c.Create(ctx, review)
		},
		view: all.view, explain: all.explain, attest: attest.attest, asking: make(chan struct{}, maxInspections), log: log,
	}
}

func (s *inspector) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+InspectPath, s.serve)
	mux.HandleFunc("POST "+ExplainPath, s.serveExplain)
	mux.HandleFunc("GET "+AttestPath, s.serveAttest)
	mux.HandleFunc("GET "+dashboard.Path+"{name...}", func(w http.ResponseWriter, r *http.Request) {
		if _, leave, ok := s.enter(w, r, ""); ok {
			dashboard.Serve(w, r.PathValue("name"))
			leave()
		}
	})
	return mux
}

// enter lets whoever asks in when there is room and he may know of a namespace, or
// of all. It answers who may not; who may calls leave in the end.
func (s *inspector) enter(w http.ResponseWriter, r *http.Request, namespace string) (ctx context.Context, leave func(), ok bool) {
	select {
	case s.asking <- struct{}{}:
	case <-r.Context().Done():
		return nil, nil, false
	}
	ctx, cancel := context.WithTimeout(r.Context(), 20*time.Second)
	leave = func() {
		cancel()
		<-s.asking
	}
	user, status, err := s.allowed(ctx, r, namespace)
	if err != nil {
		s.log.Warn("question about the mesh refused", slog.String("path", r.URL.Path), slog.String("user", user), slog.String("namespace", namespace), slog.String("error", err.Error()))
		http.Error(w, err.Error(), status)
		leave()
		return nil, nil, false
	}
	return ctx, leave, true
}

// serve answers who may know. Parameters: namespace, all if it is empty; part,
// any number of pods, proxies, edges.
func (s *inspector) serve(w http.ResponseWriter, r *http.Request) {
	namespace, parts := r.URL.Query().Get("namespace"), r.URL.Query()["part"]
	if i := slices.IndexFunc(parts, func(p string) bool { return !slices.Contains(viewParts, p) }); i >= 0 {
		http.Error(w, fmt.Sprintf("part %q is not one of %s", parts[i], strings.Join(viewParts, ", ")), http.StatusBadRequest)
		return
	}
	ctx, leave, ok := s.enter(w, r, namespace)
	if !ok {
		return
	}
	defer leave()
	view, err := s.view(ctx, namespace, parts)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	answer(w, r, view)
}

// serveExplain answers who may know of all namespaces: what may reach a pod can
// be anywhere.
func (s *inspector) serveExplain(w http.ResponseWriter, r *http.Request) {
	ctx, leave, ok := s.enter(w, r, "")
	if !ok {
		return
	}
	defer leave()
	q := &ExplainRequest{}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxExplain)).Decode(q); err != nil {
		http.Error(w, "read the question: "+err.Error(), http.StatusBadRequest)
		return
	}
	out, err := s.explain(ctx, q)
	_, theirs := errors.AsType[badQuestion](err)
	switch {
	case theirs:
		http.Error(w, err.Error(), http.StatusBadRequest)
	case err != nil:
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	default:
		answer(w, r, out)
	}
}

// serveAttest answers who may know of a namespace, or of all.
func (s *inspector) serveAttest(w http.ResponseWriter, r *http.Request) {
	namespace := r.URL.Query().Get("namespace")
	ctx, leave, ok := s.enter(w, r, namespace)
	if !ok {
		return
	}
	defer leave()
	a, err := s.attest(ctx, namespace)
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	answer(w, r, a)
}

// answer writes v, compressed for who takes that.
func answer(w http.ResponseWriter, r *http.Request, v any) {
	w.Header().Set("Content-Type", "application/json")
	if !strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		_ = json.NewEncoder(w).Encode(v) // who asked is gone
		return
	}
	w.Header().Set("Content-Encoding", "gzip")
	z := gzip.NewWriter(w)
	_ = json.NewEncoder(z).Encode(v)
	_ = z.Close()
}

// allowed asks Kubernetes who this is and whether it may look.
func (s *inspector) allowed(ctx context.Context, r *http.Request, namespace string) (user string, status int, err error) {
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok || token == "" || len(token) > ca.MaxToken {
		return "", http.StatusUnauthorized, errors.New("a bearer token is needed")
	}
	review := &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{InspectAudience}}}
	if err := s.review(ctx, review); err != nil {
		return "", http.StatusServiceUnavailable, fmt.Errorf("review the token: %w", err)
	}
	if !review.Status.Authenticated || !slices.Contains(review.Status.Audiences, InspectAudience) {
		return "", http.StatusUnauthorized, fmt.Errorf("the token is not valid for the audience %s", InspectAudience)
	}
	u := review.Status.User
	extra := make(map[string]authorizationv1.ExtraValue, len(u.Extra))
	for key, values := range u.Extra {
		extra[key] = authorizationv1.ExtraValue(values)
	}
	access := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: u.Username, Groups: u.Groups, UID: u.UID, Extra: extra,
		ResourceAttributes: &authorizationv1.ResourceAttributes{Group: "podseal.io", Resource: "edges", Verb: "list", Namespace: namespace},
	}}
	if err := s.authorize(ctx, access); err != nil {
		return u.Username, http.StatusServiceUnavailable, fmt.Errorf("ask whether %s may look: %w", u.Username, err)
	}
	if !access.Status.Allowed || access.Status.Denied {
		where := "in all namespaces"
		if namespace != "" {
			where = fmt.Sprintf("in namespace %q", namespace)
		}
		return u.Username, http.StatusForbidden, fmt.Errorf("%s may not list edges.podseal.io %s", u.Username, where)
	}
	return u.Username, http.StatusOK, nil
}
