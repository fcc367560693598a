package main

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"podseal.io/podseal/internal/proxy"
)

func env(pairs ...string) func(string) string {
	m := map[string]string{"POD_NAME": "web-1", "POD_NAMESPACE": "shop"}
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i]] = pairs[i+1]
	}
	return func(k string) string { return m[k] }
}

func TestUsage(t *testing.T) {
	tests := map[string]struct {
		args []string
		code int
		says string
	}{
		"nothing":          {nil, 2, "Usage:"},
		"unknown command":  {[]string{"prox"}, 2, `no command "prox"`},
		"help":             {[]string{"help"}, 0, "carry the pod's traffic"},
		"version":          {[]string{"version"}, 0, "dev"},
		"help of proxy":    {[]string{"proxy", "-h"}, 0, "-ca-address"},
		"unknown flag":     {[]string{"proxy", "--nope"}, 2, "nope"},
		"role":             {[]string{"proxy", "router"}, 2, `role "router"`},
		"more":             {[]string{"proxy", "sidecar", "more"}, 2, `argument "more"`},
		"wait with rubble": {[]string{"wait", "x"}, 2, `argument "x"`},
		"drain, nobody":    {[]string{"drain", "-url", "http://127.0.0.1:1/drain"}, 1, "drain: "},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			if code := run(t.Context(), tt.args, env(), &out, &out); code != tt.code || !strings.Contains(out.String(), tt.says) {
				t.Errorf("code %d, want %d: %s", code, tt.code, out.String())
			}
		})
	}
}

// Contract 5.15, 5.16: the arguments and the environment of an injected container.
// Contract 4.42.
func TestInjectedSettings(t *testing.T) {
	var out bytes.Buffer
	args := strings.Fields("sidecar --domain shop.svc.cluster.local --proxyLogLevel=warning --proxyComponentLogLevel=misc:error --log_output_level=default:info")
	cfg, _, code := proxyConfig(args, env("CA_ADDR", "istiod.d8-istio.svc:15012", "INSTANCE_IP", "10.0.0.7", "SERVICE_ACCOUNT", "web",
		"ISTIO_META_CLUSTER_ID", "Kubernetes", "TERMINATION_DRAIN_DURATION", "7s", "ISTIO_KUBE_APP_PROBERS", "{}",
		"ISTIO_PROMETHEUS_ANNOTATIONS", `{"scrape":"true","path":"/m","port":"9090"}`), &out)
	if code != -1 {
		t.Fatalf("code %d: %s", code, out.String())
	}
	if cfg.Pod != "web-1" || cfg.Namespace != "shop" || cfg.Addresses[0].String() != "10.0.0.7" || cfg.Drain != 7*time.Second ||
		cfg.Control.Address != "istiod.d8-istio.svc:15012" || cfg.Control.StateFile != "/var/lib/istio/data/world" || cfg.Metadata["SERVICE_ACCOUNT"] != "web" || string(cfg.Probers) != "{}" ||
		cfg.AppMetrics != (proxy.AppMetrics{Port: 9090, Path: "/m"}) || cfg.Listen != proxy.DefaultListen() {
		t.Errorf("%+v", cfg)
	}
}

func TestWrongEnvironmentIsReportedAtOnce(t *testing.T) {
	var out bytes.Buffer
	_, _, code := proxyConfig(nil, env("POD_NAME", "", "INSTANCE_IP", "10.0.0", "TERMINATION_DRAIN_DURATION", "soon", "PODSEAL_MAX_CONNECTIONS", "-1", "ISTIO_PROMETHEUS_ANNOTATIONS", `{"scrape":"true","port":"x"}`), &out)
	if code != 2 {
		t.Errorf("code %d", code)
	}
	for _, want := range []string{"POD_NAME", "INSTANCE_IP", "TERMINATION_DRAIN_DURATION", "PODSEAL_MAX_CONNECTIONS", "ISTIO_PROMETHEUS_ANNOTATIONS"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("nothing about %s in %s", want, out.String())
		}
	}
}

func TestWait(t *testing.T) {
	var asked atomic.Int32
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if asked.Add(1) < 3 {
			http.Error(w, "no certificate yet", http.StatusServiceUnavailable)
		}
	}))
	defer s.Close()
	var out bytes.Buffer
	if code := run(t.Context(), []string{"wait", "-url", s.URL, "-every", "1ms"}, env(), &out, &out); code != 0 || asked.Load() != 3 {
		t.Errorf("code %d after %d requests: %s", code, asked.Load(), out.String())
	}
	asked.Store(-1 << 30)
	if code := run(t.Context(), []string{"wait", "-url", s.URL, "-every", "1ms", "-timeout", "100ms"}, env(), &out, &out); code != 1 || !strings.Contains(out.String(), "no certificate yet") {
		t.Errorf("code %d: %s", code, out.String())
	}
}

// A message is left only where the kubelet has put a file for it.
func TestLeaveMessage(t *testing.T) {
	dir := t.TempDir()
	leaveMessage(dir+"/none", "x")
	if _, err := os.Stat(dir + "/none"); err == nil {
		t.Error("a file was made")
	}
	if err := os.WriteFile(dir+"/log", []byte("an older and longer text"), 0o600); err != nil {
		t.Fatal(err)
	}
	leaveMessage(dir+"/log", "why")
	if b, err := os.ReadFile(dir + "/log"); err != nil || string(b) != "why" {
		t.Errorf("%q, %v", b, err)
	}
}

// A proxy that never became ready has failed, and says what it was waiting for
// (contract 5.19).
func TestNeverReady(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var out bytes.Buffer
	args := []string{"proxy", "-ca-address", "127.0.0.1:1", "-state-file", "", "-root-file", "/nowhere", "-token-file", "/nowhere"}
	for _, name := range []string{"outbound", "inbound", "health", "metrics", "stats", "admin"} {
		args = append(args, "-listen-"+name, "127.0.0.1:0")
	}
	if code := run(ctx, args, env(), &out, &out); code != 1 || !strings.Contains(out.String(), "before it was ready: the control plane has not told") {
		t.Errorf("code %d: %s", code, out.String())
	}
}

func TestDrainPosts(t *testing.T) {
	var method string
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { method = r.Method }))
	defer s.Close()
	if code := run(t.Context(), []string{"drain", "-url", s.URL}, env(), &bytes.Buffer{}, &bytes.Buffer{}); code != 0 || method != http.MethodPost {
		t.Errorf("code %d, method %s", code, method)
	}
}

// A port that is taken ends the program with what to do about it.
func TestTakenPort(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var out bytes.Buffer
	code := run(t.Context(), []string{"proxy", "-listen-outbound", "127.0.0.1:0", "-listen-inbound", l.Addr().String()}, env(), &out, &out)
	if code != 1 || !strings.Contains(out.String(), "is taken by another program in this pod") {
		t.Errorf("code %d: %s", code, out.String())
	}
}
