package controlplane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"reflect"
	"strings"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"podseal.io/podseal/internal/discovery"
	"podseal.io/podseal/internal/inject"
	"podseal.io/podseal/internal/settings"
)

// annotationProbe marks an object that exists only to see that it is refused
// (contract 1.36).
const annotationProbe = "podseal.io/admission-probe"

// probeRefused is what such an object is refused with.
const probeRefused = "refused as every object with the annotation " + annotationProbe + " is"

// ensureTimeout is how long a new pod may wait for the root ConfigMap of its
// namespace: without it the pod would wait for its volume.
const ensureTimeout = 2 * time.Second

// webhooks are what the API server asks, on port 15017.
type webhooks struct {
	namespaces    client.Reader // cached
	live          client.Reader
	authority     *authority
	roots         *rootWriter
	counts        *counts
	rootNamespace string
	meshConfig    func() string
	// advise says who would be refused by STRICT, in a namespace or everywhere.
	advise func(ctx context.Context, namespace string, selector map[string]string) ([]string, error)
	params inject.Params
	log    *slog.Logger
}

// handler bounds bodies (7 MB), refuses what is no AdmissionReview and survives
// a panic: that is in admission.Webhook.
func (h *webhooks) handler() http.Handler {
	mux := http.NewServeMux()
	for path, handle := range map[string]admission.HandlerFunc{"/inject": h.inject, "/validate": h.validate} {
		mux.Handle("POST "+path, &admission.Webhook{Handler: whole(handle)})
	}
	return mux
}

// whole refuses what decodes but is no request, e.g. an empty body.
func whole(next admission.HandlerFunc) admission.HandlerFunc {
	return func(ctx context.Context, req admission.Request) admission.Response {
		if req.UID == "" || req.Kind.Kind == "" {
			return admission.Errored(http.StatusBadRequest, errors.New("podseal: the AdmissionReview has no request"))
		}
		return next(ctx, req)
	}
}

// inject answers for one pod that is about to be created (contract 5.1-5.10).
func (h *webhooks) inject(ctx context.Context, req admission.Request) admission.Response {
	if req.Kind.Kind != "Pod" || req.Operation != admissionv1.Create {
		return admission.Allowed("")
	}
	h.counts.injections.Inc()
	res, injected, err := h.injectPod(ctx, req)
	switch {
	case err != nil:
		h.counts.notInjected.Inc()
		h.log.Warn("pod refused", slog.String("namespace", req.Namespace), slog.String("name", nameOf(req)), slog.String("error", err.Error()))
		return admission.Denied("podseal can't add the proxy to this pod: " + err.Error())
	case injected:
		h.counts.injected.Inc()
		h.log.Debug("pod injected", slog.String("namespace", req.Namespace), slog.String("name", nameOf(req)))
	default:
		h.counts.uninjects.Inc()
	}
	return res
}

func (h *webhooks) injectPod(ctx context.Context, req admission.Request) (res admission.Response, injected bool, err error) {
	pod := &corev1.Pod{}
	if err := json.Unmarshal(req.Object.Raw, pod); err != nil {
		return res, false, fmt.Errorf("decode the pod: %w", err)
	}
	out, warnings, err := h.withProxy(ctx, pod, req.Namespace)
	if err != nil {
		return res, false, err
	}
	if out == nil {
		return admission.Allowed("").WithWarnings(warnings...), false, nil
	}
	// The patch is the difference of two pods that we encoded, so that fields
	// which this program doesn't know stay as they are.
	before, err := json.Marshal(pod)
	if err != nil {
		return res, false, fmt.Errorf("encode the pod: %w", err)
	}
	after, err := json.Marshal(out)
	if err != nil {
		return res, false, fmt.Errorf("encode the injected pod: %w", err)
	}
	if req.DryRun == nil || !*req.DryRun {
		h.ensureRoot(ctx, req.Namespace)
	}
	return admission.PatchResponseFromRaw(before, after).WithWarnings(warnings...), true, nil
}

// withProxy returns the pod with the proxy in it, nil if it gets none. The API
// server may know a label of the namespace that isn't in our cache yet: a pod that
// would be refused, or stay without a proxy although we were asked, is judged again
// by the namespace as it is.
func (h *webhooks) withProxy(ctx context.Context, pod *corev1.Pod, namespace string) (*corev1.Pod, []string, error) {
	ns, err := h.namespace(ctx, namespace)
	if err != nil {
		return nil, nil, err
	}
	s, err := h.authority.Settings()
	if err != nil {
		return nil, nil, fmt.Errorf("the control plane is starting: %w", err)
	}
	request := inject.Request{Pod: pod, Namespace: ns, NamespaceName: namespace, Settings: s, Params: h.params}
	out, warnings, judged := inject.Pod(request)
	if out != nil {
		return out, warnings, nil
	}
	now := &corev1.Namespace{}
	if err := h.live.Get(ctx, types.NamespacedName{Name: namespace}, now); err != nil {
		return nil, nil, errors.Join(judged, fmt.Errorf("read namespace %s: %w", namespace, err))
	}
	if maps.Equal(now.Labels, ns.Labels) {
		return nil, warnings, judged
	}
	request.Namespace = now
	return inject.Pod(request)
}

// ensureRoot gives the namespace its root now. The leader does it as well, so a
// failure is no more than a delay.
func (h *webhooks) ensureRoot(ctx context.Context, namespace string) {
	ctx, cancel := context.WithTimeout(ctx, ensureTimeout)
	defer cancel()
	if _, err := h.roots.Ensure(ctx, namespace); err != nil {
		h.log.Warn("root ConfigMap not made on admission", slog.String("namespace", namespace), slog.String("error", err.Error()))
	}
}

