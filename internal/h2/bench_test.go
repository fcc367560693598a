package h2

import (
	"bytes"
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"sync"
	"testing"
	"time"
)

// BenchmarkRelay is what a request costs with the relay in the middle, with bytes
// passed on unread, with net/http's reverse proxy, and with nothing: client and
// application, which are in this process, too. 32 requests are under way at a time,
// on one connection.
func BenchmarkRelay(b *testing.B) {
	quiet := log.New(io.Discard, "", 0)
	for _, size := range []int{200, 10_000} {
		body := bytes.Repeat([]byte("x"), size)
		for _, middle := range []struct {
			name  string
			start func(b *testing.B, app net.Listener) net.Listener
		}{
			{"nothing", func(_ *testing.B, app net.Listener) net.Listener { return app }},
			{"bytes", pipe},
			{"relay", func(b *testing.B, app net.Listener) net.Listener {
				r := newRig(b, nil)
				r.app.Close()
				r.app = app
				return r.front
			}},
			{"net-http", func(b *testing.B, app net.Listener) net.Listener {
				front := listen(b)
				to := &httputil.ReverseProxy{
					Rewrite:       func(q *httputil.ProxyRequest) { q.SetURL(&url.URL{Scheme: "http", Host: app.Addr().String()}) },
					Transport:     &http.Transport{Protocols: onlyH2C()},
					FlushInterval: -1, ErrorLog: quiet,
				}
				s := &http.Server{Handler: to, Protocols: onlyH2C(), ErrorLog: quiet}
				go func() { _ = s.Serve(front) }()
				b.Cleanup(func() { s.Close() })
				return front
			}},
		} {
			b.Run(middle.name+"/"+strconv.Itoa(size), func(b *testing.B) {
				app := newRig(b, nil).serve(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(body) }).app
				front := middle.start(b, app)
				client := &http.Client{Transport: &http.Transport{Protocols: onlyH2C()}, Timeout: time.Minute}
				defer client.CloseIdleConnections()
				b.ReportAllocs()
				b.SetParallelism(16)
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						res, err := client.Get("http://" + front.Addr().String() + "/page")
						if err != nil {
							b.Error(err)
							return
						}
						_, _ = io.Copy(io.Discard, res.Body)
						res.Body.Close()
					}
				})
			})
		}
	}
}

// pipe passes bytes on.
func pipe(b *testing.B, app net.Listener) net.Listener {
	b.Helper()
	front := listen(b)
	var all sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	b.Cleanup(func() { cancel(); front.Close(); all.Wait() })
	all.Go(func() {
		for {
			c, err := front.Accept()
			if err != nil {
				return
			}
			a, err := net.Dial("tcp", app.Addr().String())
			if err != nil {
				c.Close()
				continue
			}
			stop := context.AfterFunc(ctx, func() { c.Close(); a.Close() })
			all.Go(func() { _, _ = io.Copy(a, c); a.Close() })
			all.Go(func() { _, _ = io.Copy(c, a); c.Close(); stop() })
		}
	})
	return front
}
