package tlsconn

import (
	"bytes"
	"errors"
	"io"
	"math"
	"testing"
	"time"
)

// A buffer of each class holds its records, and any record but for the smallest.
func TestClasses(t *testing.T) {
	var p Pool
	for c := range classes {
		b := p.get(c)
		last := b.slot(c.slots() - 1)
		if c != small && (cap(last) < maxPlain+trailerLen || len(b.mem) < maxRecord || c.plain() != c.slots()*maxPlain) {
			t.Errorf("class %d: %d bytes, %d behind the last slot's content", c, len(b.mem), cap(last))
		}
		if classFor(c.size()) != c || classForPlain(c.plain()) != c {
			t.Errorf("class %d is not the one for its size", c)
		}
		p.put(b)
	}
	if p.lent.Load() != 0 {
		t.Error("buffers that were given back count")
	}
}

// However many read slowly, large buffers stay within the limit, and all bytes come.
func TestLimit(t *testing.T) {
	p := Pool{Limit: sixteenLen + fourLen}
	var held []*buffer
	for range 6 {
		held = append(held, p.get(sixteen))
	}
	if held[0].class != sixteen || held[1].class != four || held[2].class != one || p.lent.Load() > p.Limit {
		t.Errorf("classes %d %d %d, %d bytes", held[0].class, held[1].class, held[2].class, p.lent.Load())
	}
	client, server := establishedIn(t, &p, "aes128", 0)
	want := bytes.Repeat([]byte("0123456789"), 200_000)
	go func() {
		_, _ = client.Write(want)
		_ = client.CloseWrite()
	}()
	var got bytes.Buffer
	if err := p.Copy(&got, server, func(int) {}); err != nil || !bytes.Equal(got.Bytes(), want) {
		t.Errorf("%d bytes, %v", got.Len(), err)
	}
	for _, b := range held {
		p.put(b)
	}
	if p.lent.Load() != 0 {
		t.Errorf("%d bytes are lent", p.lent.Load())
	}
}

// CopyN takes exactly so much, however the records are cut, and leaves the rest in
// a small buffer.
func TestCopyN(t *testing.T) {
	want := make([]byte, 900_000)
	for i := range want {
		want[i] = byte(i * i >> 8)
	}
	for _, how := range []string{"aes128", "tls12"} {
		for _, part := range []int{1, 100, 5000, 16_384, 40_000, 300_000} {
			p := &Pool{}
			client, server := establishedIn(t, p, how, 0)
			sent := make(chan error, 1)
			a, b := tcpPair(t)
			go func() {
				_, err := b.Write(want)
				sent <- errors.Join(err, b.CloseWrite())
			}()
			back := make(chan error, 1)
			go func() { back <- errors.Join(p.Copy(client, a, func(int) {}), client.CloseWrite()) }()
			var got bytes.Buffer
			for got.Len()+part <= len(want) && got.Len() < 30*part {
				moved := 0
				n, err := p.CopyN(&got, server, int64(part), func(n int) { moved += n })
				if err != nil || n != int64(part) || moved != part {
					t.Fatalf("%d of %d, %d counted, %v", n, part, moved, err)
				}
				if r := server.records; r != nil && r.in.buf != nil && r.in.buf.class > one {
					t.Fatalf("parts of %d: a large buffer is held", part)
				}
			}
			rest, err := io.ReadAll(server)
			if got.Write(rest); err != nil || !bytes.Equal(got.Bytes(), want) {
				t.Fatalf("%s, parts of %d: %d bytes of %d, %v", how, part, got.Len(), len(want), err)
			}
			if _, err := p.CopyN(&got, server, 1, nil); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("after the end: %v", err)
			}
			if err := errors.Join(<-sent, <-back); err != nil {
				t.Error(err)
			}
		}
	}
}

// An error says on which side it was.
func TestErrorsOfCopy(t *testing.T) {
	for _, how := range []string{"aes128", "tls12"} {
		p := &Pool{}
		client, server := establishedIn(t, p, how, 0)
		if _, err := client.Write(make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
		broken := errors.New("broken")
		sink := writerFunc(func([]byte) (int, error) { return 0, broken })
		if n, err := p.CopyN(sink, server, 10, nil); n != 10 || !errors.Is(err, broken) || !errors.Is(err, ErrSink) {
			t.Errorf("%s: %d, %v", how, n, err)
		}
		if n, err := p.CopyN(io.Discard, server, 10, func(int) {}); n != 10 || err != nil {
			t.Errorf("%s: what comes next is lost: %d, %v", how, n, err)
		}
		if err := p.Copy(sink, server, nil); !errors.Is(err, ErrSink) {
			t.Errorf("%s: %v", how, err)
		}
		client.Reset()
		if err := p.Copy(server, server, nil); err == nil || errors.Is(err, ErrSink) || errors.Is(err, io.EOF) {
			t.Errorf("%s: %v", how, err)
		}
		if err := p.Copy(server, bytes.NewReader(make([]byte, math.MaxUint16)), func(int) {}); !errors.Is(err, ErrSink) {
			t.Errorf("%s: %v", how, err)
		}
	}
}

// Before a key has sealed too much, the next one is taken; the count starts again.
func TestKeysAreRenewedInTime(t *testing.T) {
	client, server := established(t, 0)
	out := &client.records.out
	out.limit = 40
	done := make(chan error, 1)
	go func() {
		_, err := io.CopyN(io.Discard, server, 200*maxPlain)
		done <- err
	}()
	chunk := make([]byte, 7*maxPlain)
	for range 29 {
		if _, err := client.Write(chunk); err != nil {
			t.Fatal(err)
		}
		if out.keys.seq > out.limit {
			t.Fatalf("%d records with one key", out.keys.seq)
		}
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if server.records.in.updates < 200/40 {
		t.Errorf("%d updates", server.records.in.updates)
	}
}

// Who takes nothing for a while gets small buffers from then on, in both
// directions, and loses nothing.
func TestSlowReadersGetSmallBuffers(t *testing.T) {
	for _, encrypted := range []bool{false, true} {
		p := &Pool{}
		client, server := establishedIn(t, p, "aes128", 0)
		want := bytes.Repeat([]byte("0123456789"), 400_000)
		var src half = server
		if !encrypted {
			a, b := tcpPair(t)
			client.Close()
			src, client = b, nil
			go func() { _, _ = a.Write(want); _ = a.CloseWrite() }()
		} else {
			go func() { _, _ = client.Write(want); _ = client.CloseWrite() }()
		}
		var got bytes.Buffer
		held, slow := int64(-1), false
		sink := writerFunc(func(b []byte) (int, error) {
			if !slow && p.lent.Load() > fourLen { // it has become bulk
				slow = true
				<-time.After(slowWrite + 10*time.Millisecond)
			} else if slow {
				held = p.lent.Load()
			}
			return got.Write(b)
		})
		if err := p.Copy(sink, src, func(int) {}); err != nil || !bytes.Equal(got.Bytes(), want) {
			t.Fatalf("%d bytes, %v", got.Len(), err)
		}
		if !slow || held != 0 {
			t.Errorf("encrypted %v: slow %v, at the end %d bytes in large buffers", encrypted, slow, held)
		}
	}
}
