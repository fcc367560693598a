package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"podseal.io/podseal/internal/install"
	"podseal.io/podseal/internal/version"
)

// podseal runs one command line.
func podseal(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errOut bytes.Buffer
	code = run(t.Context(), args, streams{in: strings.NewReader(""), out: &out, err: &errOut})
	return out.String(), errOut.String(), code
}

func TestCommandLine(t *testing.T) {
	t.Setenv("KUBECONFIG", filepath.Join(t.TempDir(), "none"))
	t.Setenv("HOME", t.TempDir())
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	values := filepath.Join(t.TempDir(), "values.yaml")
	if err := os.WriteFile(values, []byte("image: {hub: registry.example.com/mesh}"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		args   []string
		code   int
		stdout string // is contained
		stderr string
	}{
		"version":                  {[]string{"version", "--client"}, 0, "client version: " + version.Version, ""},
		"version, short":           {[]string{"version", "--short"}, 0, version.Version + "\n", ""},
		"version without cluster":  {[]string{"version"}, 0, "control plane version: unavailable", "--kubeconfig"},
		"version, json":            {[]string{"version", "--client", "-o", "json"}, 0, `"client": `, ""},
		"unknown command":          {[]string{"instal"}, exitUsage, "", "Did you mean this"},
		"unknown flag":             {[]string{"install", "--nonsense"}, exitUsage, "", "unknown flag: --nonsense"},
		"argument":                 {[]string{"check", "now"}, exitUsage, "", `takes no arguments, got "now"`},
		"wrong output":             {[]string{"check", "-o", "xml"}, exitUsage, "", "write one of table, short, json"},
		"no cluster":               {[]string{"check"}, exitFailed, "", "Name a cluster with --kubeconfig FILE"},
		"no such kubeconfig":       {[]string{"install", "--kubeconfig", "/nowhere"}, exitFailed, "", "/nowhere"},
		"dry run":                  {[]string{"install", "--dry-run"}, 0, "name: podseal-manager", ""},
		"dry run, json":            {[]string{"install", "--dry-run", "-o", "json"}, 0, `"kind": "List"`, ""},
		"dry run, control plane":   {[]string{"install", "--dry-run", "--part", "controlplane"}, 0, "name: istio-sidecar-injector", ""},
		"dry run, values":          {[]string{"install", "--dry-run", "--values", values, "--set", "image.tag=v7"}, 0, "image: registry.example.com/mesh/podseal:v7", ""},
		"dry run, domain":          {[]string{"install", "--dry-run", "--cluster-domain", "corp.example"}, 0, `"clusterDomain":"corp.example"`, ""},
		"part without dry run":     {[]string{"install", "--part", "controlplane"}, exitUsage, "", "--part is for --dry-run"},
		"value without =":          {[]string{"install", "--dry-run", "--set", "image.tag"}, exitUsage, "", "write KEY=VALUE"},
		"unknown value":            {[]string{"install", "--dry-run", "--set", "image.tagg=v1"}, exitUsage, "", "tagg"},
		"no such values file":      {[]string{"install", "--dry-run", "--values", "/nowhere"}, exitUsage, "", "/nowhere"},
		"manager, wrong values":    {[]string{"manager", "--chart-values", "{"}, exitUsage, "", "--chart-values is not a JSON object"},
		"manager, wrong log level": {[]string{"manager", "--log-level", "loud"}, exitUsage, "", "loud"},
		"completion":               {[]string{"completion", "bash"}, 0, "podseal", ""},
		"help":                     {[]string{"help"}, 0, "podseal check --pre", ""},
	} {
		t.Run(name, func(t *testing.T) {
			stdout, stderr, code := podseal(t, tc.args...)
			if code != tc.code {
				t.Errorf("exit code %d, want %d", code, tc.code)
			}
			if !strings.Contains(stdout, tc.stdout) {
				t.Errorf("stdout does not contain %q:\n%.2000s", tc.stdout, stdout)
			}
			if !strings.Contains(stderr, tc.stderr) || (tc.code == 0 && tc.stderr == "" && stderr != "") {
				t.Errorf("stderr, want %q in it:\n%.2000s", tc.stderr, stderr)
			}
			if strings.Contains(stderr, "Usage:") {
				t.Error("an error is followed by the whole usage")
			}
		})
	}
}

// An API server that isn't there is the one thing that install says.
func TestNoAPIServer(t *testing.T) {
	kubeconfig := filepath.Join(t.TempDir(), "config")
	text := "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}]\ncontexts: [{name: x, context: {cluster: c}}]\ncurrent-context: x\n"
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	stdout, stderr, code := podseal(t, "install", "--kubeconfig", kubeconfig)
	if code != exitFailed || stdout != "" || !strings.HasPrefix(stderr, "podseal: reach the API server: ") {
		t.Errorf("exit code %d: %s%s", code, stdout, stderr)
	}
}

// An API server that refuses everything: each command says so and nothing else
// happens.
func TestRefusedByTheAPIServer(t *testing.T) {
	var wrote bool
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		wrote = wrote || r.Method != http.MethodGet
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusForbidden)
		_ = json.NewEncoder(w).Encode(map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Forbidden", "message": "you may not", "code": 403})
	}))
	defer server.Close()
	kubeconfig := filepath.Join(t.TempDir(), "config")
	text := "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: '" + server.URL + "'}}]\ncontexts: [{name: x, context: {cluster: c}}]\ncurrent-context: x\n"
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{"install", "uninstall"} {
		_, stderr, code := podseal(t, command, "--kubeconfig", kubeconfig)
		if code != exitFailed || !strings.Contains(stderr, "server groups") {
			t.Errorf("%s: exit code %d: %s", command, code, stderr)
		}
	}
	stdout, _, code := podseal(t, "check", "--kubeconfig", kubeconfig, "-o", "json")
	var report install.Report
	if err := json.Unmarshal([]byte(stdout), &report); err != nil {
		t.Fatal(err)
	}
	if code != exitFailed || report.Success || report.Categories[0].Checks[0].Result != install.Error {
		t.Errorf("check: exit code %d, %+v", code, report)
	}
	if wrote {
		t.Error("something was written")
	}
}

func TestPrintReport(t *testing.T) {
	report := install.Report{Categories: []install.Category{{Name: "podseal", Checks: []install.CheckResult{
		{Description: "a is b", Result: install.Success},
		{Description: "c is d", Result: install.Warning, Error: "c is e\nand f", Hint: "make it d"},
		{Description: "g is h", Result: install.Error, Error: "no g", Hint: "add g"},
	}}}}
	for _, tc := range []struct {
		short, color bool
		want         string
	}{
		{false, false, "podseal\n-------\n√ a is b\n‼ c is d\n    c is e\n    and f\n    what to do: make it d\n× g is h\n    no g\n    what to do: add g\n\nStatus check results are ×\n"},
		{true, false, "podseal\n-------\n‼ c is d\n    c is e\n    and f\n    what to do: make it d\n× g is h\n    no g\n    what to do: add g\n\nStatus check results are ×\n"},
		{true, true, "podseal\n-------\n\x1b[33m‼\x1b[0m c is d\n    c is e\n    and f\n    what to do: make it d\n\x1b[31m×\x1b[0m g is h\n    no g\n    what to do: add g\n\nStatus check results are \x1b[31m×\x1b[0m\n"},
	} {
		var out bytes.Buffer
		printReport(streams{out: &out, color: tc.color}, report, tc.short)
		if out.String() != tc.want {
			t.Errorf("short %v, color %v:\n%s", tc.short, tc.color, out.String())
		}
	}
}
