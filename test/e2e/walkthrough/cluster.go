package walkthrough

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Cluster is where the walkthrough happens.
type Cluster interface {
	// Shell runs one line (or here-document) of bash as a person would paste
	// it, with kubectl and d8 on the PATH. It returns what was printed on both
	// outputs, and the exit code.
	Shell(ctx context.Context, line string) (output string, code int, err error)
	// Capture starts tcpdump on a node, on all interfaces, and returns once it listens.
	Capture(ctx context.Context, node, filter string) (*Capture, error)
}

// Local is a cluster made by hack/cluster.
type Local struct {
	Binary string // the built hack/cluster program
	Name   string
}

// Shell implements Cluster.
func (l Local) Shell(ctx context.Context, line string) (string, int, error) {
	return run(ctx, exec.CommandContext(ctx, l.Binary, "shell", "--name", l.Name, "--", "bash", "-c", line))
}

// Capture implements Cluster: the node is a network namespace of this machine.
func (l Local) Capture(ctx context.Context, node, filter string) (*Capture, error) {
	number := node[strings.LastIndex(node, "-")+1:] // nodes are called NAME-1, NAME-2
	args := append([]string{"node", "--name", l.Name, number, "--"}, tcpdump(filter)...)
	return startCapture(ctx, exec.CommandContext(ctx, l.Binary, args...))
}

// tcpdump is the command line of a capture that writes packets to standard output. Its
// buffer is large (32 MiB), as what is lost on a busy machine proves nothing.
func tcpdump(filter string) []string {
	return append([]string{"tcpdump", "-i", "any", "-B", "32768", "-U", "-s", "0", "-w", "-"}, strings.Fields(filter)...)
}

// run runs a command and keeps what it prints.
func run(ctx context.Context, cmd *exec.Cmd) (string, int, error) {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return out.String(), -1, fmt.Errorf("run %s: %w", cmd.Args[len(cmd.Args)-1], context.Cause(ctx))
	case errors.As(err, &exit):
		return out.String(), exit.ExitCode(), nil
	case err != nil:
		return out.String(), -1, fmt.Errorf("run %s: %w", cmd.Path, err)
	}
	return out.String(), 0, nil
}

// Capture is a running tcpdump.
type Capture struct {
	cmd     *exec.Cmd
	packets bytes.Buffer
	done    chan error
}

// startCapture starts tcpdump and waits until it says that it listens.
func startCapture(ctx context.Context, cmd *exec.Cmd) (*Capture, error) {
	c := &Capture{cmd: cmd, done: make(chan error, 1)}
	cmd.Stdout = &c.packets
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	watch := &listenWatch{listening: make(chan struct{})}
	cmd.Stderr = watch
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start tcpdump: %w", err)
	}
	go func() { c.done <- cmd.Wait() }()
	select {
	case <-watch.listening:
		return c, nil
	case err := <-c.done:
		return nil, fmt.Errorf("tcpdump ended at once (%w): %s", err, watch.text())
	case <-time.After(20 * time.Second):
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		<-c.done
		return nil, fmt.Errorf("tcpdump did not begin to listen within 20 s: %s", watch.text())
	case <-ctx.Done():
		<-c.done
		return nil, fmt.Errorf("start tcpdump: %w", context.Cause(ctx))
	}
}

// Stop ends the capture once no packet has come for a moment and returns the
// packets (pcap).
func (c *Capture) Stop() ([]byte, error) {
	time.Sleep(1500 * time.Millisecond) // tcpdump hands packets over in blocks: let the last ones come
	if err := syscall.Kill(-c.cmd.Process.Pid, syscall.SIGINT); err != nil {
		return nil, fmt.Errorf("stop tcpdump: %w", err)
	}
	select {
	case <-c.done:
	case <-time.After(10 * time.Second):
		_ = syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL)
		<-c.done
	}
	return c.packets.Bytes(), nil
}

// listenWatch waits for tcpdump's "listening on" line.
type listenWatch struct {
	mu        sync.Mutex
	buf       bytes.Buffer
	once      sync.Once
	listening chan struct{}
}

func (w *listenWatch) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf.Write(p)
	if strings.Contains(w.buf.String(), "listening on") {
		w.once.Do(func() { close(w.listening) })
	}
	return len(p), nil
}

func (w *listenWatch) text() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.TrimSpace(w.buf.String())
}

var _ io.Writer = (*listenWatch)(nil)
