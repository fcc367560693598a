package controlplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"
)

// Deckhouse's label for Pod Security, Kubernetes' own, and the namespace by
// which Deckhouse is known.
const (
	labelPodPolicy     = "security.deckhouse.io/pod-policy"
	labelEnforce       = "pod-security.kubernetes.io/enforce"
	deckhouseNamespace = "d8-system"
)

// namespaceKeeper gives each namespace its root ConfigMap (contract 4.29) and,
// where there is no Deckhouse to do it, the Pod Security that its label asks for.
type namespaceKeeper struct {
	client    client.Client
	roots     *rootWriter
	authority *authority
	again     chan event.GenericEvent
	log       *slog.Logger
}

// setupNamespaces puts a namespaceKeeper into the manager.
func setupNamespaces(mgr ctrl.Manager, roots *rootWriter, auth *authority, log *slog.Logger) error {
	k := &namespaceKeeper{client: mgr.GetClient(), roots: roots, authority: auth, again: make(chan event.GenericEvent), log: log}
	err := ctrl.NewControllerManagedBy(mgr).
		Named("namespaces").
		For(&corev1.Namespace{}).
		Watches(&corev1.ConfigMap{}, handler.EnqueueRequestsFromMapFunc(func(_ context.Context, o client.Object) []reconcile.Request {
			return []reconcile.Request{{NamespacedName: types.NamespacedName{Name: o.GetNamespace()}}}
		})).
		WatchesRawSource(source.Channel(k.again, &handler.EnqueueRequestForObject{})).
		Complete(k)
	if err != nil {
		return fmt.Errorf("control plane: %w", err)
	}
	if err := mgr.Add(leaderRunnable(k.repeat)); err != nil {
		return fmt.Errorf("control plane: %w", err)
	}
	return nil
}

// repeat looks at all namespaces again whenever the authority changes.
func (k *namespaceKeeper) repeat(ctx context.Context) error {
	for {
		changed := k.authority.Changed()
		var all corev1.NamespaceList
		if err := k.client.List(ctx, &all); err != nil {
			k.log.Error("namespaces not listed", slog.String("error", err.Error()))
		}
		for i := range all.Items {
			select {
			case k.again <- event.GenericEvent{Object: &all.Items[i]}:
			case <-ctx.Done():
				return nil
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// Reconcile makes one namespace right.
func (k *namespaceKeeper) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	ns := &corev1.Namespace{}
	if err := k.client.Get(ctx, req.NamespacedName, ns); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if ns.DeletionTimestamp != nil {
		return reconcile.Result{}, nil
	}
	restored, err := k.roots.Ensure(ctx, ns.Name)
	if errors.Is(err, errNoIssuer) {
		err = nil // repeat comes back when there is one
	}
	if restored {
		k.log.Info("root ConfigMap written", slog.String("namespace", ns.Name))
	}
	return reconcile.Result{}, errors.Join(err, k.podPolicy(ctx, ns))
}

// podPolicy makes Kubernetes enforce the level that Deckhouse's label names. It
// touches no label that somebody else has set.
func (k *namespaceKeeper) podPolicy(ctx context.Context, ns *corev1.Namespace) error {
	want, err := k.wantedLevel(ctx, ns)
	if err != nil {
		return err
	}
	have, ours := ns.Labels[labelEnforce], ownsEnforce(ns)
	switch {
	case want == have, want == "" && !ours:
		return nil
	case have != "" && !ours:
		k.log.Warn("pod-policy label has no effect: the namespace has another Pod Security level of its own",
			slog.String("namespace", ns.Name), slog.String("wanted", want), slog.String("present", have))
		return nil
	}
	u := &unstructured.Unstructured{Object: map[string]any{}}
	u.SetAPIVersion("v1")
	u.SetKind("Namespace")
	u.SetName(ns.Name)
	if want != "" {
		u.SetLabels(map[string]string{labelEnforce: want})
	}
	err = k.client.Apply(ctx, client.ApplyConfigurationFromUnstructured(u), fieldOwner)
	if apierrors.IsConflict(err) {
		k.log.Warn("pod-policy label has no effect: the Pod Security label is another's", slog.String("namespace", ns.Name), slog.String("error", err.Error()))
		return nil
	}
	if err != nil {
		return fmt.Errorf("apply Pod Security label to %s: %w", ns.Name, err)
	}
	k.log.Info("Pod Security label applied", slog.String("namespace", ns.Name), slog.String("level", want))
	return nil
}

// wantedLevel is what the namespace's label asks for, "" where it asks for
// nothing or Deckhouse answers it.
func (k *namespaceKeeper) wantedLevel(ctx context.Context, ns *corev1.Namespace) (string, error) {
	level := ns.Labels[labelPodPolicy]
	if !slices.Contains([]string{"privileged", "baseline", "restricted"}, level) {
		if level != "" {
			k.log.Warn("pod-policy label has no effect: it must be privileged, baseline or restricted", slog.String("namespace", ns.Name), slog.String("value", level))
		}
		return "", nil
	}
	err := k.client.Get(ctx, types.NamespacedName{Name: deckhouseNamespace}, &corev1.Namespace{})
	switch {
	case err == nil:
		return "", nil
	case apierrors.IsNotFound(err):
		return level, nil
	default:
		return "", fmt.Errorf("look for Deckhouse: %w", err)
	}
}

// ownsEnforce reports whether the Pod Security label is of our making.
func ownsEnforce(ns *corev1.Namespace) bool {
	for _, f := range ns.ManagedFields {
		if f.Manager == string(fieldOwner) && f.FieldsV1 != nil && strings.Contains(f.FieldsV1.String(), "f:"+labelEnforce) {
			return true
		}
	}
	return false
}
