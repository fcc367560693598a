// Package walkthrough goes through "Encrypting traffic between pods" from its
// first step to its last on a real cluster, captures what is on the wire at
// each call, and says whether it was what the document promises.
package walkthrough

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// Config is what a walk needs.
type Config struct {
	Cluster Cluster
	Out     io.Writer // the transcript
	Image   string    // all-in-one image, in place of the document's; "" is the document's
}

// Row is one call of the walkthrough: what was expected of it and what was seen.
type Row struct {
	Call   string
	Expect string
	Record string // what the webserver's proxy wrote down of it
	From   string // who called whom, in the same record; "" if nobody proved who it is
	Wire   string // what tcpdump saw on the node
	Faults []string
}

func (r Row) mark() string {
	if len(r.Faults) > 0 {
		return "FAIL"
	}
	return "PASS"
}

// Report is the outcome of a walk.
type Report struct {
	Rows []Row
	Took time.Duration
}

// Failed reports whether any call was not as expected.
func (r Report) Failed() bool {
	return len(r.Rows) == 0 || slices.ContainsFunc(r.Rows, func(row Row) bool { return len(row.Faults) > 0 })
}

// walk is a walk under way.
type walk struct {
	Config
	podIP, node string
	domain      string // of the cluster, and its trust domain
	report      Report
}

// Run walks. An error means that a step could not be taken at all; a call that
// went otherwise than expected is in the report.
func Run(ctx context.Context, cfg Config) (Report, error) {
	w := &walk{Config: cfg}
	start := time.Now()
	for _, part := range []func(context.Context) error{w.document, w.strict, w.overrides} {
		if err := part(ctx); err != nil {
			return w.report, err
		}
	}
	w.report.Took = time.Since(start)
	return w.report, nil
}

// document is the document itself, word for word.
func (w *walk) document(ctx context.Context) error {
	w.title("Enable the module")
	if err := w.do(ctx, enableModule); err != nil {
		return err
	}
	if err := w.enabled(ctx); err != nil {
		return err
	}
	w.title("Create a namespace and add labels")
	if err := w.do(ctx, createNamespace, labelInjection, labelPodPolicy); err != nil {
		return err
	}
	w.title("Apply a policy that defines the mode: PERMISSIVE")
	if err := w.do(ctx, createPolicy(namespace, "PERMISSIVE")); err != nil {
		return err
	}
	w.title("Create the webserver and expose it")
	if err := w.do(ctx, createWebserver, exposeWebserver); err != nil {
		return err
	}
	if err := w.ready(ctx, namespace, "webserver"); err != nil {
		return err
	}
	if err := w.locate(ctx); err != nil {
		return err
	}
	w.title("Create a client in the mesh and call the webserver")
	if err := w.do(ctx, createClient); err != nil {
		return err
	}
	if err := w.ready(ctx, namespace, "client"); err != nil {
		return err
	}
	if err := w.findDomain(ctx); err != nil {
		return err
	}
	w.call(ctx, call{name: "PERMISSIVE: mesh client, the document's wget", line: callFromMesh, want: encrypted, packet: true})
	w.call(ctx, call{name: "PERMISSIVE: mesh client, the whole page", line: getFromMesh, want: encrypted, body: true})
	w.call(ctx, call{name: "PERMISSIVE: mesh client, by pod address", line: fmt.Sprintf(getByPodIP, urlHost(w.podIP)), want: encrypted, body: true})

	w.title("Create a client outside the mesh and call the webserver")
	if err := w.do(ctx, createOutside, createAlpine); err != nil {
		return err
	}
	if err := w.ready(ctx, outside, "alpine"); err != nil {
		return err
	}
	w.call(ctx, call{name: "PERMISSIVE: outside client, the document's wget", line: callFromOutside, want: plaintext, packet: true})
	w.call(ctx, call{name: "PERMISSIVE: outside client, the whole page", line: getFromOutside, want: plaintext, body: true})
	return nil
}

// strict is the other mode that the document names.
func (w *walk) strict(ctx context.Context) error {
	w.title("STRICT in the namespace: only encrypted traffic is allowed")
	if err := w.do(ctx, changePolicy(namespace, "STRICT")); err != nil {
		return err
	}
	w.settle(ctx, refused)
	w.call(ctx, call{name: "STRICT: outside client", line: getFromOutside, want: refused})
	w.call(ctx, call{name: "STRICT: outside client, wget", line: callFromOutside + " --tries 1", want: refused})
	w.call(ctx, call{name: "STRICT: mesh client", line: getFromMesh, want: encrypted, body: true})
	return nil
}

