package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

const (
	// askTimeout bounds one request to the proxy beside us.
	askTimeout  = time.Second
	waitTimeout = time.Minute
	// waitEvery is short beside what a proxy needs to become ready.
	waitEvery = 10 * time.Millisecond
)

// runWait asks until the proxy is ready (postStart: contract 5.19, 5.43).
func runWait(ctx context.Context, args []string, stderr io.Writer) int {
	fs := flag.NewFlagSet("podseal-proxy wait", flag.ContinueOnError)
	fs.SetOutput(stderr)
	url := fs.String("url", "http://127.0.0.1:15021/healthz/ready", "what to ask")
	timeout := fs.Duration("timeout", waitTimeout, "how long to ask")
	every := fs.Duration("every", waitEvery, "how often to ask")
	if code := parse(fs, args); code >= 0 {
		return code
	}
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	tick := time.NewTicker(max(*every, time.Millisecond))
	defer tick.Stop()
	var why error // what the proxy said last; not that the time is over
	for {
		err := ask(ctx, http.MethodGet, *url)
		if err == nil {
			return 0
		}
		if ctx.Err() == nil || why == nil {
			why = err
		}
		select {
		case <-ctx.Done():
			fmt.Fprintf(stderr, "podseal-proxy: the proxy did not become ready within %s: %v\n", *timeout, why)
			return 1
		case <-tick.C:
		}
	}
}

// runDrain tells the proxy that its pod is ending (preStop: contract 5.47).
func runDrain(ctx context.Context, args []string, stderr io.Writer) int {
	fs := flag.NewFlagSet("podseal-proxy drain", flag.ContinueOnError)
	fs.SetOutput(stderr)
	url := fs.String("url", "http://127.0.0.1:15020/drain", "what to ask")
	if code := parse(fs, args); code >= 0 {
		return code
	}
	if err := ask(ctx, http.MethodPost, *url); err != nil {
		fmt.Fprintf(stderr, "podseal-proxy: drain: %v\n", err)
		return 1
	}
	return 0
}

// parse reads flags and takes no other arguments; a code that isn't negative
// ends the program.
func parse(fs *flag.FlagSet, args []string) int {
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	case fs.NArg() > 0:
		fmt.Fprintf(fs.Output(), "%s: argument %q is not understood\n", fs.Name(), fs.Arg(0))
		return 2
	}
	return -1
}

// ask makes one request and wants 200.
func ask(ctx context.Context, method, url string) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, http.NoBody)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		why, _ := io.ReadAll(io.LimitReader(res.Body, 1000)) // what there is of it is good enough
		return fmt.Errorf("%s: %s", res.Status, strings.TrimSpace(string(why)))
	}
	return nil
}
