package main

import (
	"io"
	"log/slog"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"

	"podseal.io/podseal/internal/install"
	"podseal.io/podseal/internal/version"
)

func newManagerCommand(s streams, k *kube) *cobra.Command {
	var values, health, level, format string
	var elect bool
	cmd := &cobra.Command{
		Use:    "manager",
		Short:  "Run the manager: it does what the ModuleConfig named istio says",
		Long:   "Run the manager. It runs in the cluster, as Deployment podseal-system/podseal-manager.",
		Args:   noArgs,
		Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := newLogger(s.err, level, format)
			if err != nil {
				return usageError{err}
			}
			chartValues, err := decodeValues(values)
			if err != nil {
				return err
			}
			cfg, err := k.config(io.Discard)
			if err != nil {
				return err
			}
			cfg.Timeout = 0 // watches last
			ctrl.SetLogger(logr.FromSlogHandler(log.Handler()))
			klog.SetSlogLogger(log)
			log.LogAttrs(cmd.Context(), slog.LevelInfo, "manager starts", slog.String("version", version.Version))
			err = install.RunManager(cmd.Context(), cfg, install.ManagerConfig{Values: chartValues, HealthAddress: health, LeaderElection: elect, Log: log})
			log.LogAttrs(cmd.Context(), slog.LevelInfo, "manager ends")
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&values, "chart-values", "", "JSON object of chart values for the control plane")
	f.StringVar(&health, "health-address", ":8080", "where /healthz and /readyz are served")
	f.BoolVar(&elect, "leader-elect", true, "work only as the leader among several managers")
	f.StringVar(&level, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&format, "log-format", "text", "text or json")
	return cmd
}
