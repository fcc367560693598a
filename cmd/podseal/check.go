package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"podseal.io/podseal/internal/install"
)

type checkOptions struct {
	pre    bool
	output string
	wait   time.Duration
}

func newCheckCommand(s streams, k *kube) *cobra.Command {
	o := checkOptions{}
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Say whether Podseal is well, and what to do if not",
		Long: `Look at the cluster, the manager, the control plane, the webhooks, the root and the proxies.
Each fault comes with what to do about it. The exit code is 0 if all is well or there are only
warnings, 1 if anything is an error, 2 if Podseal is installed and well but the mesh is not enabled.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), s, k) },
	}
	f := cmd.Flags()
	f.BoolVar(&o.pre, "pre", false, "look whether Podseal can be installed here")
	f.StringVarP(&o.output, "output", "o", "table", "table, short (only faults) or json")
	f.DurationVar(&o.wait, "wait", 0, "repeat until the mesh is enabled and there is no error, for at most this long")
	return cmd
}

func (o *checkOptions) run(ctx context.Context, s streams, k *kube) error {
	if err := oneOf("output", o.output, "table", "short", "json"); err != nil {
		return err
	}
	c, cfg, err := k.client(io.Discard)
	if err != nil {
		return err
	}
	checker := &install.Checker{Client: c, ServerVersion: serverVersion(cfg), Now: time.Now()}
	look := func(ctx context.Context) install.Report {
		if o.pre {
			return checker.Before(ctx)
		}
		return checker.Installed(ctx)
	}
	report := look(ctx)
	if o.wait > 0 && !report.Success {
		waitCtx, cancel := context.WithTimeout(ctx, o.wait)
		defer cancel()
		// what it waited for is in the report
		_ = install.Wait(waitCtx, func(context.Context) (string, error) {
			report = look(ctx)
			return firstError(report), nil
		}, progress(s.err))
	}
	if o.output == "json" {
		if err := writeJSON(s.out, report); err != nil {
			return err
		}
	} else {
		printReport(s, report, o.output == "short")
	}
	switch {
	case report.NotEnabled:
		return errNotEnabled
	case !report.Success:
		return errSilent
	default:
		return nil
	}
}

func firstError(r install.Report) string {
	for _, category := range r.Categories {
		for _, ch := range category.Checks {
			if ch.Result == install.Error || ch.Result == install.Off {
				return ch.Description + ": " + ch.Error
			}
		}
	}
	return ""
}

// marks of the verdicts, and the colours that terminals show them in.
func mark(s streams, v install.Verdict) string {
	sign, color := "√", "32"
	switch v {
	case install.Warning, install.Off:
		sign, color = "‼", "33"
	case install.Error:
		sign, color = "×", "31"
	case install.Success:
	}
	if !s.color {
		return sign
	}
	return "\x1b[" + color + "m" + sign + "\x1b[0m"
}

func printReport(s streams, r install.Report, short bool) {
	indent := func(text string) string { return strings.ReplaceAll(text, "\n", "\n    ") }
	for _, category := range r.Categories {
		var b strings.Builder
		for _, ch := range category.Checks {
			if short && ch.Result == install.Success {
				continue
			}
			fmt.Fprintf(&b, "%s %s\n", mark(s, ch.Result), ch.Description)
			if ch.Error != "" {
				fmt.Fprintf(&b, "    %s\n", indent(ch.Error))
			}
			if ch.Hint != "" {
				fmt.Fprintf(&b, "    what to do: %s\n", indent(ch.Hint))
			}
		}
		if b.Len() == 0 {
			continue
		}
		fmt.Fprintf(s.out, "%s\n%s\n%s\n", category.Name, strings.Repeat("-", len(category.Name)), b.String())
	}
	switch {
	case r.NotEnabled:
		fmt.Fprintf(s.out, "Status check results are %s: installed, not enabled\n", mark(s, install.Off))
	case r.Success:
		fmt.Fprintf(s.out, "Status check results are %s\n", mark(s, install.Success))
	default:
		fmt.Fprintf(s.out, "Status check results are %s\n", mark(s, install.Error))
	}
}
