package datapath

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// hold runs a program that says "ready" on a line, and then waits until its input
// ends, which it does when release is closed. What it ends with comes from the
// returned channel, after ready had its one value.
func (p *pod) hold(ctx context.Context, cpus []int, g program, ready chan<- error, release <-chan struct{}) (<-chan error, error) {
	cmd := exec.CommandContext(ctx, g.name, g.args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(g.user), Gid: uint32(g.user)}}
	cmd.WaitDelay = time.Second
	var said bytes.Buffer
	cmd.Stderr = &said
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("prepare %s: %w", g.name, err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("prepare %s: %w", g.name, err)
	}
	if err := p.do(cpus, cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s: %w", g.name, err)
	}
	done := make(chan error, 1)
	go func() {
		line, err := bufio.NewReader(out).ReadString('\n')
		if err == nil && strings.TrimSpace(line) != "ready" {
			err = fmt.Errorf("it said %q", line)
		}
		ready <- err
		<-release
		_ = in.Close() // it may have ended by itself
		if err := cmd.Wait(); err != nil {
			done <- errors.Join(err, errors.New(strings.TrimSpace(said.String())))
			return
		}
		done <- nil
	}()
	return done, nil
}
