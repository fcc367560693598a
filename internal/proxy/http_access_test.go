package proxy

import (
	"testing"

	"podseal.io/podseal/internal/policy"
)

// TestHTTPDenied is the refusal byte by byte: with a connection that goes on, to
// HEAD, and to a request whose body has not been read.
// Contract 6.38, 2.37 and 2.40.
func TestHTTPDenied(t *testing.T) {
	access, err := policy.NewAccess([]*policy.AuthorizationPolicy{deny("no", on(policy.RequestPath, "/no*"))}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	r := newHTTPRig(t, func(r *httpRig) { r.relay.Gate = &gate{World: worldOf(access)} })
	const decorator = "x-envoy-decorator-operation: web.shop.svc.cluster.local:80/*\r\n"
	head := "HTTP/1.1 403 Forbidden\r\ncontent-length: 19\r\ncontent-type: text/plain\r\n" + r.date() + "server: istio-envoy\r\n"
	r.send(r.client, "GET /no HTTP/1.1\r\nHost: a\r\n\r\n")
	r.expect(r.client, head+decorator+"\r\nRBAC: access denied")
	r.send(r.client, "HEAD /x/../no HTTP/1.1\r\nHost: a\r\n\r\n")
	r.expect(r.client, head+decorator+"\r\n")
	r.send(r.client, "GET /a/../yes#x HTTP/1.1\r\nHost: a\r\n\r\n")
	app := r.app()
	r.expect(app, "GET /yes HTTP/1.1\r\nhost: a\r\n"+testTail)
	r.send(app, emptyOK+"\r\n")
	r.expect(r.client, "HTTP/1.1 200 OK\r\nserver: istio-envoy\r\ndate: d\r\ncontent-length: 0\r\nx-envoy-upstream-service-time: 0\r\n"+decorator+"\r\n")
	r.send(r.client, "POST /no HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n")
	r.expect(r.client, head+"connection: close\r\n"+decorator+"\r\nRBAC: access denied")
	r.expectEnd(r.client)
	_ = r.client.Close()
	if err := r.end(); err != nil {
		t.Error(err)
	}
	if got := r.flags(); got != "- - - -" { // contract 6.40
		t.Errorf("flags %q", got)
	}
}

// TestHTTPBadPath: a path that can't be brought into one form is refused.
func TestHTTPBadPath(t *testing.T) {
	r := newHTTPRig(t, nil)
	r.send(r.client, "GET /a%00b HTTP/1.1\r\nHost: a\r\n\r\n")
	r.expect(r.client, "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n"+r.date()+"server: istio-envoy\r\nconnection: close\r\n\r\n")
	r.expectEnd(r.client)
	_ = r.client.Close()
	if err := r.end(); err == nil {
		t.Error("no error")
	}
}

// TestEditHead is what a gate may do to a head of HTTP/1.
func TestEditHead(t *testing.T) {
	const head = "GET /a?token=x HTTP/1.1\r\nhost: a\r\nx-user: eve\r\nx-user: mallory\r\n\r\n"
	tests := []struct {
		name  string
		edits []headEdit
		want  string
	}{
		{"none", nil, head},
		{"take away", []headEdit{{Name: "x-user"}}, "GET /a?token=x HTTP/1.1\r\nhost: a\r\n\r\n"},
		{"put", []headEdit{{Name: "x-user", Value: "bob", Put: true}}, "GET /a?token=x HTTP/1.1\r\nhost: a\r\nx-user: bob\r\n\r\n"},
		{"add", []headEdit{{Name: "x-user", Value: "bob", Put: true, Keep: true}}, "GET /a?token=x HTTP/1.1\r\nhost: a\r\nx-user: eve\r\nx-user: mallory\r\nx-user: bob\r\n\r\n"},
		{"a name that begins another", []headEdit{{Name: "x-use"}}, head},
		{"the path", []headEdit{{Name: ":path", Value: "/a", Put: true}}, "GET /a HTTP/1.1\r\nhost: a\r\nx-user: eve\r\nx-user: mallory\r\n\r\n"},
		{"one after the other", []headEdit{{Name: "x-user"}, {Name: "x-user", Value: "bob", Put: true, Keep: true}}, "GET /a?token=x HTTP/1.1\r\nhost: a\r\nx-user: bob\r\n\r\n"},
	}
	for _, tt := range tests {
		if got := string(editHead([]byte(head), tt.edits)); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}
