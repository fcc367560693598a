package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// application runs the application until the test ends, and returns its address and
// its counter.
func application(t *testing.T) (address, counterFile string) {
	t.Helper()
	at := freePort(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	file := filepath.Join(t.TempDir(), "counter")
	if err := NewCounter(file); err != nil {
		t.Fatal(err)
	}
	received, err := counter(file)
	if err != nil {
		t.Fatal(err)
	}
	go func() { done <- Serve(ctx, []int{at.Port}, 2, received) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	end := time.Now().Add(10 * time.Second)
	for {
		c, err := Exchange(at.String())
		if c != nil {
			c.Close()
		}
		if err == nil {
			return at.String(), file
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// freePort is a port at which nobody listens, and below those that connections of other
// tests are given.
func freePort(t *testing.T) *net.TCPAddr {
	t.Helper()
	for try := 0; ; try++ {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 20_000+rand.N(10_000)))
		if err == nil {
			defer l.Close()
			return l.Addr().(*net.TCPAddr)
		}
		if try == 20 {
			t.Fatal(err)
		}
	}
}

// Every kind of work gets done, in closed loop and at a rate, and is counted.
func TestDrive(t *testing.T) {
	address, file := application(t)
	const length = 300 * time.Millisecond
	for _, j := range []Job{
		{Kind: Up, Conns: 3},
		{Kind: Down, Conns: 3},
		{Kind: Both, Conns: 3},
		{Kind: Up, Conns: 2, Rate: 200},
		{Kind: Connect, Conns: 5},
		{Kind: Connect, Conns: 5, Rate: 200},
		{Kind: Echo, Conns: 5},
		{Kind: HTTP1, Conns: 5, Size: 200},
		{Kind: HTTP1, Conns: 5, Size: 100_000},
		{Kind: HTTP1, Conns: 5, Size: 200, Rate: 500},
		{Kind: HTTP2, Conns: 5, Size: 200},
		{Kind: HTTP2, Conns: 5, Size: 100_000},
		{Kind: HTTP2, Conns: 5, Size: 200, Rate: 500},
	} {
		t.Run(fmt.Sprintf("%s-%d-%.0f", j.Kind, j.Size, j.Rate), func(t *testing.T) {
			r, err := Drive(Spec{Address: address, Jobs: []Job{j}, Warmup: 50 * time.Millisecond, Length: length, Threads: 2, Counter: file, Server: []int{os.Getpid()}})
			if err != nil {
				t.Fatal(err)
			}
			got := r.Jobs[0]
			if r.Faults != 0 {
				t.Errorf("%d faults: %s", r.Faults, r.Fault)
			}
			bulk := slices.Contains([]Kind{Up, Down, Both}, j.Kind)
			if bulk && got.Bytes < 1e6 || !bulk && got.Count < 20 {
				t.Errorf("too little: %+v", got)
			}
			if want := j.Rate * length.Seconds(); want > 0 && (got.Count < want/2 || got.Count > want*2) {
				t.Errorf("%.0f done, %.0f were due", got.Count, want)
			}
			if !bulk && (got.P50 <= 0 || got.P99 < got.P50 || got.Max < got.P999) {
				t.Errorf("times: %+v", got)
			}
		})
	}
}

// A fixed rate that can't be kept shows as time: it counts from when work was due.
func TestOpenLoopCountsWaiting(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const pause = 20 * time.Millisecond
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		b := make([]byte, exchangeSize)
		tick := time.NewTicker(pause) // 50 exchanges per second, and 200 are due
		defer tick.Stop()
		for range tick.C {
			if _, err := io.ReadFull(c, b); err != nil {
				return
			}
			if _, err := c.Write(b); err != nil {
				return
			}
		}
	}()
	r, err := Drive(Spec{Address: l.Addr().String(), Jobs: []Job{{Kind: Echo, Conns: 1, Rate: 200}}, Length: 600 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if j := r.Jobs[0]; j.P99 < 200e3 || j.Waiting < 30 {
		t.Errorf("p99 %.0f µs, %d are waiting: what is late is not counted", j.P99, j.Waiting)
	}
}

// A server that goes away is a fault and not a hang.
func TestFaults(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	_, err = Drive(Spec{Address: l.Addr().String(), Jobs: []Job{{Kind: Echo, Conns: 1}}, Length: 5 * time.Second})
	if err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("got %v", err)
	}
}

func TestHold(t *testing.T) {
	address, _ := application(t)
	in, stop := io.Pipe()
	out, said := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- hold(address, 100, in, said) }()
	b := make([]byte, 6)
	if _, err := io.ReadFull(out, b); err != nil || string(b) != "ready\n" {
		t.Fatalf("%q, %v", b, err)
	}
	stop.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestHistogram(t *testing.T) {
	h := new(histogram)
	random := rand.New(rand.NewPCG(1, 2))
	var all []float64
	for range 100_000 {
		v := int64(random.ExpFloat64() * 1e6)
		h.add(v)
		all = append(all, float64(v)/1e3)
	}
	slices.Sort(all)
	for _, q := range []float64{0.5, 0.99, 0.999} {
		if got, want := h.quantile(q), all[int(q*float64(len(all)))]; got < want*0.98 || got > want*1.02 {
			t.Errorf("quantile %v is %v µs, want %v", q, got, want)
		}
	}
	for i := range bucket(1 << 60) {
		if v := floor(i); bucket(v) != i {
			t.Fatalf("bucket %d begins with %d, which is in %d", i, v, bucket(v))
		}
	}
}

// Heads and frames may come in pieces of any size.
func TestPieces(t *testing.T) {
	for piece := 1; piece < 400; piece += 7 {
		var h1 h1Client
		if n, err := feedAll(h1Answer(300), piece, func(b []byte) (bool, error) { return h1.feed(b, 300) }); n != 1 || err != nil {
			t.Fatalf("HTTP/1.1 in pieces of %d: %d answers, %v", piece, n, err)
		}
		var s1 h1Server
		asked := 0
		if _, err := feedAll(append(h1Request(7), h1Request(7)...), piece, func(b []byte) (bool, error) { return false, s1.feed(b, func(int) { asked++ }) }); asked != 2 || err != nil {
			t.Fatalf("requests in pieces of %d: %d, %v", piece, asked, err)
		}
		server := newH2Server()
		answer, err := server.feed([]byte(preface), nil)
		if err != nil {
			t.Fatal(err)
		}
		ask := h2Request(h2Opening()[len(preface):], 1, 70_000)
		if _, err := feedAll(ask, piece, func(b []byte) (bool, error) { answer, err = server.feed(b, answer); return false, err }); err != nil {
			t.Fatalf("HTTP/2 in pieces of %d: %v", piece, err)
		}
		client := h2Client{stream: 1}
		if n, err := feedAll(answer, piece, func(b []byte) (bool, error) { n, _, err := client.feed(b, nil, 70_000); return n > 0, err }); n != 1 || err != nil {
			t.Fatalf("HTTP/2 answers in pieces of %d: %d, %v", piece, n, err)
		}
	}
}

// An answer waits for the window, as RFC 9113 §6.9 demands.
func TestWindow(t *testing.T) {
	server := newH2Server()
	out, err := server.feed([]byte(preface), nil)
	if err != nil {
		t.Fatal(err)
	}
	if out, err = server.feed(h2Request(nil, 1, 100_000), out); err != nil {
		t.Fatal(err)
	}
	if n := len(out); server.window != 0 || len(server.pending) != 1 || n < defaultWindow {
		t.Errorf("window %d, %d pending after %d bytes", server.window, len(server.pending), n)
	}
	more := appendWindowUpdate(appendWindowUpdate(nil, 0, 100_000), 1, 100_000)
	if _, err = server.feed(more, nil); err != nil || len(server.pending) != 0 {
		t.Errorf("%d pending, %v", len(server.pending), err)
	}
}

func TestBadAnswers(t *testing.T) {
	for _, bad := range []string{"HTTP/1.1 503 No\r\ncontent-length: 3\r\n\r\nabc", "HTTP/1.1 200 OK\r\n\r\nabc", "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nabcd", "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabcd"} {
		var h h1Client
		if _, err := h.feed([]byte(bad), 3); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// feedAll feeds b in pieces and returns how often feed was done.
func feedAll(b []byte, piece int, feed func([]byte) (bool, error)) (int, error) {
	n := 0
	for len(b) > 0 {
		k := min(piece, len(b))
		done, err := feed(b[:k])
		if err != nil {
			return n, errors.Join(err, fmt.Errorf("%d bytes left", len(b)))
		}
		if done {
			n++
		}
		b = b[k:]
	}
	return n, nil
}
