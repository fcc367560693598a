package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/streaming/pkg/httpstream"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"podseal.io/podseal/internal/controlplane"
	"podseal.io/podseal/internal/dashboard"
	"podseal.io/podseal/internal/settings"
)

// codedError ends the program with a code of its own.
type codedError struct {
	error
	code int
}

func (e codedError) Unwrap() error { return e.error }

// How long a token to look with is asked for, and how long before its end
// another one is.
const (
	lookToken = 10 * time.Minute
	lookAgain = 2 * time.Minute
)

// maxView bounds the answer of one replica, in bytes.
const maxView = 256 << 20

// looker asks the control plane. Each proxy is connected to one replica; a replica
// answers for all others that answer it, and who it can't speak for is asked too.
type looker struct {
	client    client.Client
	config    *rest.Config
	replicas  []replica
	notes     io.Writer
	token     string
	tokenEnds time.Time
	closed    chan struct{}
	told      map[string]bool // notes that were written
}

type replica struct {
	name, url string // no URL: there is no way to it yet
	http      *http.Client
}

// look opens a way to a replica, and to others when they are needed. Callers close it.
func (k *kube) look(ctx context.Context, notes io.Writer) (*looker, error) {
	c, cfg, err := k.client(io.Discard)
	if err != nil {
		return nil, err
	}
	l := &looker{client: c, config: cfg, notes: notes, closed: make(chan struct{}), told: map[string]bool{}}
	var pods corev1.PodList
	if err := c.List(ctx, &pods, client.InNamespace(settings.Namespace), client.MatchingLabels{"app": "istiod"}); err != nil {
		return nil, lookError("find the control plane", err)
	}
	for i := range pods.Items {
		if pod := &pods.Items[i]; pod.Status.Phase == corev1.PodRunning && pod.DeletionTimestamp == nil {
			l.replicas = append(l.replicas, replica{pod.Name, "", &http.Client{Timeout: 30 * time.Second}})
		}
	}
	var failed error
	for i := range l.replicas {
		err := l.reach(ctx, &l.replicas[i])
		if err == nil {
			return l, nil
		}
		failed = cmp.Or(failed, err)
	}
	l.close()
	if failed == nil {
		failed = codedError{errors.New("the control plane is not running: no pod of d8-istio/istiod is there. `podseal check` says why"), exitUnavailable}
	}
	return nil, failed
}

// reach opens a way to a replica, if there is none yet.
func (l *looker) reach(ctx context.Context, r *replica) error {
	if r.url != "" {
		return nil
	}
	port, err := l.forward(ctx, l.config, settings.Namespace, r.name, controlplane.InspectPort)
	if err != nil {
		return lookError("reach "+r.name, err)
	}
	r.url = fmt.Sprintf("http://127.0.0.1:%d", port)
	return nil
}

// each asks replicas until every one is spoken for: ask returns for whom else the
// one that it asked has spoken, and for whom it could not. What is missing in the end
// is returned; it is an error when nobody answers.
func (l *looker) each(ctx context.Context, ask func(r *replica) ([]controlplane.PeerView, error)) (missing []error, err error) {
	if err := l.authorize(ctx); err != nil {
		return nil, err
	}
	spoken, failed, order := map[string]bool{}, map[string]error{}, []string{}
	fail := func(name string, err error) {
		if failed[name] == nil {
			order = append(order, name)
		}
		failed[name] = err // what is said last is what the CLI itself found, if it asked
	}
	for i := range l.replicas {
		r := &l.replicas[i]
		if spoken[r.name] {
			continue
		}
		err := l.reach(ctx, r)
		var peers []controlplane.PeerView
		if err == nil {
			peers, err = ask(r)
		}
		if err != nil {
			fail(r.name, fmt.Errorf("ask %s: %w", r.name, err))
			continue
		}
		spoken[r.name] = true
		for _, p := range peers {
			if p.Error == "" {
				spoken[p.Replica] = true
			} else if failed[p.Replica] == nil {
				fail(p.Replica, fmt.Errorf("%s asked %s: %s", r.name, p.Replica, p.Error))
			}
		}
	}
	for _, name := range order {
		if !spoken[name] {
			missing = append(missing, failed[name])
		}
	}
	if len(spoken) == 0 {
		return nil, missing[0]
	}
	return missing, nil
}

