package proxy

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// askReady sends bytes to the kubelet's port of a proxy and returns its answer.
func askReady(t *testing.T, notReady func() string, question string) (int, string) {
	t.Helper()
	here, there := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		(&readiness{notReady: notReady}).answer(there)
		there.Close()
	}()
	defer func() { here.Close(); <-done }()
	go func() { _, _ = io.WriteString(here, question) }() // the answer may come before all was read
	method, _, _ := strings.Cut(question, " ")
	res, err := http.ReadResponse(bufio.NewReader(here), &http.Request{Method: method})
	if err != nil {
		t.Fatalf("the answer to %.80q: %v", question, err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if old := strings.Contains(question, "HTTP/1.0"); old == (res.ProtoMinor == 1) {
		t.Errorf("the answer to %.80q is in %s", question, res.Proto)
	}
	if err != nil || !res.Close {
		t.Errorf("the answer to %.80q: close %t, %v", question, res.Close, err)
	}
	return res.StatusCode, string(body)
}

// Contract 5.44: the kubelet's port answers one path, whatever else comes.
func TestReadinessAnswers(t *testing.T) {
	no, yes := func() string { return "no certificate" }, func() string { return "" }
	for _, tt := range []struct {
		notReady func() string
		question string
		code     int
		body     string
	}{
		{yes, "GET /healthz/ready HTTP/1.1\r\nHost: 10.0.0.1:15021\r\nUser-Agent: kube-probe/1.34\r\nAccept: */*\r\nConnection: close\r\n\r\n", 200, ""},
		{no, "GET /healthz/ready HTTP/1.1\r\nHost: x\r\n\r\n", 503, "no certificate\n"},
		{no, "HEAD /healthz/ready HTTP/1.1\r\nHost: x\r\n\r\n", 503, ""},
		{yes, "GET /healthz/ready HTTP/1.0\r\n\r\n", 200, ""},
		{yes, "GET /healthz/ready HTTP/1.1\r\nHost: x\r\nX-Long: " + strings.Repeat("x", 5000) + "\r\n\r\n", 200, ""},
		{yes, "GET /healthz/ready HTTP/1.1\r\nHost: x\r\nX-Long: " + strings.Repeat("x", maxReadyHead) + "\r\n\r\n", 400, ""},
		{yes, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 404, "404 page not found\n"},
		{yes, "\x16\x03\x01\x00\xee\x01\x00\x00\xea\x03\x03", 400, ""},
	} {
		if code, body := askReady(t, tt.notReady, tt.question); code != tt.code || body != tt.body {
			t.Errorf("%.60q: %d %q, want %d %q", tt.question, code, body, tt.code, tt.body)
		}
	}
}

// Who connects to the kubelet's port and says nothing, or little, is let go in time.
func TestReadinessLetsTheSilentGo(t *testing.T) {
	for _, question := range []string{"", "GET /healthz/"} {
		synctest.Test(t, func(t *testing.T) {
			here, there := net.Pipe()
			defer here.Close()
			began, done := time.Now(), make(chan struct{})
			go func() { (&readiness{}).answer(there); there.Close(); close(done) }()
			if question != "" {
				if _, err := io.WriteString(here, question); err != nil {
					t.Fatal(err)
				}
			}
			_, err := here.Read(make([]byte, 1))
			<-done
			if took := time.Since(began); took != readyTimeout || !errors.Is(err, io.EOF) {
				t.Errorf("after %q it took %s and ended with %v", question, took, err)
			}
		})
	}
}

// Of those who hold the kubelet's port there are only so many, and none is waited
// for when the proxy ends.
func TestReadinessIsBounded(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &readiness{notReady: func() string { return "" }}
	done := make(chan error)
	go func() { done <- r.serve(l) }()
	var all []net.Conn
	for range maxReadyAsked + 1 {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		all = append(all, c)
	}
	last := all[maxReadyAsked]
	if err := last.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, err := last.Read(make([]byte, 1)); n != 0 || errors.Is(err, net.ErrClosed) {
		t.Errorf("one too many: %d, %v", n, err)
	}
	l.Close()
	if err := r.close(); err != nil {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	if r.add(all[0]) {
		t.Error("it takes another one after it was closed")
	}
}
