package main

import (
	"slices"
	"strings"
	"testing"
)

const smaps = `00400000-0096d000 r-xp 00000000 08:01 1234 /podseal-proxy
Size:               5556 kB
Anonymous:             0 kB
0096d000-00f0d000 r--p 0056d000 08:01 1234 /podseal-proxy
Anonymous:             4 kB
00f0d000-00f6d000 rw-p 00b0d000 08:01 1234 /podseal-proxy
Anonymous:             0 kB
c000000000-c000400000 rw-p 00000000 00:00 0
Anonymous:             0 kB
7f0000000000-7f0000001000 r--s 00000000 08:01 99 /shared
Anonymous:             0 kB
7ffd0000-7ffd1000 r-xp 00000000 00:00 0 [vdso]
Anonymous:             0 kB
`

// Only pages that can be read again are given up: those of a file, not writable,
// not changed.
func TestParseUnchanged(t *testing.T) {
	got, err := parseUnchanged(strings.NewReader(smaps))
	if err != nil || !slices.Equal(got, []extent{{0x400000, 0x56d000}}) {
		t.Errorf("%+v, %v", got, err)
	}
	for i := range smaps { // cut anywhere: never more than that
		if got, err := parseUnchanged(strings.NewReader(smaps[:i])); err != nil || len(got) > 1 {
			t.Fatalf("cut at %d: %+v, %v", i, got, err)
		}
	}
}

func TestForgetProgram(t *testing.T) {
	for range 2 { // the program goes on after it
		if err := forgetProgram(); err != nil {
			t.Fatal(err)
		}
	}
}
