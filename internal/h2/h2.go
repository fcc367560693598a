// Package h2 relays HTTP/2 between one client and one application, frame by frame.
//
// To each connection of a client belongs one to the application. Bodies pass as
// the frames that they came in; heads are decoded, judged and rewritten by a
// [Handler], and encoded again, since each connection has HPACK tables of its own.
//
// Flow control is left to the ends (RFC 9113 5.2): SETTINGS with their
// acknowledgements and WINDOW_UPDATEs pass through, so what may be sent to this
// relay is what the other end has promised to take. A slow stream thereby stalls
// neither others nor is it held here. What the relay does add to that:
//
//   - a body that the relay sends itself uses up the client's window of the
//     connection, which the application doesn't know of. The next updates pay that
//     debt before they pass on, and what the application sends meanwhile beyond the
//     window waits. There is never more than maxDebt of it.
//   - what comes for a stream that is gone, or was refused, is thrown away, and its
//     window is given back at once.
//   - of requests that aren't decided yet the bodies are kept, up to maxPending;
//     beyond that the client isn't read.
//
// Streams keep their number where they can. If one was refused, or decided late,
// later ones have another towards the application.
//
// PING is answered here. PRIORITY is checked and dropped. The application is told
// not to push. Frames are at most 16 kB, in both directions, and heads at most
// maxList.
//
// Invariants:
//
//   - No request reaches the application that the handler has not let pass.
//   - What is passed on is well-formed: pseudo-fields, names, values and lengths are
//     checked in both directions (RFC 9113 8.2, 8.3), and what isn't is refused.
//   - mu is never held while something is read or written. What is queued for a side
//     is written in order, by one goroutine at a time.
//   - Queues are bounded: who causes more than maxQueue is not read until it is out.
//   - Frames that cost work and bring nothing are counted against budgets (limits.go).
package h2

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2/hpack"
)

// Field is one header field; its name is in lower case.
type Field = hpack.HeaderField

// Conn is one side's connection. Close ends it; if it has SetLinger(int) or
// Reset(), it can be ended such that its peer sees RST.
type Conn interface {
	io.ReadWriteCloser
	CloseWrite() error
	SetReadDeadline(t time.Time) error
}

// Request is the head of a request as the application gets it.
type Request struct {
	Method    string
	Scheme    string
	Authority string // with a port, if one was sent; taken from Host where it is missing
	Path      string // "" for CONNECT
	Protocol  string // of an extended CONNECT (RFC 8441), else ""
	Fields    []Field

	// Note is the handler's own.
	Note any
	// Sent is when the request was passed on, or its time of arrival before.
	Sent time.Time
}

// Field looks a field up; values of several are joined with commas.
func (r *Request) Field(name string) (value string, ok bool) {
	for i := range r.Fields {
		if r.Fields[i].Name != name {
			continue
		}
		if !ok {
			value, ok = r.Fields[i].Value, true
			continue
		}
		value += "," + r.Fields[i].Value
	}
	return value, ok
}

// GRPC reports whether the request is a call of gRPC.
func (r *Request) GRPC() bool {
	v, _ := r.Field("content-type")
	return isGRPC(v)
}

// Response is the final head of a response as the client gets it.
type Response struct {
	Status int
	Fields []Field
}

// Answer is a response that is not the application's. A call of gRPC gets it in
// gRPC's words: status 200, and grpc-status and grpc-message of Status and Body.
type Answer struct {
	Status int
	Body   string
	Fields []Field // beside content-length and, with a body and unless it is among them, content-type: text/plain
	Flags  string  // Envoy's response flags, for Outcome
}

// Fault is why the relay asks its handler for an answer.
type Fault int

// The faults.
const (
	TooLarge    Fault = iota // the head is larger than allowed
	Unreachable              // the application can't be connected to
	Ended                    // it ended the connection
	NoHTTP2                  // it said something that is no HTTP/2
)

// Outcome is how a request fared.
type Outcome struct {
	Status        int           // 0 when the client was gone before an answer
	GRPCStatus    string        // what grpc-status was, "" if there was none
	Flags         string        // Envoy's response flags: "-" UF UC UPE UR DPE DC
	RequestBytes  int64         // of DATA
	ResponseBytes int64         // of DATA
	Duration      time.Duration // from the request's head to the end of the stream
}

