package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"podseal.io/podseal/internal/capture"
	"podseal.io/podseal/internal/proxy"
	"podseal.io/podseal/internal/version"
)

// Where an injected pod has what the proxy reads (contract 4.18, 4.30).
const (
	defaultCA       = "istiod.d8-istio.svc:15012"
	defaultRootFile = "/var/run/secrets/istio/root-cert.pem"
	// where Kubernetes mounts the pod's own account
	defaultAPIRoot   = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"
	defaultAPIToken  = "/var/run/secrets/kubernetes.io/serviceaccount/token" //nolint:gosec // a path, not a secret
	defaultTokenFile = "/var/run/secrets/tokens/istio-token"                 //nolint:gosec // a path, not a secret
	defaultStateFile = "/var/lib/istio/data/world"
)

// ignored are flags of Istio's agent that templates pass and that mean nothing here.
var ignored = []string{
	"domain", "proxyComponentLogLevel", "log_output_level", "concurrency", "serviceCluster", "stsPort", "templateFile",
	"tokenManagerPlugin", "outlierLogPath", "meshConfig",
}

// runProxy runs the proxy until the context ends and it has drained.
func runProxy(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	cfg, level, code := proxyConfig(args, getenv, stderr)
	if code >= 0 {
		return code
	}
	newCollector().run()
	out := &lines{w: stdout}
	defer out.flush()
	cfg.AccessLog, cfg.RecordLog = out, out
	cfg.Log = slog.New(slog.NewJSONHandler(out, &slog.HandlerOptions{Level: level}))
	var err error
	if cfg.LoopbackSegment, err = capture.LoopbackSegment(); err != nil { // it is only reported
		cfg.Log.Debug("it is not known how much lo takes in one piece", slog.String("error", err.Error()))
	}
	cfg.OnIdle = func(spare proxy.Spare) {
		if spare&proxy.SpareGarbage != 0 {
			debug.FreeOSMemory()
		}
		if spare&proxy.SpareProgram == 0 {
			return
		}
		if err := forgetProgram(); err != nil { // it costs memory, nothing else
			cfg.Log.Debug("memory that is not needed is kept", slog.String("error", err.Error()))
		}
	}
	if err := proxy.Run(ctx, cfg); err != nil {
		fmt.Fprintf(stderr, "podseal-proxy: %v\n", err)
		leaveMessage(terminationLog, err.Error())
		if errors.Is(err, capture.ErrNotCaptured) {
			return exitMissing
		}
		return 1
	}
	return 0
}

// proxyConfig reads flags and environment. A code that isn't negative ends the
// program.
func proxyConfig(args []string, getenv func(string) string, stderr io.Writer) (proxy.Config, slog.Level, int) {
	var role string
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		role, args = args[0], args[1:]
	}
	env := environment{get: getenv}
	cfg := proxy.Config{Listen: proxy.DefaultListen(), Random: rand.IntN, OriginalDst: capture.OriginalDst, Version: version.Version}
	fs := flag.NewFlagSet("podseal-proxy proxy", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&cfg.Control.Address, "ca-address", cmp.Or(getenv("CA_ADDR"), defaultCA), "control plane, host:port (env CA_ADDR)")
	fs.StringVar(&cfg.Control.ServerName, "ca-server-name", getenv("CA_SERVER_NAME"), "name in its certificate, if not the host (env CA_SERVER_NAME)")
	fs.StringVar(&cfg.Control.RootFile, "root-file", defaultRootFile, "PEM that the control plane is verified with")
	fs.StringVar(&cfg.Control.TokenFile, "token-file", defaultTokenFile, "service account token")
	fs.StringVar(&cfg.Control.StateFile, "state-file", defaultStateFile, "what the control plane has told is kept here for a restart of this program; keys are not; empty keeps nothing")
	fs.StringVar(&cfg.Listen.Outbound, "listen-outbound", cfg.Listen.Outbound, "where captured outbound connections arrive")
	fs.StringVar(&cfg.Listen.Inbound, "listen-inbound", cfg.Listen.Inbound, "where captured inbound connections arrive")
	fs.StringVar(&cfg.Listen.Health, "listen-health", cfg.Listen.Health, "readiness")
	fs.StringVar(&cfg.Listen.Metrics, "listen-metrics", cfg.Listen.Metrics, "metrics and probes")
	fs.StringVar(&cfg.Listen.Stats, "listen-stats", cfg.Listen.Stats, "metrics, where scrapers of Envoy look")
	fs.StringVar(&cfg.Listen.Admin, "listen-admin", cfg.Listen.Admin, "status, for people in the pod")
	fs.IntVar(&cfg.MaxConnections, "max-connections", env.number("PODSEAL_MAX_CONNECTIONS", proxy.DefaultMaxConnections), "connections open at a time, in each direction (env PODSEAL_MAX_CONNECTIONS)")
	fs.DurationVar(&cfg.Drain, "drain", env.duration("TERMINATION_DRAIN_DURATION", proxy.DefaultDrain), "how long open connections may finish (env TERMINATION_DRAIN_DURATION)")
	fs.DurationVar(&cfg.Control.TTL, "certificate-ttl", env.duration("SECRET_TTL", 24*time.Hour), "life of certificates to ask for (env SECRET_TTL)")
	requireCapture := fs.Bool("require-capture", false, "exit with 126 unless the traffic of this pod is captured")
	logLevel := fs.String("proxyLogLevel", cmp.Or(getenv("PODSEAL_LOG_LEVEL"), "info"), "debug, info, warn or error; Istio's own names are read too")
	for _, name := range ignored {
		fs.String(name, "", "ignored: a flag of Istio's agent")
	}
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return cfg, 0, 0
	case err != nil:
		return cfg, 0, 2
	}
	if role != "" && role != "sidecar" {
		env.fault(fmt.Errorf("role %q: this proxy is a sidecar", role))
	}
	if fs.NArg() > 0 {
		env.fault(fmt.Errorf("argument %q is not understood", fs.Arg(0)))
	}
	env.pod(&cfg)
	cfg.Linger = proxy.DefaultLinger
	if *requireCapture {
		cfg.Prove = proveCapture
	}
	if err := errors.Join(env.faults...); err != nil {
		fmt.Fprintf(stderr, "podseal-proxy: %v\n", err)
		return cfg, 0, 2
	}
	return cfg, parseLevel(*logLevel), -1
}

