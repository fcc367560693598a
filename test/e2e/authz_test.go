package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
)

// gate is an application that says who it was told is there, over HTTP/1.1 and HTTP/2,
// an authority that authorizes and has the keys of tokens, and a client.
// All are in the mesh and STRICT; only the control plane's question for keys is plaintext.
const gate = `kubectl create namespace gate && kubectl label namespace gate istio-injection=enabled && kubectl -n gate create configmap bazaar --from-file=bazaar
kubectl apply -f - <<'EOF'
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: ServiceAccount, metadata: {name: visitor, namespace: gate}}
- apiVersion: v1
  kind: Service
  metadata: {name: authority, namespace: gate}
  spec: {selector: {app: authority}, ports: [{name: http, port: 8000}, {name: grpc, port: 9000}, {name: http-keys, port: 8001}]}
- apiVersion: v1
  kind: Service
  metadata: {name: app, namespace: gate}
  spec: {selector: {app: app}, ports: [{name: http, port: 8080}, {name: http2, port: 8082}, {name: grpc, port: 8090}]}
- apiVersion: v1
  kind: Pod
  metadata: {name: authority, namespace: gate, labels: {app: authority}}
  spec:
    terminationGracePeriodSeconds: 1
    containers:
    - {name: authority, image: IMAGE, command: [sh, -c, "echo '{\"keys\":[]}' >/keys.json; exec python3 /bazaar/authority.py"], volumeMounts: [{name: scripts, mountPath: /bazaar}],
       startupProbe: {tcpSocket: {port: 8001}, periodSeconds: 1, failureThreshold: 60}}
    volumes: [{name: scripts, configMap: {name: bazaar}}]
- apiVersion: v1
  kind: Pod
  metadata: {name: app, namespace: gate, labels: {app: app}}
  spec:
    terminationGracePeriodSeconds: 1
    containers:
    - name: app
      image: IMAGE
      volumeMounts: [{name: scripts, mountPath: /bazaar}]
      command:
      - sh
      - -c
      - |
        cat >/conf <<'END'
        daemon off; events {}
        http { access_log off; server { listen 8080; listen 8082 http2; location / { return 200 "user=$http_x_user sub=$http_x_sub token=$http_authorization"; } } }
        END
        nginx -e stderr -c /conf & exec python3 /bazaar/grpc_echo.py 8090
    volumes: [{name: scripts, configMap: {name: bazaar}}]
- apiVersion: v1
  kind: Pod
  metadata: {name: client, namespace: gate, labels: {app: client}}
  spec:
    serviceAccountName: visitor
    terminationGracePeriodSeconds: 1
    containers: [{name: client, image: IMAGE, command: [sh, -c, "python3 -c 'import grpc'; exec sleep infinity"], volumeMounts: [{name: scripts, mountPath: /bazaar}]}]
    volumes: [{name: scripts, configMap: {name: bazaar}}]
- {apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: default, namespace: gate}, spec: {mtls: {mode: STRICT}}}
- apiVersion: security.istio.io/v1
  kind: PeerAuthentication
  metadata: {name: keys, namespace: gate}
  spec: {selector: {matchLabels: {app: authority}}, mtls: {mode: STRICT}, portLevelMtls: {"8001": {mode: PERMISSIVE}}}
- apiVersion: v1
  kind: ConfigMap
  metadata: {name: istio, namespace: d8-istio}
  data:
    mesh: |
      extensionProviders:
      - {name: by-grpc, envoyExtAuthzGrpc: {service: authority.gate.svc.cluster.local, port: 9000, timeout: 10s}}
      - name: by-http
        envoyExtAuthzHttp:
          service: authority.gate.svc.cluster.local
          port: 8000
          timeout: 10s
          pathPrefix: /check
          includeRequestHeadersInCheck: [x-pass]
          headersToUpstreamOnAllow: [x-user]
          headersToDownstreamOnDeny: [set-cookie, location]
- apiVersion: security.istio.io/v1
  kind: AuthorizationPolicy
  metadata: {name: by-grpc, namespace: gate}
  spec: {selector: {matchLabels: {app: app}}, action: CUSTOM, provider: {name: by-grpc}, rules: [{to: [{operation: {paths: ["/grpc/*", "/bazaar.Echo/*"], ports: ["8080", "8082", "8090"]}}]}]}
- apiVersion: security.istio.io/v1
  kind: AuthorizationPolicy
  metadata: {name: by-http, namespace: gate}
  spec: {selector: {matchLabels: {app: app}}, action: CUSTOM, provider: {name: by-http}, rules: [{to: [{operation: {paths: ["/http/*"], ports: ["8080", "8082"]}}]}]}
- apiVersion: security.istio.io/v1
  kind: RequestAuthentication
  metadata: {name: tokens, namespace: gate}
  spec:
    selector: {matchLabels: {app: app}}
    jwtRules: [{issuer: "https://issuer.example", jwksUri: "http://authority.gate.svc.cluster.local:8001/keys", outputClaimToHeaders: [{header: x-sub, claim: sub}]}]
- apiVersion: security.istio.io/v1
  kind: AuthorizationPolicy
  metadata: {name: tokens, namespace: gate}
  spec: {selector: {matchLabels: {app: app}}, action: DENY, rules: [{from: [{source: {notRequestPrincipals: ["https://issuer.example/*"]}}], to: [{operation: {paths: ["/token/*"], ports: ["8080", "8082"]}}]}]}
EOF
kubectl -n gate wait --for=condition=Ready pod --all --timeout=120s`

