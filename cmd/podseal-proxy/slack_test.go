package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The program begins again once, as the same process, with the arguments, environment and output
// that it had, and all its threads then have the slack.
func TestSleepLonger(t *testing.T) {
	const inside = "PODSEAL_TEST_SLEEP_LONGER"
	if os.Getenv(inside) != "" {
		sleepLonger()
		slack, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
		fmt.Println("begun", os.Getpid(), slack, err, os.Args[1:], os.Getenv(inside))
		return
	}
	c := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestSleepLonger$", "-test.v")
	c.Env = append(os.Environ(), inside+"=kept")
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	want := fmt.Sprintln("begun", c.Process.Pid, timerSlack, nil, c.Args[1:], "kept")
	if strings.Count(string(out), "begun") != 1 || !strings.Contains(string(out), want) {
		t.Errorf("%s\nwant once: %s", out, want)
	}
}
