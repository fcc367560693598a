package netns

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"
)

func dialSoak(address string) (*net.TCPConn, error) {
	c, err := net.DialTimeout("tcp", address, deadline)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), c.SetDeadline(time.Now().Add(3 * deadline))
}

func (s *soak) pages(r *rand.Rand) error {
	c, err := dialSoak(soakVIP + ":80")
	if err != nil {
		return err
	}
	defer c.Close()
	br := bufio.NewReader(c)
	for range 1 + r.IntN(20) {
		body := make([]byte, r.IntN(20_000))
		if _, err := fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: webserver\r\nContent-Length: %d\r\n\r\n%s", len(body), body); err != nil {
			return err
		}
		res, err := http.ReadResponse(br, nil)
		if err != nil {
			return err
		}
		got, err := io.ReadAll(res.Body)
		if err != nil || string(got) != page {
			return fmt.Errorf("%s: %q, %w", res.Status, got, err)
		}
	}
	return nil
}

// echo sends up to so many bytes and closes that direction; all must come back.
func (s *soak) echo(most int) func(r *rand.Rand) error {
	return func(r *rand.Rand) error {
		c, err := dialSoak(soakVIP + ":" + soakEcho)
		if err != nil {
			return err
		}
		defer c.Close()
		sent := make([]byte, 1+r.IntN(most))
		for i := range sent {
			sent[i] = byte(i ^ i>>8 ^ i>>16)
		}
		wrote := make(chan error, 1)
		go func() {
			_, err := c.Write(sent)
			wrote <- errors.Join(err, c.CloseWrite())
		}()
		got, err := io.ReadAll(c)
		if err := errors.Join(err, <-wrote); err != nil {
			return err
		}
		if !bytes.Equal(got, sent) {
			return fmt.Errorf("%d bytes came back of %d, or others", len(got), len(sent))
		}
		return nil
	}
}

func (s *soak) mail(*rand.Rand) error {
	said, err := greet(s.client, soakVIP+":25")
	if err == nil && said != greeting+"QUIT" {
		err = fmt.Errorf("%q", said)
	}
	return err
}

// parked holds connections that say something and then nothing for a while.
func (s *soak) parked(r *rand.Rand) error {
	var held []*net.TCPConn
	defer func() {
		for _, c := range held {
			c.Close()
		}
	}()
	say := func(c *net.TCPConn) error {
		if err := c.SetDeadline(time.Now().Add(3 * deadline)); err != nil {
			return err
		}
		b := []byte("are you there?")
		if _, err := c.Write(b); err != nil {
			return err
		}
		_, err := io.ReadFull(c, b)
		return err
	}
	for range 50 {
		c, err := dialSoak(soakAddr + ":" + soakEcho)
		if err != nil {
			return err
		}
		held = append(held, c)
		if err := say(c); err != nil {
			return err
		}
	}
	rest(context.Background(), min(time.Duration(r.IntN(15_000))*time.Millisecond, *soakFor/4))
	for _, c := range held {
		if err := say(c); err != nil {
			return err
		}
	}
	return nil
}

// plaintext gets the whole page or nothing.
func (s *soak) plaintext(*rand.Rand) error {
	_, body, err := fetch(s.outside, soakAddr+":80")
	if err == nil && body != page {
		return fmt.Errorf("%q", body)
	}
	return err
}

func (s *soak) reset(r *rand.Rand) error {
	c, err := dialSoak(soakVIP + ":" + soakEcho)
	if err != nil {
		return err
	}
	_, err = c.Write(make([]byte, r.IntN(200_000)))
	_, rerr := c.Read(make([]byte, 1000))
	return errors.Join(err, rerr, c.SetLinger(0), c.Close())
}

func (s *soak) slow(*rand.Rand) error {
	c, err := dialSoak(soakVIP + ":" + soakEcho)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return err
	}
	wrote := make(chan error, 1)
	go func() {
		_, err := c.Write(make([]byte, 4<<20))
		wrote <- err
	}()
	b := make([]byte, 1)
	for err == nil {
		_, err = c.Read(b)
		rest(context.Background(), 100*time.Millisecond)
	}
	return errors.Join(err, <-wrote)
}

// hello is a ClientHello that somebody in the mesh could have sent.
func hello() []byte {
	client, server := net.Pipe()
	defer server.Close()
	go func() {
		defer client.Close()
		tls.Client(client, &tls.Config{ServerName: "outbound_.80_._.webserver.shop.svc.cluster.local", NextProtos: []string{"istio"}}).Handshake()
	}()
	b := make([]byte, 4096)
	n, err := server.Read(b)
	if err != nil {
		return nil
	}
	return b[:n]
}

func (s *soak) halfHello(r *rand.Rand) error {
	b := hello()
	return s.say(b[:1+r.IntN(len(b)-1)], time.Duration(r.IntN(2000))*time.Millisecond)
}

func (s *soak) garbage(r *rand.Rand) error {
	b := make([]byte, 1+r.IntN(3000))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	if r.IntN(2) == 0 { // something that begins as TLS does
		copy(b, []byte{22, 3, 1})
	}
	return s.say(b, 0)
}

// say sends something to a port of the pod and waits, for a while at most, for what comes of it.
func (s *soak) say(b []byte, pause time.Duration) error {
	c, err := dialSoak(net.JoinHostPort(soakAddr, []string{"80", soakEcho, "25"}[len(b)%3]))
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write(b); err != nil {
		return err
	}
	rest(context.Background(), pause)
	if err := c.CloseWrite(); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, c)
	return err
}

func (s *soak) nameless(*rand.Rand) error {
	c, err := dialSoak(soakAddr + ":" + soakEcho)
	if err != nil {
		return err
	}
	defer c.Close()
	// an attacker, who trusts anybody
	client := tls.Client(c, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"istio"}})
	if err := client.Handshake(); err != nil {
		return err
	}
	_, err = client.Read(make([]byte, 1))
	return err
}

func (s *soak) smuggler(r *rand.Rand) error {
	c, err := dialSoak(soakVIP + ":80")
	if err != nil {
		return err
	}
	defer c.Close()
	heads := []string{
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
		"GET / HTTP/1.1\nHost: a\n\n",
		"GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", 100_000) + "\r\n\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + strings.Repeat("\x00\x00\x08\x06\x00\x00\x00\x00\x0012345678", 5000),
	}
	if _, err := io.WriteString(c, heads[r.IntN(len(heads))]); err != nil {
		return err
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, c)
	return err
}

func (s *soak) nobody(r *rand.Rand) error {
	c, err := dialSoak([]string{soakAddr + ":9", "10.88.0.99:80", "10.96.0.10:81"}[r.IntN(3)])
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("hello?")); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		return err
	}
	_, err = io.Copy(io.Discard, c)
	return err
}