// proveCapture is for pods that are captured from the node's side, so that no container
// of theirs has seen the rules.
func proveCapture(ctx context.Context, inbound []*net.TCPListener) ([]*net.TCPConn, error) {
	addrs, err := capture.PodAddresses()
	if err != nil {
		return nil, err
	}
	others, err := capture.Prove(ctx, inbound, addrs)
	if err != nil {
		err = fmt.Errorf("%w; the CNI plugin of the mesh did not run when the pod was made, so the pod must not go on: delete it, and it is made anew", err)
	}
	return others, err
}

// parseLevel reads a log level. The injected argument --proxyLogLevel=warning is
// about Envoy's own messages (contract 5.15): records are info and are wanted.
func parseLevel(s string) slog.Level {
	switch s {
	case "debug", "trace":
		return slog.LevelDebug
	case "error", "critical", "off":
		return slog.LevelError
	case "warn":
		return slog.LevelWarn
	default:
		return slog.LevelInfo
	}
}

// environment reads variables and keeps what is wrong with them.
type environment struct {
	get    func(string) string
	faults []error
}

func (e *environment) fault(err error) { e.faults = append(e.faults, err) }

func (e *environment) number(name string, otherwise int) int {
	text := e.get(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil || n <= 0 {
		e.fault(fmt.Errorf("%s: %q is not a positive number", name, text))
		return otherwise
	}
	return n
}

func (e *environment) duration(name string, otherwise time.Duration) time.Duration {
	text := e.get(name)
	if text == "" {
		return otherwise
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		e.fault(fmt.Errorf("%s: %q is not a duration such as 5s", name, text))
		return otherwise
	}
	return d
}

// pod reads what an injected pod says of itself (contract 5.16).
func (e *environment) pod(cfg *proxy.Config) {
	cfg.Pod, cfg.Namespace = e.get("POD_NAME"), e.get("POD_NAMESPACE")
	if cfg.Pod == "" || cfg.Namespace == "" {
		e.fault(errors.New("POD_NAME and POD_NAMESPACE must say which pod this is; the injector sets them"))
	}
	if host := e.get("KUBERNETES_SERVICE_HOST"); host != "" {
		cfg.API = proxy.API{Address: net.JoinHostPort(host, cmp.Or(e.get("KUBERNETES_SERVICE_PORT"), "443")), RootFile: defaultAPIRoot, TokenFile: defaultAPIToken}
	}
	cfg.Cluster = cmp.Or(e.get("ISTIO_META_CLUSTER_ID"), "Kubernetes")
	for text := range strings.SplitSeq(cmp.Or(e.get("INSTANCE_IPS"), e.get("INSTANCE_IP")), ",") {
		if text == "" {
			continue
		}
		a, err := netip.ParseAddr(text)
		if err != nil {
			e.fault(fmt.Errorf("INSTANCE_IP: %w", err))
			continue
		}
		cfg.Addresses = append(cfg.Addresses, a.Unmap())
	}
	cfg.Metadata = map[string]string{}
	for key, name := range map[string]string{
		"NAME": "POD_NAME", "NAMESPACE": "POD_NAMESPACE", "SERVICE_ACCOUNT": "SERVICE_ACCOUNT", "NODE_NAME": "ISTIO_META_NODE_NAME",
		"WORKLOAD_NAME": "ISTIO_META_WORKLOAD_NAME", "OWNER": "ISTIO_META_OWNER", "MESH_ID": "ISTIO_META_MESH_ID",
		"CLUSTER_ID": "ISTIO_META_CLUSTER_ID", "INTERCEPTION_MODE": "ISTIO_META_INTERCEPTION_MODE", "TRUST_DOMAIN": "TRUST_DOMAIN",
	} {
		if v := e.get(name); v != "" {
			cfg.Metadata[key] = v
		}
	}
	cfg.Metadata["VERSION"] = version.Version
	cfg.Probers = []byte(e.get("ISTIO_KUBE_APP_PROBERS"))
	e.appMetrics(cfg)
}

// appMetrics reads where the application said that its metrics are.
func (e *environment) appMetrics(cfg *proxy.Config) {
	text := e.get("ISTIO_PROMETHEUS_ANNOTATIONS")
	if text == "" {
		return
	}
	var said struct{ Scrape, Path, Port string }
	if err := json.Unmarshal([]byte(text), &said); err != nil {
		e.fault(fmt.Errorf("ISTIO_PROMETHEUS_ANNOTATIONS: %w", err))
		return
	}
	if said.Scrape != "true" {
		return
	}
	port, err := strconv.ParseUint(cmp.Or(said.Port, "80"), 10, 16)
	if err != nil || port == 0 {
		e.fault(fmt.Errorf("ISTIO_PROMETHEUS_ANNOTATIONS: port %q is not a port", said.Port))
		return
	}
	if port != 15020 { // our own: it would ask itself for ever
		cfg.AppMetrics = proxy.AppMetrics{Port: uint16(port), Path: cmp.Or(said.Path, "/metrics")}
	}
}
