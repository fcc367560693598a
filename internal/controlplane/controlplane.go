// Package controlplane is the process that tells proxies what to do and gives
// workloads their certificates.
//
//	:15012  gRPC over TLS   delta ADS (package xds), CreateCertificate (package ca), edges (package report), questions of other replicas
//	:15017  HTTPS           /inject and /validate, for the API server (contract 5.1, 1.36)
//	:15014  HTTP            /metrics
//	:8080   HTTP            /ready, /debug/proxies
//	:15004  HTTP, loopback  /v1/view, /v1/explain, for people (podseal edges, can, …)
//
// Any number of replicas serve; one, which holds the Lease podseal-control-plane,
// also writes. Kubernetes is the only store.
//
//	change of an object -> informer -> publisher (≤ 100 ms) -> discovery.Build -> xds.Store
//	change of a Secret  -> informer -> authority -> serving certificate, publisher, ConfigMaps, webhooks
//
// Writers of shared values: the publisher writes the store; the authority writes
// issuer, settings and serving certificate, as one value; the leader writes
// ConfigMaps, webhook configurations, Pod Security labels and policy status.
//
// What the process must be allowed (ClusterRole, then Role in d8-istio):
//
//	pods, services, namespaces                          get list watch
//	nodes                                               get list watch
//	namespaces                                          patch   Pod Security label, where there is no Deckhouse
//	discovery.k8s.io/endpointslices                     get list watch
//	security.istio.io/{peerauthentications,authorizationpolicies,requestauthentications}          get list watch
//	security.istio.io/{peerauthentications,authorizationpolicies,requestauthentications}/status   patch
//	networking.istio.io/{destinationrules,serviceentries}          get list watch
//	networking.istio.io/{destinationrules,serviceentries}/status   patch
//	events, events.k8s.io/events                        create patch
//	authentication.k8s.io/tokenreviews                  create
//	authorization.k8s.io/subjectaccessreviews           create
//	mutatingwebhookconfigurations                       get list watch patch   istio-sidecar-injector only
//	validatingwebhookconfigurations                     get list watch patch   istio-validator-d8-istio only
//	configmaps                                          create
//	configmaps                                          get list watch update patch   istio-ca-root-cert only
//	configmaps                                          get list watch   istio only, of the own namespace
//
//	secrets                                             get list watch create
//	secrets                                             update   istio-ca-secret only
//	coordination.k8s.io/leases                          get create update patch
//	events, events.k8s.io/events                        create patch
//	security.istio.io/peerauthentications               create   dry run only (contract 1.36)
//
// And, in ClusterRoles of their own that are bound only where it is asked for:
//
//	apps/{deployments,statefulsets,daemonsets}          get list patch   auto-upgrade
//	policy/poddisruptionbudgets                         list             auto-upgrade
//	pods                                                delete           repair, with the CNI plugin
package controlplane

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"podseal.io/podseal/internal/inject"
	"podseal.io/podseal/internal/settings"
	"podseal.io/podseal/internal/xds"
)

// fieldOwner is who we are in managedFields.
const fieldOwner = client.FieldOwner("podseal-control-plane")

// leaseName is the Lease whose holder writes.
const leaseName = "podseal-control-plane"

// shutdownTimeout is how long open streams and requests may take to end.
const shutdownTimeout = 5 * time.Second

// Config is what the control plane needs. Zero addresses mean the ports of the
// package comment.
type Config struct {
	REST            *rest.Config
	Namespace       string // settings.Namespace if empty
	ProxyImage      string
	ImagePullPolicy corev1.PullPolicy
	// NativeSidecars nil means: as the API server's version allows (contract 5.41).
	NativeSidecars *bool

	GRPCAddress, WebhookAddress, MetricsAddress, HealthAddress string
	// InspectAddress is where people look at the mesh. It wants a token, and is
	// meant to be on loopback all the same.
	InspectAddress string
	Replica        string // the name of this pod, for people
	// RepairPods deletes pods that are held since the CNI plugin did not capture them.
	RepairPods bool

	Log *slog.Logger
}