// Settle is the end of an [Ask]: it may change the head, and lets the request pass
// with nil.
type Settle func(r *Request) *Answer

// Body returns the beginning of a request's body without padding, and whether that is
// all of it. It waits for so many bytes, unless there can't be so many before the
// request is passed on. The body is still passed on.
type Body func(ctx context.Context, most int) (body []byte, whole bool, err error)

// Ask finds out, in a goroutine of its own, what is to become of a request. The
// context ends with the stream. What Request has returned together with it may be
// read without a lock until it returns; a request without a body has a nil body.
type Ask func(ctx context.Context, body Body) Settle

// Handler says what becomes of requests. Its methods are called one at a time for a
// relay and must not block; but Asks run beside them.
type Handler interface {
	// Request rewrites and judges a request. A nil answer lets it pass; but if ask is
	// not nil, that decides.
	Request(r *Request) (answer *Answer, ask Ask)
	// Trailers are those of a request that has been let pass; it returns what of them
	// may.
	Trailers(r *Request, fields []Field) []Field
	// Response rewrites the final head of a response.
	Response(r *Request, res *Response)
	// Interim rewrites a head of status 1xx.
	Interim(res *Response)
	// Fault answers for the relay itself.
	Fault(r *Request, f Fault) *Answer
	// Messages is called with how many messages of calls of gRPC began in what was
	// passed on, of requests and of responses.
	Messages(requests, responses int)
	// Done is called once for each request that reached Request, after its end.
	Done(r *Request, o Outcome)
}

// Config is what a relay works with. All but Dial, FirstApp, Buffers and the
// counters must be set.
type Config struct {
	Client   Conn
	First    []byte                                  // what was already read from Client
	App      Conn                                    // already connected, or nil
	FirstApp []byte                                  // what was already read from App
	Dial     func(ctx context.Context) (Conn, error) // connects to the application
	Handler  Handler

	IdleTimeout    time.Duration // without a request
	Now            func() time.Time
	Buffers        *Buffers      // shared by relays; or nil
	Received, Sent *atomic.Int64 // bytes from and to the client; or nil
}

// Errors of Serve.
var (
	// ErrProtocol says that the client broke HTTP/2's rules.
	ErrProtocol = errors.New("HTTP/2 protocol error")
	// ErrFlood says that the client caused more work than requests justify.
	ErrFlood = errors.New("HTTP/2 flood")
	// ErrApp says that the application can't be reached, or broke the rules.
	ErrApp = errors.New("the application failed")
)

// Bounds.
const (
	headTimeout = 30 * time.Second // for the preface, and for a head that has begun
	lingerTime  = time.Second      // a connection that is to be closed waits so long for the client to read

	maxStreams   = 4096      // open at a time on one connection
	earlyStreams = 100       // the same before the application has said what it allows
	maxHeads     = 4 << 20   // bytes of heads of requests that are open on one connection
	maxList      = 60 << 10  // bytes of a head: 32 and the two strings for each field (RFC 9113 6.5.2)
	maxFields    = 100       // of a head
	maxQueue     = 128 << 10 // bytes that wait to be written to a side
	maxReplies   = 1 << 20   // bytes of replies to what the application sends that it doesn't read
	maxPending   = 1 << 20   // bytes of bodies of requests that aren't decided
	maxDebt      = 8 << 10
)

// Relay serves one connection of a client.
type Relay struct {
	cfg  Config
	work sync.WaitGroup // everything but Serve's own goroutine

	mu   sync.Mutex
	wake sync.Cond // something was written, decided or ended
	down side      // the client
	up   side      // the application

	streams  map[uint32]*stream // by the client's number
	byUp     map[uint32]*stream // by the application's
	spare    []*stream
	lastDown uint32 // the client's highest
	lastUp   uint32
	gone     recent // streams that ended by a reset of ours or of the application

	window  int64 // the client's, of the connection
	debt    int64 // of it, used up by ourselves
	held    []heldFrame
	pending int // bytes of bodies of requests that aren't decided
	heads   int // bytes of heads of requests that are open

	budgets   budgets
	appClosed uint32 // 1 + the application's last stream by its GOAWAY; 0 before

	idle        *time.Timer
	began       time.Time // when the last head began that isn't complete
	fault       Fault     // why the application is not there
	dead        bool      // the application is not there any more
	deadEarly   bool      // nor was it when the first request came: that is still to be answered
	clientEnded bool
	draining    bool
	goneAway    bool // the client knows that no later stream will be served
	closing     bool // the client is only waited for
	over        bool // nothing is to be begun any more
	err         error
}

