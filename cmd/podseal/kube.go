package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"podseal.io/podseal/internal/install"
)

// kube says which cluster to talk to, as kubectl's flags do.
type kube struct {
	kubeconfig, context string
	timeout             time.Duration
}

func (k *kube) addFlags(f *pflag.FlagSet) {
	f.StringVar(&k.kubeconfig, "kubeconfig", "", "path of the kubeconfig (default $KUBECONFIG, ~/.kube/config, or the pod's own account)")
	f.StringVar(&k.context, "context", "", "context of the kubeconfig")
	f.DurationVar(&k.timeout, "request-timeout", 30*time.Second, "how long one request to the API server may take")
}

// config reads the kubeconfig.
func (k *kube) config(warnings io.Writer) (*rest.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = k.kubeconfig
	cfg, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: k.context}).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("%w\nName a cluster with --kubeconfig FILE, or set KUBECONFIG", err)
	}
	cfg.QPS, cfg.Burst = 50, 100
	cfg.Timeout = k.timeout
	cfg.UserAgent = "podseal"
	cfg.WarningHandler = rest.NewWarningWriter(warnings, rest.WarningWriterOptions{Deduplicate: true})
	return cfg, nil
}

// namespace is the one of the kubeconfig's context.
func (k *kube) namespace() string {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = k.kubeconfig
	ns, _, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: k.context}).Namespace()
	if err != nil || ns == "" {
		return "default"
	}
	return ns
}

// fillIn makes an empty namespace the one of the kubeconfig's context.
func (k *kube) fillIn(namespace *string) {
	if *namespace == "" {
		*namespace = k.namespace()
	}
}

// client talks to the API server itself.
func (k *kube) client(warnings io.Writer) (client.Client, *rest.Config, error) {
	ctrl.SetLogger(logr.Discard())
	cfg, err := k.config(warnings)
	if err != nil {
		return nil, nil, err
	}
	scheme, err := install.Scheme()
	if err != nil {
		return nil, nil, err
	}
	c, err := client.New(cfg, client.Options{Scheme: scheme})
	if err != nil {
		return nil, nil, fmt.Errorf("reach the API server: %w", err)
	}
	return c, cfg, nil
}

func serverVersion(cfg *rest.Config) func(context.Context) (*version.Info, error) {
	return func(context.Context) (*version.Info, error) {
		d, err := discovery.NewDiscoveryClientForConfig(cfg)
		if err != nil {
			return nil, fmt.Errorf("make a discovery client: %w", err)
		}
		return d.ServerVersion()
	}
}

// progress writes what is waited for, on one line each.
func progress(w io.Writer) func(string, time.Duration) {
	return func(text string, elapsed time.Duration) {
		if text == "" {
			fmt.Fprintf(w, "still waiting (%d s)\n", int(elapsed.Seconds()))
			return
		}
		fmt.Fprintf(w, "waiting for %s (%d s)\n", text, int(elapsed.Seconds()))
	}
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}