// Validate reports all that is wrong with the config.
func (c *Config) Validate() error {
	var faults []error
	if c.REST == nil {
		faults = append(faults, errors.New("no API server to talk to"))
	}
	if c.ProxyImage == "" {
		faults = append(faults, errors.New("the proxy's image is not set (--proxy-image)"))
	}
	if c.Log == nil {
		faults = append(faults, errors.New("no logger"))
	}
	return errors.Join(faults...)
}

func (c *Config) complete() {
	c.Namespace = cmp.Or(c.Namespace, settings.Namespace)
	c.GRPCAddress = cmp.Or(c.GRPCAddress, ":15012")
	c.WebhookAddress = cmp.Or(c.WebhookAddress, ":15017")
	c.MetricsAddress = cmp.Or(c.MetricsAddress, ":15014")
	c.HealthAddress = cmp.Or(c.HealthAddress, ":8080")
	c.InspectAddress = cmp.Or(c.InspectAddress, "127.0.0.1:"+InspectPort)
}

// InjectParams are what pods are injected with under this config.
func (c *Config) InjectParams(native bool) inject.Params {
	return inject.Params{
		ProxyImage: c.ProxyImage, ImagePullPolicy: c.ImagePullPolicy,
		CAAddress: serviceHost(cmp.Or(c.Namespace, settings.Namespace)) + ":15012", NativeSidecars: native,
	}
}

// Run serves until the context ends or something breaks that a restart must mend.
func Run(ctx context.Context, cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return fmt.Errorf("control plane: %w", err)
	}
	cfg.complete()
	base := logr.FromSlogHandler(cfg.Log.Handler())
	ctrl.SetLogger(base)
	klog.SetLogger(base)
	// The API server limits by itself what we may ask; a mesh whose proxies all
	// come back at once must not queue up behind a limit of ours.
	cfg.REST = rest.CopyConfig(cfg.REST)
	cfg.REST.QPS = -1
	native, err := waitForAPI(ctx, cfg)
	if err != nil {
		return err
	}
	mgr, err := ctrl.NewManager(cfg.REST, ctrl.Options{
		Scheme:                        newScheme(),
		Logger:                        base,
		Cache:                         cacheOptions(cfg.Namespace),
		Client:                        client.Options{Cache: &client.CacheOptions{Unstructured: true}},
		Metrics:                       metricsserver.Options{BindAddress: "0"},
		LeaderElection:                true,
		LeaderElectionID:              leaseName,
		LeaderElectionNamespace:       cfg.Namespace,
		LeaderElectionReleaseOnCancel: true,
		GracefulShutdownTimeout:       new(2 * shutdownTimeout),
	})
	if err != nil {
		return fmt.Errorf("control plane: %w", err)
	}
	l, err := listen(ctx, cfg)
	if err != nil {
		return err
	}
	defer l.close()
	if err := assemble(ctx, cfg, mgr, native, l); err != nil {
		return err
	}
	cfg.Log.Info("control plane starts", slog.String("namespace", cfg.Namespace), slog.Bool("native_sidecars", native), slog.String("proxy_image", cfg.ProxyImage))
	if err := mgr.Start(ctx); err != nil {
		return fmt.Errorf("control plane: %w", err)
	}
	cfg.Log.Info("control plane stopped")
	return nil
}

// listeners are bound before anything starts, so that a port in use is an error
// and not a control plane that limps.
type listeners struct{ grpc, webhook, metrics, health, inspect net.Listener }

func listen(ctx context.Context, cfg Config) (l listeners, err error) {
	var lc net.ListenConfig
	for _, x := range []struct {
		to   *net.Listener
		addr string
	}{{&l.grpc, cfg.GRPCAddress}, {&l.webhook, cfg.WebhookAddress}, {&l.metrics, cfg.MetricsAddress}, {&l.health, cfg.HealthAddress}, {&l.inspect, cfg.InspectAddress}} {
		if *x.to, err = lc.Listen(ctx, "tcp", x.addr); err != nil {
			l.close()
			return listeners{}, fmt.Errorf("listen: %w", err)
		}
	}
	return l, nil
}