// signer signs tokens (RFC 7519) of ES256 (RFC 7518).
type signer struct {
	kid string
	key *ecdsa.PrivateKey
}

func newSigner(t *testing.T, kid string) signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return signer{kid, key}
}

func part(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

// token is one that is good until then.
func (s signer) token(t *testing.T, until time.Time) string {
	t.Helper()
	text := part(t, map[string]any{"alg": "ES256", "typ": "JWT", "kid": s.kid}) + "." + part(t, map[string]any{"iss": "https://issuer.example", "sub": "alice", "exp": until.Unix()})
	sum := sha256.Sum256([]byte(text))
	x, y, err := ecdsa.Sign(rand.Reader, s.key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	var sig [64]byte
	x.FillBytes(sig[:32])
	y.FillBytes(sig[32:])
	return text + "." + base64.RawURLEncoding.EncodeToString(sig[:])
}

// publish makes the keys of these the ones that the issuer has.
func (e *env) publish(t *testing.T, signers ...signer) {
	t.Helper()
	keys := []map[string]string{}
	for _, s := range signers {
		point, err := s.key.PublicKey.Bytes() // 4, x, y
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, map[string]string{
			"kty": "EC", "crv": "P-256", "kid": s.kid, "alg": "ES256",
			"x": base64.RawURLEncoding.EncodeToString(point[1:33]), "y": base64.RawURLEncoding.EncodeToString(point[33:]),
		})
	}
	set, err := json.Marshal(map[string]any{"keys": keys})
	if err != nil {
		t.Fatal(err)
	}
	e.must(t, "kubectl -n gate exec -i authority -c authority -- sh -c 'cat >/keys.new && mv /keys.new /keys.json' <<'EOF'\n%s\nEOF", set)
}

// visit is a request of the client by both versions of HTTP: what curl prints of each.
func (e *env) visit(t *testing.T, path, args string) [2]string {
	t.Helper()
	out := e.must(t, `kubectl -n gate exec client -c client -- sh -c "for how in '--http1.1 http://app:8080' '--http2-prior-knowledge http://app:8082'; do curl -sSi -m 20 %s \$how%s; echo; echo ======; done"`, args, path)
	one, two, _ := strings.Cut(out, "======")
	return [2]string{one, two}
}

// visited fails unless both answers are as they should be; "!x" is what must not be there.
func visited(t *testing.T, what string, got [2]string, status int, words ...string) {
	t.Helper()
	for i, version := range []string{"HTTP/1.1", "HTTP/2"} {
		if !strings.Contains(got[i], fmt.Sprintf("%s %d", version, status)) {
			t.Errorf("%s over %s: want %d:\n%s", what, version, status, got[i])
		}
		for _, w := range words {
			if word, absent := strings.CutPrefix(w, "!"); strings.Contains(got[i], word) == absent {
				t.Errorf("%s over %s: want %q:\n%s", what, version, w, got[i])
			}
		}
	}
}

// testGate: external authorizers in the mesh allow, redirect and deny, over gRPC and
// HTTP; a token is refused, good, and good again after the issuer has changed its keys.
// Contract 1.38, 6.4, 6.41 and 6.44.
func testGate(t *testing.T, e *env) {
	first, second := newSigner(t, "first"), newSigner(t, "second")
	e.must(t, "%s", strings.ReplaceAll(gate, "IMAGE", servers))
	e.publish(t, first)
	eventually(t, "the policies are in force", func() (bool, string) {
		got := e.visit(t, "/grpc/", "")
		more := e.visit(t, "/http/", "")
		return strings.Contains(got[0]+got[1], "denied by gRPC") && strings.Contains(more[0]+more[1], "denied by HTTP"), got[0] + more[0]
	})
	visited(t, "no policy", e.visit(t, "/", ""), 200, "user= sub= token=")
	visited(t, "gRPC denies", e.visit(t, "/grpc/", "-H 'x-pass: no'"), 403, "denied by gRPC")
	visited(t, "gRPC sends elsewhere", e.visit(t, "/grpc/", "-H 'x-pass: login'"), 302, "location: https://login.example/")
	visited(t, "gRPC allows, and was told who asks", e.visit(t, "/grpc/", "-H 'x-pass: yes' -H 'x-user: root'"), 200, "user=spiffe://cluster.local/ns/gate/sa/visitor ")
	visited(t, "HTTP denies", e.visit(t, "/http/", ""), 403, "denied by HTTP")
	visited(t, "HTTP sends elsewhere", e.visit(t, "/http/", "-H 'x-pass: login'"), 302, "location: https://login.example/", "set-cookie: from=http")
	visited(t, "HTTP allows", e.visit(t, "/http/a", "-H 'x-pass: yes'"), 200, "user=asked-for-/check/http/a ")
	if out, code := e.try(t, "kubectl -n gate exec client -c client -- python3 /bazaar/grpc_echo.py app:8090 hello"); code == 0 || !strings.Contains(out, "PERMISSION_DENIED") {
		t.Errorf("a call of gRPC: exit code %d: %s", code, out)
	}

	bearer := func(token string) string { return "-H 'authorization: Bearer " + token + "'" }
	hour := time.Now().Add(time.Hour)
	eventually(t, "the first key is known", func() (bool, string) {
		got := e.visit(t, "/token/", bearer(first.token(t, hour)))
		return strings.Contains(got[0], " 200 "), got[0]
	})
	visited(t, "no token", e.visit(t, "/token/", ""), 403, "RBAC: access denied")
	visited(t, "a good one", e.visit(t, "/token/", bearer(first.token(t, hour))), 200, "sub=alice token=", "!Bearer")
	visited(t, "what was no token", e.visit(t, "/", bearer("a.b.c")), 401, "www-authenticate: Bearer realm=")
	visited(t, "an old one", e.visit(t, "/token/", bearer(first.token(t, hour.Add(-2*time.Hour)))), 401, "Jwt is expired")
	visited(t, "one of another key", e.visit(t, "/token/", bearer(second.token(t, hour))), 401, "error=\"invalid_token\"")
	e.publish(t, first, second)
	took := eventually(t, "the second key is known", func() (bool, string) {
		got := e.visit(t, "/token/", bearer(second.token(t, hour)))
		return strings.Contains(got[0], " 200 ") && strings.Contains(got[1], " 200"), got[0]
	})
	old := first.token(t, hour)
	visited(t, "both are good", e.visit(t, "/token/", bearer(old)), 200, "sub=alice")
	e.publish(t, second)
	eventually(t, "the first key is gone", func() (bool, string) {
		got := e.visit(t, "/token/", bearer(old)) // which the proxy has verified before
		return strings.Contains(got[0], " 401 ") && strings.Contains(got[1], " 401"), got[0]
	})
	visited(t, "the second stays", e.visit(t, "/token/", bearer(second.token(t, hour))), 200, "sub=alice")
	t.Logf("a new key is known after %s", took)
	e.must(t, "kubectl -n d8-istio delete configmap istio && kubectl delete namespace gate --wait=false")
}
