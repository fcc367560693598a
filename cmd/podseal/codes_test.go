package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"podseal.io/podseal/internal/controlplane"
)

// Each exit code is in the comment of the program and in the documents.
func TestExitCodesAreDocumented(t *testing.T) {
	source, err := os.ReadFile("main.go")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile("../../docs/edges.md")
	if err != nil {
		t.Fatal(err)
	}
	comment, _, _ := strings.Cut(string(source), "\npackage main")
	comment = strings.Join(strings.Fields(strings.ReplaceAll(comment, "//", " ")), " ")
	for _, code := range []int{exitFailed, exitNotEnabled, exitUsage, exitBadInput, exitNoInput, exitUnavailable, exitVersion, exitNoPermission, exitPodSecurity, exitFindings} {
		if !strings.Contains(comment, fmt.Sprintf(" %d ", code)) {
			t.Errorf("the program's comment doesn't say what %d is", code)
		}
		if !strings.Contains(string(doc), fmt.Sprintf("| %d | ", code)) {
			t.Errorf("docs/edges.md doesn't say what %d is", code)
		}
	}
}

// What a control plane answers that refuses, is too old, is away or is asked
// nonsense is each a code of its own.
func TestExitCodesOfAnswers(t *testing.T) {
	for status, want := range map[int]int{
		http.StatusForbidden: exitNoPermission, http.StatusUnauthorized: exitNoPermission, http.StatusNotFound: exitVersion,
		http.StatusBadRequest: exitBadInput, http.StatusServiceUnavailable: exitUnavailable, http.StatusInternalServerError: exitUnavailable,
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", status) }))
		l := asLooker(t)
		l.replicas = []replica{{"istiod-1", server.URL, server.Client()}}
		_, err := l.view(t.Context(), "")
		if coded, ok := errors.AsType[codedError](err); !ok || coded.code != want {
			t.Errorf("%d: %v, want code %d", status, err, want)
		}
		server.Close()
	}
	old := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("[]")) }))
	defer old.Close()
	var coded codedError
	if err := followRecords(t.Context(), old.URL, nil); !asCoded(err, &coded) || coded.code != exitVersion {
		t.Errorf("an old proxy: %v", err)
	}
}

// A proxy that is older than the control plane is said to be, with a code of its own.
func TestStatusOfOldProxies(t *testing.T) {
	list := &statusList{Time: now, Proxies: []proxyStatus{
		{ProxyView: controlplane.ProxyView{Namespace: "shop", Pod: "new", Config: controlplane.ConfigSynced}},
		{ProxyView: controlplane.ProxyView{Namespace: "shop", Pod: "old", Config: controlplane.ConfigOutdated, Lacks: []string{"RequestAuthentication", "ServiceEntry"}}},
	}}
	var out bytes.Buffer
	printStatus(streams{out: &out}, list)
	if !strings.Contains(out.String(), "OUTDATED") || !strings.Contains(out.String(), "shop/old knows nothing of RequestAuthentication, ServiceEntry, so those are not enforced there") {
		t.Error(out.String())
	}
	var coded codedError
	if err := list.verdict(); !asCoded(err, &coded) || coded.code != exitVersion || !strings.Contains(err.Error(), "1 of 2 proxies") {
		t.Error(err)
	}
	list.Proxies = list.Proxies[:1]
	if err := list.verdict(); err != nil {
		t.Error(err)
	}
}

// An unknown namespace gets the nearest ones, as far as whoever asks may know.
func TestNoNamespace(t *testing.T) {
	if err := asLooker(t, testView()).noNamespace(t.Context(), "shpo"); !strings.Contains(err.Error(), "Did you mean shop?") {
		t.Error(err)
	}
	if err := asLooker(t, nil).noNamespace(t.Context(), "shpo"); !strings.Contains(err.Error(), `"shpo"`) {
		t.Error(err)
	}
}

// Every --namespace completes.
func TestNamespaceFlagsComplete(t *testing.T) {
	var out bytes.Buffer
	for _, args := range [][]string{{"edges", "-n", ""}, {"authz", "check", "-n", ""}, {"describe", "namespace", ""}, {"describe", "service", ""}} {
		out.Reset()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		code := run(ctx, append([]string{"__complete", "--kubeconfig", "/nonexistent"}, args...), streams{out: &out, err: &out})
		cancel()
		if code != 0 || !strings.Contains(out.String(), ":4") { // no files
			t.Errorf("%v: %d %s", args, code, out.String())
		}
	}
}
