package controlplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"podseal.io/podseal/internal/discovery"
	"podseal.io/podseal/internal/wire"
	"podseal.io/podseal/internal/xds"
)

// Changes that come within quiet of one another are published together, but none
// waits longer than patience.
const (
	quiet    = 10 * time.Millisecond
	patience = 100 * time.Millisecond
)

// dutyCycle bounds the share of time spent building: after a build that took d
// the next one waits dutyCycle times d.
const dutyCycle = 3

type publisherConfig struct {
	Cache     client.Reader
	Authority *authority
	Store     *xds.Store
	Namespace string // the root namespace
	// Keys says which keys are wanted, and returns those that there are.
	Keys func([]discovery.KeySource) map[string]discovery.FetchedKeys
	// MeshConfig is the mesh\'s configuration as Istio\'s users know it.
	MeshConfig func() string
	Counts     *counts
	Now        func() time.Time
	Log        *slog.Logger
}

// publisher keeps the store equal to the cluster.
type publisher struct {
	cfg      publisherConfig
	kicked   chan struct{}           // something changed
	verdicts chan discovery.Verdicts // the newest ones, for the leader
	first    atomic.Bool             // something was published
	last     atomic.Pointer[discovery.Cluster]
	handled  []toolscache.InformerSynced // first lists that have been handled
	lastGood map[discovery.Key]*unstructured.Unstructured
	told     discovery.Verdicts // that were logged
}

func newPublisher(cfg publisherConfig) *publisher {
	return &publisher{
		cfg: cfg, kicked: make(chan struct{}, 1), verdicts: make(chan discovery.Verdicts, 1),
		lastGood: map[discovery.Key]*unstructured.Unstructured{}, told: discovery.Verdicts{},
	}
}

// published reports whether proxies can be told anything yet.
func (p *publisher) published() bool { return p.first.Load() }

// kick says that something changed.
func (p *publisher) kick() {
	select {
	case p.kicked <- struct{}{}:
	default: // it is known already
	}
}

// watch follows all that discovery reads.
func (p *publisher) watch(ctx context.Context, from cache.Informers) error {
	type watched struct {
		obj     client.Object
		matters func(before, after any) bool
	}
	all := []watched{
		{&corev1.Pod{}, podMatters},
		{&corev1.Service{}, alwaysMatters},
		{&discoveryv1.EndpointSlice{}, alwaysMatters},
	}
	for _, gvk := range policyKinds() {
		all = append(all, watched{newPolicy(gvk.Kind), policyMatters})
	}
	for _, w := range all {
		informer, err := from.GetInformer(ctx, w.obj)
		if err != nil {
			return fmt.Errorf("watch %T: %w", w.obj, err)
		}
		reg, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
			AddFunc: func(any) { p.kick() },
			UpdateFunc: func(before, after any) {
				if w.matters(before, after) {
					p.kick()
				}
			},
			DeleteFunc: func(any) { p.kick() },
		})
		if err != nil {
			return fmt.Errorf("watch %T: %w", w.obj, err)
		}
		p.handled = append(p.handled, reg.HasSynced)
	}
	return nil
}

func alwaysMatters(_, _ any) bool { return true }

// podMatters reports whether what discovery reads of a pod has changed: most
// updates are of conditions, which were trimmed.
func podMatters(before, after any) bool {
	a, okA := before.(*corev1.Pod)
	b, okB := after.(*corev1.Pod)
	if !okA || !okB {
		return true
	}
	return !maps.Equal(a.Labels, b.Labels) || !maps.Equal(a.Annotations, b.Annotations) || !reflect.DeepEqual(a.Spec, b.Spec) || !reflect.DeepEqual(a.Status, b.Status) ||
		!reflect.DeepEqual(a.OwnerReferences, b.OwnerReferences) || a.UID != b.UID
}

// policyMatters is false for our own writes of status.
func policyMatters(before, after any) bool {
	a, okA := before.(*unstructured.Unstructured)
	b, okB := after.(*unstructured.Unstructured)
	if !okA || !okB {
		return true
	}
	return a.GetUID() != b.GetUID() || !maps.Equal(a.GetLabels(), b.GetLabels()) || !maps.Equal(a.GetAnnotations(), b.GetAnnotations()) || !reflect.DeepEqual(a.Object["spec"], b.Object["spec"])
}

// Run publishes until the context ends. It begins when everything has been
// listed and there is a root: half a world must not reach proxies.
func (p *publisher) Run(ctx context.Context) error {
	if !toolscache.WaitForCacheSync(ctx.Done(), p.handled...) {
		return nil
	}
	p.kick()
	for {
		changed := p.cfg.Authority.Changed()
		select {
		case <-ctx.Done():
			return nil
		case <-p.kicked:
		case <-changed:
		}
		if !p.settle(ctx) {
			return nil
		}
		took, err := p.publish(ctx)
		if err != nil {
			level := slog.LevelWarn
			if errors.Is(err, errNoSettings) || errors.Is(err, errNoIssuer) {
				level = slog.LevelInfo // so it begins
			}
			p.cfg.Log.Log(ctx, level, "nothing published", slog.String("error", err.Error()))
			continue // the next change comes back here
		}
		if !sleep(ctx, dutyCycle*took) {
			return nil
		}
	}
}

