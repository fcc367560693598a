package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"podseal.io/podseal/internal/analysis"
	"podseal.io/podseal/internal/controlplane"
	"podseal.io/podseal/internal/dashboard"
	"podseal.io/podseal/internal/edges"
)

// mesh makes a view of so many workloads in so many namespaces: each calls the next
// three, some in plaintext.
func mesh(workloads, namespaces int) *controlplane.View {
	now := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	v := &controlplane.View{Replica: "istiod-1", Now: now}
	name := func(i int) (ns, workload string) {
		i %= workloads
		return fmt.Sprintf("team-%d", i%namespaces), fmt.Sprintf("svc-%d", i)
	}
	for i := range workloads {
		ns, workload := name(i)
		v.Pods = append(v.Pods, controlplane.PodView{Namespace: ns, Name: workload + "-0", Workload: workload, Mesh: i%9 != 8, Mode: "PERMISSIVE", Identity: "cluster.local/ns/" + ns + "/sa/" + workload, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})}})
		if i%9 == 8 {
			continue
		}
		v.Proxies = append(v.Proxies, controlplane.ProxyView{Namespace: ns, Pod: workload + "-0", Workload: workload, Version: "v1", Config: controlplane.ConfigSynced, Serial: strconv.Itoa(i), NotAfter: now.Add(time.Duration(i+1) * time.Hour), Started: now.Add(-48 * time.Hour), Reports: true})
		r := edges.Report{Pod: ns + "/" + workload + "-0", Workload: edges.Peer{Kind: edges.KindWorkload, Namespace: ns, Name: workload}}
		for _, step := range []int{1, 7, 30} {
			to, called := name(i + step)
			e := edges.Edge{Key: edges.Key{Direction: edges.Outbound, Security: edges.MutualTLS, Port: 80, Identity: "cluster.local/ns/" + to + "/sa/" + called, Workload: to + "/" + called}, First: now, Last: now}
			e.Key.TLS = edges.TLS{Version: "TLS 1.3", Group: "X25519MLKEM768"}
			if (i+step)%9 == 8 {
				e.Key.Security, e.Key.Identity = edges.Plaintext, ""
			}
			e.Counts.Connections, e.Counts.BytesSent = uint64(1+i), uint64(1)<<(i%40)
			e.Peer = edges.Peer{Kind: edges.KindWorkload, Namespace: to, Name: called}
			r.Edges = append(r.Edges, e)
		}
		if i == 0 { // somebody from outside, whose name would be markup
			e := edges.Edge{Key: edges.Key{Direction: edges.Inbound, Security: edges.Plaintext, Port: 80}, First: now, Last: now}
			e.Counts.Connections = 1
			e.Peer = edges.Peer{Kind: edges.KindWorkload, Namespace: "old", Name: `<img src=x onerror="document.title='hacked'">`}
			r.Edges = append(r.Edges, e)
		}
		v.Edges = append(v.Edges, r)
	}
	return v
}

// serveDashboard runs a dashboard in front of a control plane that answers with v.
func serveDashboard(t *testing.T, v *controlplane.View) *dashboardServer {
	t.Helper()
	plane := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer good" {
			http.Error(w, "no", http.StatusUnauthorized)
			return
		}
		if name, ok := strings.CutPrefix(r.URL.Path, dashboard.Path); ok {
			dashboard.Serve(w, name)
			return
		}
		_ = json.NewEncoder(w).Encode(v)
	}))
	t.Cleanup(plane.Close)
	d := &dashboardServer{key: "secret", analyze: func(context.Context) ([]analysis.Message, error) {
		if len(v.Pods) > 100 {
			return nil, errors.New("forbidden")
		}
		return []analysis.Message{{Code: "IST0101", Level: analysis.Error, Kind: "AuthorizationPolicy", Namespace: "team-1", Name: "web", Text: "selects <nothing>"}}, nil
	}, look: &looker{
		replicas: []replica{{"istiod-1", plane.URL, plane.Client()}}, token: "good", tokenEnds: time.Now().Add(time.Hour), closed: make(chan struct{}), told: map[string]bool{}, notes: os.Stderr,
	}}
	front := httptest.NewServer(d)
	t.Cleanup(front.Close)
	d.host = strings.TrimPrefix(front.URL, "http://")
	return d
}

