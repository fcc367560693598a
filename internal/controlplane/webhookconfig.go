package controlplane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"podseal.io/podseal/internal/discovery"
)

// Pauses between attempts to make the webhook configurations right.
const (
	hookRetryFirst = 500 * time.Millisecond
	hookRetryLast  = 30 * time.Second
	hookCheckEvery = 10 * time.Minute
)

// hookKeeper writes the root into the webhook configurations that the chart
// brings, and turns the validator's failures into refusals once it answers
// (contract 1.36).
type hookKeeper struct {
	client    client.Client
	authority *authority
	namespace string
	kicked    chan struct{}
	log       *slog.Logger
}

func setupWebhookConfigs(mgr ctrl.Manager, auth *authority, namespace string, log *slog.Logger) error {
	k := &hookKeeper{client: mgr.GetClient(), authority: auth, namespace: namespace, kicked: make(chan struct{}, 1), log: log}
	run := leaderRunnable(func(ctx context.Context) error { return k.Run(ctx, mgr.GetCache()) })
	if err := mgr.Add(run); err != nil {
		return fmt.Errorf("control plane: %w", err)
	}
	return nil
}

// Run works until the context ends.
func (k *hookKeeper) Run(ctx context.Context, from cache.Informers) error {
	kick := func() {
		select {
		case k.kicked <- struct{}{}:
		default:
		}
	}
	for _, obj := range []client.Object{&admissionv1.MutatingWebhookConfiguration{}, &admissionv1.ValidatingWebhookConfiguration{}} {
		informer, err := from.GetInformer(ctx, obj)
		if err != nil {
			return fmt.Errorf("watch %T: %w", obj, err)
		}
		_, err = informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
			AddFunc:    func(any) { kick() },
			UpdateFunc: func(_, _ any) { kick() },
		})
		if err != nil {
			return fmt.Errorf("watch %T: %w", obj, err)
		}
	}
	return k.loop(ctx)
}

func (k *hookKeeper) loop(ctx context.Context) error {
	pause := hookRetryFirst
	for {
		changed := k.authority.Changed()
		// Right until something changes, or wrong until the pause is over.
		wait := hookCheckEvery
		if err := k.step(ctx); err != nil && ctx.Err() == nil {
			k.log.Warn("webhook configurations are not right yet", slog.String("error", err.Error()))
			wait, pause = pause, min(2*pause, hookRetryLast)
		} else {
			pause = hookRetryFirst
		}
		retry := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-changed:
		case <-retry.C:
		case <-k.kicked:
			// At most one attempt per pause, also against somebody who undoes them.
			sleep(ctx, hookRetryFirst)
		}
		retry.Stop()
		if ctx.Err() != nil {
			return nil
		}
	}
}

func (k *hookKeeper) step(ctx context.Context) error {
	bundle, err := k.authority.Bundle()
	if errors.Is(err, errNoIssuer) {
		return nil // comes back when there is one
	}
	if err != nil {
		return err
	}
	return errors.Join(k.injector(ctx, bundle), k.validator(ctx, bundle))
}

func (k *hookKeeper) injector(ctx context.Context, bundle []byte) error {
	have := &admissionv1.MutatingWebhookConfiguration{}
	if err := k.client.Get(ctx, types.NamespacedName{Name: injectorConfig}, have); err != nil {
		return absentOr(err, injectorConfig)
	}
	next := have.DeepCopy()
	changed := false
	for i := range next.Webhooks {
		changed = setBundle(&next.Webhooks[i].ClientConfig, bundle) || changed
	}
	if !changed {
		return nil
	}
	return k.patch(ctx, have, next, injectorConfig)
}

func (k *hookKeeper) validator(ctx context.Context, bundle []byte) error {
	have := &admissionv1.ValidatingWebhookConfiguration{}
	if err := k.client.Get(ctx, types.NamespacedName{Name: validatorConfig}, have); err != nil {
		return absentOr(err, validatorConfig)
	}
	next := have.DeepCopy()
	changed, lenient := false, false
	for i := range next.Webhooks {
		w := &next.Webhooks[i]
		changed = setBundle(&w.ClientConfig, bundle) || changed
		lenient = lenient || w.FailurePolicy == nil || *w.FailurePolicy != admissionv1.Fail
	}
	if changed {
		if err := k.patch(ctx, have, next, validatorConfig); err != nil {
			return err
		}
		have = next.DeepCopy()
	}
	if !lenient {
		return nil
	}
	if err := k.probe(ctx); err != nil {
		return err
	}
	for i := range next.Webhooks {
		next.Webhooks[i].FailurePolicy = new(admissionv1.Fail)
	}
	return k.patch(ctx, have, next, validatorConfig)
}

func absentOr(err error, name string) error {
	if apierrors.IsNotFound(err) {
		return nil // its creation comes back here
	}
	return fmt.Errorf("read webhook configuration %s: %w", name, err)
}

func setBundle(c *admissionv1.WebhookClientConfig, bundle []byte) bool {
	if bytes.Equal(c.CABundle, bundle) {
		return false
	}
	c.CABundle = bundle
	return true
}

// patch writes the entries' differences by name, and nothing if the object has
// changed since it was read.
func (k *hookKeeper) patch(ctx context.Context, have, next client.Object, name string) error {
	diff := client.StrategicMergeFrom(have, client.MergeFromWithOptimisticLock{})
	if err := k.client.Patch(ctx, next, diff, fieldOwner); err != nil {
		return fmt.Errorf("patch webhook configuration %s: %w", name, err)
	}
	k.log.Info("webhook configuration written", slog.String("name", name))
	return nil
}

// probe makes sure that the API server reaches our validator and heeds it: an
// object that must be refused is, without being stored.
func (k *hookKeeper) probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	obj := newPolicy(discovery.KindPeerAuthentication)
	obj.SetNamespace(k.namespace)
	obj.SetName("podseal-admission-probe")
	obj.SetAnnotations(map[string]string{annotationProbe: ""})
	obj.Object["spec"] = map[string]any{}
	err := k.client.Create(ctx, obj, client.DryRunAll, fieldOwner)
	switch {
	case err == nil:
		return errors.New("probe of the validator: it was not asked yet")
	case strings.Contains(err.Error(), probeRefused):
		return nil
	default:
		return fmt.Errorf("probe of the validator: %w", err)
	}
}
