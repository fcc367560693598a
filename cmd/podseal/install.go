package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"podseal.io/podseal/internal/install"
	"podseal.io/podseal/internal/settings"
	"podseal.io/podseal/internal/version"
)

type installOptions struct {
	values        string
	sets          []string
	clusterDomain string
	part          string
	output        string
	dryRun        bool
	force         bool
	wait          bool
	timeout       time.Duration
}

func newInstallCommand(s streams, k *kube) *cobra.Command {
	o := installOptions{}
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Install Podseal, or bring an installed one to this version",
		Long: `Install Podseal: the CRDs, the manager and its roles. It may be repeated.

Nothing is encrypted yet after that: the ModuleConfig named istio turns the mesh on.
Where Deckhouse or another product owns a CRD, that CRD is left alone.`,
		Example: `  podseal install
  podseal install --set image.hub=registry.example.com/podseal --set imagePullPolicy=Always
  podseal install --dry-run -o yaml | kubectl apply --server-side -f -
  podseal install --dry-run --part controlplane    # what the manager will apply`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), s, k) },
	}
	f := cmd.Flags()
	f.StringVarP(&o.values, "values", "f", "", "file of chart values (YAML)")
	f.StringArrayVar(&o.sets, "set", nil, "chart value KEY=VALUE; may be repeated")
	f.StringVar(&o.clusterDomain, "cluster-domain", "", "DNS domain of the cluster, also its trust domain (default: read from CoreDNS's configuration, else "+settings.DefaultClusterDomain+")")
	f.BoolVar(&o.dryRun, "dry-run", false, "print the manifests, change nothing, contact no cluster")
	f.StringVar(&o.part, "part", string(install.PartManager), "with --dry-run: which part to print, manager or controlplane")
	f.StringVarP(&o.output, "output", "o", "yaml", "with --dry-run: yaml or json")
	f.BoolVar(&o.force, "force-conflicts", false, "overwrite what others have changed in Podseal's objects")
	f.BoolVar(&o.wait, "wait", true, "wait until all is available")
	f.DurationVar(&o.timeout, "timeout", 5*time.Minute, "how long to wait")
	return cmd
}

func (o *installOptions) run(ctx context.Context, s streams, k *kube) error {
	err := errors.Join(
		oneOf("output", o.output, "yaml", "json"),
		oneOf("part", o.part, string(install.PartManager), string(install.PartControlPlane)),
	)
	if o.part != string(install.PartManager) && !o.dryRun {
		err = errors.Join(err, usageError{errors.New("--part is for --dry-run: the manager applies the part controlplane itself")})
	}
	if err != nil {
		return err
	}
	values, err := o.chartValues()
	if err != nil {
		return usageError{err}
	}
	if o.dryRun {
		return o.print(s, values)
	}
	c, cfg, err := k.client(s.err)
	if err != nil {
		return err
	}
	if _, err := serverVersion(cfg)(ctx); err != nil && !apierrors.IsForbidden(err) {
		return fmt.Errorf("reach the API server: %w", err)
	}
	if _, set := values["clusterDomain"]; !set {
		domain := install.DetectClusterDomain(ctx, c)
		if domain == "" {
			domain = settings.DefaultClusterDomain
			fmt.Fprintf(s.err, "note: CoreDNS's configuration doesn't say what the cluster's domain is; it is taken to be %s (--cluster-domain)\n", domain)
		}
		values["clusterDomain"] = domain
	}
	objects, err := install.Render(values, install.PartManager)
	if err != nil {
		return usageError{err}
	}
	return o.apply(ctx, s, c, objects)
}

func (o *installOptions) apply(ctx context.Context, s streams, c client.Client, objects []*unstructured.Unstructured) error {
	ctx, cancel := context.WithTimeoutCause(ctx, o.timeout, fmt.Errorf("the time is over (--timeout %s)", o.timeout))
	defer cancel()
	cluster := &install.Cluster{
		Client: c, Owner: install.OwnerCLI, Force: o.force, Explain: true,
		Report: func(object string, result install.Result) { fmt.Fprintf(s.out, "%s %s\n", object, result) },
	}
	if err := cluster.Apply(ctx, objects); err != nil {
		return err
	}
	if !o.wait {
		return nil
	}
	start := time.Now()
	if err := install.Wait(ctx, cluster.Pending(objects), progress(s.err)); err != nil {
		return fmt.Errorf("%w\n`podseal check` says more", err)
	}
	fmt.Fprintf(s.err, "Podseal %s is installed (%.1f s). ", version.Version, time.Since(start).Seconds())
	mc, err := (&install.Checker{Client: c}).ModuleConfig(ctx)
	switch {
	case err != nil && !meta.IsNoMatchError(err):
		return fmt.Errorf("read ModuleConfig %s: %w", settings.ModuleName, err)
	case mc != nil && mc.Spec.Enabled != nil && *mc.Spec.Enabled:
		fmt.Fprintln(s.err, "The mesh is enabled: `podseal check` says whether it is well.")
	default:
		fmt.Fprintf(s.err, "Turn the mesh on with:\n\n%s\n", install.EnableText)
	}
	return nil
}

