package datapath

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"podseal.io/podseal/internal/proof"
)

// checkTimeout is long, as a machine may be busy.
const checkTimeout = 15 * time.Second

// checkConns is how many connections are held to see a handshake: more than proxies
// that carry several over one are likely to put on it.
const checkConns = 200

// check looks at the wire between the two proxies while bytes go through: that
// there is TLS 1.3 with the agreed cipher and key exchange and nothing else. Then
// it makes sure that the server's side refuses a client that proves nothing.
func (c *chain) check(ctx context.Context, r *Report, place placement) error {
	if c.peer.command == nil {
		return nil
	}
	wire, err := c.client.capture()
	if err != nil {
		return err
	}
	defer wire.close()
	end, held := time.Now().Add(checkTimeout), 0
	for {
		// TLS that is there already may serve the first ones; not all of them.
		if held++; held <= checkConns {
			conn, err := c.hold(c.peer)
			if err != nil {
				return fmt.Errorf("exchange bytes: %w", err)
			}
			defer conn.Close()
		}
		sum, err := wire.read()
		if err != nil {
			return err
		}
		// the last packets of an earlier connection may be there, without its beginning
		sum.Flows = slices.DeleteFunc(sum.Flows, func(f proof.Flow) bool {
			return f.Kind == proof.Empty || f.Kind == proof.UnknownTLS && f.PlainBytes() == 0
		})
		if len(sum.Flows) > 0 && sum.Flows[0].Cipher != 0 {
			if err := c.judge(r, place, sum); err != nil {
				return err
			}
			break
		}
		if time.Now().After(end) {
			return fmt.Errorf("no handshake on the wire:\n%s", sum)
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return c.refuses()
}

// judge demands what all must have alike, and notes it.
func (c *chain) judge(r *Report, place placement, sum proof.Summary) error {
	f := sum.Flows[0]
	want := tls.X25519
	if c.peer.mlkem {
		want = tls.X25519MLKEM768
	}
	if f.TLSVersion != tls.VersionTLS13 || f.Cipher != tls.TLS_AES_128_GCM_SHA256 || f.Group != want || f.PlainBytes() != 0 || len(sum.Flows) != 1 {
		return fmt.Errorf("not what was agreed, TLS 1.3 with %s and %s:\n%s", suite, want, sum)
	}
	r.wire(place, c.peer, fmt.Sprintf("%s, %s, %s", tls.VersionName(f.TLSVersion), tls.CipherSuiteName(f.Cipher), f.Group))
	return nil
}

// refuses makes sure that a client without a certificate gets nothing.
func (c *chain) refuses() error {
	return c.client.do(nil, func() error {
		// as the proxy's user, who is not captured
		if err := errors.Join(unix.Setfsgid(proxyUser), unix.Setfsuid(proxyUser)); err != nil {
			return fmt.Errorf("become the proxy's user: %w", err)
		}
		raw, err := net.DialTimeout("tcp", address(c.peer), checkTimeout)
		if err != nil {
			return err
		}
		defer raw.Close()
		if err := raw.SetDeadline(time.Now().Add(checkTimeout)); err != nil {
			return err
		}
		conn := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, ServerName: serverName, NextProtos: []string{"istio"}})
		if _, err = conn.Write([]byte("E")); err != nil {
			return nil //nolint:nilerr // it was refused, as it must be
		}
		if n, err := conn.Read(make([]byte, 1)); n > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("%s served a client that has no certificate, or kept it: %w", c.peer.name, errors.Join(err, errors.New("mutual TLS is not verified")))
		}
		return nil
	})
}

// watch captures the packets of a pod's eth0.
type watch struct {
	fd   int
	file bytes.Buffer
}

func (p *pod) capture() (*watch, error) {
	w := &watch{}
	err := p.do(nil, func() (err error) {
		eth0, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
		if w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(all)); err != nil {
			return fmt.Errorf("capture packets: %w", err)
		}
		return unix.Bind(w.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: eth0.Index})
	})
	header := binary.LittleEndian.AppendUint32(nil, 0xa1b23c4d) // pcap with nanoseconds, Ethernet
	w.file.Write(append(header, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0, 0))
	return w, err
}

// read takes the packets that there are, and says what is in all of them so far.
func (w *watch) read() (proof.Summary, error) {
	b := make([]byte, 1<<17)
	for {
		n, _, err := unix.Recvfrom(w.fd, b, 0)
		if errors.Is(err, unix.EAGAIN) {
			return proof.Read(bytes.NewReader(w.file.Bytes()), proof.Options{})
		}
		if err != nil {
			return proof.Summary{}, fmt.Errorf("capture packets: %w", err)
		}
		now := time.Now()
		h := binary.LittleEndian.AppendUint32(nil, uint32(now.Unix()))
		h = binary.LittleEndian.AppendUint32(h, uint32(now.Nanosecond()))
		h = binary.LittleEndian.AppendUint32(h, uint32(n))
		w.file.Write(binary.LittleEndian.AppendUint32(h, uint32(n)))
		w.file.Write(b[:n])
	}
}

func (w *watch) close() { _ = unix.Close(w.fd) }
