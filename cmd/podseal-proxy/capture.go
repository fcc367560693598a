package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"

	"podseal.io/podseal/internal/capture"
)

// exitMissing is the exit code that users' tooling knows for "the rules are not in
// place" (contract 5.14).
const exitMissing = 126

// runCapture puts the capture rules into the pod's network namespace and reads
// them back. It returns the exit code: 0 only if they are in place, so that a pod
// whose traffic would not be captured doesn't start.
func runCapture(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	opts, err := capture.Parse(args, os.Getenv, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		return refuse(stderr, "bad arguments", err)
	}
	opts.IPv6, err = capture.HasIPv6(os.DirFS("/proc"))
	if err != nil {
		return refuse(stderr, "can't tell what to capture", err)
	}
	rules := capture.Build(opts.Config)
	if opts.DryRun {
		fmt.Fprint(stdout, rules.Text())
		return 0
	}
	if !opts.VerifyOnly {
		if err := capture.Apply(ctx, rules); err != nil {
			return refuse(stderr, "the rules can't be set", err)
		}
	}
	if err := capture.Verify(ctx, rules); err != nil {
		code := refuse(stderr, "the rules are not in place", err)
		if opts.VerifyOnly {
			return exitMissing
		}
		return code
	}
	log := slog.New(slog.NewTextHandler(stderr, nil))
	fmt.Fprint(stdout, rules.Text())
	log.Info("capture is in place", slog.Bool("ipv4", opts.IPv4), slog.Bool("ipv6", opts.IPv6),
		slog.Int("proxy_port", int(opts.ProxyPort)), slog.Int("inbound_port", int(opts.InboundPort)))
	return 0
}

// refuse says why the pod must not start, and returns the exit code.
func refuse(stderr io.Writer, what string, err error) int {
	text := fmt.Sprintf("%s, so this pod must not start: %v", what, err)
	fmt.Fprintf(stderr, "capture: %s\n", text)
	leaveMessage(terminationLog, text)
	return 1
}
