package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"syscall"
	"time"

	"podseal.io/hack/cluster/internal/host"
	"podseal.io/hack/cluster/internal/plan"
)

const (
	restartDelay = time.Second
	beforeDelay  = 300 * time.Millisecond
	stopLimit    = 5 * time.Second
)

// keep runs the daemon, and runs it again when it ends, until the context ends.
func keep(ctx context.Context, cfg Config, d plan.Daemon) {
	logger := cfg.Logger.With(slog.String("daemon", d.Name))
	for ctx.Err() == nil {
		err := runOnce(ctx, cfg.Node, d)
		if ctx.Err() != nil {
			return
		}
		logger.WarnContext(ctx, "daemon ended", slog.Any("err", err))
		wait(ctx, restartDelay)
	}
}

func runOnce(ctx context.Context, n plan.Node, d plan.Daemon) error {
	if err := os.MkdirAll(n.Path("logs"), 0o755); err != nil {
		return fmt.Errorf("make log directory: %w", err)
	}
	log, err := os.OpenFile(n.Path("logs", d.Name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	defer log.Close()
	for _, args := range d.Before {
		for {
			cmd := exec.CommandContext(ctx, args[0], args[1:]...)
			cmd.Stdout, cmd.Stderr = log, log
			if cmd.Run() == nil {
				break
			}
			if wait(ctx, beforeDelay); ctx.Err() != nil {
				return context.Cause(ctx)
			}
		}
	}
	cmd := exec.CommandContext(ctx, d.Args[0], d.Args[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = "/"
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopLimit
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", d.Name, err)
	}
	process, err := host.ProcessOf(cmd.Process.Pid)
	if err == nil {
		err = process.Record(DaemonRecord(n, d.Name))
	}
	return errors.Join(err, cmd.Wait())
}

// wait returns after the delay or when the context ends.
func wait(ctx context.Context, delay time.Duration) {
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
