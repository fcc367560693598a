package tlsconn

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"
)

// duel gives the same records to crypto/tls and to our reader. A crafted peer has
// shaken hands with crypto/tls; ours has the keys of that connection.
type duel struct {
	tb        testing.TB
	crafted   *Conn        // whose keys seal what is sent
	theirs    *tls.Conn    // receives
	ours      *Conn        // receives the same
	ourEnd    *net.TCPConn // the crafted peer's end of ours
	wire      []byte       // what is to be sent
	last, two []byte       // the last records
	ended     bool         // a record was cut off
}

// newDuel makes the receivers servers, or clients.
func newDuel(tb testing.TB, server bool) *duel {
	tb.Helper()
	a, b := tcpPair(tb)
	cc, sc := configs(tb, "")
	d := &duel{tb: tb}
	deadline := time.Now().Add(10 * time.Second)
	var p Pool
	done := make(chan error, 1)
	if server {
		d.theirs = tls.Server(b, sc)
		go func() { done <- d.theirs.Handshake() }()
		var err error
		if d.crafted, err = p.Client(a, cc, deadline); err != nil {
			tb.Fatal(err)
		}
	} else {
		d.theirs = tls.Client(b, cc)
		go func() { done <- d.theirs.Handshake() }()
		var err error
		if d.crafted, err = p.Server(a, nil, sc, deadline); err != nil {
			tb.Fatal(err)
		}
	}
	if err := <-done; err != nil {
		tb.Fatal(err)
	}
	var under *net.TCPConn
	d.ourEnd, under = tcpPair(tb)
	d.ours = d.twin(under, !server)
	return d
}

// twin is a connection of ours with the keys of the crafted peer's counterpart.
func (d *duel) twin(raw *net.TCPConn, client bool) *Conn {
	d.tb.Helper()
	sys, err := raw.SyscallConn()
	if err != nil {
		d.tb.Fatal(err)
	}
	p, rec, of := &Pool{}, &records{}, d.crafted.records
	rec.out = writer{raw: raw, pool: p, limit: recordLimit}
	rec.in = reader{raw: sys, pool: p, out: &rec.out, client: client}
	if err := errors.Join(rec.in.keys.use(of.out.keys.suite, bytes.Clone(of.out.keys.secret)), rec.out.keys.use(of.in.keys.suite, bytes.Clone(of.in.keys.secret))); err != nil {
		d.tb.Fatal(err)
	}
	rec.in.start(nil, 0, 0)
	return &Conn{raw: raw, records: rec}
}

// record seals content of a type with padding and adds it to what is sent.
func (d *duel) record(typ byte, content []byte, padding int) {
	k := &d.crafted.records.out.keys
	rec := make([]byte, headerLen, headerLen+len(content)+padding+trailerLen)
	rec = append(rec, content...)
	rec = append(append(rec, typ), make([]byte, padding)...)
	size := len(rec) - headerLen + tagLen
	rec[0], rec[1], rec[2] = typeData, 3, 3
	binary.BigEndian.PutUint16(rec[3:], uint16(size))
	inner := rec[headerLen:]
	k.cipher().Seal(inner[:0], k.current(), inner, rec[:headerLen])
	k.seq++
	d.raw(rec[:headerLen+size])
}

func (d *duel) raw(rec []byte) {
	d.wire = append(d.wire, rec...)
	d.two, d.last = d.last, rec
}

func (d *duel) update(request byte) {
	d.record(typeHandshake, []byte{messageKeyUpdate, 0, 0, 1, request}, 0)
	if err := d.crafted.records.out.keys.update(); err != nil {
		d.tb.Fatal(err)
	}
}

// outcome is what a receiver made of it.
type outcome struct {
	data  string
	end   string // eof, cut, remote N, local
	alert string // what it sent
}

// run sends everything, then FIN, in pieces.
func (d *duel) run(piece int) (theirs, ours outcome) {
	d.tb.Helper()
	return d.receive(d.crafted.raw, d.theirs, piece), d.receive(d.ourEnd, d.ours, piece)
}

