package tlsconn

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// cutter passes bytes on in pieces of random sizes, both ways, halves apart.
func cutter(tb testing.TB, seed uint64) (a, b *net.TCPConn) {
	tb.Helper()
	a, left := tcpPair(tb)
	right, b := tcpPair(tb)
	var done sync.WaitGroup
	pass := func(dst, src *net.TCPConn, r *rand.Rand) {
		done.Go(func() {
			buf := make([]byte, 40_000)
			for {
				n, err := src.Read(buf[:1+r.IntN(len(buf))])
				for p := buf[:n]; len(p) > 0; {
					part := min(len(p), 1+r.IntN(1+r.IntN(20_000)))
					if _, err := dst.Write(p[:part]); err != nil {
						return
					}
					p = p[part:]
				}
				if err != nil {
					_ = dst.CloseWrite()
					return
				}
			}
		})
	}
	pass(right, left, rand.New(rand.NewPCG(seed, 1)))
	pass(left, right, rand.New(rand.NewPCG(seed, 2)))
	tb.Cleanup(func() {
		for _, c := range []*net.TCPConn{a, b, left, right} {
			c.Close()
		}
		done.Wait()
	})
	return a, b
}

// mixed shakes hands between us in one role and crypto/tls in the other.
func mixed(tb testing.TB, p *Pool, weAreClient bool, a, b *net.TCPConn, change func(client, server *tls.Config)) (ours *Conn, theirs *tls.Conn) {
	tb.Helper()
	cc, sc := configs(tb, "")
	if change != nil {
		change(cc, sc)
	}
	deadline := time.Now().Add(10 * time.Second)
	done := make(chan error, 1)
	var err error
	if weAreClient {
		theirs = tls.Server(b, sc)
		go func() { done <- theirs.Handshake() }()
		ours, err = p.Client(a, cc, deadline)
	} else {
		theirs = tls.Client(a, cc)
		go func() { done <- theirs.Handshake() }()
		ours, err = p.Server(b, nil, sc, deadline)
	}
	if err := errors.Join(err, <-done); err != nil {
		tb.Fatal(err)
	}
	if (ours.records == nil) != (theirs.ConnectionState().Version != tls.VersionTLS13) {
		tb.Fatal("the wrong record path")
	}
	return ours, theirs
}

