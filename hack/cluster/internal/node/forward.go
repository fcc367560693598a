package node

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"
)

// forward passes every connection of the listener on to the target until the
// context ends. The listener's socket belongs to the host's network namespace,
// in which it was made; what is dialled here belongs to the node's.
func forward(ctx context.Context, logger *slog.Logger, listener net.Listener, target string) {
	var owned sync.WaitGroup
	defer owned.Wait()
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() })
	defer stop()
	for {
		conn, err := listener.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			logger.WarnContext(ctx, "accept from the host failed", slog.Any("err", err))
			wait(ctx, restartDelay)
			continue
		}
		owned.Go(func() { passOn(ctx, logger, conn, target) })
	}
}

func passOn(ctx context.Context, logger *slog.Logger, down net.Conn, target string) {
	defer down.Close()
	dialer := net.Dialer{Timeout: 5 * time.Second}
	up, err := dialer.DialContext(ctx, "tcp", target)
	if err != nil {
		logger.DebugContext(ctx, "API server not reached", slog.Any("err", err))
		return
	}
	defer up.Close()
	stop := context.AfterFunc(ctx, func() {
		_ = down.Close()
		_ = up.Close()
	})
	defer stop()
	var owned sync.WaitGroup
	owned.Go(func() { copyHalf(up, down) })
	owned.Go(func() { copyHalf(down, up) })
	owned.Wait()
}

// copyHalf copies one direction and passes its end on; an error ends both.
func copyHalf(to, from net.Conn) {
	if _, err := io.Copy(to, from); err != nil {
		_ = to.Close()
		_ = from.Close()
		return
	}
	if half, ok := to.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
}