func (d *duel) receive(from *net.TCPConn, to net.Conn, piece int) outcome {
	d.tb.Helper()
	deadline := time.Now().Add(20 * time.Second)
	_ = from.SetDeadline(deadline)
	_ = to.SetReadDeadline(deadline)
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for rest := d.wire; len(rest) > 0; {
			n := min(piece, len(rest))
			if _, err := from.Write(rest[:n]); err != nil {
				return
			}
			rest = rest[n:]
		}
		_ = from.CloseWrite()
	}()
	got, err := io.ReadAll(to)
	_, _ = io.Copy(io.Discard, rawOf(to)) // so that the rest can be sent
	<-sent
	o := outcome{data: string(got)}
	var op *net.OpError
	switch {
	case err == nil:
		o.end = "eof"
	case errors.Is(err, io.ErrUnexpectedEOF):
		o.end = "cut"
	case errors.As(err, &op) && op.Op == "remote error":
		o.end = "remote " + op.Err.Error()
	default:
		o.end = "local"
	}
	if o.end == "local" {
		o.alert = d.answer(from, to)
	}
	return o
}

func rawOf(c net.Conn) *net.TCPConn {
	if c, ok := c.(*tls.Conn); ok {
		return c.NetConn().(*net.TCPConn)
	}
	return c.(*Conn).raw
}

// answer is the alert that came back.
func (d *duel) answer(from *net.TCPConn, to net.Conn) string {
	d.tb.Helper()
	_ = rawOf(to).CloseWrite()
	back, err := io.ReadAll(from)
	if err != nil && len(back) == 0 {
		return fmt.Sprint("none: ", err)
	}
	var k keys
	of := &d.crafted.records.in.keys
	if err := k.use(of.suite, bytes.Clone(of.secret)); err != nil {
		d.tb.Fatal(err)
	}
	for len(back) >= headerLen {
		size := headerLen + int(binary.BigEndian.Uint16(back[3:]))
		if len(back) < size {
			return "cut record"
		}
		inner, err := k.open(nil, back[:size])
		if err != nil {
			return "not ours: " + err.Error()
		}
		back = back[size:]
		switch inner[len(inner)-1] {
		case typeAlert:
			return tls.AlertError(inner[1]).Error()
		case typeHandshake:
			if err := k.update(); err != nil { // an answer to one
				d.tb.Fatal(err)
			}
		}
	}
	return "none"
}

// step does what two bytes of a script say.
func (d *duel) step(op, arg byte, server bool) {
	content := bytes.Repeat([]byte{'a' + arg%26}, 1+int(arg)*int(arg)/4)
	switch op % 20 {
	case 0, 1, 2:
		d.record(typeData, content, 0)
	case 3:
		d.record(typeData, content, int(arg))
	case 4:
		d.record(typeData, bytes.Repeat(content, maxPlain/len(content)+1)[:maxPlain], int(arg)%240)
	case 5:
		d.record(typeData, nil, int(arg))
	case 6, 7:
		d.update(arg % 2)
	case 8: // in two records
		d.record(typeHandshake, []byte{messageKeyUpdate, 0}, 0)
		d.record(typeHandshake, []byte{0, 1, arg % 3}, 0)
		if arg%3 < 2 && d.crafted.records.out.keys.update() != nil {
			d.tb.Fatal("update")
		}
	case 9:
		d.record(typeAlert, []byte{levelWarning, alertUserCanceled}, 0)
	case 10:
		d.record(typeAlert, []byte{levelFatal, 40 + arg%40}, 0)
	case 11:
		d.record(typeAlert, []byte{levelWarning, alertCloseNotify}, 0)
	case 12: // a changed bit
		d.record(typeData, content, 0)
		d.wire[len(d.wire)-1-int(arg)%(len(content)+tagLen)] ^= 1 << (arg % 8)
	case 13: // in the clear
		d.raw(append([]byte{typeAlert + arg%2, 3, 3, 0, 2}, levelFatal, alertCloseNotify))
	case 14: // longer than allowed
		d.raw([]byte{typeData, 3, 3, 0x41, 1 + arg%200})
	case 15: // cut off
		d.record(typeData, content, 0)
		d.wire, d.ended = d.wire[:len(d.wire)-1-int(arg)%len(content)], true
	case 16: // again
		d.raw(d.last)
	case 17: // two in the wrong order
		if d.two != nil && d.last != nil {
			d.raw(d.two)
		}
	case 18:
		d.strange(arg, server)
	case 19:
		d.record(typeHandshake, []byte{messageKeyUpdate, 0, 0, 1, 0, messageKeyUpdate}, 0)
	}
}

