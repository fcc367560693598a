package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"podseal.io/podseal/internal/controlplane"
	"podseal.io/podseal/internal/edges"
)

var (
	now  = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	tls3 = edges.TLS{Version: "TLS 1.3", Group: "X25519MLKEM768", Cipher: "TLS_AES_128_GCM_SHA256"}
)

func peer(kind, ns, name string) edges.Peer { return edges.Peer{Kind: kind, Namespace: ns, Name: name} }

// edge is one that a server saw.
func edge(from edges.Peer, security edges.Security, connections uint64, refused ...string) edges.Edge {
	e := edges.Edge{
		Key: edges.Key{Direction: edges.Inbound, Security: security, Protocol: "http", Port: 8080}, Peer: from,
		Counts: edges.Counts{Connections: connections, BytesSent: 10}, First: now.Add(-time.Hour), Last: now.Add(-time.Minute),
	}
	if security == edges.MutualTLS {
		e.Key.Identity, e.Key.TLS = "cluster.local/ns/shop/sa/web", tls3
	}
	for _, reason := range refused {
		e.Counts.Refusals = map[string]uint64{reason: 2}
	}
	return e
}

// testView is what a small mesh's control plane says.
func testView() *controlplane.View {
	web, legacy := peer(edges.KindWorkload, "shop", "web"), peer(edges.KindWorkload, "old", "legacy")
	pod := func(ns, name, workload, mode string, mesh bool) controlplane.PodView {
		return controlplane.PodView{Name: name, Namespace: ns, Workload: workload, Mesh: mesh, Mode: mode, Identity: "cluster.local/ns/" + ns + "/sa/" + workload}
	}
	api := pod("shop", "api-1", "api", "PERMISSIVE", true)
	api.PortModes = map[uint16]string{9090: "STRICT"}
	api.Ports = []controlplane.PortView{{Port: 8080, Protocol: "http", Service: "api.shop.svc.cluster.local:80", Mode: "PERMISSIVE"}, {Port: 9090, Protocol: "tcp", Service: "api.shop.svc.cluster.local:90", Mode: "STRICT"}}
	return &controlplane.View{
		Replica: "istiod-1", Now: now,
		Pods: []controlplane.PodView{pod("old", "legacy-1", "legacy", "PERMISSIVE", false), api, pod("shop", "web-1", "web", "PERMISSIVE", true)},
		Proxies: []controlplane.ProxyView{{
			Pod: "api-1", Namespace: "shop", Workload: "api", Version: "v1", Config: controlplane.ConfigSynced, Serial: "ab", NotAfter: now.Add(5 * time.Hour), Connections: 3, Reports: true, LoopbackSegment: 524280,
		}},
		Edges: []edges.Report{
			{Pod: "shop/api-1", Workload: peer(edges.KindWorkload, "shop", "api"), Edges: []edges.Edge{
				edge(web, edges.MutualTLS, 9), edge(web, edges.Plaintext, 1), edge(legacy, edges.Plaintext, 4), edge(peer(edges.KindKubelet, "", "n1"), edges.NotObserved, 7),
				edge(peer(edges.KindWorkload, "old", "strange"), edges.NotObserved, 0, "peer_unverified"),
			}},
			{Pod: "shop/web-1", Workload: web, Edges: []edges.Edge{}},
		},
	}
}

// asLooker serves views as the replicas of a control plane do.
func asLooker(t *testing.T, views ...*controlplane.View) *looker {
	l := &looker{token: "t", tokenEnds: time.Now().Add(time.Hour), closed: make(chan struct{}), told: map[string]bool{}, notes: t.Output()}
	for i, v := range views {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch {
			case r.Header.Get("Authorization") != "Bearer t":
				http.Error(w, "who are you?", http.StatusUnauthorized)
			case v == nil:
				http.Error(w, "viewer may not list edges.podseal.io in all namespaces", http.StatusForbidden)
			case r.Method == http.MethodPost:
				q := &controlplane.ExplainRequest{}
				if json.NewDecoder(r.Body).Decode(q) != nil {
					http.Error(w, "what?", http.StatusBadRequest)
					return
				}
				_ = json.NewEncoder(w).Encode(explained(v.Replica, q))
			default:
				_ = json.NewEncoder(w).Encode(v)
			}
		}))
		t.Cleanup(server.Close)
		l.replicas = append(l.replicas, replica{fmt.Sprintf("istiod-%d", i+1), server.URL, server.Client()})
	}
	return l
}

func ask(t *testing.T, o edgesOptions, views ...*controlplane.View) (*edgesList, error) {
	t.Helper()
	return o.ask(t.Context(), asLooker(t, views...))
}

