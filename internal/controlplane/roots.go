package controlplane

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"podseal.io/podseal/internal/ca"
	"podseal.io/podseal/internal/settings"
)

// The ConfigMap of contract 4.29.
const (
	rootKey        = "root-cert.pem"
	labelConfig    = "istio.io/config"
	typeRoot       = "istio.io/ca-root"
	rootCheckEvery = time.Hour
)

// withoutRoot are namespaces that don't get the ConfigMap (contract 4.29).
func withoutRoot(namespace string) bool {
	return slices.Contains([]string{"kube-public", "kube-node-lease", "local-path-storage"}, namespace)
}

// rootWriter keeps the root in a ConfigMap of each namespace.
type rootWriter struct {
	client    client.Client
	authority *authority
}

// Ensure makes the ConfigMap of a namespace right and reports whether it wasn't.
func (r *rootWriter) Ensure(ctx context.Context, namespace string) (bool, error) {
	if withoutRoot(namespace) {
		return false, nil
	}
	bundle, err := r.authority.Bundle()
	if err != nil {
		return false, err
	}
	want := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: settings.RootConfigMap, Labels: map[string]string{labelConfig: "true"}},
		Data:       map[string]string{rootKey: string(bundle)},
	}
	revoked := ""
	if namespace == r.authority.cfg.Namespace {
		revoked = r.authority.revocationsHash()
	}
	if revoked != "" {
		want.Annotations = map[string]string{settings.AnnotationRevocations: revoked}
	}
	have := &corev1.ConfigMap{}
	err = r.client.Get(ctx, client.ObjectKeyFromObject(want), have)
	switch {
	case apierrors.IsNotFound(err):
		if err := r.client.Create(ctx, want, fieldOwner); err != nil && !apierrors.IsAlreadyExists(err) {
			return false, fmt.Errorf("create root ConfigMap in %s: %w", namespace, err)
		}
		return true, nil
	case err != nil:
		return false, fmt.Errorf("read root ConfigMap of %s: %w", namespace, err)
	case maps.Equal(have.Data, want.Data) && len(have.BinaryData) == 0 && have.Labels[labelConfig] == "true" && have.Annotations[settings.AnnotationRevocations] == revoked:
		return false, nil
	}
	next := have.DeepCopy()
	next.Data, next.BinaryData = want.Data, nil
	if next.Labels == nil {
		next.Labels = map[string]string{}
	}
	next.Labels[labelConfig] = "true"
	delete(next.Annotations, settings.AnnotationRevocations)
	if revoked != "" {
		metav1.SetMetaDataAnnotation(&next.ObjectMeta, settings.AnnotationRevocations, revoked)
	}
	if err := r.client.Update(ctx, next, fieldOwner); err != nil {
		return false, fmt.Errorf("restore root ConfigMap of %s: %w", namespace, err)
	}
	return true, nil
}

// rootMaker makes the mesh's own root when there is no other, once for all
// replicas, and makes its certificate anew before it expires.
type rootMaker struct {
	client    client.Client
	live      client.Reader
	authority *authority
	namespace string
	now       func() time.Time
	random    io.Reader
	log       *slog.Logger
}

// rootRetry is how long a failed write waits.
const rootRetry = time.Second

// Run works until the context ends.
func (m *rootMaker) Run(ctx context.Context) error {
	for {
		changed := m.authority.Changed()
		wait := rootCheckEvery
		if err := m.step(ctx); err != nil {
			m.log.Error("root not made", slog.String("error", err.Error()))
			wait = rootRetry
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-changed:
			t.Stop()
		case <-t.C:
		}
	}
}

func (m *rootMaker) step(ctx context.Context) error {
	if trustDomain, needed := m.authority.needsRoot(); needed {
		return m.create(ctx, trustDomain)
	}
	if own := m.authority.lost(); own != nil {
		return m.restore(ctx, own)
	}
	if own := m.authority.selfSigned(); own != nil && own.NeedsRenewal(m.now()) {
		return m.renew(ctx, own)
	}
	return nil
}

// create stores a new root unless there is one already: the API server, not we,
// decides whose is first.
func (m *rootMaker) create(ctx context.Context, trustDomain string) error {
	for _, name := range []string{settings.PluggedCASecret, settings.CASecret} {
		err := m.live.Get(ctx, types.NamespacedName{Namespace: m.namespace, Name: name}, &corev1.Secret{})
		if err == nil {
			return nil // the informer brings it
		}
		if !apierrors.IsNotFound(err) {
			return fmt.Errorf("look for Secret %s: %w", name, err)
		}
	}
	issuer, err := ca.NewSelfSigned(trustDomain, m.now(), m.random)
	if err != nil {
		return fmt.Errorf("make root: %w", err)
	}
	if stored, err := m.store(ctx, issuer); err != nil || !stored {
		return err
	}
	m.log.Info("root made", slog.String("secret", settings.CASecret), slog.Time("not_after", issuer.Certificate().NotAfter))
	return nil
}

// restore writes the root back that somebody deleted: the next start of a
// replica would otherwise make another, which cuts all workloads off from each
// other until they have it, or wait for ever for us to end.
func (m *rootMaker) restore(ctx context.Context, own *ca.Issuer) error {
	stored, err := m.store(ctx, own)
	if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		return nil // we are ending, too
	}
	if err != nil || !stored {
		return err
	}
	const text = "Secret " + settings.CASecret + " was deleted while its root is in force, and is written again; docs/ca.md says how to change a root"
	m.log.Warn("root restored", slog.String("secret", settings.CASecret))
	m.authority.warn("RootRestored", text)
	return nil
}

// store reports whether there was no Secret and now is one.
func (m *rootMaker) store(ctx context.Context, issuer *ca.Issuer) (bool, error) {
	err := m.client.Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: m.namespace, Name: settings.CASecret},
		Type:       typeRoot,
		Data:       issuer.Files().Data(),
	}, fieldOwner)
	if apierrors.IsAlreadyExists(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("store root: %w", err)
	}
	return true, nil
}

// renew replaces the root's certificate, for the same key (contract 4.34).
func (m *rootMaker) renew(ctx context.Context, own *ca.Issuer) error {
	next, err := own.Renew(m.now(), m.random)
	if err != nil {
		return fmt.Errorf("renew root: %w", err)
	}
	secret := &corev1.Secret{}
	if err := m.live.Get(ctx, types.NamespacedName{Namespace: m.namespace, Name: settings.CASecret}, secret); err != nil {
		return fmt.Errorf("read root: %w", err)
	}
	stored, _ := ca.FromSecret(secret.Data)
	if string(stored.Cert) != string(own.Files().Cert) {
		return nil // somebody was here before: the informer brings it
	}
	secret.Data = next.Files().Data()
	if err := m.client.Update(ctx, secret, fieldOwner); err != nil {
		return fmt.Errorf("store renewed root: %w", err)
	}
	m.log.Info("root renewed with the same key", slog.Time("not_after", next.Certificate().NotAfter))
	return nil
}