// namespace reads from the cache, or asks if the namespace is newer than it.
func (h *webhooks) namespace(ctx context.Context, name string) (*corev1.Namespace, error) {
	ns, key := &corev1.Namespace{}, types.NamespacedName{Name: name}
	err := h.namespaces.Get(ctx, key, ns)
	if apierrors.IsNotFound(err) {
		err = h.live.Get(ctx, key, ns)
	}
	if err != nil {
		return nil, fmt.Errorf("read namespace %s: %w", name, err)
	}
	return ns, nil
}

// validate answers for one policy (contract 1.30-1.36, 6.45).
func (h *webhooks) validate(ctx context.Context, req admission.Request) admission.Response {
	if req.Operation == admissionv1.Delete || req.Operation == admissionv1.Connect {
		return admission.Allowed("")
	}
	obj := &unstructured.Unstructured{}
	if err := json.Unmarshal(req.Object.Raw, &obj.Object); err != nil || obj.Object == nil {
		h.counts.validations.WithLabelValues("undecodable").Inc()
		return admission.Errored(http.StatusBadRequest, fmt.Errorf("podseal can't read this %s", req.Kind.Kind))
	}
	if _, probe := obj.GetAnnotations()[annotationProbe]; probe {
		return admission.Denied(probeRefused)
	}
	obj.SetNamespace(req.Namespace)
	faults, warnings, known := h.judge(req.Kind.Kind, obj)
	if !known {
		h.counts.validations.WithLabelValues("not_enforced").Inc()
		return admission.Allowed("").WithWarnings(notEnforced(req)...)
	}
	if len(faults) > 0 {
		h.counts.validations.WithLabelValues("refused").Inc()
		h.log.Info("policy refused", slog.String("kind", req.Kind.Kind), slog.String("namespace", req.Namespace), slog.String("name", nameOf(req)), slog.String("error", discovery.Describe(faults)))
		return admission.Denied(discovery.Describe(faults)).WithWarnings(warnings...)
	}
	h.counts.validations.WithLabelValues("accepted").Inc()
	warnings = append(warnings, h.breaks(ctx, req, obj)...)
	return admission.Allowed("").WithWarnings(warnings...)
}

// breaks warns of whom a PeerAuthentication refuses that makes something STRICT.
func (h *webhooks) breaks(ctx context.Context, req admission.Request, obj *unstructured.Unstructured) []string {
	if req.Kind.Kind != discovery.KindPeerAuthentication || h.advise == nil || !discovery.SaysStrict(obj) {
		return nil
	}
	before := &unstructured.Unstructured{}
	if len(req.OldObject.Raw) > 0 && json.Unmarshal(req.OldObject.Raw, &before.Object) == nil && reflect.DeepEqual(before.Object["spec"], obj.Object["spec"]) {
		return nil // it said so before
	}
	selector, _, _ := unstructured.NestedStringMap(obj.Object, "spec", "selector", "matchLabels") // it is valid
	namespace := req.Namespace
	if namespace == h.rootNamespace && len(selector) == 0 {
		namespace = ""
	}
	warnings, err := h.advise(ctx, namespace, selector)
	if err != nil {
		h.log.Warn("nothing is known of who STRICT would refuse", slog.String("namespace", req.Namespace), slog.String("error", err.Error()))
		return nil
	}
	return warnings
}

// judge says what is wrong with an object of a kind that is honoured; known is
// false for others.
func (h *webhooks) judge(kind string, obj *unstructured.Unstructured) (faults []discovery.Fault, warnings []string, known bool) {
	switch kind {
	case discovery.KindPeerAuthentication:
		faults, warnings = discovery.ValidatePeerAuthentication(obj, h.rootNamespace)
	case discovery.KindAuthorizationPolicy:
		authorizers, _, _ := discovery.Authorizers(h.meshConfig(), h.clusterDomain())
		faults, warnings = discovery.ValidateAuthorizationPolicy(obj, h.rootNamespace, authorizers...)
	case discovery.KindRequestAuthentication:
		faults, warnings = discovery.ValidateRequestAuthentication(obj, h.rootNamespace)
	case discovery.KindDestinationRule:
		faults, warnings = discovery.ValidateDestinationRule(obj, h.clusterDomain())
	case discovery.KindServiceEntry:
		faults, warnings = discovery.ValidateServiceEntry(obj, h.clusterDomain())
	default:
		return nil, nil, false
	}
	return faults, warnings, true
}

// clusterDomain is that of the settings in force, or what holds without any.
func (h *webhooks) clusterDomain() string {
	if s, err := h.authority.Settings(); err == nil {
		return s.ClusterDomain
	}
	return settings.Default("").ClusterDomain
}

// notEnforced warns by name about what Podseal knows of but doesn't do.
func notEnforced(req admission.Request) []string {
	if !strings.HasSuffix(req.Kind.Group, ".istio.io") {
		return nil
	}
	return []string{fmt.Sprintf("%s %s/%s: Podseal does not enforce %s yet, the object has no effect", req.Kind.Kind, req.Namespace, nameOf(req), req.Kind.Kind)}
}

// nameOf is the object's name as far as it is known: one that the API server is
// still to choose ends in a star.
func nameOf(req admission.Request) string {
	if req.Name != "" {
		return req.Name
	}
	var named struct {
		Metadata struct {
			Name         string `json:"name"`
			GenerateName string `json:"generateName"`
		} `json:"metadata"`
	}
	if json.Unmarshal(req.Object.Raw, &named) != nil {
		return ""
	}
	if named.Metadata.Name != "" {
		return named.Metadata.Name
	}
	return named.Metadata.GenerateName + "*"
}
