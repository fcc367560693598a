package install

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/go-logr/logr"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"podseal.io/podseal/api/deckhouse/v1alpha1"
	"podseal.io/podseal/internal/settings"
)

// Scheme returns the types that this package reads.
func Scheme() (*runtime.Scheme, error) {
	s := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(s), v1alpha1.AddToScheme(s)); err != nil {
		return nil, fmt.Errorf("make the scheme: %w", err)
	}
	return s, nil
}

// ManagerConfig says how RunManager runs.
type ManagerConfig struct {
	// Values render the control plane's part.
	Values Values
	// HealthAddress serves /healthz and /readyz, e.g. ":8080".
	HealthAddress string
	// LeaderElection is off only where one process runs for certain.
	LeaderElection bool
	Log            *slog.Logger
}

// RunManager runs a Manager until the context ends. Among several processes
// one is the leader and works.
func RunManager(ctx context.Context, rc *rest.Config, cfg ManagerConfig) error {
	if _, err := Render(cfg.Values, PartControlPlane); err != nil {
		return err
	}
	scheme, err := Scheme()
	if err != nil {
		return err
	}
	live, err := client.New(rc, client.Options{Scheme: scheme})
	if err != nil {
		return fmt.Errorf("make a client: %w", err)
	}
	watched := watches()
	byObject := map[client.Object]cache.ByObject{}
	for _, w := range watched {
		by := cache.ByObject{Field: fields.OneTermEqualSelector("metadata.name", w.GetName())}
		if ns := w.GetNamespace(); ns != "" {
			by.Namespaces = map[string]cache.Config{ns: {}}
		}
		byObject[w] = by
	}
	mgr, err := ctrl.NewManager(rc, ctrl.Options{
		Scheme:                        scheme,
		Logger:                        logr.FromSlogHandler(cfg.Log.Handler()),
		Cache:                         cache.Options{ByObject: byObject},
		Metrics:                       server.Options{BindAddress: "0"},
		HealthProbeBindAddress:        cfg.HealthAddress,
		LeaderElection:                cfg.LeaderElection,
		LeaderElectionID:              "podseal-manager",
		LeaderElectionNamespace:       settings.ManagerNamespace,
		LeaderElectionReleaseOnCancel: true,
	})
	if err != nil {
		return fmt.Errorf("make the controller manager: %w", err)
	}
	c, err := controller.New("moduleconfig", mgr, controller.Options{
		Reconciler:  &Manager{Client: live, Values: cfg.Values, Log: cfg.Log},
		RateLimiter: workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](100*time.Millisecond, 5*time.Second),
	})
	if err != nil {
		return fmt.Errorf("make the controller: %w", err)
	}
	one := handler.EnqueueRequestsFromMapFunc(func(context.Context, client.Object) []reconcile.Request {
		return []reconcile.Request{{NamespacedName: types.NamespacedName{Name: settings.ModuleName}}}
	})
	for _, w := range watched {
		if err := c.Watch(source.Kind(mgr.GetCache(), w, one)); err != nil {
			return fmt.Errorf("watch %T: %w", w, err)
		}
	}
	synced := func(r *http.Request) error {
		wait, cancel := context.WithTimeout(r.Context(), time.Second)
		defer cancel()
		if !mgr.GetCache().WaitForCacheSync(wait) {
			return errors.New("the caches are not filled yet")
		}
		return nil
	}
	if err := errors.Join(mgr.AddHealthzCheck("ping", healthz.Ping), mgr.AddReadyzCheck("caches", synced)); err != nil {
		return fmt.Errorf("add the probes: %w", err)
	}
	if err := mgr.Start(ctx); err != nil {
		return fmt.Errorf("run the manager: %w", err)
	}
	return nil
}

// watches are what a change of is answered at once; the rest is looked at
// every netEvery. Each is one object, by name: RBAC grants no more.
func watches() []client.Object {
	named := func(o client.Object, namespace, name string) client.Object {
		o.SetNamespace(namespace)
		o.SetName(name)
		return o
	}
	return []client.Object{
		named(&v1alpha1.ModuleConfig{}, "", settings.ModuleName),
		named(&corev1.Namespace{}, "", settings.Namespace),
		named(&corev1.Service{}, settings.Namespace, settings.ServiceName),
		named(&appsv1.Deployment{}, settings.Namespace, "istiod"),
		named(&appsv1.DaemonSet{}, settings.Namespace, CNIDaemonSet),
		named(&admissionv1.MutatingWebhookConfiguration{}, "", InjectorName),
		named(&admissionv1.ValidatingWebhookConfiguration{}, "", ValidatorName),
	}
}

// Names of the webhook configurations (contract 1.36, 5.1).
const (
	InjectorName  = "istio-sidecar-injector"
	ValidatorName = "istio-validator-d8-istio"
)
