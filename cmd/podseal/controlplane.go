package main

import (
	"cmp"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"

	"podseal.io/podseal/internal/controlplane"
	"podseal.io/podseal/internal/settings"
	"podseal.io/podseal/internal/version"
)

// newControlPlaneCommand runs the control plane: what the Deployment istiod in
// d8-istio does.
func newControlPlaneCommand() *cobra.Command {
	var (
		cfg                      controlplane.Config
		pullPolicy, native       string
		logLevel, logFormat      string
		defaultNS, defaultProxy  = cmp.Or(os.Getenv("POD_NAMESPACE"), settings.Namespace), os.Getenv("PODSEAL_PROXY_IMAGE")
		nativeAuto, pullIfAbsent = "auto", string(corev1.PullIfNotPresent)
	)
	cmd := &cobra.Command{
		Use:   "controlplane",
		Short: "Run the control plane (the cluster does this, not you)",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := newLogger(cmd.ErrOrStderr(), logLevel, logFormat)
			if err != nil {
				return err
			}
			cfg.Log = log.With(slog.String("version", version.Version))
			cfg.ImagePullPolicy = corev1.PullPolicy(pullPolicy)
			if native != nativeAuto {
				on, err := strconv.ParseBool(native)
				if err != nil {
					return fmt.Errorf("--native-sidecars: %q is not one of auto, true, false", native)
				}
				cfg.NativeSidecars = &on
			}
			if cfg.REST, err = ctrl.GetConfig(); err != nil {
				return fmt.Errorf("find the API server: %w", err)
			}
			return controlplane.Run(cmd.Context(), cfg)
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.Namespace, "namespace", defaultNS, "namespace of the control plane, and root namespace of policies")
	f.StringVar(&cfg.ProxyImage, "proxy-image", defaultProxy, "image of the proxy that is added to pods")
	f.StringVar(&pullPolicy, "image-pull-policy", pullIfAbsent, "pull policy of that image")
	f.StringVar(&native, "native-sidecars", nativeAuto, "inject the proxy as a native sidecar: auto (by the API server's version), true or false")
	f.BoolVar(&cfg.RepairPods, "repair-pods", true, "delete pods that the CNI plugin did not capture and that are held, so that they are made anew")
	f.StringVar(&cfg.GRPCAddress, "grpc-address", "", `where proxies are served (default ":15012")`)
	f.StringVar(&cfg.WebhookAddress, "webhook-address", "", `where the API server asks (default ":15017")`)
	f.StringVar(&cfg.MetricsAddress, "metrics-address", "", `where metrics are read (default ":15014")`)
	f.StringVar(&cfg.HealthAddress, "health-address", "", `where readiness is asked (default ":8080")`)
	f.StringVar(&cfg.InspectAddress, "inspect-address", "", `where people look at the mesh, with a token (default "127.0.0.1:15004")`)
	f.StringVar(&cfg.Replica, "replica", os.Getenv("POD_NAME"), "name of this pod")
	f.StringVar(&logLevel, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&logFormat, "log-format", "json", "json or text")
	return cmd
}

// newLogger makes the logger that everything in this process uses.
func newLogger(w io.Writer, level, format string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("--log-level: %q is not one of debug, info, warn, error", level)
	}
	opts := &slog.HandlerOptions{Level: l}
	switch strings.ToLower(format) {
	case "json":
		return slog.New(slog.NewJSONHandler(w, opts)), nil
	case "text":
		return slog.New(slog.NewTextHandler(w, opts)), nil
	default:
		return nil, fmt.Errorf("--log-format: %q is not one of json, text", format)
	}
}
