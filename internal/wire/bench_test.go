package wire

import (
	"bytes"
	"crypto/tls"
	"testing"
)

// What is paid for each connection and each request.

func BenchmarkParseClientHello(b *testing.B) {
	hello := clientHello(b, &tls.Config{ServerName: "outbound_.80_._.web.shop.svc.cluster.local", NextProtos: []string{"podseal", "istio"}, MinVersion: tls.VersionTLS13})
	b.SetBytes(int64(len(hello)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseClientHello(hello); err != nil {
			b.Fatal(err)
		}
	}
}

var (
	benchRequest = []byte("GET /api/v1/items?page=7 HTTP/1.1\r\nHost: web.shop.svc.cluster.local\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n" +
		"Accept-Encoding: gzip\r\nTraceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\nX-Request-Id: 5d9e\r\n\r\n")
	benchResponse = []byte("HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Mon, 23 Nov 2026 09:17:55 GMT\r\nContent-Type: application/json\r\nContent-Length: 200\r\nConnection: keep-alive\r\n\r\n")
)

func BenchmarkDetectHTTP(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		_ = DetectHTTP(benchRequest)
	}
}

func BenchmarkParseRequestHead(b *testing.B) {
	b.SetBytes(int64(len(benchRequest)))
	b.ReportAllocs()
	var h RequestHead
	for b.Loop() {
		if _, err := ParseRequestHead(&h, benchRequest); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParseResponseHead(b *testing.B) {
	b.SetBytes(int64(len(benchResponse)))
	b.ReportAllocs()
	var h ResponseHead
	for b.Loop() {
		if _, err := ParseResponseHead(&h, benchResponse, []byte("GET")); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkChunkTracker(b *testing.B) {
	in := append([]byte("4000\r\n"), bytes.Repeat([]byte("x"), 0x4000)...)
	in = append(in, "\r\n0\r\n\r\n"...)
	b.SetBytes(int64(len(in)))
	b.ReportAllocs()
	for b.Loop() {
		var t ChunkTracker
		if _, err := t.Advance(in); err != nil || !t.Done() {
			b.Fatal(err)
		}
	}
}
