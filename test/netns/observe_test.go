package netns

import (
	"bytes"
	"context"
	"io"
	"net"
	"testing"

	"podseal.io/podseal/internal/proof"
)

// A sniffer in the pod's own network sees each byte that leaves and enters it, of
// large segments too, and nothing of what stays inside.
func TestSniffer(t *testing.T) {
	client, server := newPods(t)
	const size = 12 << 20 // the ring holds it, however slow the reader
	listener := server.listen(t, "0.0.0.0:80")
	inside := server.listen(t, "127.0.0.1:81")
	for _, l := range []net.Listener{listener, inside} {
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = io.Copy(io.Discard, c)
				c.Close()
			}
		}()
	}
	var sniffer *proof.Sniffer
	server.root(t, func() (err error) {
		sniffer, err = proof.OpenSniffer()
		return err
	})
	ctx, stop := context.WithCancel(t.Context())
	var file bytes.Buffer
	done := make(chan error, 1)
	var lost uint64
	go func() {
		var err error
		lost, err = sniffer.Run(ctx, &file)
		done <- err
	}()
	send := func(from *pod, to string, n int) {
		from.do(t, app, func() error {
			c, err := net.Dial("tcp", to)
			if err != nil {
				return err
			}
			defer c.Close()
			if _, err := c.Write(bytes.Repeat([]byte("plain "), n/6)); err != nil {
				return err
			}
			if err := c.(*net.TCPConn).CloseWrite(); err != nil {
				return err
			}
			_, err = io.Copy(io.Discard, c)
			return err
		})
	}
	send(client, server.v4.String()+":80", size)
	send(server, "127.0.0.1:81", 6000)
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	sum, err := proof.Read(&file, proof.Options{Needles: []string{"plain"}})
	if err != nil {
		t.Fatal(err)
	}
	if len(sum.Flows) != 1 {
		t.Fatalf("flows:\n%s", sum)
	}
	if f := sum.Flows[0]; f.Kind != proof.Plaintext || f.PlainBytes() != size/6*6 && lost == 0 || f.Server.Port() != 80 || !f.Complete() && lost == 0 {
		t.Errorf("lost %d:\n%s", lost, sum)
	}
	if lost > 0 {
		t.Errorf("%d packets found no room", lost)
	}
}
