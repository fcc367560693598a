// Command plaingo is a proxy of mutual TLS as one writes it in Go in an hour:
// io.Copy over crypto/tls, and nothing else. The bench measures it to tell what
// is owed to the language and its library and what to the work that is put into a
// proxy. It is not for use: there are no limits, and nothing is recorded.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

func main() {
	if len(os.Args) != 7 {
		fmt.Fprintln(os.Stderr, "usage: plaingo inbound|outbound LISTEN TARGET CERT KEY ROOT")
		os.Exit(2)
	}
	err := run(os.Args[1] == "outbound", os.Args[2], os.Args[3], os.Args[4:])
	fmt.Fprintln(os.Stderr, "plaingo:", err)
	os.Exit(1)
}

// run accepts connections until it can't.
func run(outbound bool, listen, target string, files []string) error {
	cert, err := tls.LoadX509KeyPair(files[0], files[1])
	if err != nil {
		return fmt.Errorf("load the certificate: %w", err)
	}
	pem, err := os.ReadFile(files[2])
	if err != nil {
		return fmt.Errorf("load the root: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return errors.New("load the root: no certificate")
	}
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, RootCAs: roots, ClientCAs: roots,
		ClientAuth: tls.RequireAndVerifyClientCert, ServerName: "server.bench", SessionTicketsDisabled: true,
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() { _ = serve(outbound, c, target, cfg) }() // what failed shows to the client
	}
}

// duplex is a stream whose directions end one by one.
type duplex interface {
	net.Conn
	CloseWrite() error
}

func serve(outbound bool, c net.Conn, target string, cfg *tls.Config) error {
	defer c.Close()
	d, err := net.DialTimeout("tcp", target, 10*time.Second)
	if err != nil {
		return err
	}
	defer d.Close()
	client, ok1 := c.(duplex)
	server, ok2 := d.(duplex)
	if !ok1 || !ok2 {
		return errors.New("not TCP")
	}
	if outbound {
		server = tls.Client(d, cfg)
	} else {
		client = tls.Server(c, cfg)
	}
	var both sync.WaitGroup
	both.Go(func() { pump(client, server) })
	pump(server, client)
	both.Wait()
	return nil
}

// pump copies one direction to its end. A direction that fails ends both.
func pump(dst, src duplex) {
	_, err := io.Copy(dst, src)
	if err == nil {
		err = dst.CloseWrite()
	}
	if err != nil {
		dst.Close()
		src.Close()
	}
}