func names(g edges.Graph) []string {
	var out []string
	for i := range g {
		out = append(out, g[i].Source.String()+">"+g[i].Destination.String())
	}
	return out
}

func TestEdgesFilters(t *testing.T) {
	for name, tc := range map[string]struct {
		o    edgesOptions
		want []string
	}{
		"all":              {edgesOptions{}, []string{"kubelet/n1>api", "legacy>api", "strange>api", "web>api"}},
		"namespace":        {edgesOptions{namespace: "old"}, []string{"legacy>api", "strange>api"}},
		"plaintext":        {edgesOptions{plaintext: true}, []string{"legacy>api", "web>api"}},
		"from":             {edgesOptions{from: "legacy"}, []string{"legacy>api"}},
		"from, namespaced": {edgesOptions{from: "shop/web"}, []string{"web>api"}},
		"from, with kind":  {edgesOptions{from: "deploy/web"}, []string{"web>api"}},
		"from the kubelet": {edgesOptions{from: "kubelet/n1"}, []string{"kubelet/n1>api"}},
		"to a pod":         {edgesOptions{to: "pod/shop/api-1"}, []string{"kubelet/n1>api", "legacy>api", "strange>api", "web>api"}},
		"from a pod":       {edgesOptions{from: "pod/shop/web-1"}, nil},
		"since":            {edgesOptions{since: time.Second}, nil},
		"since an hour":    {edgesOptions{since: time.Hour, from: "web"}, []string{"web>api"}},
	} {
		list, err := ask(t, tc.o, testView())
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff(tc.want, names(list.Edges)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	for name, o := range map[string]edgesOptions{
		"no such workload":  {to: "ap"},
		"no such pod":       {to: "pod/shop/api-2"},
		"a pod not in mesh": {from: "pod/old/legacy-1"},
	} {
		_, err := ask(t, o, testView())
		var coded codedError
		if !asCoded(err, &coded) || coded.code != exitNoInput {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ask(t, edgesOptions{to: "shop/aip"}, testView()); !strings.Contains(err.Error(), "Did you mean shop/api?") {
		t.Error(err)
	}
}

func asCoded(err error, to *codedError) bool {
	c, ok := err.(codedError) //nolint:errorlint // it is the outermost one
	*to = c
	return ok
}

// A link is called secured only if it carried nothing else; a mixed one shows
// shares that are never rounded to nothing or all.
func TestEdgesTable(t *testing.T) {
	list, err := ask(t, edgesOptions{}, testView())
	if err != nil {
		t.Fatal(err)
	}
	var out, errOut bytes.Buffer
	if err := (&edgesOptions{output: "table"}).print(streams{out: &out, err: &errOut}, list); err != nil {
		t.Fatal(err)
	}
	want := `SRC          DST   SRC_NS   DST_NS   PORT   SECURED                              CONNS   LAST_SEEN
kubelet/n1   api   -        shop     8080   not observed                         7       60s
legacy       api   old      shop     8080   plaintext                            4       60s
strange      api   old      shop     8080   refused: peer_unverified (2)         0       60s
web          api   shop     shop     8080   mixed: 90% mutual TLS, 10% plaintext   10      60s
`
	squeeze := func(s string) string { return strings.Join(strings.Fields(s), " ") }
	if squeeze(out.String()) != squeeze(want) {
		t.Errorf("got:\n%s", out.String())
	}
	if !strings.Contains(errOut.String(), "1 of 3 pods are not observed") {
		t.Error(errOut.String())
	}
	l := edges.Link{Shares: []edges.Share{{Security: edges.MutualTLS, Connections: 1_000_000}, {Security: edges.Plaintext, Connections: 1}}}
	if got := shares(&l); got != "99% mutual TLS, 1% plaintext" {
		t.Error(got)
	}
}

// What -o json writes reads back, as a table and as itself.
func TestEdgesReadBack(t *testing.T) {
	list, err := ask(t, edgesOptions{}, testView())
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "edges.json")
	var text bytes.Buffer
	if err := (&edgesOptions{output: "json"}).print(streams{out: &text}, list); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, text.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	again, stderr, code := podseal(t, "edges", "-f", file, "-o", "json")
	if code != 0 || again != text.String() {
		t.Errorf("exit code %d, %s%s", code, stderr, cmp.Diff(text.String(), again))
	}
	table, _, code := podseal(t, "edges", "-f", file, "--plaintext", "-o", "wide")
	if code != 0 || !strings.Contains(table, "X25519MLKEM768") || strings.Contains(table, "kubelet") {
		t.Errorf("exit code %d:\n%s", code, table)
	}
	if yaml, _, code := podseal(t, "edges", "-f", file, "-o", "yaml"); code != 0 || !strings.Contains(yaml, "state: mixed") {
		t.Errorf("exit code %d:\n%s", code, yaml)
	}
	for name, text := range map[string]string{"cut": text.String()[:100], "other": `{"items": []}`, "no shares": `{"edges":[{}]}`} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, stderr, code := podseal(t, "edges", "-f", file); code != exitBadInput || !strings.Contains(stderr, "edges") {
			t.Errorf("%s: exit code %d: %s", name, code, stderr)
		}
	}
	if _, _, code := podseal(t, "edges", "-f", file, "-w"); code != exitUsage {
		t.Errorf("-f with -w: exit code %d", code)
	}
}

// The answers of replicas are one: each proxy once, each report once, the newest.
func TestReplicasAreJoined(t *testing.T) {
	a, b := testView(), testView()
	b.Replica, b.Proxies[0].Config, b.Proxies[0].Connected = "istiod-2", controlplane.ConfigStale, now
	b.Edges = b.Edges[:1]
	b.Edges[0].Edges[0].Last, b.Edges[0].Edges[0].Counts.Connections = now, 50
	v, err := asLooker(t, a, b).view(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	if len(v.Proxies) != 1 || v.Proxies[0].Config != controlplane.ConfigStale || len(v.Edges) != 2 || v.Edges[0].Edges[0].Counts.Connections != 50 || v.Replica != "istiod-1,istiod-2" {
		t.Errorf("%+v", v)
	}
	l := asLooker(t, nil, testView())
	var notes bytes.Buffer
	l.notes = &notes
	if v, err := l.view(t.Context(), ""); err != nil || len(v.Edges) != 2 || !strings.Contains(notes.String(), "what this replica knows is missing") {
		t.Errorf("%v: %s", err, notes.String())
	}
	_, err = asLooker(t, nil).view(t.Context(), "")
	if err == nil || !strings.Contains(err.Error(), "may not list edges") {
		t.Error(err)
	}
}

// A replica that speaks for others spares asking them; whom it can't speak for, being
// of an older version or out of its reach, is asked too.
func TestReplicasThatSpeakForOthers(t *testing.T) {
	speaks := func(v *controlplane.View, peers ...controlplane.PeerView) *controlplane.View {
		v.Peers = append([]controlplane.PeerView{}, peers...)
		return v
	}
	fine := func(name string) controlplane.PeerView { return controlplane.PeerView{Replica: name} }
	fails := func(name string) controlplane.PeerView {
		return controlplane.PeerView{Replica: name, Error: "it is of a version that can't be asked by other replicas"}
	}
	second := func() *controlplane.View {
		v := testView()
		v.Replica = "istiod-2"
		return v
	}
	for name, tc := range map[string]struct {
		views       []*controlplane.View
		asked, note string
	}{
		"for all":                          {[]*controlplane.View{speaks(testView(), fine("istiod-2")), nil}, "istiod-1", ""},
		"alone":                            {[]*controlplane.View{speaks(testView())}, "istiod-1", ""},
		"an older one":                     {[]*controlplane.View{testView(), second()}, "istiod-1,istiod-2", ""},
		"not for an older one":             {[]*controlplane.View{speaks(testView(), fails("istiod-2")), second()}, "istiod-1,istiod-2", ""},
		"an older one, not forwarded to":   {[]*controlplane.View{speaks(testView(), fails("istiod-2")), nil}, "istiod-1", "ask istiod-2: viewer may not"},
		"one that came later":              {[]*controlplane.View{speaks(testView(), fails("istiod-3"))}, "istiod-1", "istiod-1 asked istiod-3: it is of a version"},
		"for one that is not forwarded to": {[]*controlplane.View{nil, speaks(second(), fine("istiod-1"))}, "istiod-2", ""},
	} {
		l := asLooker(t, tc.views...)
		var notes bytes.Buffer
		l.notes = &notes
		v, err := l.view(t.Context(), "")
		if err != nil || v.Replica != tc.asked {
			t.Errorf("%s: %+v, %v", name, v, err)
		}
		if said := notes.String(); (tc.note == "") != (said == "") || !strings.Contains(said, tc.note) {
			t.Errorf("%s: %q", name, said)
		}
	}
}

func TestDescribe(t *testing.T) {
	v := testView()
	for _, tc := range []struct{ kind, ns, name, want string }{
		{"pod", "shop", "api-1", "Port 9090 mTLS mode: STRICT"},
		{"pod", "shop", "api-1", "Certificate: serial ab, 5h left"},
		{"pod", "shop", "api-1", "Loopback: segments of up to 512 KiB"},
		{"pod", "shop", "api-1", "legacy       api"},
		{"pod", "shop", "web-1", "Proxy: NOT CONNECTED"},
		{"pod", "old", "legacy-1", "Mesh: no"},
		{"service", "shop", "api", "api-1   api        yes    PERMISSIVE, 9090 STRICT   SYNCED   5h left"},
		{"namespace", "shop", "shop", "web-1"},
	} {
		one := *v
		one.Pods = slices.DeleteFunc(slices.Clone(v.Pods), func(p controlplane.PodView) bool { return p.Namespace != tc.ns })
		d, err := describeFrom(&one, tc.kind, tc.ns, tc.name)
		if err != nil {
			t.Errorf("%s %s: %v", tc.kind, tc.name, err)
			continue
		}
		var out bytes.Buffer
		d.print(streams{out: &out})
		if !strings.Contains(out.String(), tc.want) {
			t.Errorf("%s %s: no %q in:\n%s", tc.kind, tc.name, tc.want, out.String())
		}
	}
	for _, tc := range []struct{ kind, name, want string }{{"pod", "api-2", "Did you mean shop/api-1?"}, {"service", "apj", "Did you mean shop/api?"}, {"namespace", "shpo", "no namespace with pods"}} {
		if _, err := describeFrom(v, tc.kind, "shop", tc.name); tc.kind != "namespace" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s %s: %v", tc.kind, tc.name, err)
		}
	}
}

func TestLookCommandLines(t *testing.T) {
	t.Setenv("KUBECONFIG", filepath.Join(t.TempDir(), "none"))
	t.Setenv("HOME", t.TempDir())
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	for _, tc := range []struct {
		args   []string
		code   int
		stderr string
	}{
		{[]string{"edges", "-o", "xml"}, exitUsage, "write one of table, wide, json, yaml"},
		{[]string{"edges", "now"}, exitUsage, "takes no arguments"},
		{[]string{"edges"}, exitFailed, "--kubeconfig"},
		{[]string{"status"}, exitFailed, "--kubeconfig"},
		{[]string{"ps", "-o", "wide"}, exitUsage, "table, json, yaml"},
		{[]string{"identity"}, exitUsage, "wants POD"},
		{[]string{"can", "a"}, exitUsage, "wants SOURCE DESTINATION"},
		{[]string{"can", "a", "b", "--port", "70000"}, exitUsage, "port"},
		{[]string{"can", "a", "b", "--path", "x"}, exitUsage, "begins with a slash"},
		{[]string{"can", "a", "b", "--header", "x"}, exitUsage, "name: value"},
		{[]string{"can", "a", "b", "-f", "/nowhere/x.yaml"}, exitNoInput, "no such file"},
		{[]string{"authz"}, exitUsage, "authz check POD"},
		{[]string{"authz", "check"}, exitUsage, "wants POD"},
		{[]string{"describe", "node", "n1"}, exitUsage, "pod, service or namespace"},
	} {
		stdout, stderr, code := podseal(t, tc.args...)
		if code != tc.code || stdout != "" || !strings.Contains(stderr, tc.stderr) {
			t.Errorf("%q: exit code %d: %s%s", tc.args, code, stdout, stderr)
		}
	}
	if got := arguments([]string{"/usr/bin/kubectl_complete-podseal", "edges", "--to", ""}); !slices.Equal(got, []string{"__complete", "edges", "--to", ""}) {
		t.Errorf("completion for kubectl: %q", got)
	}
}

// A watch prints what is there, and then only what has changed.
func TestEdgesWatch(t *testing.T) {
	v := testView()
	l := asLooker(t, v)
	ctx, cancel := context.WithCancel(t.Context())
	out := &lines{}
	done := make(chan error, 1)
	go func() {
		done <- (&edgesOptions{output: "json"}).follow(ctx, streams{out: out, err: t.Output()}, &kube{}, l)
	}()
	deadline := time.Now().Add(20 * time.Second)
	for out.count() < 4 && time.Now().Before(deadline) {
		<-time.After(10 * time.Millisecond)
	}
	cancel()
	if err := <-done; err != nil || out.count() != 4 {
		t.Errorf("%d lines, %v", out.count(), err)
	}
}

// lines counts lines.
type lines struct{ n atomic.Int64 }

func (l *lines) Write(p []byte) (int, error) {
	l.n.Add(int64(bytes.Count(p, []byte("\n"))))
	return len(p), nil
}

func (l *lines) count() int64 { return l.n.Load() }
