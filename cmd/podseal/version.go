package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"podseal.io/podseal/internal/install"
	"podseal.io/podseal/internal/version"
)

type versionOptions struct {
	client, short bool
	output        string
}

// versions is what `version -o json` prints.
type versions struct {
	Client       string `json:"client"`
	Manager      string `json:"manager,omitempty"`
	ControlPlane string `json:"controlPlane,omitempty"`
	// Error says why the cluster's versions are missing.
	Error string `json:"error,omitempty"`
}

func newVersionCommand(s streams, k *kube) *cobra.Command {
	o := versionOptions{}
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the versions of this program and of what runs in the cluster",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), s, k) },
	}
	f := cmd.Flags()
	f.BoolVar(&o.client, "client", false, "only this program's: contact no cluster")
	f.BoolVar(&o.short, "short", false, "only this program's, without a word")
	f.StringVarP(&o.output, "output", "o", "text", "text or json")
	return cmd
}

func (o *versionOptions) run(ctx context.Context, s streams, k *kube) error {
	if err := oneOf("output", o.output, "text", "json"); err != nil {
		return err
	}
	if o.short {
		_, err := fmt.Fprintln(s.out, version.Version)
		return err
	}
	v := versions{Client: version.Version}
	if !o.client {
		if err := v.ask(ctx, k); err != nil {
			v.Error = err.Error() // version succeeds without a cluster
		}
	}
	if o.output == "json" {
		return writeJSON(s.out, v)
	}
	fmt.Fprintf(s.out, "client version: %s\n", v.Client)
	if o.client {
		return nil
	}
	fmt.Fprintf(s.out, "manager version: %s\ncontrol plane version: %s\n", orUnavailable(v.Manager), orUnavailable(v.ControlPlane))
	if v.Error != "" {
		fmt.Fprintf(s.err, "note: %s\n", v.Error)
	}
	return nil
}

func orUnavailable(s string) string {
	if s == "" {
		return "unavailable"
	}
	return s
}

// ask reads the versions of what runs in the cluster.
func (v *versions) ask(ctx context.Context, k *kube) error {
	c, _, err := k.client(io.Discard)
	if err != nil {
		return err
	}
	var errs [2]error
	v.Manager, errs[0] = install.VersionOf(ctx, c, "podseal-system", "podseal-manager")
	v.ControlPlane, errs[1] = install.VersionOf(ctx, c, "d8-istio", "istiod")
	return errors.Join(errs[:]...)
}
