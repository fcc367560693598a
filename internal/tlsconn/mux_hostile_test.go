package tlsconn

import (
	"errors"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"
)

// Streams that only begin and end, and credit for what was sent, are no flood: a
// client that uploads for hours, or connects and hangs up, gets nothing else.
func TestMuxWithoutAnswers(t *testing.T) {
	m := newMuxPair(t)
	t.Run("connections without data", func(t *testing.T) {
		for range aboutFrames + 100 {
			client, server := m.open(t, "")
			_ = server.CloseWrite()
			_ = client.CloseWrite()
			wantEnd(t, client)
			wantEnd(t, server)
		}
	})
	t.Run("credit", func(t *testing.T) {
		client, _ := m.open(t, "")
		client.mu.Lock()
		defer client.mu.Unlock()
		for range aboutFrames + 100 { // as for an upload of 128 MiB in small windows
			client.unpaid = true
			client.mu.Unlock()
			err := m.client.frame([]byte{frameCredit, byte(client.id >> 16), byte(client.id >> 8), byte(client.id), 0, 0, 0, 1})
			client.mu.Lock()
			if err != nil {
				t.Fatal(err)
			}
		}
	})
}

// While a peer doesn't read, nobody waits for it with the lock of the Mux, which the
// reader needs, and who looks for a connection to use.
func TestMuxOpenDoesNotWait(t *testing.T) {
	m := newMuxPair(t)
	o := &m.client.out
	o.mu.Lock()
	o.writing = true // as if a write were waiting for the peer
	for o.pending == nil || len(o.pending.b) <= pendingMost {
		if err := o.add(frameData, 1, nil); err != nil {
			t.Fatal(err)
		}
	}
	o.mu.Unlock()
	opened := make(chan error, 1)
	go func() {
		_, err := m.client.open([]byte("x"))
		opened <- err
	}()
	select {
	case err := <-opened:
		if err == nil {
			t.Error("a stream was opened behind all that")
		}
	case <-time.After(10 * time.Second):
		t.Error("it waits")
	}
	if open, _, _ := m.client.Count(); open != 1 {
		t.Errorf("%d streams are open", open)
	}
	o.mu.Lock()
	o.writing = false
	o.mu.Unlock()
	_ = o.flush()
}

// A peer that has us answer and never reads ends the connection, not our memory.
func TestMuxAnswersAreBounded(t *testing.T) {
	m := newMuxPair(t)
	o := &m.server.out
	o.mu.Lock()
	o.writing = true
	o.mu.Unlock()
	for range 2 * controlMost / (headerLen + frameLen + trailerLen) {
		o.control(frameReset, 1, nil)
	}
	o.mu.Lock()
	if o.pending != nil && len(o.pending.b) > controlMost+100 {
		t.Errorf("%d bytes are pending", len(o.pending.b))
	}
	o.writing = false
	o.mu.Unlock()
	if err := <-m.ended; err == nil {
		t.Error("it goes on")
	}
	m.ended <- nil
}

// What a window has borrowed is given back, also if the stream ends while what it
// brought is being written.
func TestMuxWindowOfTheAborted(t *testing.T) {
	m := newMuxPair(t)
	client, server := m.open(t, "")
	if _, err := client.Write(make([]byte, oneLen)); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool {
		server.mu.Lock()
		defer server.mu.Unlock()
		return server.queued == oneLen
	})
	_ = m.pool.Copy(writerFunc(func(p []byte) (int, error) {
		server.Reset()
		return len(p), nil
	}), server, func(int) {})
	if n := m.pool.lent.Load(); n != 0 {
		t.Errorf("%d bytes are lent to a stream that is over", n)
	}
}

// Nothing of a stream is sent after its end, whoever is about to send.
func TestMuxNothingAfterTheEnd(t *testing.T) {
	m := newMuxPair(t)
	client, server := m.open(t, "")
	big := m.pool.get(four)
	defer m.pool.put(big)
	o := &m.client.out
	o.mu.Lock()
	o.writing = true // both wait for their turn, or are about to
	o.mu.Unlock()
	var there sync.WaitGroup
	there.Go(func() { _ = client.send(big, 20_000) })
	eventually(t, func() bool {
		o.mu.Lock()
		defer o.mu.Unlock()
		return o.large > 0
	})
	_ = client.finish()
	o.mu.Lock()
	o.writing = false
	o.changed.Broadcast()
	o.mu.Unlock()
	there.Wait()
	_ = o.flush()
	wantEnd(t, server)
	if _, err := io.WriteString(m.first, "x"); err != nil {
		t.Error(err)
	}
	wantRead(t, m.firstEnd, "x")
}

// A client that opens streams only to abort them is told to leave, and then gone; one
// that does so now and then is not.
func TestMuxAbortedYoung(t *testing.T) {
	m := newMuxPair(t)
	for range abortsMost / 2 {
		client, _ := m.open(t, "")
		client.Reset()
	}
	if client, server := m.open(t, "x"); m.client.Left() {
		t.Error("it was told to leave")
	} else {
		wantRead(t, server, "x")
		_ = client.Close()
	}
	o := &m.client.out
	for id := m.client.last + 1; ; id++ { // whatever it is told
		if _, err := o.offer(frameOpen, id, nil); errors.Is(err, errCrowded) {
			id--
			runtime.Gosched()
			continue
		}
		o.control(frameReset, id, nil)
		if o.flush() != nil {
			break
		}
	}
	eventually(t, m.client.Left)
	var bad *BadRecordError
	if err := <-m.ended; !errors.As(err, &bad) {
		t.Errorf("the server ends with %v", err)
	}
	m.ended <- nil
	if n := len(m.accepted); n > 4*abortsMost {
		t.Errorf("%d streams were taken", n)
	}
}

