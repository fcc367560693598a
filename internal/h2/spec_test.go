package h2

import (
	"encoding/xml"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestH2Spec has summerwind/h2spec look at the relay, strict cases included, with
// net/http's server behind it. A case that fails with that server alone isn't held
// against the relay.
func TestH2Spec(t *testing.T) {
	program := filepath.Join(t.TempDir(), "h2spec")
	build := exec.CommandContext(t.Context(), "go", "build", "-modfile=tools/h2spec.mod", "-o", program, "github.com/summerwind/h2spec/cmd/h2spec")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build h2spec: %v\n%s", err, out)
	}
	r := newRig(t, nil).serve(func(w http.ResponseWriter, q *http.Request) {
		_, _ = io.Copy(io.Discard, q.Body)
		_, _ = io.WriteString(w, "some words for the window")
	})
	alone, relayed := h2spec(t, program, r.app), h2spec(t, program, r.front)
	if len(relayed) < 140 {
		t.Errorf("only %d cases", len(relayed))
	}
	for name, failure := range relayed {
		if failure == "" {
			continue
		}
		if alone[name] != "" {
			t.Logf("%s fails without the relay, too: %s", name, failure)
			continue
		}
		t.Errorf("%s: %s", name, failure)
	}
}

// h2spec returns the cases with how they failed.
func h2spec(t *testing.T, program string, at net.Listener) map[string]string {
	t.Helper()
	host, port, err := net.SplitHostPort(at.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	report := filepath.Join(t.TempDir(), "report.xml")
	out, err := exec.CommandContext(t.Context(), program, "-h", host, "-p", port, "-S", "-o", "2", "-j", report).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%v\n%s", err, out)
	}
	text, err := os.ReadFile(report)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var suites struct {
		Suites []struct {
			Cases []struct {
				Package string `xml:"package,attr"`
				Class   string `xml:"classname,attr"`
				Failure string `xml:"failure"`
				Error   string `xml:"error"`
			} `xml:"testcase"`
		} `xml:"testsuite"`
	}
	if err := xml.Unmarshal(text, &suites); err != nil {
		t.Fatal(err)
	}
	cases := map[string]string{}
	for _, s := range suites.Suites {
		for _, c := range s.Cases {
			cases[c.Package+" "+c.Class] = c.Failure + c.Error
		}
	}
	return cases
}
