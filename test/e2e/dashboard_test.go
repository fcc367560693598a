package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/cookiejar"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// page is a dashboard that runs, and a browser that was given its address.
type page struct {
	address string
	browser *http.Client
}

// dashboard runs `podseal dashboard` until the test ends.
func (e *env) dashboard(t *testing.T, kubeconfig string) page {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cmd := exec.CommandContext(ctx, filepath.Join(e.s.Bin, "podseal"), "dashboard", "--no-browser", "--kubeconfig", kubeconfig)
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // it was killed
	})
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if address := strings.TrimSpace(lines.Text()); strings.HasPrefix(address, "http://") {
			jar, err := cookiejar.New(nil)
			if err != nil {
				t.Fatal(err)
			}
			return page{address, &http.Client{Jar: jar, Timeout: 20 * time.Second}}
		}
	}
	t.Fatalf("podseal dashboard ended without an address: %v", lines.Err())
	return page{}
}

// get asks for a part of the page; the first time it must be "".
func (p page) get(t *testing.T, part string) (string, int) {
	t.Helper()
	address := p.address
	if part != "" {
		address, _, _ = strings.Cut(p.address, "/?")
		address += part
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	res, err := p.browser.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body), res.StatusCode
}

// user makes a service account and a kubeconfig with its token.
func (e *env) user(t *testing.T, name string) (kubeconfig string) {
	t.Helper()
	kubeconfig = filepath.Join(t.TempDir(), name)
	e.must(t, `kubectl -n %[1]s create serviceaccount %[2]s && token=$(kubectl -n %[1]s create token %[2]s) && cp %[3]s %[4]s &&
kubectl --kubeconfig %[4]s config set-credentials %[2]s --token="$token" && kubectl --kubeconfig %[4]s config set-context --current --user=%[2]s`, outsideNS, name, e.kubeconfig(t), kubeconfig)
	return kubeconfig
}

// testDashboard: who may look sees the page and its data, through the API server and
// with his own rights; who may not is told what he lacks; and the control plane itself
// asks Kubernetes about each token, whatever program is in front of it.
func testDashboard(t *testing.T, e *env) {
	looker, nobody, lost := e.user(t, "looker"), e.user(t, "nobody"), e.user(t, "lost")
	e.must(t, `kubectl -n d8-istio create rolebinding looker --clusterrole=podseal-look --serviceaccount=%[1]s:looker &&
kubectl -n d8-istio create role forwarder --verb=list,get --resource=pods && kubectl -n d8-istio create role forwards --verb=create --resource=pods/portforward &&
kubectl -n d8-istio create rolebinding forwarder --role=forwarder --serviceaccount=%[1]s:lost && kubectl -n d8-istio create rolebinding forwards --role=forwards --serviceaccount=%[1]s:lost`, outsideNS)
	p := e.dashboard(t, looker)
	if text, code := p.get(t, ""); code != http.StatusOK || !strings.Contains(text, "<html") {
		t.Errorf("the page: %d %s", code, text)
	}
	text, code := p.get(t, "/data")
	var doc struct {
		Pods          []any
		Proxies       []any
		Edges         []any
		FindingsError string `json:"findings_error"`
	}
	if err := json.Unmarshal([]byte(text), &doc); err != nil || code != http.StatusOK || len(doc.Pods) == 0 || len(doc.Proxies) == 0 || doc.Edges == nil {
		t.Errorf("the data: %d, %v: %.500s", code, err, text)
	}
	if !strings.Contains(doc.FindingsError, "forbidden") { // to analyze takes more rights than to look
		t.Errorf("findings of who may only look: %q", doc.FindingsError)
	}
	for kubeconfig, lacks := range map[string]string{nobody: "pods", lost: "serviceaccounts"} { // lost gets to the port, and has no token for it
		out, code, err := e.s.Podseal(t.Context(), "dashboard", "--no-browser", "--kubeconfig", kubeconfig)
		if err != nil || code != 77 || !strings.Contains(out, "podseal-look") || !strings.Contains(out, "forbidden") || !strings.Contains(out, lacks) {
			t.Errorf("%s: exit code %d, %v: %s", filepath.Base(kubeconfig), code, err, out)
		}
	}
	e.knock(t)
	e.must(t, "kubectl -n d8-istio delete rolebinding looker forwarder forwards && kubectl -n d8-istio delete role forwarder forwards && kubectl -n %s delete serviceaccount looker nobody lost", outsideNS)
}