func noise(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func sendAll(w io.Writer, b []byte, r *rand.Rand) error {
	for len(b) > 0 {
		n := min(len(b), 1+r.IntN(1+r.IntN(300_000)))
		if _, err := w.Write(b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

func receiveAll(src io.Reader, r *rand.Rand) ([]byte, error) {
	var got []byte
	buf := make([]byte, 300_000)
	for {
		n, err := src.Read(buf[:1+r.IntN(1+r.IntN(len(buf)))])
		got = append(got, buf[:n]...)
		if errors.Is(err, io.EOF) {
			return got, nil
		}
		if err != nil {
			return got, err
		}
	}
}

// Both directions at once, sizes and cuts at random, our keys renewed all the time;
// then each direction ends by itself.
func TestStreamsAgainstCryptoTLS(t *testing.T) {
	for seed := range uint64(6) {
		for _, weAreClient := range []bool{true, false} {
			r := rand.New(rand.NewPCG(seed, 7))
			p := &Pool{}
			a, b := cutter(t, seed)
			ours, theirs := mixed(t, p, weAreClient, a, b, nil)
			ours.records.out.limit = 5 + r.Uint64N(50)
			up, down := noise(r, r.IntN(3<<20)), noise(r, r.IntN(3<<20))
			bothWays(t, ours, theirs, up, down, seed)
			if ours.records.in.buf != nil || p.lent.Load() != 0 {
				t.Errorf("seed %d: buffer %v, %d bytes lent", seed, ours.records.in.buf, p.lent.Load())
			}
		}
	}
}

func bothWays(t *testing.T, ours, theirs half, up, down []byte, seed uint64) {
	t.Helper()
	var done sync.WaitGroup
	send := func(c half, b []byte, seed2 uint64) {
		done.Go(func() {
			if err := sendAll(c, b, rand.New(rand.NewPCG(seed, seed2))); err != nil {
				t.Errorf("seed %d: %v", seed, err)
			}
			if err := c.CloseWrite(); err != nil {
				t.Errorf("seed %d: %v", seed, err)
			}
		})
	}
	send(ours, up, 11)
	send(theirs, down, 12)
	done.Go(func() {
		if got, err := receiveAll(theirs, rand.New(rand.NewPCG(seed, 13))); err != nil || !bytes.Equal(got, up) {
			t.Errorf("seed %d: crypto/tls got %d of %d bytes, %v", seed, len(got), len(up), err)
		}
	})
	if got, err := receiveAll(ours, rand.New(rand.NewPCG(seed, 14))); err != nil || !bytes.Equal(got, down) {
		t.Errorf("seed %d: we got %d of %d bytes, %v", seed, len(got), len(down), err)
	}
	done.Wait()
}

// All ciphers between two of us, and what stays with crypto/tls.
func TestStreamsBetweenUs(t *testing.T) {
	for _, how := range []string{"aes128", "aes256", "chacha20", "tls12"} {
		client, server := establishedIn(t, &Pool{}, how, 3)
		if (client.records == nil) != (how == "tls12") || (server.records == nil) != (how == "tls12") {
			t.Fatalf("%s: the wrong record path", how)
		}
		r := rand.New(rand.NewPCG(1, 2))
		bothWays(t, client, server, noise(r, 2<<20), noise(r, 1<<20), 3)
	}
}

// Relays of both kinds, ended by the one side and then by the other.
func TestRelays(t *testing.T) {
	for _, how := range []string{"crypto_tls", "aes128", "aes256", "chacha20", "tls12"} {
		c := newChain(t, how)
		r := rand.New(rand.NewPCG(1, 2))
		bothWays(t, c.client, c.server, noise(r, 3<<20), noise(r, 3<<20), 9)
	}
}

// A server's tickets come under the application's keys: what follows them has
// later numbers.
func TestTickets(t *testing.T) {
	for _, resumed := range []bool{false, true} {
		for _, auth := range []tls.ClientAuthType{tls.RequireAnyClientCert, tls.NoClientCert} {
			cache := tls.NewLRUClientSessionCache(4)
			var keeper *tls.Config // sessions are resumed with the keys of the same config
			tickets := func(cc, sc *tls.Config) {
				cc.SessionTicketsDisabled, cc.ClientSessionCache = false, cache
				sc.SessionTicketsDisabled, sc.ClientAuth, sc.VerifyConnection = false, auth, nil
				cc.VerifyConnection = nil
				sc.SetSessionTicketKeys([][32]byte{{1}})
				keeper = sc
			}
			for _, weAreClient := range []bool{false, true} {
				a, b := tcpPair(t)
				ours, theirs := mixed(t, &Pool{}, weAreClient, a, b, tickets)
				if seq := ours.records.out.keys.seq; (seq == 1) == weAreClient {
					t.Errorf("client %v: %d records were sent before ours", weAreClient, seq)
				}
				bothWays(t, ours, theirs, []byte("up"), []byte("down"), 1)
				if !resumed {
					continue
				}
				a, b = tcpPair(t)
				ours, theirs = mixed(t, &Pool{}, false, a, b, tickets)
				if !theirs.ConnectionState().DidResume || !ours.ConnectionState().DidResume {
					t.Error("it was no resumption")
				}
				bothWays(t, ours, theirs, []byte("up"), []byte("down"), 1)
			}
			_ = keeper
		}
	}
}

// lateConn holds writes back from the second on, until told.
type lateConn struct {
	*net.TCPConn
	writes int
	held   []byte
}

func (c *lateConn) Write(b []byte) (int, error) {
	if c.writes++; c.writes > 1 {
		c.held = append(c.held, b...)
		return len(b), nil
	}
	return c.TCPConn.Write(b)
}

// What comes in one piece with the end of the handshake is ours to open.
func TestNothingIsLostAtTheHandover(t *testing.T) {
	for _, size := range []int{1, 3000, 70_000} {
		a, b := tcpPair(t)
		cc, sc := configs(t, "")
		late := &lateConn{TCPConn: a}
		theirs := tls.Client(late, cc)
		want := bytes.Repeat([]byte("x"), size)
		done := make(chan error, 1)
		go func() {
			err := theirs.Handshake()
			if err == nil {
				_, err = theirs.Write(want)
			}
			if err == nil {
				err = theirs.CloseWrite()
			}
			if err == nil {
				err = a.SetWriteDeadline(time.Time{}) // which crypto/tls has let pass
			}
			if err == nil {
				_, err = a.Write(late.held)
			}
			done <- err
		}()
		var p Pool
		ours, err := p.Server(b, nil, sc, time.Now().Add(10*time.Second))
		if err := errors.Join(err, <-done); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(ours); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes of %d, %v", len(got), size, err)
		}
	}
}

// A server that refuses our certificate says so only after our handshake.
func TestRefusalIsAnAlert(t *testing.T) {
	a, b := tcpPair(t)
	cc, sc := configs(t, "")
	sc.VerifyConnection = func(tls.ConnectionState) error { return errors.New("no") }
	done := make(chan error, 1)
	go func() { done <- tls.Server(b, sc).Handshake() }()
	var p Pool
	ours, err := p.Client(a, cc, time.Now().Add(10*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	if <-done == nil {
		t.Fatal("it was accepted")
	}
	var alert tls.AlertError
	if _, err := ours.Read(make([]byte, 1)); !errors.As(err, &alert) || byte(alert) != 42 {
		t.Errorf("got %v", err)
	}
	if _, err := ours.Write([]byte("x")); !errors.As(err, &alert) {
		t.Errorf("write: %v", err)
	}
}

// A deadline in the middle of a record loses nothing, and then holds no large
// buffer.
func TestDeadlineWithinARecord(t *testing.T) {
	d := newDuel(t, true)
	want := bytes.Repeat([]byte("0123456789"), 1500)
	d.record(typeData, want, 0)
	for _, part := range []int{1, 4, 5, 6, 4000, 5000, 15_000} {
		if _, err := d.ourEnd.Write(d.wire[:part]); err != nil {
			t.Fatal(err)
		}
		if err := d.ours.SetReadDeadline(time.Now().Add(5 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		n, err := d.ours.Read(make([]byte, 100_000))
		if rest := len(d.wire) - part; rest > 0 {
			d.wire = d.wire[part:]
			var timeout net.Error
			if n != 0 || !errors.As(err, &timeout) || !timeout.Timeout() || d.ours.records.in.buf.class > one {
				t.Fatalf("after %d: %d, %v", part, n, err)
			}
			if len(d.wire) <= 15_000 {
				break
			}
		}
	}
	if _, err := d.ourEnd.Write(d.wire); err != nil {
		t.Fatal(err)
	}
	_ = d.ours.SetReadDeadline(time.Time{})
	got := make([]byte, len(want))
	if _, err := io.ReadFull(d.ours, got); err != nil || !bytes.Equal(got, want) {
		t.Fatal(err)
	}
	if d.ours.records.in.buf != nil {
		t.Error("a buffer is held")
	}
}

// Of what comes after close_notify nothing is looked at, and nothing is sent after
// our own.
func TestAfterTheEnd(t *testing.T) {
	client, server := established(t, 0)
	if err := client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Write([]byte("x")); !errors.Is(err, errEnded) {
		t.Errorf("got %v", err)
	}
	if client.records.out.keys.aead.Load() != nil {
		t.Error("the keys are still there")
	}
	for range 2 {
		if n, err := server.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("%d, %v", n, err)
		}
	}
	if _, err := client.raw.Write([]byte("plaintext")); err == nil {
		t.Error("the socket is still open for writing")
	}
	if err := client.CloseWrite(); err != nil && client.raw != nil {
		t.Logf("a second end: %v", err) // the socket says so
	}
}

// ask sends a KeyUpdate that asks for one.
func (w *writer) ask(tb testing.TB) {
	tb.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := errors.Join(w.message(typeHandshake, []byte{messageKeyUpdate, 0, 0, 1, 1}), w.keys.update()); err != nil {
		tb.Fatal(err)
	}
}

// exchange sends a byte each way.
func exchange(tb testing.TB, a, b io.ReadWriter) {
	tb.Helper()
	for range 2 {
		if _, err := a.Write([]byte("x")); err != nil {
			tb.Fatal(err)
		}
		if _, err := io.ReadFull(b, make([]byte, 1)); err != nil {
			tb.Fatal(err)
		}
		a, b = b, a
	}
}

// An update that is asked for over and over is answered once, with the next data.
func TestRequestedUpdatesAreAnswered(t *testing.T) {
	client, server := established(t, 0)
	for i := range uint64(3) {
		for range maxUseless {
			client.records.out.ask(t)
		}
		exchange(t, client, server)
		if n := client.records.in.updates; n != i+1 {
			t.Fatalf("%d answers to %d requests with data between them", n, i+1)
		}
	}
}

// Updates that never end are refused.
func TestUpdatesAreBounded(t *testing.T) {
	client, server := established(t, 0)
	for range freeUpdates {
		client.records.out.owed.Store(true)
		exchange(t, client, server)
	}
	for range 3 {
		client.records.out.owed.Store(true)
		if _, err := client.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	var bad *BadRecordError
	if n, err := io.Copy(io.Discard, server); !errors.As(err, &bad) || n > 2 {
		t.Errorf("%d bytes, %v", n, err)
	}
}

// After Finished nothing is taken in the clear, not even what RFC 8446 D.4 allows
// before (5: change_cipher_spec); the peer is told.
func TestNothingInTheClear(t *testing.T) {
	for typ := typeCCS; typ <= typeData+1; typ++ {
		if typ == typeData {
			continue
		}
		d := newDuel(t, true)
		d.record(typeData, []byte("before"), 0)
		d.raw([]byte{typ, 3, 3, 0, 1, 1})
		d.record(typeData, []byte("after"), 0)
		got := d.receive(d.ourEnd, d.ours, 1000)
		want := outcome{"before", "local", tls.AlertError(alertUnexpectedMessage).Error()}
		if got != want {
			t.Errorf("type %d: %+v", typ, got)
		}
	}
}
