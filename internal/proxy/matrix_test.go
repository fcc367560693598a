package proxy

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/meshtest"
	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/workload"
)

// What became of a client, in the words of contract 2.13.
const (
	httpChain     = "http"           // plaintext through the HTTP relay
	tcpChain      = "tcp"            // plaintext as bytes
	badRequest    = "400"            // the HTTP relay could make nothing of it
	passedOn      = "passed"         // TLS reached the application unterminated
	terminateHTTP = "terminate http" // mutual TLS ended here, HTTP relay inside
	terminateTCP  = "terminate tcp"  // mutual TLS ended here, bytes inside
	closed        = "closed"         // without a byte
	alert         = "alert"          // by TLS, for want of a certificate
)

// client kinds of the table. The last three are ours: a TLS client with a mesh
// certificate and no mesh ALPN (contract 2.15), and our own ALPN.
var matrixClients = []struct {
	name    string
	plain   string
	alpn    []string
	cert    bool
	request string
}{
	{name: "plain http", plain: "GET / HTTP/1.1\r\nHost: web\r\n\r\n"},
	{name: "plain other", plain: "\x00\x01hello\n"},
	{name: "tls without certificate", alpn: []string{"http/1.1"}, request: "GET / HTTP/1.1\r\nHost: web\r\n\r\n"},
	{name: "tls with mesh certificate", cert: true, alpn: []string{"http/1.1"}, request: "GET / HTTP/1.1\r\nHost: web\r\n\r\n"},
	{name: "istio", cert: true, alpn: []string{"istio-peer-exchange", "istio"}, request: "GET / HTTP/1.1\r\nHost: web\r\n\r\n"},
	{name: "istio-http/1.1", cert: true, alpn: []string{"istio-http/1.1", "istio", "http/1.1"}, request: "GET / HTTP/1.1\r\nHost: web\r\n\r\n"},
	{name: "podseal http", cert: true, alpn: []string{"podseal", "istio"}, request: "GET / HTTP/1.1\r\nHost: web\r\n\r\n"},
	{name: "podseal other", cert: true, alpn: []string{"podseal", "istio"}, request: "\x00\x01hello\n"},
}

// matrix is contract 2.13, a column for each of the clients above.
var matrix = map[policy.Mode]map[string][]string{
	policy.Permissive: {
		"http": {httpChain, badRequest, closed, closed, terminateHTTP, terminateHTTP, terminateHTTP, badRequest},
		"tcp":  {tcpChain, tcpChain, passedOn, passedOn, terminateTCP, terminateTCP, terminateTCP, terminateTCP},
		"auto": {httpChain, tcpChain, passedOn, passedOn, terminateTCP, terminateHTTP, terminateHTTP, terminateTCP},
		"none": {httpChain, tcpChain, passedOn, passedOn, terminateTCP, terminateHTTP, terminateHTTP, terminateTCP},
	},
	policy.Strict: {
		"http": {closed, closed, alert, terminateHTTP, terminateHTTP, terminateHTTP, terminateHTTP, badRequest},
		"tcp":  {closed, closed, alert, terminateTCP, terminateTCP, terminateTCP, terminateTCP, terminateTCP},
		"auto": {closed, closed, alert, terminateTCP, terminateTCP, terminateHTTP, terminateHTTP, terminateTCP},
		"none": {closed, closed, alert, terminateTCP, terminateTCP, terminateHTTP, terminateHTTP, terminateTCP},
	},
	policy.Disable: {
		"http": {httpChain, badRequest, badRequest, badRequest, badRequest, badRequest, badRequest, badRequest},
		"tcp":  {tcpChain, tcpChain, passedOn, passedOn, passedOn, passedOn, passedOn, passedOn},
		"auto": {httpChain, tcpChain, passedOn, passedOn, passedOn, passedOn, passedOn, passedOn},
		"none": {httpChain, tcpChain, passedOn, passedOn, passedOn, passedOn, passedOn, passedOn},
	},
}

