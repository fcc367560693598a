package load

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// chunkSize is what bulk at a fixed rate sends at a time.
const chunkSize = 64 << 10

// maxFaults is how many connections may fail before a measurement is given up.
const maxFaults = 1000

// maxWaiting bounds what is due and not begun.
const maxWaiting = 1 << 20

// Drive does the jobs and measures.
func Drive(s Spec) (Result, error) {
	address, err := netip.ParseAddrPort(s.Address)
	if err != nil {
		return Result{}, fmt.Errorf("address: %w", err)
	}
	debug.SetGCPercent(-1) // it allocates little, and ends soon
	// a timer of the kernel is late by 50 µs otherwise
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
		return Result{}, fmt.Errorf("set the precision of timers: %w", err)
	}
	threads := max(1, s.Threads)
	start := time.Now()
	shared := new(window)
	for _, j := range s.Jobs {
		if j.Kind != Connect {
			shared.pending.Add(int64(j.Conns))
		}
	}
	workers := make([]*worker, threads)
	for i := range workers {
		w := &worker{spec: s, window: shared, address: address, first: i == 0, base: start, buffer: make([]byte, blockSize)}
		for n, j := range s.Jobs {
			conns := j.Conns / threads
			if i < j.Conns%threads {
				conns++
			}
			if conns > 0 {
				w.jobs = append(w.jobs, newJob(j, n, conns, float64(conns)/float64(j.Conns), uint64(i)))
			}
		}
		workers[i] = w
	}
	var all sync.WaitGroup
	faults := make([]error, threads)
	for i, w := range workers {
		all.Go(func() { faults[i] = w.run() })
	}
	all.Wait()
	if err := errors.Join(faults...); err != nil {
		return Result{}, err
	}
	return sum(s, workers), nil
}

// sum puts the workers' results together.
func sum(s Spec, workers []*worker) Result {
	first := workers[0]
	r := Result{
		Seconds:   float64(first.after.at-first.before.at) / 1e9,
		ProxyCPU:  first.after.proxies - first.before.proxies,
		ServerCPU: first.after.server - first.before.server,
		ClientCPU: first.after.client - first.before.client,
	}
	for n, j := range s.Jobs {
		res := JobResult{Kind: j.Kind}
		if j.Kind == Up && j.Rate == 0 || j.Kind == Both {
			res.Bytes = float64(first.after.received - first.before.received)
		}
		times := new(histogram)
		for _, w := range workers {
			for _, own := range w.jobs {
				if own.index != n {
					continue
				}
				res.Count += float64(own.count)
				res.Bytes += float64(own.bytes)
				res.Waiting += len(own.waiting)
				times.merge(&own.times)
			}
		}
		res.P50, res.P99, res.P999, res.Max = times.quantile(0.5), times.quantile(0.99), times.quantile(0.999), float64(times.max)/1e3
		r.Jobs = append(r.Jobs, res)
	}
	for _, w := range workers {
		r.Faults += w.faults
		if r.Fault == "" && w.fault != nil {
			r.Fault = w.fault.Error()
		}
	}
	return r
}

// setupLimit is how long connections may take to be made before it is measured
// without some of them.
const setupLimit = 20 * time.Second

// window is when it is measured: it opens when each connection that is kept has
// carried something, so that handshakes are not a part of what follows them.
type window struct {
	pending     atomic.Int64 // connections that have not
	from, until atomic.Int64 // ns since the base; until is 0 before it is known
}

// reading is the CPU time that there was at a moment.
type reading struct {
	at                      int64 // ns since the base
	proxies, server, client float64
	received                uint64 // bytes of bulk that have reached the application
}

// job is one worker's part of a job.
type job struct {
	Job
	index    int
	conns    int
	interval float64 // ns between two starts; 0 is closed loop
	random   *rand.Rand
	due      float64 // ns since the base, of the next start
	waiting  []int64 // when those were due that have no connection yet
	idle     []*conn
	request  []byte
	count    int64
	bytes    int64
	times    histogram
}

func newJob(j Job, index, conns int, share float64, seed uint64) *job {
	own := &job{Job: j, index: index, conns: conns}
	if j.Rate > 0 {
		own.interval = 1e9 / (j.Rate * share)
		// the same times in each measurement; they are no secret
		own.random = rand.New(rand.NewPCG(seed, uint64(index)))
		own.due = own.random.ExpFloat64() * own.interval
	}
	switch j.Kind {
	case HTTP1:
		own.request = h1Request(j.Size)
	case Connect, Echo:
		own.request = exchangeBytes()
	case Up, Down, Both, HTTP2:
	}
	return own
}

// worker is one thread of the client. Times are ns since base.
type worker struct {
	spec          Spec
	address       netip.AddrPort
	window        *window
	first         bool // it reads the CPU times, and opens the window
	base          time.Time
	from, until   int64 // the window, once it is known
	now           int64
	jobs          []*job
	poll          *poller
	conns         []*conn // by descriptor
	buffer        []byte
	faults        int
	fault         error
	before, after reading
}