// strange sends records that nobody should.
func (d *duel) strange(arg byte, server bool) {
	switch arg % 8 {
	case 0:
		d.record(typeHandshake, nil, 0)
	case 1:
		d.record(0, nil, int(arg)) // without a type
	case 2:
		d.record(typeHandshake, []byte{1, 0, 0, 1, 0}, 0)
	case 3:
		d.record(typeData, make([]byte, maxPlain+1), 0)
	case 4:
		d.record(23+arg%8, []byte{1}, 0)
	case 5:
		d.record(typeAlert, nil, 0)
	case 6: // data within a message
		d.record(typeHandshake, []byte{messageKeyUpdate, 0}, 0)
		d.record(typeData, []byte("x"), 0)
	case 7: // a ticket
		ticket := []byte{messageTicket, 0, 0, 14, 0, 0, 0, 9, 1, 2, 3, 4, 0, 0, 1, 'x', 0, 0}
		if !server && arg > 128 {
			d.record(typeHandshake, ticket[:7], 0)
			ticket = ticket[7:]
		}
		d.record(typeHandshake, ticket, 0)
	}
}

func (d *duel) script(script []byte, server bool) {
	for len(script) >= 2 && len(d.wire) < 1<<20 && !d.ended {
		d.step(script[0], script[1], server)
		script = script[2:]
	}
}

// What crypto/tls answers, and we, where RFC 8446 says more than it does: to a KeyUpdate
// with another value (4.6.3), to a record in the clear (5.1), to a message that it
// reads before it says that it is not allowed.
var (
	known = map[string]string{
		tls.AlertError(alertDecodeError).Error():  tls.AlertError(alertIllegalParameter).Error(),
		tls.AlertError(alertBadRecordMAC).Error(): tls.AlertError(alertUnexpectedMessage).Error(),
	}
	alsoKnown = map[string]string{tls.AlertError(alertDecodeError).Error(): tls.AlertError(alertUnexpectedMessage).Error()}
)

// FuzzAgainstCryptoTLS plays a script of records to crypto/tls and to us, as server
// and as client: the same bytes must come out, the same end, and the same alert
// must go back.
func FuzzAgainstCryptoTLS(f *testing.F) {
	for op := range byte(20) {
		for _, arg := range []byte{0, 1, 2, 77, 255} {
			f.Add([]byte{0, 9, op, arg, 1, 30}, op%2 == 0, int(arg)*7)
			f.Add([]byte{op, arg, op, arg, 2, 3}, op%2 == 1, 1<<20)
		}
	}
	for arg := range byte(8) {
		f.Add([]byte{1, 1, 18, arg, 1, 2}, false, 100)
		f.Add([]byte{1, 1, 18, arg + 248, 1, 2}, true, 3)
	}
	f.Add(bytes.Repeat([]byte{5, 0}, maxUseless), true, 100)
	f.Add(bytes.Repeat([]byte{5, 0}, maxUseless+1), true, 100)
	f.Add(bytes.Repeat([]byte{6, 1}, maxUseless), false, 1)
	f.Add(bytes.Repeat([]byte{6, 1}, maxUseless+1), false, 1)
	f.Add(bytes.Repeat([]byte{9, 0}, maxUseless+1), false, 1)
	f.Add(bytes.Repeat([]byte{6, 1, 0, 3}, 40), true, 1000)
	f.Add(bytes.Repeat([]byte{4, 0}, 30), true, 1<<20)
	f.Fuzz(func(t *testing.T, script []byte, server bool, piece int) {
		d := newDuel(t, server)
		d.script(script, server)
		theirs, ours := d.run(max(1, piece, len(d.wire)/2000))
		if ours.alert == known[theirs.alert] || ours.alert == alsoKnown[theirs.alert] {
			theirs.alert = ours.alert
		}
		if theirs != ours {
			t.Errorf("crypto/tls: %d bytes, %s, sent %q\nours: %d bytes, %s, sent %q", len(theirs.data), theirs.end, theirs.alert, len(ours.data), ours.end, ours.alert)
		}
	})
}