func (l listeners) close() {
	for _, x := range []net.Listener{l.grpc, l.webhook, l.metrics, l.health, l.inspect} {
		if x != nil {
			_ = x.Close() // closed already by whoever served it
		}
	}
}

// assemble connects the parts and hands them to the manager, which runs them.
func assemble(ctx context.Context, cfg Config, mgr ctrl.Manager, native bool, l listeners) error {
	counts := newCounts()
	store := xds.NewStore()
	auth := newAuthority(authorityConfig{
		Namespace: cfg.Namespace, Now: time.Now, Events: mgr.GetEventRecorder("podseal-control-plane"), Log: cfg.Log,
	})
	reviewer := newReviewer(reviewerConfig{Create: reviewThrough(mgr.GetClient()), Now: time.Now})
	streams := newGRPC(grpcConfig{Authority: auth, Reviewer: reviewer, Store: store, Counts: counts, Log: cfg.Log})
	mesh, err := newMeshConfig(cfg.REST, cfg.Namespace)
	if err != nil {
		return err
	}
	var pub *publisher
	keys := newKeyFetcher(keyFetcherConfig{Reachable: reachable, Changed: func() { pub.kick() }, Now: time.Now, Log: cfg.Log})
	pub = newPublisher(publisherConfig{
		Cache: mgr.GetCache(), Authority: auth, Store: store, Namespace: cfg.Namespace, Keys: keys.Keys, MeshConfig: mesh.Text, Counts: counts, Now: time.Now, Log: cfg.Log,
	})
	roots := &rootWriter{client: mgr.GetClient(), authority: auth}
	counts.observe(auth, streams.xds, streams.report, time.Now)

	if err := auth.watch(ctx, mgr.GetCache()); err != nil {
		return err
	}
	if err := pub.watch(ctx, mgr.GetCache()); err != nil {
		return err
	}
	seen, err := mesh.watch(ctx, pub.kick)
	if err != nil {
		return err
	}
	pub.handled = append(pub.handled, seen)
	// These are read when somebody asks: the first must not wait for a list.
	for _, obj := range []client.Object{&corev1.Namespace{}, &corev1.ConfigMap{}, &corev1.Node{}} {
		if _, err := mgr.GetCache().GetInformer(ctx, obj); err != nil {
			return fmt.Errorf("control plane: watch %T: %w", obj, err)
		}
	}
	health := &healthServer{authority: auth, publisher: pub, streams: streams.xds, store: store}
	look := &viewer{
		cache: mgr.GetCache(), store: store, peers: streams.xds.Peers, reports: streams.report.Reports, replica: cfg.Replica, started: time.Now(), now: time.Now,
	}
	asked := &explainer{store: store, cluster: pub.last.Load, each: streams.xds.Each, reports: streams.report.ReportsOf, replica: cfg.Replica, now: time.Now}
	own := &stateReader{cluster: pub.last.Load, each: streams.xds.Each}
	peers := newPeerClient(cfg.Replica, cfg.Namespace, mgr.GetCache(), auth, cfg.Log)
	all := &replicas{own: look, answers: asked, peers: peers}
	matches := &matchReader{cluster: pub.last.Load, reports: streams.report.Reports}
	streams.answerPeers(cfg, look, asked, own, matches)
	hooks := &webhooks{
		namespaces: mgr.GetClient(), live: mgr.GetAPIReader(), authority: auth, roots: roots, counts: counts, rootNamespace: cfg.Namespace, meshConfig: mesh.Text, advise: (&adviser{all.view}).warn,
		params: cfg.InjectParams(native),
		log:    cfg.Log,
	}
	states := &attester{view: all.view, cluster: pub.last.Load, issuer: auth.Issuer, domain: auth.TrustDomain, own: cfg.Namespace, now: time.Now}
	inspect := newInspector(mgr.GetClient(), all, states, cfg.Log)
	everywhere := []runnable{
		auth.Run,
		pub.Run,
		keys.Run,
		mesh.cache.Start,
		func(ctx context.Context) error { return streams.serve(ctx, l.grpc) },
		func(ctx context.Context) error {
			return serveHTTP(ctx, l.webhook, hooks.handler(), auth.TLSConfig(), cfg.Log)
		},
		func(ctx context.Context) error { return serveHTTP(ctx, l.metrics, counts.handler(), nil, cfg.Log) },
		func(ctx context.Context) error { return serveHTTP(ctx, l.health, health.handler(), nil, cfg.Log) },
		func(ctx context.Context) error { return serveHTTP(ctx, l.inspect, inspect.handler(), nil, cfg.Log) },
	}
	for _, run := range everywhere {
		if err := mgr.Add(run); err != nil {
			return fmt.Errorf("control plane: %w", err)
		}
	}
	counts.registry.MustRegister(newTruthMetrics(look.view, heldPods(mgr.GetCache()), streams.xds.Peers, time.Now))
	enforce := &enforcement{own: own, others: &peerStateReader{peers: peers, now: time.Now}, matches: matches, peers: peers, view: all.view, now: time.Now, log: cfg.Log}
	return assembleLeader(cfg, mgr, auth, pub, roots, enforce)
}

