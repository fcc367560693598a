package main

import "os"

// terminationLog is a file that the kubelet lays into every container. What it
// holds when the container has ended is shown by kubectl describe.
const terminationLog = "/dev/termination-log"

// leaveMessage writes why the program failed. Outside of a container there is no
// such file, and none is made; the text is in the log as well.
func leaveMessage(path, text string) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return
	}
	_, _ = f.WriteString(text) // see above
	_ = f.Close()
}
