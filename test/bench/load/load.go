// Package load is both ends of a measurement: an application that answers
// ([Serve]) and a client that asks ([Drive]).
//
// Neither may be what limits the measured, so both are loops over epoll that
// make as few system calls as the work allows, keep no goroutine per connection
// and allocate nothing while they measure. Bulk data that arrives is dropped in
// the kernel (MSG_TRUNC) and not copied.
//
// The application has one port and tells protocols apart by the first byte:
// 'G' is HTTP/1.1 (GET /SIZE), 'P' is HTTP/2 with prior knowledge (the same
// path), and otherwise one of the commands below. Whoever answers a GET sends
// SIZE bytes.
package load

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Commands: the first byte of a connection that is not HTTP.
const (
	cmdEcho = 'E' // what is sent comes back
	cmdUp   = 'U' // what is sent is dropped
	cmdDown = 'D' // the application sends for ever
	cmdBoth = 'B' // both at the same time
)

// exchangeSize is what an exchange sends to and fro, in bytes.
const exchangeSize = 64

// Kind is a kind of work.
type Kind string

// The kinds. Bulk is counted in bytes, the others in what was completed.
const (
	Up      Kind = "up"      // bulk from the client
	Down    Kind = "down"    // bulk to the client
	Both    Kind = "both"    // bulk in both directions of each connection
	Connect Kind = "connect" // connect, exchange 64 bytes, close
	Echo    Kind = "echo"    // exchange 64 bytes on an open connection
	HTTP1   Kind = "http1"   // one request at a time on each connection
	HTTP2   Kind = "http2"
)

// Job is work of one kind.
type Job struct {
	Kind  Kind    `json:"kind"`
	Conns int     `json:"conns"` // open at a time
	Size  int     `json:"size,omitempty"`
	Rate  float64 `json:"rate,omitempty"` // begun per second, whether or not the earlier are done; 0 is as fast as they get done
}

// Spec is a measurement.
type Spec struct {
	Address string        `json:"address"`
	Jobs    []Job         `json:"jobs"`
	Warmup  time.Duration `json:"warmup"`
	Length  time.Duration `json:"length"`
	Threads int           `json:"threads"`
	Proxies []int         `json:"proxies"` // processes whose CPU time is measured
	Server  []int         `json:"server"`  // the application's
	// Counter is the file in which the application counts the bytes of bulk that
	// have arrived. Without it bytes count when they are sent, into buffers too.
	Counter string `json:"counter,omitempty"`
}

// Result is what was measured in the time after the warm-up. Times of CPU are in
// seconds.
type Result struct {
	Seconds   float64     `json:"seconds"`
	ProxyCPU  float64     `json:"proxy_cpu"`
	ServerCPU float64     `json:"server_cpu"`
	ClientCPU float64     `json:"client_cpu"`
	Jobs      []JobResult `json:"jobs"`
	Faults    int         `json:"faults"`
	Fault     string      `json:"fault,omitempty"` // the first
}

// JobResult is that of one job. Latencies are in µs, from when the work was due.
type JobResult struct {
	Kind    Kind    `json:"kind"`
	Count   float64 `json:"count"`
	Bytes   float64 `json:"bytes"`
	P50     float64 `json:"p50_us"`
	P99     float64 `json:"p99_us"`
	P999    float64 `json:"p999_us"`
	Max     float64 `json:"max_us"`
	Waiting int     `json:"waiting"` // due and not begun at the end
}

// Main runs one of the two ends as a program: app PORT THREADS COUNTER, drive SPEC
// (as JSON), or hold ADDRESS COUNT.
func Main(ctx context.Context, args []string) error {
	switch {
	case len(args) == 4 && args[0] == "app":
		port, err1 := strconv.ParseUint(args[1], 10, 16)
		threads, err2 := strconv.Atoi(args[2])
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		received, err := counter(args[3])
		if err != nil {
			return err
		}
		return Serve(ctx, []int{int(port), int(port) + 1}, threads, received)
	case len(args) == 2 && args[0] == "drive":
		var s Spec
		if err := json.Unmarshal([]byte(args[1]), &s); err != nil {
			return fmt.Errorf("read the specification: %w", err)
		}
		r, err := Drive(s)
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(r)
	case len(args) == 3 && args[0] == "hold":
		n, err := strconv.Atoi(args[2])
		if err != nil {
			return err
		}
		return hold(args[1], n, os.Stdin, os.Stdout)
	default:
		return errors.New("usage: app PORT THREADS COUNTER | drive SPEC | hold ADDRESS COUNT")
	}
}

// hold opens connections, exchanges bytes on each, says "ready", and keeps them
// open until its input ends.
func hold(address string, count int, in io.Reader, out io.Writer) error {
	const parallel = 32
	var (
		all   sync.WaitGroup
		mu    sync.Mutex
		open  []net.Conn
		fault error
	)
	left := make(chan struct{}, count)
	for range count {
		left <- struct{}{}
	}
	close(left)
	for range parallel {
		all.Go(func() {
			for range left {
				c, err := Exchange(address)
				mu.Lock()
				if c != nil {
					open = append(open, c)
				}
				if err != nil {
					fault = err
				}
				stop := fault != nil
				mu.Unlock()
				if stop {
					return
				}
			}
		})
	}
	all.Wait()
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	if fault != nil {
		return fmt.Errorf("connection %d of %d: %w", len(open), count, fault)
	}
	fmt.Fprintln(out, "ready")
	_, err := io.Copy(io.Discard, in)
	return err
}

// Exchange opens a connection and exchanges bytes on it. The connection is the
// caller's to close, also when there is an error.
func Exchange(address string) (net.Conn, error) {
	c, err := net.DialTimeout("tcp", address, 10*time.Second)
	if err != nil {
		return nil, err
	}
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return c, err
	}
	b := exchangeBytes()
	if _, err := c.Write(b); err != nil {
		return c, err
	}
	got := make([]byte, len(b))
	if _, err := io.ReadFull(c, got); err != nil {
		return c, err
	}
	if string(got) != string(b) {
		return c, errors.New("what came back is not what was sent")
	}
	return c, c.SetDeadline(time.Time{})
}

func exchangeBytes() []byte {
	b := make([]byte, exchangeSize)
	for i := range b {
		b[i] = byte('a' + i%26)
	}
	b[0] = cmdEcho
	return b
}

// CPU is the time that processes have had so far, in seconds; the kernel tells it
// in hundredths.
func CPU(pids []int) (float64, error) {
	var ticks float64
	for _, pid := range pids {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return 0, fmt.Errorf("read the times of process %d: %w", pid, err)
		}
		_, rest, _ := strings.Cut(string(stat), ") ") // after the name, fields 3 and on
		f := strings.Fields(rest)
		if len(f) < 13 {
			return 0, errors.New("/proc/PID/stat is not understood")
		}
		for _, text := range f[11:13] { // utime, stime
			n, err := strconv.ParseFloat(text, 64)
			if err != nil {
				return 0, fmt.Errorf("/proc/PID/stat: %w", err)
			}
			ticks += n
		}
	}
	return ticks / 100, nil
}
