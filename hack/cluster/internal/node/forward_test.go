package node

import (
	"context"
	"io"
	"log/slog"
	"net"
	"testing"
)

func listen(t *testing.T) net.Listener {
	t.Helper()
	var config net.ListenConfig
	l, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func TestForwardKeepsHalfClose(t *testing.T) {
	target, front := listen(t), listen(t)
	go func() {
		conn, err := target.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		// Answers only after the client has ended its half.
		request, _ := io.ReadAll(conn)
		_, _ = conn.Write(append([]byte("got "), request...))
	}()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		forward(ctx, slog.New(slog.DiscardHandler), front, target.Addr().String())
		close(done)
	}()
	conn, err := net.Dial("tcp", front.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil || string(answer) != "got hello" {
		t.Errorf("got %q, %v", answer, err)
	}
	cancel()
	<-done
}