// overrides shows that a namespace overrides the mesh, both ways.
func (w *walk) overrides(ctx context.Context) error {
	w.title("Mesh STRICT, the namespace overrides it with PERMISSIVE")
	if err := w.do(ctx, createPolicy(rootNamespace, "STRICT"), changePolicy(namespace, "PERMISSIVE")); err != nil {
		return err
	}
	w.settle(ctx, plaintext)
	w.call(ctx, call{name: "mesh STRICT, namespace PERMISSIVE: outside client", line: getFromOutside, want: plaintext, body: true})
	w.call(ctx, call{name: "mesh STRICT, namespace PERMISSIVE: mesh client", line: getFromMesh, want: encrypted, body: true})

	w.title("Mesh STRICT, the namespace says nothing")
	if err := w.do(ctx, deletePolicy(namespace)); err != nil {
		return err
	}
	w.settle(ctx, refused)
	w.call(ctx, call{name: "mesh STRICT: outside client", line: getFromOutside, want: refused})
	w.call(ctx, call{name: "mesh STRICT: mesh client", line: getFromMesh, want: encrypted, body: true})

	w.title("Mesh PERMISSIVE, the namespace overrides it with STRICT")
	if err := w.do(ctx, changePolicy(rootNamespace, "PERMISSIVE"), createPolicy(namespace, "STRICT")); err != nil {
		return err
	}
	w.settle(ctx, refused)
	w.call(ctx, call{name: "mesh PERMISSIVE, namespace STRICT: outside client", line: getFromOutside, want: refused})
	w.call(ctx, call{name: "mesh PERMISSIVE, namespace STRICT: mesh client", line: getFromMesh, want: encrypted, body: true})

	w.title("Back to the document's policy")
	return w.do(ctx, deletePolicy(rootNamespace), changePolicy(namespace, "PERMISSIVE"))
}

func (w *walk) title(s string) { fmt.Fprintf(w.Out, "\n── %s\n", s) }

// line is a line of the document with the image that the walk was told to use.
func (w *walk) line(s string) string {
	if w.Image == "" {
		return s
	}
	return strings.ReplaceAll(s, Image, w.Image)
}

// do runs lines of the document, each of which must succeed.
func (w *walk) do(ctx context.Context, lines ...string) error {
	for _, line := range lines {
		line = w.line(line)
		fmt.Fprintf(w.Out, "$ %s\n", line)
		out, code, err := w.Cluster.Shell(ctx, line)
		fmt.Fprint(w.Out, out)
		if err != nil {
			return err
		}
		if code != 0 {
			return fmt.Errorf("exit code %d of: %s\n%s", code, line, out)
		}
	}
	return nil
}

// enabled waits until the injector is registered: pods made from then on wait for
// their proxy, those made before have none.
func (w *walk) enabled(ctx context.Context) error {
	start := time.Now()
	for time.Since(start) < time.Minute {
		_, code, err := w.Cluster.Shell(ctx, "kubectl get mutatingwebhookconfigurations.admissionregistration.k8s.io istio-sidecar-injector")
		if err != nil {
			return err
		}
		if code == 0 {
			fmt.Fprintf(w.Out, "(the injector is registered after %.1f s)\n", time.Since(start).Seconds())
			return nil
		}
		time.Sleep(200 * time.Millisecond)
	}
	state, _, _ := w.Cluster.Shell(ctx, "kubectl get moduleconfigs.deckhouse.io istio -o jsonpath='{.status.message}'; echo; kubectl -n podseal-system logs deployment/podseal-manager --tail=30")
	return fmt.Errorf("the injector is not registered a minute after the module was enabled; the module says: %s", state)
}

// ready waits until a deployment's pods run, with their proxy.
func (w *walk) ready(ctx context.Context, ns, deployment string) error {
	line := "kubectl -n " + ns + " rollout status deployment/" + deployment + " --timeout=180s"
	out, code, err := w.Cluster.Shell(ctx, line)
	if err != nil || code != 0 {
		state, _, _ := w.Cluster.Shell(ctx, "kubectl -n "+ns+" get pods,events; kubectl -n "+ns+" describe pods | tail -80; kubectl -n "+ns+" logs deploy/"+deployment+" -c istio-proxy --tail=30")
		return fmt.Errorf("deployment %s/%s is not ready: %w\n%s\n%s", ns, deployment, errors.Join(err, fmt.Errorf("exit code %d", code)), out, state)
	}
	return nil
}

// locate finds the webserver's address and node, and that its pod shows 2/2.
func (w *walk) locate(ctx context.Context) error {
	if err := w.do(ctx, getPods); err != nil {
		return err
	}
	out, _, err := w.Cluster.Shell(ctx, getPods+" --no-headers")
	if err != nil {
		return err
	}
	row := Row{Call: "the webserver's pod has its proxy", Expect: "2/2 Running"}
	f := strings.Fields(out)
	if len(f) < 7 {
		return fmt.Errorf("get pods printed %q", out)
	}
	row.Record = f[1] + " " + f[2]
	if row.Record != row.Expect {
		row.Faults = append(row.Faults, "the pod shows "+row.Record)
	}
	out, _, err = w.Cluster.Shell(ctx, "kubectl -n "+namespace+" get pods -l app=webserver -o jsonpath='{.items[0].status.podIP} {.items[0].spec.nodeName}'")
	if err != nil {
		return err
	}
	if _, err := fmt.Sscan(out, &w.podIP, &w.node); err != nil {
		return fmt.Errorf("read the webserver's address from %q: %w", out, err)
	}
	w.report.Rows = append(w.report.Rows, row)
	return nil
}

// findDomain reads the cluster's domain where every pod finds it.
func (w *walk) findDomain(ctx context.Context) error {
	out, _, err := w.Cluster.Shell(ctx, "kubectl -n "+namespace+" exec deployments/client -- cat /etc/resolv.conf")
	if err != nil {
		return err
	}
	for f := range strings.FieldsSeq(out) {
		if domain, ok := strings.CutPrefix(f, "svc."); ok {
			w.domain = domain
			return nil
		}
	}
	return fmt.Errorf("find the cluster's domain in the client's resolv.conf: %s", out)
}

func urlHost(ip string) string {
	if strings.Contains(ip, ":") {
		return "[" + ip + "]"
	}
	return ip
}
