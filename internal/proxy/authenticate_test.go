package proxy

import (
	"bufio"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"podseal.io/podseal/internal/meshtest"
	"podseal.io/podseal/internal/policy"
)

// tellHead answers each request with its head as it came.
func tellHead(c *net.TCPConn) {
	r := bufio.NewReader(c)
	for {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		var names []string
		for name, values := range req.Header {
			names = append(names, strings.ToLower(name)+"="+strings.Join(values, "|"))
		}
		slices.Sort(names)
		text := req.Method + " " + req.RequestURI + "\n" + strings.Join(names, "\n")
		_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(text), text)
	}
}

// authenticate puts one RequestAuthentication in force at the server.
func (p *pair) authenticate(rules ...policy.TokenRule) {
	p.t.Helper()
	p.world.Authentications = []*policy.RequestAuthentication{{Namespace: "shop", Name: "jwt", Scope: policy.Namespace, Rules: rules}}
	p.tell()
}

// TestTokens: a request without a token passes, one with a good token passes as
// that, and one with a bad one gets the answer that Istio's users know, before any
// AuthorizationPolicy. Contract 1.38, 2.60, 6.4, 6.29, 6.41.
func TestTokens(t *testing.T) {
	issuer := meshtest.NewIssuer(t, "https://issuer", "1", "ES256")
	next := meshtest.NewIssuer(t, "https://issuer", "2", "ES256")
	p := newPair(t, policy.HTTP, tellHead)
	rule := policy.TokenRule{
		Issuer: issuer.Name, Keys: meshtest.KeySet(t, issuer), Audiences: []string{"shop"}, PayloadHeader: "x-payload",
		ClaimHeaders: []policy.ClaimHeader{{Header: "x-user", Claim: "sub"}},
	}
	p.authenticate(rule)
	good := issuer.Token(map[string]any{"sub": "joe", "aud": "shop"})
	c := p.dial()
	r := bufio.NewReader(c)
	bearer := func(token string) string { return "Authorization: Bearer " + token + "\r\n" }

	status, body, _ := ask(t, c, r, "/a", "X-User: root\r\nX-Payload: forged\r\n")
	if status != 200 || strings.Contains(body, "x-user") || strings.Contains(body, "x-payload") {
		t.Errorf("no token: %d %s", status, body)
	}
	status, body, _ = ask(t, c, r, "/a?b=c", "x-user: root\r\n"+bearer(good))
	if want := "x-payload=" + strings.Split(good, ".")[1] + "\n"; status != 200 || !strings.Contains(body, "x-user=joe") || strings.Contains(body, "root") || !strings.Contains(body, want) || strings.Contains(body, "authorization") {
		t.Errorf("a good token: %d %s", status, body)
	}
	if status, body, _ = ask(t, c, r, "/a?access_token="+good+"&b=c", ""); status != 200 || !strings.HasPrefix(body, "GET /a?b=c\n") {
		t.Errorf("a good token as parameter: %d %s", status, body)
	}

	p.enforce(deny("everything", policy.Rule{})) // contract 6.41
	status, body, header := ask(t, c, r, "/a?access_token=secret", bearer("x.y.z"))
	if status != 401 || body != "Jwt header is an invalid Base64url encoded" && body != "Jwt header is an invalid JSON" || header.Get("Www-Authenticate") != `Bearer realm="http://web/a", error="invalid_token"` || header.Get("Content-Type") != "text/plain" {
		t.Errorf("a bad token: %d %q %v", status, body, header)
	}
	if status, body, _ = ask(t, c, r, "/a", bearer(issuer.Token(map[string]any{"aud": "bank"}))); status != 403 || body != "Audiences in Jwt are not allowed" {
		t.Errorf("a token for others: %d %q", status, body)
	}
	preflight := "Origin: https://ui\r\nAccess-Control-Request-Method: GET\r\n"
	if _, err := fmt.Fprintf(c, "OPTIONS /a HTTP/1.1\r\nHost: web\r\n%s%s\r\n", preflight, bearer("x")); err != nil {
		t.Fatal(err)
	}
	if res, err := http.ReadResponse(r, nil); err != nil || res.StatusCode != http.StatusForbidden {
		t.Errorf("a browser's question before: %v %v", res, err) // not 401: of AuthorizationPolicy
	} else {
		buf := make([]byte, len(accessDenied))
		_, _ = res.Body.Read(buf)
		_ = res.Body.Close()
	}

	// Contract 6.29: the principal is that of the token.
	p.enforce(allow("joe", policy.Rule{When: []policy.Match{
		{On: policy.RequestPrincipal, Values: []string{"https://issuer/joe"}}, {On: policy.RequestAudiences, Values: []string{"shop"}},
	}}))
	if status, body, _ = ask(t, c, r, "/a", bearer(good)); status != 200 {
		t.Errorf("joe: %d %s", status, body)
	}
	if status, body, _ = ask(t, c, r, "/a", bearer(issuer.Token(map[string]any{"sub": "eve", "aud": "shop"}))); status != 403 || body != accessDenied {
		t.Errorf("eve: %d %s", status, body)
	}
	if status, _, _ = ask(t, c, r, "/a", ""); status != 403 {
		t.Errorf("nobody: %d", status)
	}

	// Keys are exchanged on an open connection: first both are good, then the new one.
	rule.Keys = meshtest.KeySet(t, issuer, next)
	p.authenticate(rule)
	rotated := next.Token(map[string]any{"sub": "joe", "aud": "shop"})
	for _, token := range []string{good, rotated} {
		if status, body, _ = ask(t, c, r, "/a", bearer(token)); status != 200 {
			t.Errorf("both keys: %d %s", status, body)
		}
	}
	rule.Keys = meshtest.KeySet(t, next)
	p.authenticate(rule)
	if status, body, _ = ask(t, c, r, "/a", bearer(good)); status != 401 || body != "Jwks doesn't have key to match kid or alg from Jwt" {
		t.Errorf("the old key: %d %s", status, body)
	}
	rule.Keys, rule.KeysFrom = meshtest.KeySet(t, next), "https://issuer/keys"
	p.authenticate(rule)
	rule.Keys = nil // a control plane that has just started
	p.authenticate(rule)
	if status, body, _ = ask(t, c, r, "/a", bearer(rotated)); status != 200 {
		t.Errorf("the last good keys: %d %s", status, body)
	}
}

