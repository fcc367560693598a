package main

import (
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// timerSlack is by how much the kernel may let this program sleep too long, in
// nanoseconds; it is 50 µs for others. Go's monitor wants to look around every 20 µs
// whenever the proxy has something to do, and each look takes the core from whoever
// works there. Deadlines of a proxy are not that exact.
const timerSlack = 1_000_000

// slackSet is in the environment of a program that was started for its timer slack.
const slackSet = "PODSEAL_TIMER_SLACK"

// sleepLonger begins this program again with that slack, once: the monitor is there
// before any code of ours, threads have that of the one that has made them, and only
// what a program begins with is the same for all. It is still the same process. Where
// the kernel wants none of it, the program goes on as it is.
func sleepLonger() {
	if os.Getenv(slackSet) != "" {
		return
	}
	self, err := os.Executable()
	if err != nil {
		return
	}
	runtime.LockOSThread() // the slack is the thread's until then
	defer runtime.UnlockOSThread()
	if unix.Prctl(unix.PR_SET_TIMERSLACK, timerSlack, 0, 0, 0) != nil {
		return
	}
	_ = syscall.Exec(self, os.Args, append(os.Environ(), slackSet+"=1")) //nolint:gosec // itself, with its own arguments; it returns if it fails
}