// noteMissing says what isn't in an answer.
func (l *looker) noteMissing(missing []error) {
	for _, err := range missing {
		l.note("what this replica knows is missing: " + err.Error())
	}
}

// lookAt opens a way to the control plane and asks for parts of a namespace, or of all.
// Callers close the looker.
func (k *kube) lookAt(ctx context.Context, notes io.Writer, namespace string, parts ...string) (*looker, *controlplane.View, error) {
	l, err := k.look(ctx, notes)
	if err != nil {
		return nil, nil, err
	}
	v, err := l.view(ctx, namespace, parts...)
	if err != nil {
		l.close()
		return nil, nil, err
	}
	return l, v, nil
}

func (l *looker) close() { close(l.closed) }

// note writes a note once.
func (l *looker) note(text string) {
	if !l.told[text] {
		l.told[text] = true
		fmt.Fprintln(l.notes, "note: "+text)
	}
}

// forward opens a port on loopback that leads to a port on the pod's own loopback.
func (l *looker) forward(ctx context.Context, cfg *rest.Config, namespace, pod, port string) (uint16, error) {
	cfg = rest.CopyConfig(cfg)
	cfg.Timeout = 0
	cfg.APIPath, cfg.GroupVersion, cfg.NegotiatedSerializer = "/api", &schema.GroupVersion{Version: "v1"}, scheme.Codecs.WithoutConversion()
	api, err := rest.RESTClientFor(cfg)
	if err != nil {
		return 0, err
	}
	target := api.Post().Resource("pods").Namespace(namespace).Name(pod).SubResource("portforward").URL()
	transport, upgrader, err := spdy.RoundTripperFor(cfg)
	if err != nil {
		return 0, err
	}
	tunnel, err := portforward.NewSPDYOverWebsocketDialerForStreaming(target, cfg)
	if err != nil {
		return 0, err
	}
	dialer := portforward.NewFallbackDialerForStreaming(tunnel, spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, http.MethodPost, target), func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
	ready := make(chan struct{})
	f, err := portforward.NewOnAddressesForStreaming(dialer, []string{"127.0.0.1"}, []string{"0:" + port}, l.closed, ready, io.Discard, io.Discard)
	if err != nil {
		return 0, err
	}
	ended := make(chan error, 1)
	go func() { ended <- f.ForwardPorts() }() // it ends when closed is
	select {
	case <-ready:
	case err := <-ended:
		if err == nil {
			err = errors.New("the port-forward ended")
		}
		return 0, err
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	ports, err := f.GetPorts()
	if err != nil {
		return 0, err
	}
	return ports[0].Local, nil
}

// authorize gets a token to look with: of an account that may, for nothing else
// and not for long.
func (l *looker) authorize(ctx context.Context) error {
	if l.token != "" && time.Until(l.tokenEnds) > lookAgain {
		return nil
	}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: settings.Namespace, Name: controlplane.InspectAccount}}
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		Audiences: []string{controlplane.InspectAudience}, ExpirationSeconds: new(int64(lookToken.Seconds())),
	}}
	if err := l.client.SubResource("token").Create(ctx, account, request); err != nil {
		return lookError(fmt.Sprintf("get a token of %s/%s", settings.Namespace, controlplane.InspectAccount), err)
	}
	l.token, l.tokenEnds = request.Status.Token, request.Status.ExpirationTimestamp.Time
	return nil
}

// lookError says what a refusal of the API server means here.
func lookError(doing string, err error) error {
	err = fmt.Errorf("%s: %w", doing, err)
	switch {
	case apierrors.IsForbidden(err) || strings.Contains(err.Error(), "is forbidden"):
		return codedError{fmt.Errorf("%w\nWho may look is said by ClusterRole podseal-look: bind it in namespace %s", err, settings.Namespace), exitNoPermission}
	case apierrors.IsNotFound(err):
		return codedError{fmt.Errorf("%w\nThe control plane is older than this program, or not there: `podseal version`", err), exitUnavailable}
	default:
		return codedError{err, exitUnavailable}
	}
}