// TestInboundMatrix is contract 2.13: every cell, by connections.
// Contract 1.29, 2.2-2.4.
func TestInboundMatrix(t *testing.T) {
	m := newTestMesh(t)
	pod := m.pod("web")
	app := meshtest.Serve(t, pod.Addresses[0], matrixApp(t))
	p := m.start(pod)
	from := m.outsider()
	protocols := map[string]policy.Protocol{"http": policy.HTTP, "tcp": policy.TCP, "auto": policy.Auto}
	for mode, rows := range matrix {
		for row, want := range rows {
			pod.Ports = nil
			if proto, ok := protocols[row]; ok {
				pod.Ports = []workload.Port{{Target: app.Port(), Protocol: proto, ServiceHost: "web.shop.svc.cluster.local", ServicePort: 80}}
			}
			m.mode(pod, mode)
			for i, client := range matrixClients {
				t.Run(fmt.Sprintf("%s/%s/%s", mode, row, client.name), func(t *testing.T) {
					raw := m.connect(from, app)
					defer raw.Close()
					var got string
					if client.plain != "" {
						got = plainOutcome(raw, client.plain)
					} else {
						id := identity.ID{}
						if client.cert {
							id = identity.MustNew(meshtest.TrustDomain, "other", "client")
						}
						got = tlsOutcome(m.meshTLS(raw, id, client.alpn...), client.request)
					}
					if got != want[i] {
						t.Errorf("got %q, want %q; last record %+v", got, want[i], p.records.last())
					}
				})
			}
		}
	}
}

// matrixApp answers whatever comes in a way that shows what it was.
func matrixApp(t *testing.T) func(*net.TCPConn) {
	other := meshtest.NewCA(t, time.Now()) // the application's own TLS is of another world
	cred := other.Issue(t, identity.MustNew("app.example", "a", "a"), time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	return func(c *net.TCPConn) {
		r := bufio.NewReader(c)
		first, err := r.Peek(1)
		if err != nil {
			return
		}
		switch first[0] {
		case 0x16:
			s := tls.Server(readConn{c, r}, &tls.Config{Certificates: []tls.Certificate{*cred.TLS()}})
			if s.Handshake() == nil {
				_, _ = io.Copy(s, s)
			}
		case 'G':
			req, err := http.ReadRequest(r)
			if err == nil {
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nServer: app\r\nContent-Length: "+fmt.Sprint(len(req.Host))+"\r\n\r\n"+req.Host)
			}
		default:
			line, err := r.ReadString('\n')
			if err == nil {
				_, _ = io.WriteString(c, "app got "+line)
			}
		}
	}
}

// readConn is a connection of which something has been read already.
type readConn struct {
	net.Conn
	r io.Reader
}

func (c readConn) Read(b []byte) (int, error) { return c.r.Read(b) }

// answerKind says which path an answer came: the HTTP relay signs it.
func answerKind(c io.Reader) string {
	r := bufio.NewReader(c)
	first, err := r.Peek(4)
	if err != nil {
		return closed
	}
	if !bytes.Equal(first, []byte("HTTP")) {
		return "tcp"
	}
	res, err := http.ReadResponse(r, nil)
	switch {
	case err != nil:
		return err.Error()
	case res.StatusCode == http.StatusBadRequest:
		return badRequest
	case res.Header.Get("Server") == "istio-envoy":
		return "http"
	default:
		return "tcp"
	}
}

func plainOutcome(c net.Conn, text string) string {
	if _, err := io.WriteString(c, text); err != nil {
		return closed
	}
	return answerKind(c)
}

func tlsOutcome(c *tls.Conn, request string) string {
	if err := c.Handshake(); err != nil {
		return tlsFailure(err)
	}
	if len(c.ConnectionState().PeerCertificates[0].URIs) == 1 && strings.Contains(c.ConnectionState().PeerCertificates[0].URIs[0].String(), "app.example") {
		return passedOn
	}
	if _, err := io.WriteString(c, request); err != nil {
		return tlsFailure(err)
	}
	one := make([]byte, 1)
	if _, err := io.ReadFull(c, one); err != nil { // TLS 1.3: the server's alert comes late (contract 2.16)
		return tlsFailure(err)
	}
	kind := answerKind(io.MultiReader(bytes.NewReader(one), c))
	if kind == "http" || kind == "tcp" {
		return "terminate " + kind
	}
	return kind
}

func tlsFailure(err error) string {
	var notTLS tls.RecordHeaderError
	switch {
	case isAlert(err):
		return alert
	case errors.As(err, &notTLS) && bytes.HasPrefix(notTLS.RecordHeader[:], []byte("HTTP")):
		return badRequest
	default:
		return closed
	}
}
