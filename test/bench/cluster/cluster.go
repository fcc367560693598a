// Package cluster measures what Podseal promises in figures on a local cluster of
// its own: the size and memory of the proxy, how much later a pod starts, how soon
// a change of policy is in force, and what two proxies cost a connection there. It
// needs root.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"podseal.io/podseal/test/e2e/walkthrough"
)

// Options say what is measured and how often.
type Options struct {
	Setup   walkthrough.Setup
	Only    []string
	Pods    int           // started for each way of injection
	Changes int           // of policy, in each direction
	Rounds  int           // of traffic
	Length  time.Duration // of one round
	Idle    time.Duration // how old an idle proxy is when it is measured
	Keep    bool          // leave the cluster up
}

// Parts are what can be measured.
const Parts = "size,policy,edges,traffic,start,memory"

// Main is a part that runs in a pod's network, as a program: serve or load.
func Main(ctx context.Context, args []string) error {
	switch args[0] {
	case "serve":
		return serve(ctx, args[1:])
	case "load":
		return load(ctx, args[1:])
	}
	return errors.New("usage: serve … | load …")
}

// Run brings the cluster up, measures, and takes it down again.
func Run(ctx context.Context, o Options) (r *Report, err error) {
	r = &Report{Machine: ThisMachine(o.Setup.Version), Began: time.Now().UTC().Truncate(time.Second), Load: LoadAverage()}
	local, err := o.Setup.Up(ctx)
	if !o.Keep {
		defer func() {
			if down := o.Setup.Down(context.WithoutCancel(ctx)); err == nil {
				err = down
			}
		}()
	}
	if err != nil {
		return nil, err
	}
	m, err := newMesh(ctx, o, local)
	if err != nil {
		return nil, err
	}
	only := "," + strings.Join(o.Only, ",") + ","
	for _, part := range []struct {
		name    string
		measure func(context.Context, Options, *Report) error
	}{{"size", m.size}, {"policy", m.policy}, {"edges", m.edges}, {"traffic", m.traffic}, {"start", m.start}, {"memory", m.memory}} {
		if !strings.Contains(only, ","+part.name+",") {
			continue
		}
		began := time.Now()
		if err := part.measure(ctx, o, r); err != nil {
			return nil, fmt.Errorf("%s: %w", part.name, err)
		}
		fmt.Fprintf(os.Stderr, "%s measured in %.0f s, load average now %s\n", part.name, time.Since(began).Seconds(), LoadAverage())
	}
	r.LoadAfter = LoadAverage()
	return r, nil
}