// New makes a relay, to be served once.
func New(cfg Config) *Relay {
	if cfg.Buffers == nil {
		cfg.Buffers = &Buffers{}
	}
	if cfg.Received == nil {
		cfg.Received = &atomic.Int64{}
	}
	if cfg.Sent == nil {
		cfg.Sent = &atomic.Int64{}
	}
	r := &Relay{cfg: cfg, streams: map[uint32]*stream{}, byUp: map[uint32]*stream{}, window: defaultWindow}
	r.wake.L = &r.mu
	r.down.start(cfg.Buffers, cfg.Client, cfg.First)
	r.down.received, r.down.sent = cfg.Received, cfg.Sent
	r.up.start(cfg.Buffers, cfg.App, cfg.FirstApp)
	r.up.received, r.up.sent = &atomic.Int64{}, &atomic.Int64{}
	r.up.client = true
	r.budgets.start(cfg.Now())
	return r
}

// Serve carries the connection until it ends or the context does, and closes both
// sides. It returns nil when it ended in an orderly way, else ErrProtocol, ErrFlood,
// ErrApp or what the client's socket said, wrapped.
func (r *Relay) Serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, r.abort)
	r.open(ctx)
	err := r.readDown(ctx)
	r.mu.Lock()
	r.over = true
	if r.idle != nil {
		r.idle.Stop()
	}
	for _, s := range r.streams {
		r.end(s, "DC")
	}
	if err == nil {
		err = r.err
	}
	r.wake.Broadcast()
	r.mu.Unlock()
	stop() // what follows is an orderly end
	_ = r.cfg.Client.Close()
	if r.up.conn != nil {
		_ = r.up.conn.Close()
	}
	cancel()
	r.work.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.down.release()
	r.up.release()
	return err
}

// open connects to the application, if that has not been done.
func (r *Relay) open(ctx context.Context) {
	if r.up.conn == nil {
		app, err := r.cfg.Dial(ctx)
		if err != nil {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.dead, r.deadEarly, r.fault = true, true, Unreachable
			r.err = wrap(ErrApp, err)
			return
		}
		r.mu.Lock()
		r.up.use(app)
		if r.over {
			reset(app)
		}
		r.mu.Unlock()
	}
	r.work.Go(r.readUp)
}

// abort ends both sides at once: each sees RST.
func (r *Relay) abort() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.over = true
	reset(r.cfg.Client)
	if r.up.conn != nil {
		reset(r.up.conn)
	}
	r.wake.Broadcast()
}

func reset(c Conn) {
	switch c := c.(type) {
	case interface{ Reset() }:
		c.Reset()
		return
	case interface{ SetLinger(sec int) error }:
		_ = c.SetLinger(0) // fails only on a closed connection
	}
	_ = c.Close()
}

// Drain tells the client to send no more requests on this connection, which ends
// when those that are under way have. It may be called at any time.
func (r *Relay) Drain() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over || r.closing || r.draining {
		return
	}
	r.draining = true
	r.announceDrain()
}

// announceDrain begins the end of the connection. Requests that are on their way are
// still served: a PING shows when they have come (RFC 9113 6.8).
func (r *Relay) announceDrain() {
	r.down.out = appendGoAway(r.down.room(), maxStreamID, noError)
	r.down.out = appendPing(r.down.out, drainPing, 0)
	r.kick(&r.down)
}

// Recheck asks of each request that is under way whether it may go on. One that
// gets an answer ends with it, or with a reset if its response has begun. It may be
// called at any time.
func (r *Relay) Recheck(check func(r *Request) *Answer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over {
		return
	}
	for _, s := range r.streams {
		if s.asking {
			continue // it will be decided by what is in force then
		}
		a := check(&s.req)
		if a == nil {
			continue
		}
		r.resetUp(s, cancelled)
		r.cutShort(s, a)
	}
	r.kick(&r.down)
	r.kick(&r.up)
	r.settle()
}