func (o *installOptions) chartValues() (install.Values, error) {
	var file []byte
	if o.values != "" {
		var err error
		if file, err = os.ReadFile(o.values); err != nil {
			return nil, err
		}
	}
	values, err := install.ParseValues(file, o.sets)
	if err != nil {
		return nil, err
	}
	if o.clusterDomain != "" {
		values["clusterDomain"] = o.clusterDomain
	}
	return values, nil
}

func (o *installOptions) print(s streams, values install.Values) error {
	objects, err := install.Render(values, install.Part(o.part))
	if err != nil {
		return usageError{err}
	}
	if o.output == "json" {
		items := make([]any, len(objects))
		for i, u := range objects {
			items[i] = u.Object
		}
		return writeJSON(s.out, map[string]any{"apiVersion": "v1", "kind": "List", "items": items})
	}
	text, err := install.AppendYAML(nil, objects)
	if err != nil {
		return err
	}
	_, err = s.out.Write(text)
	return err
}

type uninstallOptions struct {
	keepCA, keepCRDs, yes bool
	timeout               time.Duration
}

func newUninstallCommand(s streams, k *kube) *cobra.Command {
	o := uninstallOptions{}
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Remove Podseal and all that it made",
		Long: `Remove Podseal: the manager, the webhooks, the control plane, the root in every namespace,
the Secret with the root's key, the labels that it set, the roles, the CRDs that it brought and with
them the ModuleConfig and all policies.

Pods that run with a proxy go on as they are until they are restarted; they are listed.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), s, k) },
	}
	f := cmd.Flags()
	f.BoolVar(&o.keepCA, "keep-ca", false, "keep namespace d8-istio with the root: a later install gives the same identities")
	f.BoolVar(&o.keepCRDs, "keep-crds", false, "keep the CRDs, the ModuleConfig (disabled) and all policies")
	f.BoolVarP(&o.yes, "yes", "y", false, "don't ask (nothing is asked either when the input is no terminal)")
	f.DurationVar(&o.timeout, "timeout", 3*time.Minute, "how long to wait until all is gone")
	return cmd
}

func (o *uninstallOptions) run(ctx context.Context, s streams, k *kube) error {
	c, cfg, err := k.client(s.err)
	if err != nil {
		return err
	}
	if s.ask && !o.yes {
		fmt.Fprintf(s.err, "Remove Podseal from %s? This cannot be undone. [y/N] ", cfg.Host)
		var answer string
		if _, err := fmt.Fscanln(s.in, &answer); err != nil || !strings.HasPrefix(strings.ToLower(answer), "y") {
			return errors.New("nothing was removed")
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, o.timeout, fmt.Errorf("the time is over (--timeout %s)", o.timeout))
	defer cancel()
	removed := 0
	cluster := &install.Cluster{
		Client: c, Owner: install.OwnerCLI,
		Report: func(object string, result install.Result) {
			removed++
			fmt.Fprintf(s.out, "%s %s\n", object, result)
		},
	}
	pods, err := cluster.Remove(ctx, install.Uninstall{KeepCA: o.keepCA, KeepCRDs: o.keepCRDs, Progress: progress(s.err)})
	if err != nil {
		return fmt.Errorf("%w\nIt may be repeated: `podseal uninstall` goes on where it ended", err)
	}
	if removed == 0 {
		fmt.Fprintln(s.err, "There was nothing of Podseal to remove.")
	} else {
		fmt.Fprintln(s.err, "Podseal is removed.")
	}
	if len(pods) > 0 {
		fmt.Fprintf(s.err, "These pods still run with a proxy, on certificates that nobody renews. Restart them within a day:\n  %s\n", strings.Join(pods, "\n  "))
	}
	return nil
}

// decodeValues reads the values that the chart hands to the manager.
func decodeValues(text string) (install.Values, error) {
	values := install.Values{}
	if text == "" {
		return values, nil
	}
	if err := json.Unmarshal([]byte(text), &values); err != nil {
		return nil, usageError{fmt.Errorf("--chart-values is not a JSON object: %w", err)}
	}
	return values, nil
}
