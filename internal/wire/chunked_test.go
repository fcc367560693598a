package wire

import (
	"errors"
	"strings"
	"testing"
)

func TestChunkTracker(t *testing.T) {
	for _, in := range []string{
		"0\r\n\r\n",
		"5\r\nhello\r\n0\r\n\r\n",
		"5;name=value;q=\"x y\"\r\nhello\r\n00A \t\r\n0123456789\r\n000\r\n\r\n",
		"a\r\n\r\n\r\n\r\n\r\n\r\n\r\n0;last\r\nX-Trailer: a b\r\nY:\r\n\r\n",
		"0\r\nHosts: a\r\nX-Forwarded-Client-Cert-Not: b\r\nGrpc-Status: 0\r\nContent-Digest: c\r\n\r\n",
	} {
		var whole ChunkTracker
		if n, err := whole.Advance([]byte(in + "GET / HTTP/1.1")); err != nil || n != len(in) || !whole.Done() {
			t.Errorf("%q: %d bytes, %v, done %v", in, n, err, whole.Done())
		}
		for cut := range in { // cut at every byte
			var tracker ChunkTracker
			first, err := tracker.Advance([]byte(in[:cut]))
			if err != nil || first != cut || tracker.Done() {
				t.Fatalf("%q cut at %d: %d bytes, %v, done %v", in, cut, first, err, tracker.Done())
			}
			second, err := tracker.Advance([]byte(in[cut:] + "more"))
			if err != nil || first+second != len(in) || !tracker.Done() {
				t.Fatalf("%q rest from %d: %d bytes, %v, done %v", in, cut, second, err, tracker.Done())
			}
		}
	}
}

func TestChunkTrackerRefuses(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want error
	}{
		{"\r\n", ErrMalformed},
		{"g\r\n", ErrMalformed},
		{"+5\r\nhello\r\n", ErrMalformed},
		{"-5\r\n", ErrMalformed},
		{"0x5\r\n", ErrMalformed},
		{" 5\r\n", ErrMalformed},
		{"5 5\r\n", ErrMalformed},
		{"5\nhello\r\n", ErrMalformed},
		{"5\r\rhello", ErrMalformed},
		{"5;a\nhello\r\n", ErrMalformed},
		{"5;a\x00\r\n", ErrMalformed},
		{"5\r\nhelloX", ErrMalformed},
		{"5\r\nhello\n0\r\n", ErrMalformed},
		{"5\r\nhello\rX", ErrMalformed},
		{"0\r\nno colon\r\n\r\n", ErrMalformed},
		{"0\r\n folded\r\n\r\n", ErrMalformed},
		{"0\r\nX : a\r\n\r\n", ErrMalformed},
		{"0\r\nX: a\nY: b\r\n\r\n", ErrMalformed},
		{"0\r\n\n", ErrMalformed},
		{"0\r\n\r\r", ErrMalformed},
		{"0\r\nX: a\r\nX-Forwarded-Client-Cert: URI=spiffe://cluster.local/ns/a/sa/b\r\n\r\n", ErrMalformed},
		{"0\r\nx_forwarded_Client_cert: a\r\n\r\n", ErrMalformed},
		{"0\r\nContent-Length: 1\r\n\r\n", ErrMalformed},
		{"0\r\nTransfer_Encoding: chunked\r\n\r\n", ErrMalformed},
		{"0\r\nhost: b\r\n\r\n", ErrMalformed},
		{"1000000000000000\r\n", ErrTooLarge},
		{"5;" + strings.Repeat("a", maxChunkLine), ErrTooLarge},
		{"0\r\nX: " + strings.Repeat("a", maxTrailer), ErrTooLarge},
		{strings.Repeat("1;"+strings.Repeat("a", 1000)+"\r\nx\r\n", 20), ErrTooLarge},
	} {
		var tracker ChunkTracker
		if _, err := tracker.Advance([]byte(tt.in)); !errors.Is(err, tt.want) || tracker.Done() {
			t.Errorf("%.40q: got %v, want %v", tt.in, err, tt.want)
		}
	}
	// Small chunks without extensions are nothing to refuse.
	var tracker ChunkTracker
	if _, err := tracker.Advance([]byte(strings.Repeat("1\r\nx\r\n", 100_000) + "0\r\n\r\n")); err != nil || !tracker.Done() {
		t.Errorf("many small chunks: %v", err)
	}
}

func TestChunkTrackerHeaderOnly(t *testing.T) {
	only := func(name []byte) bool { return string(name) == "x-user" }
	for _, tt := range []struct {
		in   string
		want error
	}{
		{"0\r\nX-Users: a\r\nX-Use: b\r\n\r\n", nil},
		{"0\r\nX-Sum: a\r\nX_USER: b\r\n\r\n", ErrMalformed},
		{"0\r\nx-user: b\r\n\r\n", ErrMalformed},
		{"0\r\n" + strings.Repeat("a", maxTrailerID+1) + ": b\r\n\r\n", ErrTooLarge},
	} {
		for cut := range tt.in { // cut at every byte
			tracker := ChunkTracker{HeaderOnly: only}
			_, err := tracker.Advance([]byte(tt.in[:cut]))
			if err == nil {
				_, err = tracker.Advance([]byte(tt.in[cut:]))
			}
			if !errors.Is(err, tt.want) || tracker.Done() != (tt.want == nil) {
				t.Fatalf("%.40q cut at %d: %v, done %v, want %v", tt.in, cut, err, tracker.Done(), tt.want)
			}
		}
	}
}

func FuzzChunkTracker(f *testing.F) {
	f.Add([]byte("5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\nGET"), 3)
	f.Fuzz(func(t *testing.T, b []byte, cut int) {
		var whole, parts ChunkTracker
		n, err := whole.Advance(b)
		if cut < 0 || cut > len(b) {
			return
		}
		first, err1 := parts.Advance(b[:cut])
		if err1 != nil {
			if !errors.Is(err, err1) && err == nil {
				t.Fatalf("refused in parts (%v), accepted whole", err1)
			}
			return
		}
		second, err2 := parts.Advance(b[cut:])
		if (err == nil) != (err2 == nil) || n != first+second || whole.Done() != parts.Done() {
			t.Fatalf("whole: %d %v, parts: %d+%d %v", n, err, first, second, err2)
		}
	})
}