// view asks the control plane what it knows.
func (l *looker) view(ctx context.Context, namespace string, parts ...string) (*controlplane.View, error) {
	query := url.Values{"part": parts}
	if namespace != "" {
		query.Set("namespace", namespace)
	}
	var all []*controlplane.View
	missing, err := l.each(ctx, func(r *replica) ([]controlplane.PeerView, error) {
		v := &controlplane.View{}
		if err := l.call(ctx, r, http.MethodGet, controlplane.InspectPath+"?"+query.Encode(), nil, v); err != nil {
			return nil, err
		}
		all = append(all, v)
		return v.Peers, nil
	})
	if err != nil {
		return nil, err
	}
	l.noteMissing(missing)
	return controlplane.JoinViews(all), nil
}

// explain asks what would be.
func (l *looker) explain(ctx context.Context, q *controlplane.ExplainRequest) (*controlplane.ExplainAnswer, error) {
	text, err := json.Marshal(q)
	if err != nil {
		return nil, fmt.Errorf("write the question: %w", err)
	}
	var all []*controlplane.ExplainAnswer
	missing, err := l.each(ctx, func(r *replica) ([]controlplane.PeerView, error) {
		if len(all) > 0 && len(q.Pods) == 0 {
			return nil, nil // every replica knows the same
		}
		a := &controlplane.ExplainAnswer{}
		if err := l.call(ctx, r, http.MethodPost, controlplane.ExplainPath, text, a); err != nil {
			return nil, err
		}
		all = append(all, a)
		return a.Peers, nil
	})
	if err != nil {
		return nil, err
	}
	l.noteMissing(missing)
	out := controlplane.JoinExplain(all)
	if out.Unread != "" {
		l.note("not looked at: " + out.Unread)
	}
	return out, nil
}

// page asks a replica for a part of the dashboard. Callers close the body.
func (l *looker) page(ctx context.Context, name string) (res *http.Response, err error) {
	if err := l.authorize(ctx); err != nil {
		return nil, err
	}
	for i := range l.replicas {
		if res, err = l.pageOf(ctx, &l.replicas[i], name); err == nil {
			break
		}
	}
	return res, err
}

func (l *looker) pageOf(ctx context.Context, r *replica, name string) (*http.Response, error) {
	if err := l.reach(ctx, r); err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url+dashboard.Path+url.PathEscape(name), http.NoBody) //nolint:gosec // the replica that was forwarded to
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+l.token)
	return r.http.Do(req) //nolint:gosec // likewise
}

// call asks one replica and decodes its answer.
func (l *looker) call(ctx context.Context, r *replica, method, path string, question []byte, answer any) error {
	req, err := http.NewRequestWithContext(ctx, method, r.url+path, bytes.NewReader(question))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+l.token)
	res, err := r.http.Do(req)
	if err != nil {
		return codedError{err, exitUnavailable}
	}
	defer res.Body.Close()
	body := io.LimitReader(res.Body, maxView)
	if res.StatusCode == http.StatusOK {
		if err := json.NewDecoder(body).Decode(answer); err != nil {
			return fmt.Errorf("read the answer: %w", err)
		}
		return nil
	}
	text, _ := io.ReadAll(io.LimitReader(body, 4<<10)) // what could be read is what is said
	err = errors.New(strings.TrimSpace(string(text)))
	switch res.StatusCode {
	case http.StatusNotFound:
		return codedError{errors.New("the control plane is older than this program: `podseal version`"), exitVersion}
	case http.StatusForbidden, http.StatusUnauthorized:
		return codedError{err, exitNoPermission}
	case http.StatusBadRequest:
		return codedError{err, exitBadInput}
	default:
		return codedError{err, exitUnavailable}
	}
}
