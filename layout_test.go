// Package podseal holds the rules of this repository, as tests.
package podseal

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "podseal.io/podseal/"

// mayImport is the import table: a package may import what stands in its line,
// and nothing else of this module. Arrows go down only.
var mayImport = map[string]string{
	"internal/version":       "",
	"internal/identity":      "",
	"internal/jwt":           "",
	"internal/policy":        "internal/identity internal/jwt",
	"internal/workload":      "internal/identity internal/policy",
	"internal/extauthz":      "internal/authpb internal/policy",
	"internal/authpb":        "",
	"internal/wire":          "internal/identity internal/policy internal/workload api/mesh/v1",
	"internal/tlsconn":       "internal/identity",
	"internal/h2":            "",
	"internal/xds":           "internal/xds/xdspb",
	"internal/xds/xdspb":     "",
	"internal/ca":            "internal/identity",
	"internal/capture":       "",
	"internal/cni":           "internal/capture",
	"internal/proxy":         "internal/accesslog internal/extauthz internal/identity internal/jwt internal/policy internal/workload internal/wire internal/tlsconn internal/h2 internal/xds internal/ca internal/capture internal/metrics internal/version internal/edges internal/report api/report/v1",
	"internal/accesslog":     "",
	"internal/settings":      "api/deckhouse/v1alpha1 internal/accesslog",
	"internal/discovery":     "internal/identity internal/jwt internal/policy internal/settings internal/wire internal/workload internal/xds",
	"internal/inject":        "internal/settings",
	"internal/controlplane":  "internal/dashboard internal/discovery internal/jwt internal/inject internal/ca internal/xds internal/settings internal/metrics internal/identity internal/version internal/wire internal/edges internal/report internal/explain internal/strict internal/upgrade api/peer/v1",
	"internal/explain":       "internal/identity internal/policy internal/wire internal/workload",
	"internal/strict":        "internal/edges",
	"internal/upgrade":       "",
	"internal/analysis":      "internal/discovery internal/inject internal/policy internal/settings internal/workload",
	"internal/proof":         "internal/wire",
	"internal/edges":         "internal/identity api/report/v1",
	"internal/report":        "internal/edges api/report/v1",
	"internal/install":       "internal/settings api/deckhouse/v1alpha1 deploy/podseal internal/upgrade internal/version",
	"internal/dashboard":     "",
	"internal/metrics":       "",
	"internal/meshtest":      "internal/identity internal/policy internal/workload internal/wire internal/xds internal/ca",
	"api/deckhouse/v1alpha1": "",
	"api/mesh/v1":            "",
	"api/report/v1":          "",
	"api/peer/v1":            "",
	"deploy/podseal":         "",
	"cmd/podseal":            "api/deckhouse/v1alpha1 internal/dashboard internal/ca internal/identity internal/controlplane internal/discovery internal/analysis internal/explain internal/strict internal/edges internal/install internal/inject internal/settings internal/proof internal/version",
	"cmd/podseal-proxy":      "internal/proxy internal/capture internal/cni internal/proof internal/version",
}

// onlyIn says where an outside package (by prefix) may be imported.
var onlyIn = map[string]string{
	"k8s.io/":                        "api/deckhouse/v1alpha1 internal/settings internal/discovery internal/analysis internal/inject internal/upgrade internal/controlplane internal/install cmd/podseal",
	"sigs.k8s.io/controller-runtime": "internal/controlplane internal/install cmd/podseal",
	"helm.sh/":                       "internal/install",
	"istio.io/client-go":             "internal/discovery internal/controlplane internal/install",
	"google.golang.org/grpc":         "internal/extauthz internal/authpb api/report/v1 api/peer/v1 internal/report internal/xds internal/xds/xdspb internal/ca internal/controlplane internal/proxy internal/meshtest",
	"github.com/google/nftables":     "internal/capture",
	"github.com/vishvananda/":        "internal/capture internal/proof",
	"github.com/containernetworking": "internal/cni",
}

// ioFree packages decide: they open nothing and read no clock.
var ioFree = []string{"internal/identity", "internal/jwt", "internal/policy", "internal/workload", "internal/wire", "internal/accesslog", "internal/discovery", "internal/settings", "internal/inject", "internal/edges", "internal/explain", "internal/strict", "internal/upgrade", "internal/analysis"}

