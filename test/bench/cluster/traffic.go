package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// The first byte of a connection says what the server does with the rest.
const (
	wantEcho = 'E'
	wantSink = 'S' // and one byte back at the end
)

const block = 256 << 10

// result is what the load program measured.
type result struct {
	Seconds float64 `json:"seconds"`
	Bytes   float64 `json:"bytes"`
	Count   float64 `json:"count"`
	P50     float64 `json:"p50_us"`
	P99     float64 `json:"p99_us"`
}

// kinds of load: what they are, how many at a time, and what their figure is.
var kinds = []struct {
	kind, name, unit string
	parallel         int
	value            func(result) float64
	cost             string // unit of the CPU time that two proxies spend
	per              func(result) float64
}{
	{"bulk", "one stream", "GB/s", 1, func(r result) float64 { return r.Bytes / r.Seconds / 1e9 }, "CPU s/GB", func(r result) float64 { return r.Bytes / 1e9 }},
	{"connect", "connect, exchange 64 bytes, close; 16 clients", "conn/s", 16, func(r result) float64 { return r.Count / r.Seconds }, "CPU ms/connection", func(r result) float64 { return r.Count / 1e3 }},
	{"echo", "64 bytes to and fro on one open connection, p50", "µs", 1, func(r result) float64 { return r.P50 }, "", nil},
}

// traffic measures the same between two pods without proxies and between two
// with them, in turn.
func (m *mesh) traffic(ctx context.Context, o Options, r *Report) error {
	for _, ns := range []string{plain, meshed} {
		stop, err := m.serveIn(ctx, m.servers[ns])
		if err != nil {
			return err
		}
		defer stop()
	}
	var pids []int
	for _, pod := range []*corev1.Pod{m.clients[meshed], m.servers[meshed]} {
		pid, err := process(pod, "istio-proxy")
		if err != nil {
			return err
		}
		pids = append(pids, pid)
	}
	for _, k := range kinds {
		series := map[string][]float64{}
		var cost []float64
		for range o.Rounds {
			for _, ns := range []string{plain, meshed} {
				before, err := cpus(pids)
				if err != nil {
					return err
				}
				res, err := m.load(ctx, ns, k.kind, k.parallel, o.Length)
				if err != nil {
					return err
				}
				series[ns] = append(series[ns], k.value(res))
				if after, err := cpus(pids); err != nil {
					return err
				} else if ns == meshed && k.per != nil {
					cost = append(cost, (after-before)/k.per(res))
				}
			}
		}
		r.add(Figure{Name: k.name + ", direct", Unit: k.unit, Series: series[plain]})
		r.add(Figure{Name: k.name + ", two proxies, mutual TLS", Unit: k.unit, Series: series[meshed]})
		if k.per != nil {
			r.add(Figure{Name: k.name + ", CPU of both proxies", Unit: k.cost, Series: cost})
		}
		fmt.Fprintf(os.Stderr, "%s: direct %.3g, mesh %.3g %s\n", k.name, median(series[plain]), median(series[meshed]), k.unit)
	}
	return nil
}

func cpus(pids []int) (sum float64, err error) {
	for _, pid := range pids {
		one, err := cpu(pid)
		if err != nil {
			return 0, err
		}
		sum += one
	}
	return sum, nil
}

// serveIn runs the server in a pod's network until stop is called.
func (m *mesh) serveIn(ctx context.Context, pod *corev1.Pod) (stop func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	cmd, _, err := self(ctx, pod, "serve", strconv.Itoa(port))
	if err != nil {
		cancel()
		return nil, err
	}
	stop = func() { cancel(); _ = cmd.Wait() } // it was told to end
	err = m.poll(ctx, "the server", func(context.Context) error {
		return inNetwork(pod, func() error {
			c, err := exchange(net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
			if c != nil {
				c.Close()
			}
			return err
		})
	})
	if err != nil {
		stop()
		return nil, err
	}
	return stop, nil
}

// load runs the load program in a client's network.
func (m *mesh) load(ctx context.Context, ns, kind string, parallel int, length time.Duration) (result, error) {
	to := net.JoinHostPort(m.servers[ns].Status.PodIP, strconv.Itoa(port))
	cmd, out, err := self(ctx, m.clients[ns], "load", kind, to, strconv.Itoa(parallel), length.String())
	if err != nil {
		return result{}, err
	}
	if err := cmd.Wait(); err != nil {
		return result{}, fmt.Errorf("load: %w", err)
	}
	var r result
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		return result{}, fmt.Errorf("load said %q: %w", out, err)
	}
	return r, nil
}

