package proxy

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/wire"
)

const (
	headerTimeout = 10 * time.Second // from a client's first byte until it is known what it speaks
	holdServer    = 3 * time.Second  // an application's greeting waits so long for a mesh client's ClientHello
	probeTimeout  = time.Second      // how long a client may be silent when the application isn't there
)

var (
	errSilent     = errors.New("the client said nothing")
	errHungUp     = errors.New("the client hung up before it said anything")
	errCutHello   = errors.New("the client hung up within its ClientHello")
	errSlowHello  = errors.New("the ClientHello did not come to its end")
	errServerGone = errors.New("the application closed the connection")
)

// sniffer waits for the first bytes of a connection, from whichever side they
// come (design D9). It reads, and what it has read is in the answer.
type sniffer struct {
	client  sniffed      // TCP, or the inside of TLS
	app     *net.TCPConn // nil: only the client can speak
	hello   bool         // a ClientHello would be looked at
	http    bool         // HTTP would be treated otherwise than other bytes
	http10  bool         // HTTP/1.0 counts as HTTP (contract 2.5)
	silence time.Duration
	hold    time.Duration // the application's bytes wait so long for the client's
	unsaid  *unsaid       // bounds what all sniffers hold that wait for more
	begun   begun

	mu    sync.Mutex
	since time.Time // of the wait that is going on
	wait  wait
	spoke bool // the application has spoken, or has gone
	crowd bool // others need the memory that this one holds

	app1   []byte // its first bytes
	appErr error
}

type sniffed interface {
	io.Reader
	SetReadDeadline(t time.Time) error
}

// wait is what the sniffer waits for.
type wait int

const (
	waitFirst wait = iota // anything
	waitHello             // the rest of a ClientHello
	waitHTTP              // the rest of what may be HTTP
)

// sight is what the first bytes are.
type sight struct {
	seen        policy.Seen
	hello       wire.Hello
	kind        wire.Detection // of plaintext, if HTTP was looked for
	client, app []byte         // what was read of either side
}

// past makes reads return at once.
var past = time.Unix(1, 0)

// run waits until it is known what the connection is. Errors of the client are
// as above or the socket's.
func (s *sniffer) run() (sight, error) {
	s.since = time.Now()
	var watcher sync.WaitGroup
	if s.app != nil {
		watcher.Go(s.watch)
	}
	got, err := s.read()
	s.unsaid.drop(&s.begun)
	if s.app != nil {
		_ = s.app.SetReadDeadline(past) // fails only on a closed socket
		watcher.Wait()
		_ = s.app.SetReadDeadline(time.Time{})
	}
	_ = s.client.SetReadDeadline(time.Time{})
	got.app = s.app1
	if err == nil && s.appErr != nil {
		err = s.appErr
	}
	return got, err
}

// watch reads the application's first bytes and wakes the reader of the client.
func (s *sniffer) watch() {
	buf := make([]byte, 1024)
	n, err := s.app.Read(buf)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.app1 = buf[:n]
	switch {
	case speaksHTTP2(s.app1):
		return // but it is the client that says whether it does, too
	case n > 0, errors.Is(err, io.EOF):
	case errors.Is(err, os.ErrDeadlineExceeded):
		return // told to stop
	default:
		s.appErr = fmt.Errorf("%w: %w", errServerGone, err)
	}
	s.spoke = true
	s.arm()
}

// arm sets the client's read deadline to when the wait that is going on ends.
// Callers hold mu.
func (s *sniffer) arm() {
	end := s.since.Add(headerTimeout)
	switch {
	case s.crowd:
		end = past
	case s.wait == waitFirst && s.spoke:
		end = s.since.Add(s.hold)
	case s.wait == waitFirst:
		end = s.since.Add(s.silence)
	case s.wait == waitHTTP && s.spoke:
		end = past
	}
	if !end.After(time.Now()) {
		end = past
	}
	_ = s.client.SetReadDeadline(end) // a closed socket fails at the read
}

// expel ends the wait of a client that has begun and doesn't go on.
func (s *sniffer) expel() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.crowd = true
	s.arm()
}

func (s *sniffer) read() (sight, error) {
	buf := make([]byte, 0, 4096)
	for {
		s.mu.Lock()
		s.arm()
		s.mu.Unlock()
		n, err := s.client.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if n > 0 {
			got, next, done, err := s.classify(buf)
			if err != nil || done {
				got.client = buf
				return got, err
			}
			s.mu.Lock()
			if s.wait == waitFirst {
				s.since = time.Now()
			}
			s.wait = next
			s.mu.Unlock()
			if len(buf) == cap(buf) {
				buf = append(make([]byte, 0, 2*cap(buf)), buf...)
			}
			s.begun.expel = s.expel
			s.unsaid.hold(&s.begun, cap(buf))
		}
		if err != nil {
			return s.stopped(buf, err)
		}
	}
}

// classify looks at all bytes so far.
func (s *sniffer) classify(b []byte) (got sight, next wait, done bool, err error) {
	if s.hello {
		h, err := wire.ParseClientHello(b)
		switch {
		case err == nil:
			return sight{seen: h.Seen(), hello: h}, 0, true, nil
		case errors.Is(err, wire.ErrShort):
			return sight{}, waitHello, false, nil
		case errors.Is(err, wire.ErrTooLarge):
			return sight{}, 0, false, fmt.Errorf("read ClientHello: %w", err)
		}
	}
	if !s.http {
		return sight{seen: policy.PlainOther}, 0, true, nil
	}
	kind := wire.DetectHTTP(b)
	switch {
	case kind == wire.NeedMore:
		return sight{}, waitHTTP, false, nil
	case kind == wire.HTTP1, kind == wire.H2C, kind == wire.HTTP10 && s.http10:
		return sight{seen: policy.PlainHTTP, kind: kind}, 0, true, nil
	default:
		return sight{seen: policy.PlainOther, kind: kind}, 0, true, nil
	}
}

// stopped says what a connection is whose client can't be read further for now:
// it has ended, or the wait has.
func (s *sniffer) stopped(buf []byte, err error) (sight, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	timeout := errors.Is(err, os.ErrDeadlineExceeded)
	if !timeout && !errors.Is(err, io.EOF) {
		return sight{}, fmt.Errorf("read from the client: %w", err)
	}
	switch {
	case timeout && s.crowd:
		return sight{}, errCrowded
	case s.wait == waitHTTP && timeout && !s.spoke && wire.BeginsHTTP2(buf):
		return sight{}, errSilent // as bytes the rest would make it HTTP/2 that nobody judges
	case s.wait == waitHTTP:
		return sight{seen: policy.PlainOther, client: buf}, nil // contract 2.6: it goes on as bytes
	case s.wait == waitHello && timeout:
		return sight{}, errSlowHello
	case s.wait == waitHello:
		return sight{}, errCutHello
	case timeout && s.spoke:
		return sight{seen: policy.ServerFirst}, nil
	case timeout:
		return sight{}, errSilent
	case s.app == nil || s.hold > 0:
		return sight{}, errHungUp
	default: // it has only ended its direction: the application may still speak (contract B8)
		return sight{seen: policy.PlainOther}, nil
	}
}