// Only who has the address gets in, by its own name, and only to read.
func TestWhoMaySeeTheDashboard(t *testing.T) {
	d := serveDashboard(t, mesh(3, 1))
	get := func(method, host, path, cookie string) *http.Response {
		req := httptest.NewRequestWithContext(t.Context(), method, "http://"+host+path, http.NoBody)
		if cookie != "" {
			req.AddCookie(&http.Cookie{Name: sessionCookie, Value: cookie})
		}
		w := httptest.NewRecorder()
		d.ServeHTTP(w, req)
		return w.Result()
	}
	for _, c := range []struct {
		method, host, path, cookie string
		want                       int
	}{
		{"GET", d.host, "/", "secret", 200},
		{"GET", d.host, "/data", "secret", 200},
		{"GET", d.host, "/app.js", "secret", 200},
		{"GET", d.host, "/nothing.js", "secret", 404},
		{"GET", d.host, "/..%2fdashboard.go", "secret", 404},
		{"GET", d.host, "/", "", 403},
		{"GET", d.host, "/data", "guess", 403},
		{"GET", d.host, "/?key=guess", "", 403},
		{"GET", d.host, "/?key=secret", "", 303},
		{"GET", "evil.example", "/data", "secret", 421},
		{"POST", d.host, "/data", "secret", 405},
	} {
		res := get(c.method, c.host, c.path, c.cookie)
		if res.StatusCode != c.want {
			t.Errorf("%s %s%s with %q: %s, want %d", c.method, c.host, c.path, c.cookie, res.Status, c.want)
		}
		if c.path == "/?key=secret" {
			if set := res.Header.Get("Set-Cookie"); !strings.Contains(set, "HttpOnly") || !strings.Contains(set, "SameSite=Strict") {
				t.Errorf("cookie: %s", set)
			}
		}
		if c.want == 200 && c.path != "/data" && res.Header.Get("Content-Security-Policy") != dashboard.Policy {
			t.Errorf("%s: no policy", c.path)
		}
	}
}

// When the control plane's replicas were exchanged the dashboard finds the new ones by
// itself; it says why if it can't, and doesn't look for others where it may not look.
func TestDashboardLooksAgain(t *testing.T) {
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	away := func() *looker {
		return &looker{replicas: []replica{{"istiod-old", gone.URL, gone.Client()}}, token: "good", tokenEnds: time.Now().Add(time.Hour), closed: make(chan struct{}), told: map[string]bool{}, notes: t.Output()}
	}
	d := serveDashboard(t, mesh(3, 1))
	good, asked := d.look, 0
	get := func(name string, now, found *looker, why error, want, wantAsked int) {
		t.Helper()
		d.look, d.again = now, func(context.Context) (*looker, error) {
			asked++
			return found, why
		}
		req := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+d.host+"/data", http.NoBody)
		req.AddCookie(&http.Cookie{Name: sessionCookie, Value: "secret"})
		w := httptest.NewRecorder()
		d.ServeHTTP(w, req)
		if w.Code != want || asked != wantAsked || why != nil && asked > 0 && want != http.StatusOK && !strings.Contains(w.Body.String(), why.Error()) {
			t.Errorf("%s: %d %.200s, asked %d times", name, w.Code, w.Body, asked)
		}
		left := false
		select {
		case <-now.closed:
			left = true
		default:
		}
		if left != (d.look != now) {
			t.Errorf("%s: what was left is closed: %t", name, left)
		}
	}
	get("none is there", away(), nil, errors.New("none is there"), http.StatusBadGateway, 1)
	get("another that is away", away(), away(), nil, http.StatusBadGateway, 2)
	get("a new one", away(), good, nil, http.StatusOK, 3)
	if d.look != good {
		t.Error("it does not go on with the new one")
	}
	get("it goes on with that", good, nil, errors.New("not again"), http.StatusOK, 3)
	good.token = "bad" // whom one refuses gets nothing from another either
	get("without permission", good, nil, errors.New("no"), http.StatusBadGateway, 3)
}

