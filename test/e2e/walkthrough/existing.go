package walkthrough

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Existing is a cluster that somebody already has, by its kubeconfig. Packets are
// captured by a privileged pod on the node's own network.
type Existing struct {
	Kubeconfig string
	// Image is the all-in-one image: what the walk runs, and what captures.
	Image string
	tools string // folder with d8, put first on the PATH
}

// helperNamespace holds what the demo itself runs on the cluster: the pods that
// try the images, and the one that captures.
const helperNamespace = "podseal-demo"

// NewExisting looks for what a walk on somebody's cluster needs and for what would
// be in its way, and changes nothing. Close removes what the walk's helpers leave.
func NewExisting(ctx context.Context, kubeconfig, image string) (*Existing, error) {
	if rest, ok := strings.CutPrefix(kubeconfig, "~/"); ok { // not every shell expands it in "make KUBECONFIG=~/…"
		home, err := os.UserHomeDir()
		if err != nil {
			return nil, fmt.Errorf("find the kubeconfig %s: %w", kubeconfig, err)
		}
		kubeconfig = filepath.Join(home, rest)
	}
	kubeconfig, err := filepath.Abs(kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("find the kubeconfig: %w", err)
	}
	if _, err := os.Stat(kubeconfig); err != nil {
		return nil, fmt.Errorf("find the kubeconfig: %w", err)
	}
	if _, err := exec.LookPath("kubectl"); err != nil {
		return nil, errors.New("kubectl is not on the PATH; the walkthrough runs on a cluster of your own with your own kubectl")
	}
	e := &Existing{Kubeconfig: kubeconfig, Image: image}
	if e.tools, err = os.MkdirTemp("", "podseal-demo"); err != nil {
		return nil, fmt.Errorf("make a folder for d8: %w", err)
	}
	const d8 = "#!/bin/sh\n[ \"$1\" = k ] && shift\nexec kubectl \"$@\"\n"
	err = os.WriteFile(filepath.Join(e.tools, "d8"), []byte(d8), 0o700)
	if err == nil {
		err = e.unobstructed(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(e.tools))
	}
	return e, nil
}

// unobstructed says what of the walk's objects the cluster has already.
func (e *Existing) unobstructed(ctx context.Context) error {
	out, code, err := e.Shell(ctx, "kubectl version")
	if err != nil || code != 0 {
		return fmt.Errorf("reach the cluster of %s: %w", e.Kubeconfig, errors.Join(err, errors.New(strings.TrimSpace(out))))
	}
	out, _, err = e.Shell(ctx, `for o in moduleconfigs.deckhouse.io/istio namespaces/`+namespace+` namespaces/`+outside+` namespaces/`+helperNamespace+` peerauthentications.security.istio.io/default; do
kubectl -n `+rootNamespace+` get $o -o name 2>/dev/null; done; true`)
	if err != nil {
		return err
	}
	if out = strings.TrimSpace(out); out != "" {
		return fmt.Errorf("the walkthrough makes these itself, and they are there already; remove them first if they are yours to remove:\n  %s",
			strings.ReplaceAll(out, "\n", "\n  "))
	}
	return nil
}

// Close removes the helpers from the cluster and from this machine.
func (e *Existing) Close(ctx context.Context) error {
	_, code, err := e.Shell(ctx, "kubectl delete namespace --ignore-not-found "+helperNamespace)
	if err == nil && code != 0 {
		err = fmt.Errorf("exit code %d", code)
	}
	if err != nil {
		err = fmt.Errorf("remove namespace %s: %w", helperNamespace, err)
	}
	return errors.Join(err, os.RemoveAll(e.tools))
}

// Shell implements Cluster.
func (e *Existing) Shell(ctx context.Context, line string) (string, int, error) {
	return run(ctx, e.bash(ctx, line))
}

func (e *Existing) bash(ctx context.Context, line string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "bash", "-c", line)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+e.Kubeconfig, "PATH="+e.tools+":"+os.Getenv("PATH"))
	return cmd
}

// apply applies manifests in the helpers' namespace, which it makes if need be.
func (e *Existing) apply(ctx context.Context, manifests string) error {
	line := fmt.Sprintf(`kubectl apply -f - <<'EOF'
apiVersion: v1
kind: Namespace
metadata: {name: %s, labels: {pod-security.kubernetes.io/enforce: privileged}}
---
%s
EOF`, helperNamespace, manifests)
	out, code, err := e.Shell(ctx, line)
	if err == nil && code != 0 {
		err = errors.New(strings.TrimSpace(out))
	}
	return err
}

// Capture implements Cluster. The pod stays for the next capture; Close removes it.
func (e *Existing) Capture(ctx context.Context, node, filter string) (*Capture, error) {
	pod := "tcpdump-" + node
	err := e.apply(ctx, fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: %q, namespace: %s}
spec:
  hostNetwork: true
  nodeName: %q
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 0
  tolerations: [{operator: Exists}]
  containers:
  - {name: tcpdump, image: %q, command: [sleep, infinity], securityContext: {privileged: true}}`, pod, helperNamespace, node, e.Image))
	if err != nil {
		return nil, fmt.Errorf("make the pod that captures: %w", err)
	}
	out, code, err := e.Shell(ctx, "kubectl -n "+helperNamespace+" wait --for=condition=Ready --timeout=60s pod/"+pod)
	if err != nil || code != 0 {
		return nil, fmt.Errorf("start the pod that captures: %w", errors.Join(err, errors.New(strings.TrimSpace(out))))
	}
	line := "exec kubectl -n " + helperNamespace + " exec " + pod + " -- timeout 60 " + strings.Join(tcpdump(filter), " ")
	return startCapture(ctx, e.bash(ctx, line))
}

var _ Cluster = (*Existing)(nil)