// settle waits until nothing has changed for a moment.
func (p *publisher) settle(ctx context.Context) bool {
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for {
		pause := time.NewTimer(quiet)
		select {
		case <-ctx.Done():
			pause.Stop()
			return false
		case <-deadline.C:
			pause.Stop()
			return true
		case <-pause.C:
			return true
		case <-p.kicked:
			pause.Stop()
		}
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// publish builds everything and gives it to the store. It says how long that took.
func (p *publisher) publish(ctx context.Context) (time.Duration, error) {
	start := p.cfg.Now()
	c, err := p.cluster(ctx)
	if err != nil {
		return 0, err
	}
	resources, verdicts := discovery.Build(c)
	p.remember(slices.Concat(c.PeerAuthentications, c.AuthorizationPolicies, c.RequestAuthentications, c.DestinationRules, c.ServiceEntries), verdicts)
	changed := false
	// What holds for all goes first: a proxy then never meets a peer whose root it
	// lacks, or its own pod following a policy that it doesn't know. Rules go before
	// what they are about, so that nothing is reached without them.
	for _, typeURL := range wire.Types() {
		changed = p.cfg.Store.Replace(typeURL, resources[typeURL]) || changed
	}
	took := p.cfg.Now().Sub(start)
	p.cfg.Counts.build.Observe(took.Seconds())
	if changed {
		p.cfg.Counts.pushes.Inc()
		p.cfg.Log.Debug("published", slog.Int("workloads", len(resources[wire.TypeWorkload])), slog.Int("services", len(resources[wire.TypeService])), slog.Duration("took", took))
	}
	p.last.Store(&c)
	p.first.Store(true)
	p.report(verdicts)
	return took, nil
}

// cluster reads the caches. What it returns is shared with them and not to be changed.
func (p *publisher) cluster(ctx context.Context) (discovery.Cluster, error) {
	s, err := p.cfg.Authority.Settings()
	if err != nil {
		return discovery.Cluster{}, err
	}
	bundle, err := p.cfg.Authority.Bundle()
	if err != nil {
		return discovery.Cluster{}, err
	}
	c := discovery.Cluster{Settings: s, BundlePEM: bundle, RevokedPEM: p.cfg.Authority.RevokedPEM(), RootNamespace: p.cfg.Namespace, LastGood: p.lastGood, MeshConfig: p.cfg.MeshConfig()}
	var (
		pods     corev1.PodList
		services corev1.ServiceList
		backends discoveryv1.EndpointSliceList
	)
	for _, list := range []client.ObjectList{&pods, &services, &backends} {
		if err := p.cfg.Cache.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
			return discovery.Cluster{}, fmt.Errorf("list %T: %w", list, err)
		}
	}
	c.Pods, c.Services, c.EndpointSlices = pointers(pods.Items), pointers(services.Items), pointers(backends.Items)
	for _, gvk := range policyKinds() {
		var list unstructured.UnstructuredList
		list.SetGroupVersionKind(gvk.GroupVersion().WithKind(gvk.Kind + "List"))
		if err := p.cfg.Cache.List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil {
			return discovery.Cluster{}, fmt.Errorf("list %s: %w", gvk.Kind, err)
		}
		*c.PoliciesOf(gvk.Kind) = pointers(list.Items)
	}
	c.Keys = p.cfg.Keys(discovery.KeySources(c))
	return c, nil
}

func pointers[T any](items []T) []*T {
	out := make([]*T, len(items))
	for i := range items {
		out[i] = &items[i]
	}
	return out
}

// remember keeps the policies that are good now for when they go bad, and
// forgets those that are gone.
func (p *publisher) remember(policies []*unstructured.Unstructured, verdicts discovery.Verdicts) {
	next := make(map[discovery.Key]*unstructured.Unstructured, len(policies))
	for _, obj := range policies {
		key := discovery.Key{Kind: obj.GetKind(), Namespace: obj.GetNamespace(), Name: obj.GetName()}
		if v, judged := verdicts[key]; judged && v.Reason != discovery.ReasonInvalid {
			next[key] = obj
		} else if last := p.lastGood[key]; last != nil && last.GetUID() == obj.GetUID() {
			next[key] = last
		}
	}
	p.lastGood = next
}

// report logs what is new about objects that aren't in force, and leaves all
// verdicts for the leader.
func (p *publisher) report(verdicts discovery.Verdicts) {
	for key, v := range verdicts {
		if !v.Accepted && p.told[key] != v {
			p.cfg.Log.Warn("object is not in force", slog.String("object", key.String()), slog.String("reason", v.Reason), slog.String("error", v.Message))
		}
	}
	p.told = verdicts
	for {
		select {
		case p.verdicts <- verdicts:
			return
		default:
		}
		select {
		case <-p.verdicts: // older ones that nobody took
		default:
		}
	}
}
