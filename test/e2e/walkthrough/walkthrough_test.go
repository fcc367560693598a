package walkthrough

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
)

// fake is a cluster on which every line succeeds but the one that contains broken.
type fake struct {
	broken string
	lines  *[]string
}

func (f fake) Shell(_ context.Context, line string) (string, int, error) {
	if f.lines != nil {
		*f.lines = append(*f.lines, line)
	}
	switch {
	case f.broken != "" && strings.Contains(line, f.broken):
		return "it is broken\n", 1, nil
	case strings.HasSuffix(line, "--no-headers"):
		return "webserver-1  2/2  Running  0  5s  10.0.0.1  node-1", 0, nil
	case strings.Contains(line, "jsonpath"):
		return "10.0.0.1 node-1", 0, nil
	case strings.Contains(line, "resolv.conf"):
		return "search test-istio-mtls.svc.example.org svc.example.org example.org", 0, nil
	}
	return "", 0, nil
}

func (f fake) Capture(context.Context, string, string) (*Capture, error) {
	return nil, errors.New("nothing captures here")
}

func TestRunTellsOfABrokenStep(t *testing.T) {
	for broken, want := range map[string]string{
		"kind: ModuleConfig":        "it is broken",
		"istio-sidecar-injector":    "not registered a minute after",
		"create namespace":          "it is broken",
		"expose deployment":         "it is broken",
		"rollout status":            "it is broken",
		"create deployment client":  "it is broken",
		"patch peerauthentication":  "it is broken",
		"delete peerauthentication": "it is broken",
	} {
		synctest.Test(t, func(t *testing.T) {
			_, err := Run(t.Context(), Config{Cluster: fake{broken: broken}, Out: io.Discard})
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%q fails: got %v", broken, err)
			}
		})
	}
}

func TestRunTellsOfFailedCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out strings.Builder
		var lines []string
		report, err := Run(t.Context(), Config{Cluster: fake{lines: &lines}, Out: &out, Image: "mine.example/aio:2"})
		if err != nil || !report.Failed() {
			t.Fatalf("failed %t, %v", report.Failed(), err)
		}
		report.Table(&out)
		for _, want := range []string{"FAIL", "nothing captures here", fmt.Sprintf("1 of %d as expected.", len(report.Rows))} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("the transcript lacks %q:\n%s", want, out.String())
			}
		}
		all := strings.Join(lines, "\n")
		if strings.Contains(all, Image) || !strings.Contains(all, "--image=mine.example/aio:2") {
			t.Errorf("the walk does not use the image that it was given:\n%s", all)
		}
	})
}

func TestFailed(t *testing.T) {
	for _, test := range []struct {
		rows []Row
		want bool
	}{
		{nil, true}, // nothing was shown
		{[]Row{{Call: "a"}}, false},
		{[]Row{{Call: "a"}, {Call: "b", Faults: []string{"x"}}}, true},
	} {
		if got := (Report{Rows: test.rows}).Failed(); got != test.want {
			t.Errorf("%+v: got %t", test.rows, got)
		}
	}
}

func TestTidy(t *testing.T) {
	in := "Unable to use a TTY - input is not a terminal or the right kind of file\nHTTP/1.1 200 OK\n\n<!DOCTYPE html>\n<p>\n</html>\n\n"
	if got, want := tidy(in), "HTTP/1.1 200 OK\n\n<!DOCTYPE html> ... (28 bytes)\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestJudgeImages(t *testing.T) {
	const set = `{"kind":"DaemonSet","metadata":{"generation":1},"status":{"observedGeneration":1,"desiredNumberScheduled":1}}`
	pod := func(state string) string {
		return `{"kind":"Pod","spec":{"nodeName":"n","containers":[{"name":"a","image":"i:1"}]},"status":{"containerStatuses":[` + state + `]}}`
	}
	for name, test := range map[string]struct {
		items   []string
		missing string
		done    bool
	}{
		"nothing there":   {nil, "", false},
		"no pod yet":      {[]string{set}, "", false},
		"no status yet":   {[]string{set, pod("")}, "", false},
		"being pulled":    {[]string{set, pod(`{"name":"a","state":{"waiting":{"reason":"ContainerCreating"}}}`)}, "", false},
		"not to be had":   {[]string{set, pod(`{"name":"a","state":{"waiting":{"reason":"ImagePullBackOff"}}}`)}, "[{n i:1 ImagePullBackOff}]", true},
		"there":           {[]string{set, pod(`{"name":"a","imageID":"sha256:1","state":{"running":{}}}`)}, "", true},
		"there and ended": {[]string{set, pod(`{"name":"a","imageID":"sha256:1","state":{"waiting":{"reason":"CrashLoopBackOff"}}}`)}, "", true},
		"pods of nobody":  {[]string{pod(`{"name":"a","imageID":"sha256:1"}`)}, "", false},
	} {
		missing, done, err := judgeImages([]byte(`{"items":[` + strings.Join(test.items, ",") + `]}`))
		got := ""
		if len(missing) > 0 {
			got = fmt.Sprint(missing)
		}
		if err != nil || got != test.missing || done != test.done {
			t.Errorf("%s: got %s, %t, %v", name, got, done, err)
		}
	}
	if _, _, err := judgeImages([]byte("error: no such thing")); err == nil {
		t.Error("what is no JSON was read")
	}
}