// serve is the server: serve PORT.
func serve(ctx context.Context, args []string) error {
	if len(args) != 1 {
		return errors.New("usage: serve PORT")
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", ":"+args[0])
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { l.Close() })()
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			return nil // it was told to end
		}
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			answer(c)
		}()
	}
}

// answer serves one connection until it ends.
func answer(c net.Conn) {
	b := make([]byte, 1)
	if _, err := io.ReadFull(c, b); err != nil {
		return
	}
	size := block
	if b[0] == wantEcho {
		size = 4 << 10
	}
	b2 := make([]byte, size)
	for {
		n, err := c.Read(b2)
		if b[0] == wantEcho && n > 0 {
			if _, err := c.Write(b2[:n]); err != nil {
				return
			}
		}
		if err != nil {
			if b[0] == wantSink {
				_, _ = c.Write(b) // whether it arrives is the client's to say
			}
			return
		}
	}
}

// load is the client: load KIND ADDRESS PARALLEL LENGTH. It prints a result.
func load(ctx context.Context, args []string) error {
	if len(args) != 4 {
		return errors.New("usage: load bulk|connect|echo ADDRESS PARALLEL LENGTH")
	}
	parallel, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	length, err := time.ParseDuration(args[3])
	if err != nil {
		return err
	}
	work := map[string]func(context.Context, string, time.Time) (result, []time.Duration, error){"bulk": bulk, "connect": connect, "echo": echo}[args[0]]
	if work == nil {
		return fmt.Errorf("no load %q", args[0])
	}
	var (
		all    sync.WaitGroup
		mu     sync.Mutex
		sum    result
		times  []time.Duration
		faults []error
	)
	began := time.Now()
	for range parallel {
		all.Go(func() {
			r, took, err := work(ctx, args[1], began.Add(length))
			mu.Lock()
			defer mu.Unlock()
			sum.Bytes += r.Bytes
			sum.Count += r.Count
			times = append(times, took...)
			if err != nil {
				faults = append(faults, err)
			}
		})
	}
	all.Wait()
	sum.Seconds = time.Since(began).Seconds()
	if len(times) > 0 {
		slices.Sort(times)
		sum.P50 = float64(times[len(times)/2].Nanoseconds()) / 1e3
		sum.P99 = float64(times[len(times)*99/100].Nanoseconds()) / 1e3
	}
	if err := errors.Join(faults...); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(sum)
}

// open connects and says what the server should do.
func open(ctx context.Context, to string, what byte, end time.Time) (*net.TCPConn, error) {
	c, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, "tcp", to)
	if err != nil {
		return nil, err
	}
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return nil, errors.Join(errors.New("not TCP"), c.Close())
	}
	if err := tcp.SetDeadline(end.Add(10 * time.Second)); err != nil {
		return nil, errors.Join(err, tcp.Close())
	}
	_, err = tcp.Write([]byte{what})
	return tcp, err
}

// bulk sends as much as it can, and counts what the server has received.
func bulk(ctx context.Context, to string, end time.Time) (r result, _ []time.Duration, err error) {
	c, err := open(ctx, to, wantSink, end)
	if err != nil {
		return r, nil, err
	}
	defer c.Close()
	b := make([]byte, block)
	for time.Now().Before(end) {
		n, err := c.Write(b)
		r.Bytes += float64(n)
		if err != nil {
			return r, nil, err
		}
	}
	if err := c.CloseWrite(); err != nil {
		return r, nil, err
	}
	_, err = io.ReadFull(c, b[:1]) // the server has it all
	return r, nil, err
}

// connect opens connections, one after the other.
func connect(ctx context.Context, to string, end time.Time) (r result, times []time.Duration, err error) {
	for time.Now().Before(end) {
		began := time.Now()
		c, err := open(ctx, to, wantEcho, end)
		if err == nil {
			err = pingPong(c)
			c.Close()
		}
		if err != nil {
			return r, times, err
		}
		times = append(times, time.Since(began))
		r.Count++
	}
	return r, times, nil
}

// echo sends to and fro on one connection.
func echo(ctx context.Context, to string, end time.Time) (r result, times []time.Duration, err error) {
	c, err := open(ctx, to, wantEcho, end)
	if err != nil {
		return r, nil, err
	}
	defer c.Close()
	for time.Now().Before(end) {
		began := time.Now()
		if err := pingPong(c); err != nil {
			return r, times, err
		}
		times = append(times, time.Since(began))
		r.Count++
	}
	return r, times, nil
}

func pingPong(c net.Conn) error {
	b := make([]byte, 64)
	if _, err := c.Write(b); err != nil {
		return err
	}
	_, err := io.ReadFull(c, b)
	return err
}
