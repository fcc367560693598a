package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"podseal.io/hack/cluster/internal/host"
	"podseal.io/hack/cluster/internal/node"
	"podseal.io/hack/cluster/internal/plan"
)

const pollInterval = 200 * time.Millisecond

// waitReady returns when all daemons run, the API server answers, all nodes are
// ready and the name server is available. On the way it adds what a new cluster
// lacks: the name server and the nodes' pod ranges.
func (c *Cluster) waitReady(ctx context.Context, spec plan.Spec) error {
	steps := []struct {
		name string
		step func(context.Context, plan.Spec) error
	}{
		{"daemons running", c.daemonsRun},
		{"apiserver ready", c.apiReady},
		{"cluster objects accepted", c.applyObjects},
		{"nodes ready", c.nodesReady},
		{"name server available", c.dnsReady},
	}
	for _, s := range steps {
		waited := false
		last := errors.New("not tried")
		for {
			err := s.step(ctx, spec)
			if err == nil {
				break
			}
			if ctx.Err() == nil {
				last = err
			}
			waited = true
			select {
			case <-ctx.Done():
				return fmt.Errorf("wait for %s: %w (last: %w)", s.name, context.Cause(ctx), last)
			case <-time.After(pollInterval):
			}
		}
		if waited {
			c.Progress("%s", s.name)
		}
	}
	return nil
}

func (c *Cluster) daemonsRun(_ context.Context, spec plan.Spec) error {
	for _, n := range spec.AllNodes() {
		for _, d := range daemonStates(n) {
			if !d.Running {
				return fmt.Errorf("%s does not run on %s; see %s", d.Name, n.Name(), d.Log)
			}
		}
	}
	return nil
}

func (c *Cluster) apiReady(ctx context.Context, spec plan.Spec) error {
	_, err := kubectl(ctx, spec, nil, "get", "--raw=/readyz", "--request-timeout=5s")
	return err
}

func (c *Cluster) applyObjects(ctx context.Context, spec plan.Spec) error {
	if _, err := kubectl(ctx, spec, nil, "-n", "kube-system", "get", "service/kube-dns", "deployment/coredns", "-o", "name"); err == nil {
		return nil
	}
	manifests, err := spec.Manifests()
	if err != nil {
		return err
	}
	if _, err := kubectl(ctx, spec, manifests, "apply", "--server-side", "--force-conflicts", "-f", "-"); err != nil {
		return err
	}
	c.Progress("cluster objects applied")
	return nil
}

// object is what is read of any object here.
type object struct {
	Metadata struct {
		Name string `json:"name"`
	} `json:"metadata"`
	Spec struct {
		PodCIDR string `json:"podCIDR"`
	} `json:"spec"`
	Status struct {
		Conditions []struct {
			Type   string `json:"type"`
			Status string `json:"status"`
		} `json:"conditions"`
	} `json:"status"`
}

func (o object) is(condition string) bool {
	for _, c := range o.Status.Conditions {
		if c.Type == condition {
			return c.Status == "True"
		}
	}
	return false
}

func (c *Cluster) nodesReady(ctx context.Context, spec plan.Spec) error {
	out, err := kubectl(ctx, spec, nil, "get", "nodes", "-o", "json")
	if err != nil {
		return err
	}
	var list struct {
		Items []object `json:"items"`
	}
	if err := json.Unmarshal(out, &list); err != nil {
		return fmt.Errorf("read nodes: %w", err)
	}
	nodes := make(map[string]object)
	for _, o := range list.Items {
		nodes[o.Metadata.Name] = o
	}
	var errs []error
	for _, n := range spec.AllNodes() {
		o, ok := nodes[n.Name()]
		if ok && o.Spec.PodCIDR == "" {
			patch := fmt.Sprintf(`{"spec":{"podCIDR":%q,"podCIDRs":[%q,%q]}}`, n.PodCIDR(), n.PodCIDR(), n.PodCIDR6())
			_, err := kubectl(ctx, spec, nil, "patch", "node", n.Name(), "--type=merge", "-p", patch)
			errs = append(errs, err)
		}
		if !o.is("Ready") {
			errs = append(errs, fmt.Errorf("node %s is not ready", n.Name()))
		}
	}
	return errors.Join(errs...)
}

func (c *Cluster) dnsReady(ctx context.Context, spec plan.Spec) error {
	out, err := kubectl(ctx, spec, nil, "-n", "kube-system", "get", "deployment", "coredns", "-o", "json")
	if err != nil {
		return err
	}
	var o object
	if err := json.Unmarshal(out, &o); err != nil {
		return fmt.Errorf("read deployment: %w", err)
	}
	if !o.is("Available") {
		return errors.New("deployment coredns is not available")
	}
	return nil
}

// kubectl runs kubectl as the administrator and returns its output.
func kubectl(ctx context.Context, spec plan.Spec, stdin []byte, args ...string) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, spec.Kubernetes+"/kubectl", append([]string{"--kubeconfig=" + spec.Kubeconfig()}, args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.Bytes(), nil
}

// DaemonState is what `status` says of one daemon.
type DaemonState struct {
	Name    string `json:"name"`
	PID     int    `json:"pid,omitempty"`
	Running bool   `json:"running"`
	Log     string `json:"log"`
}

// daemonStates returns the states of the node's parent process and its daemons.
func daemonStates(n plan.Node) []DaemonState {
	states := []DaemonState{daemonState("node", n.Path(node.RecordFile), n.Path("logs", "node.log"))}
	for _, d := range n.Daemons(nil) {
		states = append(states, daemonState(d.Name, node.DaemonRecord(n, d.Name), n.Path("logs", d.Name+".log")))
	}
	return states
}

func daemonState(name, record, log string) DaemonState {
	state := DaemonState{Name: name, Log: log}
	if p, err := host.Recorded(record); err == nil && p.Alive() {
		state.PID, state.Running = p.PID, true
	}
	return state
}
