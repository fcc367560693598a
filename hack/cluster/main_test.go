package main

import (
	"bytes"
	"io"
	"strings"
	"testing"
)

func TestRunRefuses(t *testing.T) {
	for _, test := range []struct{ args, want string }{
		{"", "no verb given: want one of up, down"},
		{"upp", `unknown verb "upp": want one of up, down`},
		{"up --nodes 3", "number of nodes 3: must be 1 or 2"},
		{"up --nodes 0", "number of nodes 0: must be 1 or 2"},
		{"up --nodes x", `invalid value "x"`},
		{"up --name Big", `cluster name "Big": must be`},
		{"up extra", `unexpected argument "extra"; usage: cluster up`},
		{"status --name absent-one", `"up --name absent-one"`},
		{"status -o yaml --name absent-one", "want text or json"},
		{"load", "no image archive given"},
		{"node", "no node given"},
		{"node first", `node "first": want a number`},
		{"kubeconfig --name absent-one", "no such cluster"},
		{"shell kubectl get pods", `unexpected argument "kubectl"; usage: cluster shell [--name NAME] [-- CMD...]`},
		{"node 1 --name absent-one -- ls", "no such cluster"},
		{"node 1 2", `unexpected argument "2"`},
		{"load x.tar --name absent-one", "no such cluster"},
		{"run-node", "internal verb"},
	} {
		err := run(t.Context(), strings.Fields(test.args), io.Discard, io.Discard)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("cluster %s: got %v, want %q", test.args, err, test.want)
		}
	}
}

func TestHelp(t *testing.T) {
	for _, args := range []string{"--help", "up --help", "node -h"} {
		var out bytes.Buffer
		if err := run(t.Context(), strings.Fields(args), &out, io.Discard); err != nil || !strings.Contains(out.String(), "Usage:") {
			t.Errorf("cluster %s: got %q, %v", args, out.String(), err)
		}
	}
}
