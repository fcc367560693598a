package proxy

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"podseal.io/podseal/internal/tlsconn"
	"podseal.io/podseal/internal/wire"
)

const (
	// httpHeadTimeout is how long the head of a request may take once it has begun.
	httpHeadTimeout = 30 * time.Second
	// httpLinger is how long a connection that is to be closed waits for the client
	// to finish what it is sending: closing at once would destroy the response.
	httpLinger = time.Second
)

// errHTTPApp says that the application could not be reached for the last request.
var errHTTPApp = errors.New("the application can't be reached")

// httpRelay serves HTTP/1 on one inbound connection and passes its requests to
// the application, one after the other, over one connection that is kept and
// made anew when needed. Heads are parsed and rewritten as Envoy does (contract
// 2.37-2.58); bodies pass as bytes.
//
// One goroutine does request and response in turn. A body that is still on its way,
// and bytes after an upgrade, need a second one: the exchange then belongs to respond
// until that says so through done. While the application works for longer than
// httpPatience, what the client sends is read beside (httpWatch), so that a client
// that hangs up is noticed and its end of stream passed on.
//
// Fields are set by the caller and not changed afterwards; so that nothing is
// kept for longer than the connection, there is no global state.
type httpRelay struct {
	Client stream
	First  []byte                                    // what was already read from Client
	App    stream                                    // already connected, or nil
	Dial   func(ctx context.Context) (stream, error) // connects to the application

	PeerURI      string // spiffe:// of the client; "" when it came without a certificate
	PeerCertHash string // hex SHA-256 of its certificate
	PeerNames    peerNames
	OwnURI       string // spiffe:// of this workload
	Decorator    string // "<service FQDN>:<port>/*", or ":0/*" without service
	HTTP10       bool   // serve HTTP/1.0 (contract 2.55)

	Gate *gate // says what may pass; nil passes everything

	IdleTimeout    time.Duration     // between requests; 0 means none
	HalfClosed     time.Duration     // bounds a question for a client that has ended its direction; 0 means httpHalfClosed
	Buffers        *httpBuffers      // shared by connections
	TLS            *tlsconn.Pool     // that Client's connection is of; or nil
	Rand           io.Reader         // for request ids; nil means crypto/rand
	Now            func() time.Time  // nil means time.Now
	OnRequest      func(RequestInfo) // called after each response, never twice at a time; or nil
	KeepHeads      func() bool       // OnRequest wants heads; or nil
	Draining       func() bool       // this proxy is shutting down; or nil
	Received, Sent *atomic.Int64     // bytes from and to the client, counted as they pass; or nil

	in, out     httpBuffer // from the client, from the application
	req         wire.RequestHead
	resp        wire.ResponseHead
	ex          httpExchange
	id          [16]byte
	path        []byte // scratch for a path that was not normal
	asked       judgedRequest
	body, reply httpBody // of the request, of the response
	response    []byte   // scratch for what goes to the client
	date        []byte   // the field `date` of the second dateOf
	dateOf      int64
	random      [128]byte // read ahead of Rand; the last randomLeft bytes are not used yet
	randomLeft  int
	done        chan struct{}
	work        sync.WaitGroup // the second goroutine
	source      io.Reader      // First, then Client
	gone        error          // the client, while an authorizer was asked; nil if it is there
	appErr      error          // of the last attempt to reach the application

	fromApp, toApp atomic.Int64 // bytes

	mu          sync.Mutex
	app         stream    // nil when not connected
	idleFrom    time.Time // the wait for the next request began
	idleArmed   time.Time // the wait that the deadline of the client's connection is of; zero for another
	answered    bool      // the exchange that began last has its response
	underWay    bool      // ex.head is a request that is still to be answered, or a tunnel
	clientEnded bool      // the client has ended its direction
	aborted     bool
	watch       httpWatch
}

// RequestInfo is one request and how it was answered.
type RequestInfo struct {
	Method        string
	Status        int    // 0 when the client was gone before an answer
	Flags         string // Envoy's response flag: "-" UF UC UPE DPE DC
	RequestBytes  int64  // head and body
	ResponseBytes int64
	Start         time.Time
	Duration      time.Duration

	Protocol                  string // HTTP/1.1
	Details                   string // what answered, in Envoy's words
	RequestBody, ResponseBody int64  // bytes; with heads unless KeepHeads wants those
	// Request is the head as the application gets it, or would have; Response is
	// that which the client gets. They are empty unless KeepHeads wants them, or
	// where there is none, and are not to be kept.
	Request, Response []byte
}

// httpExchange is one request with its response. Its owner is serve; where there is
// a second goroutine, that until done.
type httpExchange struct {
	method    string
	minor     int  // of the request's HTTP/1.Minor
	keep      bool // the client's connection may be used again
	keepApp   bool // the application's may
	tunnel    bool // HTTP has ended, bytes follow
	early     bool // the answer came before the request had been sent
	upgrade   bool // the client asked for another protocol
	decorated bool
	reused    bool   // the application's connection was not made for this request
	replay    bool   // the request may be sent a second time
	head      []byte // as sent to the application, with what was there of the body
	started   time.Time
	sent      time.Time
	ended     time.Time    // its response went out, or the end of that
	size      int64        // of the request's head as it came
	seen      []byte       // the head as the application gets it, where it is kept
	reply     []byte       // the head as the client gets it, where it is kept
	replySize int64        // of it
	details   string       // what answered; "" for the application
	received  atomic.Int64 // bytes of the request

	bodySent atomic.Bool
	fault    atomic.Int32 // an httpFault of the request while respond owns the exchange
}

type httpFault int32

const (
	faultNone       httpFault = iota
	faultClientGone           // the client's connection failed
	faultBadBody              // the request's body is no HTTP
)

