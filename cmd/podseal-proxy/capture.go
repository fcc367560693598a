package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"syscall"

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
	if opts.ProveOnly {
		return runValidation(ctx, opts, stderr)
	}
	opts.IPv6, err = capture.HasIPv6(os.DirFS("/proc"))
	if err != nil {
		return refuse(stderr, "can't tell what to capture", err)
	}
	log := slog.New(slog.NewTextHandler(stderr, nil))
	rules := capture.Build(opts.Config)
	if opts.DryRun {
		fmt.Fprint(stdout, rules.Text())
		return 0
	}
	if !opts.VerifyOnly {
		if err := capture.Apply(ctx, rules); err != nil {
			return refuse(stderr, "the rules can't be set", err)
		}
		if err := capture.WidenLoopback(); err != nil { // slower, and nothing else
			log.Warn("what application and proxy hand to each other can't be larger", slog.String("error", err.Error()))
		}
		if err := capture.ForgetResets(); err != nil { // the same
			log.Warn("a connection may wait for 10 s where another was reset before", slog.String("error", err.Error()))
		}
	}
	if err := capture.Verify(ctx, rules); err != nil {
		code := refuse(stderr, "the rules are not in place", err)
		if opts.VerifyOnly {
			return exitMissing
		}
		return code
	}
	fmt.Fprint(stdout, rules.Text())
	log.Info("capture is in place", slog.Bool("ipv4", opts.IPv4), slog.Bool("ipv6", opts.IPv6),
		slog.Int("proxy_port", int(opts.ProxyPort)), slog.Int("inbound_port", int(opts.InboundPort)))
	return 0
}

// runValidation proves that the pod is captured, before there is a proxy: it listens in
// its stead (contract 5.14).
func runValidation(ctx context.Context, opts capture.Options, stderr io.Writer) int {
	var inbound []*net.TCPListener
	for _, network := range []string{"tcp4", "tcp6"} {
		var lc net.ListenConfig
		lc.SetMultipathTCP(false)
		l, err := lc.Listen(ctx, network, fmt.Sprintf(":%d", opts.InboundPort))
		if network == "tcp6" && (errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL)) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return refuse(stderr, "can't tell whether the pod is captured", err)
		}
		defer l.Close()
		if tcp, ok := l.(*net.TCPListener); ok {
			inbound = append(inbound, tcp)
		}
	}
	others, err := proveCapture(ctx, inbound)
	for _, c := range others {
		_ = c.Close() // there is nobody yet to serve it
	}
	if err != nil {
		code := refuse(stderr, "validation failed", err)
		if errors.Is(err, capture.ErrNotCaptured) {
			return exitMissing
		}
		return code
	}
	slog.New(slog.NewTextHandler(stderr, nil)).Info("capture is in place")
	return 0
}

// refuse says why the pod must not start, and returns the exit code.
func refuse(stderr io.Writer, what string, err error) int {
	text := fmt.Sprintf("%s, so this pod must not start: %v", what, err)
	fmt.Fprintf(stderr, "capture: %s\n", text)
	leaveMessage(terminationLog, text)
	return 1
}
