// Command loadgen is both ends of a measurement as a program of its own, which
// the bench runs in network namespaces: see package load.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"podseal.io/podseal/test/bench/load"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := load.Main(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "loadgen:", err)
		stop()
		os.Exit(1)
	}
}