// notInProxy is what podseal-proxy must not link: it runs in every pod.
var notInProxy = []string{"k8s.io/client-go", "k8s.io/api", "sigs.k8s.io/controller-runtime", "helm.sh/", "text/template", "html/template", "golang.org/x/net/trace"}

// proxyBudget is the size that bin/podseal-proxy may have, in bytes.
const proxyBudget = 16_000_000

func TestImportTable(t *testing.T) {
	for dir, imports := range packages(t) {
		allowed, listed := mayImport[dir]
		if !listed {
			t.Errorf("%s is not in the import table: add a line and say in docs/decisions why it is a package", dir)
		}
		for _, imp := range imports {
			if own, ok := strings.CutPrefix(imp, module); ok {
				if !slices.Contains(strings.Fields(allowed), own) {
					t.Errorf("%s imports %s, which its line in the import table does not allow", dir, own)
				}
				continue
			}
			for prefix, where := range onlyIn {
				if strings.HasPrefix(imp, prefix) && !slices.Contains(strings.Fields(where), dir) {
					t.Errorf("%s imports %s, which may be imported only in: %s", dir, imp, where)
				}
			}
			if slices.Contains(ioFree, dir) && slices.Contains([]string{"os", "os/exec", "net/http", "syscall"}, imp) {
				t.Errorf("%s decides and does no I/O, but imports %s", dir, imp)
			}
		}
	}
}

func TestPackageComments(t *testing.T) {
	documented := map[string]bool{}
	walkGo(t, func(path string) {
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments|parser.PackageClauseOnly)
		if err != nil {
			t.Fatal(err)
		}
		dir := filepath.Dir(path)
		documented[dir] = documented[dir] || (f.Doc != nil && len(f.Doc.Text()) > 20)
	})
	for dir, ok := range documented {
		if !ok {
			t.Errorf("%s has no package comment that says what it is for", dir)
		}
	}
}

func TestNoVagueNames(t *testing.T) {
	for dir := range packages(t) {
		if slices.Contains([]string{"util", "utils", "common", "helpers", "pkg", "types", "misc"}, filepath.Base(dir)) {
			t.Errorf("%s: the name says nothing", dir)
		}
	}
}

// TestProxyLinks builds podseal-proxy the way a release does and looks at what
// is in it and how large it is.
func TestProxyLinks(t *testing.T) {
	out := filepath.Join(t.TempDir(), "podseal-proxy")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-buildvcs=false", "-tags", "grpcnotrace", "-ldflags", "-s -w -buildid=", "-o", out, "./cmd/podseal-proxy")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build podseal-proxy: %v\n%s", err, b)
	}
	info, err := os.Stat(out)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("podseal-proxy: %.1f MB", float64(info.Size())/1e6)
	if info.Size() > proxyBudget {
		t.Errorf("podseal-proxy is %d bytes, the budget is %d: make it smaller, or change the budget and say why", info.Size(), proxyBudget)
	}
	deps, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "-tags", "grpcnotrace", "./cmd/podseal-proxy").Output()
	if err != nil {
		t.Fatal(err)
	}
	for dep := range strings.Lines(string(deps)) {
		for _, banned := range notInProxy {
			if strings.HasPrefix(strings.TrimSpace(dep), banned) {
				t.Errorf("podseal-proxy links %s", strings.TrimSpace(dep))
			}
		}
	}
}

// packages maps each folder to what its files outside tests import.
func packages(t *testing.T) map[string][]string {
	t.Helper()
	found := map[string][]string{}
	walkGo(t, func(path string) {
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		dir := filepath.ToSlash(filepath.Dir(path))
		for _, imp := range f.Imports {
			found[dir] = append(found[dir], strings.Trim(imp.Path.Value, `"`))
		}
	})
	return found
}

// walkGo calls visit for each Go file of this module that is not a test.
func walkGo(t *testing.T, visit func(path string)) {
	t.Helper()
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != "." {
			if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil || strings.HasPrefix(d.Name(), ".") || path == "test" || path == "bin" {
				return filepath.SkipDir
			}
			return nil
		}
		if filepath.Dir(path) != "." && strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") {
			visit(path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
