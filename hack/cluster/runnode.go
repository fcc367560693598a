package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"podseal.io/hack/cluster/internal/build"
	"podseal.io/hack/cluster/internal/node"
	"podseal.io/hack/cluster/internal/plan"
)

// listenerFD is the descriptor on which `up` hands over the host's socket.
const listenerFD = 3

// runNode is what `up` starts for each node: run-node SPEC.json N.
func runNode(ctx context.Context, args []string, stderr io.Writer) error {
	if len(args) != 2 {
		return errors.New("run-node: internal verb; use up")
	}
	content, err := os.ReadFile(args[0])
	if err != nil {
		return fmt.Errorf("read plan: %w", err)
	}
	var spec plan.Spec
	if err := json.Unmarshal(content, &spec); err != nil {
		return fmt.Errorf("read plan: %w", err)
	}
	number, err := strconv.Atoi(args[1])
	if err != nil {
		return fmt.Errorf("read node number: %w", err)
	}
	cfg := node.Config{
		Node:     spec.Node(number),
		Archives: build.Archives(spec.Images),
		Logger:   slog.New(slog.NewTextHandler(stderr, nil)),
	}
	if cfg.Node.ControlPlane() {
		file := os.NewFile(listenerFD, "listener")
		cfg.Listener, err = net.FileListener(file)
		if err := errors.Join(err, file.Close()); err != nil {
			return fmt.Errorf("take over the host's socket: %w", err)
		}
	}
	return node.Run(ctx, cfg)
}

// directories returns where this module's sources are and where built programs are
// kept. `go run` leaves the path of the sources in the program.
func directories() (source, cache string, err error) {
	cache, err = os.UserCacheDir()
	if err != nil {
		return "", "", fmt.Errorf("find cache directory: %w", err)
	}
	candidates := []string{".", filepath.Join("hack", "cluster")}
	if _, file, _, ok := runtime.Caller(0); ok && filepath.IsAbs(file) {
		candidates = append([]string{filepath.Dir(file)}, candidates...)
	}
	for _, dir := range candidates {
		if _, err := os.Stat(filepath.Join(dir, "coredns", "go.mod")); err == nil {
			source, err = filepath.Abs(dir)
			return source, filepath.Join(cache, "podseal"), err
		}
	}
	return "", "", errors.New("the sources of hack/cluster are not found: run it from the top of the checkout")
}