// serve serves the connection until it ends or the context does, and closes
// both sides. Received and Sent count the bytes. It returns why it ended if not in
// an orderly way: wire.ErrMalformed or wire.ErrTooLarge
// for a request that was refused, errHTTPApp, or the error of the client's socket.
// How each request fared is in RequestInfo.
func (h *httpRelay) serve(ctx context.Context) error {
	h.prepare()
	stop := context.AfterFunc(ctx, h.abort)
	defer stop()
	err := h.requests(ctx)
	h.watch.stop()
	h.work.Wait()
	h.dropApp()
	_ = h.Client.Close()
	if err == nil {
		err = h.appErr
	}
	h.in.release()
	h.out.release()
	return err
}

func (h *httpRelay) prepare() {
	if h.Buffers == nil {
		h.Buffers = &httpBuffers{}
	}
	if h.TLS == nil {
		h.TLS = &tlsconn.Pool{}
	}
	if h.HalfClosed == 0 {
		h.HalfClosed = httpHalfClosed
	}
	if h.Rand == nil {
		h.Rand = rand.Reader
	}
	if h.Now == nil {
		h.Now = time.Now
	}
	if h.Received == nil {
		h.Received = &atomic.Int64{}
	}
	if h.Sent == nil {
		h.Sent = &atomic.Int64{}
	}
	h.app = h.quick(h.App)
	h.Client = h.quick(h.Client)
	h.source = &firstReader{h.First, h.Client}
	h.answered = true
	h.in.pools, h.out.pools = h.Buffers, h.Buffers
	h.done = make(chan struct{}, 1)
}

// quick makes what is small cost less on a connection without TLS.
func (h *httpRelay) quick(s stream) stream {
	if tcp, ok := s.(*net.TCPConn); ok {
		return h.TLS.Plain(tcp)
	}
	return s
}

// requests serves one request after the other.
func (h *httpRelay) requests(ctx context.Context) error {
	h.setIdle(h.Now())
	for {
		size, err := h.nextHead()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return h.refuse(err)
		}
		next, err := h.exchange(ctx, size)
		if err != nil || !next {
			return err
		}
	}
}

// abort closes both sides at once: each sees RST. It may be called at any time.
func (h *httpRelay) abort() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.aborted = true
	resetStream(h.Client)
	if h.app != nil {
		resetStream(h.app)
	}
}

func resetStream(s stream) {
	switch s := s.(type) {
	case *net.TCPConn:
		reset(s)
	case interface{ Reset() }:
		s.Reset()
	default:
		_ = s.Close()
	}
}

// connect dials the application. Callers own the exchange.
func (h *httpRelay) connect(ctx context.Context) error {
	h.mu.Lock()
	aborted := h.aborted
	h.mu.Unlock()
	if aborted {
		return net.ErrClosed
	}
	app, err := h.Dial(ctx)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.aborted {
		_ = app.Close()
		return net.ErrClosed
	}
	h.app = h.quick(app)
	return nil
}

// dropApp closes the connection to the application, if there is one.
func (h *httpRelay) dropApp() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.app != nil {
		_ = h.app.Close()
		h.app = nil
	}
}

// closeApp wakes whoever waits for the application, which sees an early end.
func (h *httpRelay) closeApp() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.app != nil {
		_ = h.app.Close()
	}
}

// setIdle bounds the wait for the next request, which begins now. A deadline of an
// earlier wait stays: when it has passed, idleOver sets the one that is due.
func (h *httpRelay) setIdle(now time.Time) {
	h.idleFrom = now
	if h.idleArmed.IsZero() {
		h.armIdle()
	}
}

func (h *httpRelay) armIdle() {
	h.idleArmed = h.idleFrom
	var end time.Time
	if h.IdleTimeout > 0 {
		end = h.idleFrom.Add(h.IdleTimeout)
	}
	_ = h.Client.SetReadDeadline(end) // a closed socket fails at the read
}

// idleOver reports whether a deadline that has passed was that of the wait for the
// next request.
func (h *httpRelay) idleOver() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.idleArmed.IsZero() || h.idleArmed.Equal(h.idleFrom) {
		return true
	}
	h.armIdle()
	return false
}

// bound sets until when the client must have sent something; zero is for ever.
func (h *httpRelay) bound(end time.Time) error {
	h.idleArmed = time.Time{}
	return h.Client.SetReadDeadline(end) //nolint:wrapcheck // it is looked at only for whether it is one
}

func (h *httpRelay) draining() bool { return h.Draining != nil && h.Draining() }

func (h *httpRelay) report(ex *httpExchange, status int, flags string, responseBytes int64) {
	if h.OnRequest == nil {
		return
	}
	received := ex.received.Load()
	h.OnRequest(RequestInfo{
		Method: ex.method, Status: status, Flags: flags, RequestBytes: received,
		ResponseBytes: responseBytes, Start: ex.started, Duration: ex.ended.Sub(ex.started),
		Protocol: [...]string{"HTTP/1.0", "HTTP/1.1"}[ex.minor&1], Details: cmp.Or(ex.details, "via_upstream"),
		RequestBody: max(0, received-ex.size), ResponseBody: max(0, responseBytes-ex.replySize),
		Request: ex.seen, Response: ex.reply,
	})
}

func (h *httpRelay) keepHeads() bool { return h.KeepHeads != nil && h.KeepHeads() }

// noteReply remembers the head of a response that is about to be sent.
func (h *httpRelay) noteReply(response []byte) {
	if h.keepHeads() {
		end := bytes.Index(response, []byte("\r\n\r\n")) + len("\r\n")
		h.ex.reply, h.ex.replySize = append(h.ex.reply[:0], response[:end]...), int64(end+len("\r\n"))
	}
}
