package policy

import (
	"slices"
	"testing"
)

// TestDecide is contract 2.13, cell by cell. The columns are: plaintext HTTP,
// other plaintext, server-first, foreign TLS, mesh TLS with an HTTP ALPN, with
// a TCP one, with ours.
// Contract 1.28.
func TestDecide(t *testing.T) {
	table := []struct {
		mode  Mode
		proto Protocol
		want  [7]Action
	}{
		{Permissive, HTTP, [7]Action{ServeHTTP, ServeHTTP, ServeTCP, Close, TerminateHTTP, TerminateHTTP, TerminateHTTP}},
		{Permissive, TCP, [7]Action{ServeTCP, ServeTCP, ServeTCP, ServeTCP, TerminateTCP, TerminateTCP, TerminateTCP}},
		{Permissive, Auto, [7]Action{ServeHTTP, ServeTCP, ServeTCP, ServeTCP, TerminateHTTP, TerminateTCP, TerminateAuto}},
		{Strict, HTTP, [7]Action{Close, Close, Close, TerminateHTTP, TerminateHTTP, TerminateHTTP, TerminateHTTP}},
		{Strict, TCP, [7]Action{Close, Close, Close, TerminateTCP, TerminateTCP, TerminateTCP, TerminateTCP}},
		{Strict, Auto, [7]Action{Close, Close, Close, TerminateTCP, TerminateHTTP, TerminateTCP, TerminateAuto}},
		{Disable, HTTP, [7]Action{ServeHTTP, ServeHTTP, ServeHTTP, ServeHTTP, ServeHTTP, ServeHTTP, ServeHTTP}},
		{Disable, TCP, [7]Action{ServeTCP, ServeTCP, ServeTCP, ServeTCP, ServeTCP, ServeTCP, ServeTCP}},
		{Disable, Auto, [7]Action{ServeHTTP, ServeTCP, ServeTCP, ServeTCP, ServeTCP, ServeTCP, ServeTCP}},
	}
	for _, row := range table {
		for seen, want := range row.want {
			got, reason := Decide(row.mode, row.proto, Seen(seen))
			if got != want {
				t.Errorf("%v %v %v: %v, want %v", row.mode, row.proto, Seen(seen), got, want)
			}
			if (got == Close) != (reason != None) {
				t.Errorf("%v %v %v: %v with reason %q", row.mode, row.proto, Seen(seen), got, reason)
			}
			if reason != None && !slices.Contains(Reasons(), reason) {
				t.Errorf("reason %q is not in the closed set", reason)
			}
		}
	}
}

// TestStrictNeverServesPlaintext holds whatever the protocol is: under STRICT
// nothing reaches the application without mutual TLS.
func TestStrictNeverServesPlaintext(t *testing.T) {
	for _, proto := range []Protocol{Auto, HTTP, TCP} {
		for seen := PlainHTTP; seen <= MeshDetect; seen++ {
			if a, _ := Decide(Strict, proto, seen); a != Close && !a.Terminates() {
				t.Errorf("STRICT %v %v: %v", proto, seen, a)
			}
		}
	}
}