// knock asks the control plane's own port, with tokens good and bad: the TokenReview
// and the SubjectAccessReview behind it are those of the cluster.
func (e *env) knock(t *testing.T) {
	t.Helper()
	out := e.must(t, `cd "$(mktemp -d)" && kubectl -n %[1]s create -f - >/dev/null <<EOF
{apiVersion: v1, kind: List, items: [
{apiVersion: rbac.authorization.k8s.io/v1, kind: Role, metadata: {name: edges}, rules: [{apiGroups: [podseal.io], resources: [edges], verbs: [list]}]},
{apiVersion: rbac.authorization.k8s.io/v1, kind: RoleBinding, metadata: {name: edges}, roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: edges}, subjects: [{kind: ServiceAccount, name: looker, namespace: %[1]s}]}]}
EOF
kubectl -n d8-istio port-forward deploy/istiod 0:15004 >port & forward=$!
trap 'kill $forward; rm -rf "$PWD"' EXIT
until port=$(grep -om1 '127.0.0.1:[0-9]*' port); do kill -0 $forward || exit 1; sleep 0.1; done
plain=$(kubectl -n %[1]s create token looker) own=$(kubectl -n %[1]s create token looker --audience podseal.io) viewer=$(kubectl -n d8-istio create token podseal-viewer --audience podseal.io)
ask() { echo "$1 $(curl -sS --max-time 20 -o answer -w '%%{http_code}' -H "Authorization: Bearer $2" "http://$port$3") $(head -c 200 answer | tr '\n' ' ')"; }
ask none "" /dashboard/
ask garbage x.y.z /v1/view
ask audience "$plain" /v1/view
ask stranger "$own" /v1/view
ask stranger-page "$own" /dashboard/
ask stranger-report "$own" /v1/attest
ask namespace "$own" "/v1/view?namespace=%[1]s"
ask viewer "$viewer" /v1/view
ask viewer-page "$viewer" /dashboard/
kubectl -n %[1]s delete role/edges rolebinding/edges >/dev/null`, outsideNS)
	for who, want := range map[string]string{
		"none": "401 a bearer token is needed", "garbage": "401 the token is not valid for the audience podseal.io", "audience": "401 the token is not valid for the audience podseal.io",
		"stranger": "403 .*:looker may not list edges.podseal.io in all namespaces", "stranger-page": "403 ", "stranger-report": "403 ",
		"namespace": "200 ", "viewer": "200 ", "viewer-page": "200 (?i)<!doctype html>",
	} {
		if !regexp.MustCompile(`(?m)^` + who + " " + want).MatchString(out) {
			t.Errorf("%s: want %s in\n%s", who, want, out)
		}
	}
}

// zooDashboard: what the page draws has the edges to the den as the CLI has them.
func (e *env) zooDashboard(t *testing.T, all []caller) {
	t.Helper()
	p := e.dashboard(t, e.kubeconfig(t))
	p.get(t, "")
	text, code := p.get(t, "/data")
	var doc struct{ Edges []zooLink }
	if err := json.Unmarshal([]byte(text), &doc); err != nil || code != http.StatusOK {
		t.Fatalf("the dashboard's data: %d, %v: %.500s", code, err, text)
	}
	for _, missing := range missingIn(doc.Edges, all) {
		t.Errorf("the dashboard: %s", missing)
	}
}