// TestTokensAreSecret: nothing of a token is logged or kept, and an object that
// isn't known yet lets nothing in.
func TestTokensAreSecret(t *testing.T) {
	m := newTestMesh(t)
	server := m.pod("web")
	app := meshtest.Serve(t, server.Addresses[0], tellHead)
	m.world.Service("web", vip(80), policy.HTTP, app.Port(), server)
	issuer := meshtest.NewIssuer(t, "https://issuer", "1", "ES256")
	m.world.Authentications = []*policy.RequestAuthentication{{Namespace: "shop", Name: "jwt", Scope: policy.Namespace, Rules: []policy.TokenRule{{Issuer: "https://other", Keys: meshtest.KeySet(t, issuer)}}}}
	lines := &logLines{}
	p := m.start(server, func(c *Config) { c.Log = slog.New(slog.NewTextHandler(lines, nil)) })
	c := m.connect(m.outsider(), app)
	r := bufio.NewReader(c)
	token := issuer.Token(map[string]any{"sub": "joe"})
	for range 2 {
		if status, body, _ := ask(t, c, r, "/a?access_token="+token, "Authorization: Bearer "+token+"\r\n"); status != 401 || body != "Jwt issuer is not configured" {
			t.Errorf("%d %q", status, body)
		}
	}
	_ = c.Close()
	rec := record(t, p, func(r Record) bool { return r.RequestsDenied == 2 })
	if got := lines.all() + fmt.Sprintf("%+v", rec); strings.Contains(got, token[:20]) || strings.Contains(got, strings.Split(token, ".")[1]) || !strings.Contains(got, "reason=token_refused") {
		t.Errorf("log %q", got)
	}
	server.Authentications = []string{"shop/unknown"}
	m.tell()
	c = m.connect(m.outsider(), app)
	if status, body, _ := ask(t, c, bufio.NewReader(c), "/a", ""); status != 403 || body != accessDenied {
		t.Errorf("an object that isn't known: %d %q", status, body)
	}
}