// assembleLeader adds what only one replica does.
func assembleLeader(cfg Config, mgr ctrl.Manager, auth *authority, pub *publisher, roots *rootWriter, enforce *enforcement) error {
	maker := &rootMaker{client: mgr.GetClient(), live: mgr.GetAPIReader(), authority: auth, namespace: cfg.Namespace, now: time.Now, random: rand.Reader, log: cfg.Log}
	status := &statusWriter{client: mgr.GetClient(), verdicts: pub.verdicts, more: enforce.conditions, events: mgr.GetEventRecorder("podseal-control-plane"), now: time.Now, log: cfg.Log}
	roll := &upgrader{
		client: mgr.GetClient(), live: mgr.GetAPIReader(), settings: auth.Settings, namespace: cfg.Namespace, image: cfg.ProxyImage,
		events: mgr.GetEventRecorder("podseal-control-plane"), log: cfg.Log,
	}
	mend := &repairer{client: mgr.GetClient(), settings: auth.Settings, namespace: cfg.Namespace, events: mgr.GetEventRecorder("podseal-control-plane"), now: time.Now, log: cfg.Log, tried: map[types.UID]attempt{}}
	leading := []leaderRunnable{maker.Run, status.Run, roll.Run}
	if cfg.RepairPods {
		leading = append(leading, mend.Run)
	}
	for _, run := range leading {
		if err := mgr.Add(run); err != nil {
			return fmt.Errorf("control plane: %w", err)
		}
	}
	if err := setupNamespaces(mgr, roots, auth, cfg.Log); err != nil {
		return err
	}
	return setupWebhookConfigs(mgr, auth, cfg.Namespace, cfg.Log)
}

// runnable runs in every replica.
type runnable func(ctx context.Context) error

// Start makes a manager.Runnable of it.
func (r runnable) Start(ctx context.Context) error { return r(ctx) }

// NeedLeaderElection reports that it doesn't.
func (r runnable) NeedLeaderElection() bool { return false }

// leaderRunnable runs in the replica that writes.
type leaderRunnable func(ctx context.Context) error

// Start makes a manager.Runnable of it.
func (r leaderRunnable) Start(ctx context.Context) error { return r(ctx) }

// NeedLeaderElection reports that it does.
func (r leaderRunnable) NeedLeaderElection() bool { return true }

var (
	_ manager.LeaderElectionRunnable = runnable(nil)
	_ manager.LeaderElectionRunnable = leaderRunnable(nil)
)