// The page in a real browser: every view shows what it should, names are never
// markup, and with 2,000 workloads, too.
func TestDashboardInABrowser(t *testing.T) {
	small, large := serveDashboard(t, mesh(30, 4)), serveDashboard(t, mesh(2000, 40))
	for _, c := range []struct {
		d    *dashboardServer
		view string
		want []string
	}{
		{small, "graph", []string{"<canvas", "31 workloads and 82 edges, 11 of them with plaintext", "<b class=\"plaintext\">11</b> with plaintext"}},
		{small, "table", []string{"svc-7", "mutual TLS", `class="plaintext"`, "&lt;img src=x"}},
		{small, "strict", []string{"old/&lt;img src=x", ">no-go<", ">go<", "24 h"}},
		{small, "certificates", []string{"Good for", "60 min", "SYNCED"}},
		{small, "findings", []string{"IST0101", "AuthorizationPolicy", "selects &lt;nothing&gt;", "<b class=\"mixed\">1</b> findings"}},
		{large, "findings", []string{"could not be had: forbidden"}},
		{small, "workload/team-1%2Fsvc-1", []string{"cluster.local/ns/team-1/sa/svc-1", "PERMISSIVE", "Callers", "Calls"}},
		{large, "graph", []string{"2001 workloads"}},
		{large, "table", []string{"Show 500 more"}},
		{large, "strict", []string{"Verdict"}},
	} {
		began := time.Now()
		page := browse(t, c.d, c.view)
		took := time.Since(began)
		for _, want := range c.want {
			if !strings.Contains(page, want) {
				t.Errorf("%s lacks %q:\n%s", c.view, want, page[:min(len(page), 5000)])
			}
		}
		if strings.Contains(page, "<img") || !strings.Contains(page, "<title>Podseal</title>") {
			t.Errorf("%s: a name became markup", c.view)
		}
		if want := `data-drawn="` + strings.Split(c.view, "/")[0]; !strings.Contains(page, want) {
			t.Errorf("%s was not drawn", c.view)
		}
		t.Logf("%s of %d pods: the browser took %s from its start to its end", c.view, pods(t, c.d), took)
		if took > time.Minute {
			t.Errorf("%s took %s", c.view, took)
		}
	}
}

// browse opens a view in a headless Chromium and returns the page as it is then.
// DASHBOARD_SHOTS is a folder for screenshots, for people to look at.
func browse(t *testing.T, d *dashboardServer, view string) string {
	t.Helper()
	address := fmt.Sprintf("http://%s/?key=%s#%s", d.host, d.key, view)
	run := func(args ...string) string {
		ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
		defer cancel()
		args = append([]string{"--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--user-data-dir=" + t.TempDir(), "--virtual-time-budget=2500", "--window-size=1280,800"}, args...)
		cmd := exec.CommandContext(ctx, "chromium-headless-shell", append(args, address)...)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("run the browser (`make setup` installs it): %v", err)
		}
		return string(out)
	}
	if shots := os.Getenv("DASHBOARD_SHOTS"); shots != "" {
		name := fmt.Sprintf("%s-%d.png", regexp.MustCompile(`\W+`).ReplaceAllString(view, "-"), pods(t, d))
		run("--screenshot=" + filepath.Join(shots, name))
	}
	return run("--dump-dom")
}

func pods(t *testing.T, d *dashboardServer) int {
	t.Helper()
	doc, err := d.data(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return len(doc.Pods)
}