func (w *worker) clock() int64 {
	w.now = int64(time.Since(w.base))
	return w.now
}

func (w *worker) run() (err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if w.poll, err = newPoller(); err != nil {
		return err
	}
	for _, j := range w.jobs {
		for range j.conns {
			if err := w.dial(j); err != nil {
				return err
			}
		}
	}
	read := false
	for w.clock(); w.until == 0 || w.now < w.until; w.clock() {
		w.open()
		if w.first && !read && w.until > 0 && w.now >= w.from {
			read = true
			if w.before, err = w.read(); err != nil {
				return err
			}
		}
		events, err := w.poll.wait(w.timeout())
		if err != nil {
			return err
		}
		w.clock()
		for _, e := range events {
			c := w.conns[e.Fd]
			if c == nil {
				continue
			}
			if err := w.step(c, e.Events); err != nil {
				if err := w.failed(c, err); err != nil {
					return err
				}
			}
		}
		if err := w.begin(); err != nil {
			return err
		}
	}
	if w.first {
		w.after, err = w.read()
	}
	for _, c := range w.conns {
		if c != nil {
			closeSocket(c.fd)
		}
	}
	return err
}

// open opens the window when it is time, or learns that it is open.
func (w *worker) open() {
	if w.until > 0 {
		return
	}
	if w.first && (w.window.pending.Load() <= 0 || w.now > int64(setupLimit)) {
		from := w.now + int64(w.spec.Warmup)
		w.window.from.Store(from)
		w.window.until.Store(from + int64(w.spec.Length))
	}
	if w.until = w.window.until.Load(); w.until == 0 {
		return
	}
	w.from = w.window.from.Load()
	for _, j := range w.jobs {
		j.due += float64(w.now)
	}
}

// read reads the CPU times of everybody.
func (w *worker) read() (r reading, err error) {
	r.at = w.now
	if r.received, err = readCounter(w.spec.Counter); err != nil {
		return r, err
	}
	if r.proxies, err = CPU(w.spec.Proxies); err != nil {
		return r, err
	}
	if r.server, err = CPU(w.spec.Server); err != nil {
		return r, err
	}
	r.client, err = CPU([]int{os.Getpid()})
	return r, err
}

// timeout is until something is due.
func (w *worker) timeout() time.Duration {
	if w.until == 0 {
		return time.Millisecond
	}
	next := w.until
	if w.now < w.from {
		next = w.from
	}
	for _, j := range w.jobs {
		if j.interval > 0 {
			next = min(next, int64(j.due))
		}
	}
	return time.Duration(max(0, next-w.now))
}

// begin starts what is due, on connections that have nothing to do.
func (w *worker) begin() error {
	for _, j := range w.jobs {
		if j.interval == 0 || w.until == 0 {
			continue
		}
		for int64(j.due) <= w.now && len(j.waiting) < maxWaiting {
			j.waiting = append(j.waiting, int64(j.due))
			j.due += j.random.ExpFloat64() * j.interval
		}
		n := 0
		for ; n < len(j.waiting) && len(j.idle) > 0; n++ {
			c := j.idle[len(j.idle)-1]
			j.idle = j.idle[:len(j.idle)-1]
			if err := w.start(c, j.waiting[n]); err != nil {
				if err := w.failed(c, err); err != nil {
					return err
				}
			}
		}
		j.waiting = append(j.waiting[:0], j.waiting[n:]...)
	}
	return nil
}

// failed counts a connection that broke, and opens another.
func (w *worker) failed(c *conn, err error) error {
	w.close(c)
	w.faults++
	if w.fault == nil {
		w.fault = fmt.Errorf("%s: %w", c.job.Kind, err)
	}
	if w.faults > maxFaults {
		return fmt.Errorf("%d connections failed; the first: %w", w.faults, w.fault)
	}
	return w.dial(c.job)
}

// ready notes that a connection has carried something.
func (w *worker) ready(c *conn) {
	if !c.carried {
		c.carried = true
		w.window.pending.Add(-1)
	}
}

// done counts what is complete.
func (w *worker) done(c *conn, bytes int) {
	now := w.clock()
	if !c.carried && c.job.Kind != Connect {
		w.ready(c)
		return // it has the handshake in it
	}
	if now < w.from || now >= w.until {
		return
	}
	c.job.count++
	c.job.bytes += int64(bytes)
	c.job.times.add(now - c.began)
}

// sent counts bytes of bulk that the kernel has taken, unless the application
// counts what arrives.
func (w *worker) sent(c *conn, n int) {
	if w.spec.Counter == "" {
		w.moved(c, n)
	} else if n > 0 {
		w.ready(c)
	}
}

// moved counts bytes of bulk.
func (w *worker) moved(c *conn, n int) {
	if n > 0 {
		w.ready(c)
	}
	if w.now >= w.from && w.now < w.until {
		c.job.bytes += int64(n)
	}
}
