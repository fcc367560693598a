package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"podseal.io/podseal/internal/meshtest"
	"podseal.io/podseal/internal/policy"
)

// mergeTrailers answers with the names of the trailers that it got, as an application
// that joins them to the header sees them.
func mergeTrailers(w http.ResponseWriter, r *http.Request) {
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		http.Error(w, "cut", http.StatusBadRequest)
		return
	}
	w.Header().Set("X-Token-User", r.Header.Get("X-User"))
	_ = r.Trailer.Write(w)
}

// trailerPair has an application that wants a token, an authorizer and a field.
func trailerPair(t *testing.T, app func(*net.TCPConn)) (p *pair, token string) {
	t.Helper()
	p = authorizedPair(t, policy.HTTP, serveGRPC(t, &grpcAuthorizer{}), app, policy.Authorizer{})
	issuer := meshtest.NewIssuer(t, "https://issuer", "1", "ES256")
	p.world.Authentications = []*policy.RequestAuthentication{{Namespace: "shop", Name: "jwt", Scope: policy.Namespace, Rules: []policy.TokenRule{{
		Issuer: issuer.Name, Keys: meshtest.KeySet(t, issuer), PayloadHeader: "x-payload",
		Headers:      []policy.TokenHeader{{Name: "authorization", Prefix: "Bearer "}, {Name: "x-token"}},
		ClaimHeaders: []policy.ClaimHeader{{Header: "x-claim-sub", Claim: "sub"}},
	}}}}
	role := deny("role", policy.Rule{When: []policy.Match{{On: policy.RequestHeader, Key: []string{"x-role"}, Values: []string{"admin"}}}})
	role.Scope = policy.Workloads
	p.server.Policies = []string{"shop/ext", "shop/role"}
	p.enforce(custom(policy.Rule{}), role)
	return p, issuer.Token(map[string]any{"sub": "joe"})
}

// barred are trailers that say what only a header may: claims of a token, a token,
// what the authorizer sets and takes away, what policy has judged, who the client is.
var barred = []string{
	"X-Claim-Sub", "X_Claim_Sub", "X-Payload", "X-Token", "Authorization", "X-User", "X-Secret", "X-More", "X-Role", "Cookie",
	"X-Forwarded-Client-Cert", "X_Forwarded-Client-Cert", "X-Forwarded-For", "X-Envoy-Internal", "X-Envoy-Peer-Metadata", "X-Envoy-Anything", "X-Request-Id",
}

// TestTrailersHTTP2: what a client says in trailers reaches the application only where
// it can fool nobody. Contract 1.38, 2.41, 2.47, 2.52, 6.44.
func TestTrailersHTTP2(t *testing.T) {
	p, token := trailerPair(t, http2App(t, mergeTrailers))
	c := p.http2Client(p.client.Addresses[0], p.service)
	for range 2 {
		q, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://web/", io.MultiReader(strings.NewReader("body")))
		if err != nil {
			t.Fatal(err)
		}
		q.Header.Set("Authorization", "Bearer "+token)
		q.Trailer = http.Header{"X-Sum": {"42"}}
		for _, name := range barred {
			q.Trailer[name] = []string{"forged"}
		}
		res, err := c.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if err != nil || res.StatusCode != http.StatusOK || string(body) != "X-Sum: 42\r\n" || res.Header.Get("X-Token-User") != "joe" {
			t.Errorf("%s %v: trailers at the application: %q, %v", res.Status, res.Header, body, err)
		}
	}
}

// TestTrailersHTTP1: a body of HTTP/1 passes as it is, so the request is refused, and
// the application never gets it whole. Contract 1.38, 2.41, 2.47, 2.52, 6.44.
func TestTrailersHTTP1(t *testing.T) {
	p, token := trailerPair(t, appOver(t, mergeTrailers, nil))
	for _, name := range append([]string{"X-Sum"}, barred...) {
		c := p.dial()
		if _, err := fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: web\r\nAuthorization: Bearer %s\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n%s: forged\r\n\r\n", token, name); err != nil {
			t.Fatal(err)
		}
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		body, _ := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if name == "X-Sum" {
			if res.StatusCode != http.StatusOK || string(body) != "X-Sum: forged\r\n" {
				t.Errorf("a harmless trailer: %s %q", res.Status, body)
			}
			continue
		}
		if res.StatusCode != http.StatusBadRequest || strings.Contains(string(body), "forged") {
			t.Errorf("%s: %s %q", name, res.Status, body)
		}
	}
}

// TestOwnedFieldsInAnotherSpelling: a gateway to CGI can't tell `_` from `-`. Contract 1.38.
func TestOwnedFieldsInAnotherSpelling(t *testing.T) {
	p := newPair(t, policy.HTTP, tellHead)
	issuer := meshtest.NewIssuer(t, "https://issuer", "1", "ES256")
	p.authenticate(policy.TokenRule{Issuer: issuer.Name, Keys: meshtest.KeySet(t, issuer), ClaimHeaders: []policy.ClaimHeader{{Header: "x-user", Claim: "sub"}}})
	c := p.dial()
	status, body, _ := ask(t, c, bufio.NewReader(c), "/", "X_User: root\r\nx-users: 1\r\nAuthorization: Bearer "+issuer.Token(map[string]any{"sub": "joe"})+"\r\n")
	if status != 200 || strings.Contains(body, "root") || !strings.Contains(body, "x-user=joe") || !strings.Contains(body, "x-users=1") {
		t.Errorf("%d %s", status, body)
	}
}