// What was sent last arrives, if the connection is closed at once and the other side
// is late to read it and has sent something itself.
func TestMuxCloseLosesNothing(t *testing.T) {
	m := newMuxPair(t)
	client, server := m.open(t, "")
	_ = m.first.CloseWrite()
	_ = m.firstEnd.CloseWrite()
	_ = client.CloseWrite()
	wantEnd(t, server)
	server.mu.Lock()
	server.credit = 1 << 20
	server.mu.Unlock()
	client.mu.Lock() // the client's reader waits for it, with most of it in the sockets
	client.room = 1 << 20
	sent := make(chan error, 1)
	go func() {
		_, err := server.Write(make([]byte, 1<<20))
		sent <- errors.Join(err, server.CloseWrite())
		m.server.Close()
	}()
	err := <-sent
	m.client.out.control(frameCredit, 1, []byte{0, 0, 0, 1}) // unread when the server closes
	ferr := m.client.out.flush()
	eventually(t, func() bool {
		m.server.out.mu.Lock()
		defer m.server.out.mu.Unlock()
		return errors.Is(m.server.out.err, errEnded)
	})
	client.mu.Unlock()
	if err := errors.Join(err, ferr); err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, client); err != nil || n != 1<<20 {
		t.Errorf("%d bytes came, %v", n, err)
	}
}

// A stream that is closed while something is written does not look whole, though the
// peer has ended its own direction.
func TestMuxCloseInAWrite(t *testing.T) {
	m := newMuxPair(t)
	client, server := m.open(t, "")
	_ = client.CloseWrite()
	wantEnd(t, server)
	written := make(chan error, 1)
	go func() {
		_, err := server.Write(make([]byte, 2*firstWindow))
		written <- err
	}()
	eventually(t, func() bool {
		server.mu.Lock()
		defer server.mu.Unlock()
		return server.credit == 0
	})
	_ = server.Close()
	if err := <-written; !errors.Is(err, net.ErrClosed) {
		t.Errorf("the write ends with %v", err)
	}
	if n, err := io.Copy(io.Discard, client); err == nil {
		t.Errorf("an end after %d bytes", n)
	}
}

// Whatever a peer sends, as records that are sealed as they should be: the reader ends,
// nothing is left over, and what is held is no more than the windows.
func FuzzMux(f *testing.F) {
	f.Add([]byte{9, frameOpen, 0, 0, 2, 'h', 'e', 'l', 'l', 'o', 4, frameEnd, 0, 0, 1, 4, frameEnd, 0, 0, 2})
	f.Add([]byte{6, frameData, 0, 0, 1, 'x', 'y', 4, frameReset, 0, 0, 1, 5, frameData, 0, 0, 1, 'x'})
	f.Add([]byte{8, frameCredit, 0, 0, 1, 0, 0, 1, 0, 8, frameCredit, 0, 0, 1, 0, 255, 255, 255})
	f.Add([]byte{4, frameOpen, 0, 0, 2, 4, frameOpen, 0, 0, 3, 4, frameReset, 0, 0, 3, 4, frameLeave, 0, 0, 0})
	f.Add([]byte{200, frameData, 0, 0, 1, 4, frameOpen, 0, 0, 4, 2, 0, 0, 0})
	f.Fuzz(func(t *testing.T, script []byte) {
		m := newMuxPair(t)
		var readers sync.WaitGroup
		stop := make(chan struct{})
		consume := func(s *Stream) {
			readers.Go(func() {
				defer s.Close()
				switch s.id % 3 {
				case 0:
					_, _ = io.Copy(s, s)
				case 1:
					_, _ = io.CopyN(io.Discard, s, 3)
				default: // nobody reads
				}
			})
		}
		readers.Go(func() {
			for {
				select {
				case s := <-m.accepted:
					consume(s)
				case <-stop:
					return
				}
			}
		})
		consume(m.firstEnd)
		o := &m.client.out
		for len(script) > 0 {
			n := min(int(script[0]), len(script)-1)
			frame := script[1 : 1+n]
			script = script[1+n:]
			o.mu.Lock()
			if o.broken() == nil {
				at := o.extend(headerLen + n + trailerLen)
				copy(o.pending.b[at+headerLen:], frame)
				o.keys.seal(o.pending.b[at:], n, typeData)
			}
			o.mu.Unlock()
			if o.flush() != nil {
				break
			}
			m.server.mu.Lock()
			for _, s := range m.server.streams {
				if s.mu.TryLock() {
					if s.queued > mostWindow || s.room < -mostWindow {
						t.Errorf("%d bytes are held, room %d", s.queued, s.room)
					}
					s.mu.Unlock()
				}
			}
			m.server.mu.Unlock()
		}
		m.client.Close()
		m.client.Close()
		err := <-m.ended
		m.ended <- err
		if err == nil {
			t.Error("it ends without saying why")
		}
		close(stop)
		readers.Wait()
	})
}
