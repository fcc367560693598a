package main

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"podseal.io/podseal/test/e2e/walkthrough"
)

// blind is a cluster on which all goes well, but nothing can be captured.
type blind struct{}

func (blind) Shell(_ context.Context, line string) (string, int, error) {
	switch {
	case strings.Contains(line, "jsonpath"):
		return "10.0.0.1 node-1", 0, nil
	case strings.Contains(line, "resolv.conf"):
		return "search svc.cluster.local", 0, nil
	}
	return "webserver-1  2/2  Running  0  5s  10.0.0.1  node-1", 0, nil
}

func (blind) Capture(context.Context, string, string) (*walkthrough.Capture, error) {
	return nil, errors.New("nothing captures here")
}

// What is not as expected must be an error, which makes the exit code.
func TestWalkFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		err := walk(t.Context(), walkthrough.Config{Cluster: blind{}, Out: io.Discard}, time.Now())
		if err == nil || !strings.Contains(err.Error(), "FAIL") {
			t.Errorf("got %v", err)
		}
	})
}

func TestExistingRefuses(t *testing.T) {
	err := existing(t.Context(), walkthrough.Setup{Log: io.Discard}, "/does/not/exist", walkthrough.Image)
	if err == nil || !strings.Contains(err.Error(), "find the kubeconfig") {
		t.Errorf("got %v", err)
	}
}
