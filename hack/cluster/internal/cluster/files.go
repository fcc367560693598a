package cluster

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"time"

	"podseal.io/hack/cluster/internal/pki"
	"podseal.io/hack/cluster/internal/plan"
)

const d8 = `#!/bin/sh
# Answers to "d8 k ARGS" as the real one does: it is kubectl.
case "$1" in
k | kubectl)
	shift
	exec kubectl "$@"
	;;
*)
	echo "d8: this stand-in knows only \"d8 k ARGS\" (kubectl)" >&2
	exit 2
	;;
esac
`

// writeFiles makes the cluster's keys, kubeconfigs, configuration files and
// programs. Keys that are there are kept.
func (c *Cluster) writeFiles(spec plan.Spec) error {
	now := time.Now()
	dir := spec.Path("pki")
	ca, err := pki.OpenAuthority(dir, "ca", now)
	if err != nil {
		return err
	}
	if err := writeControlPlaneKeys(spec, ca, now); err != nil {
		return err
	}
	for _, n := range spec.AllNodes() {
		if err := writeNode(n, ca, now); err != nil {
			return err
		}
	}
	if err := copySelf(spec.Path("bin", "cluster")); err != nil {
		return err
	}
	if err := pki.WriteFile(spec.Path("bin", "d8"), []byte(d8), 0o755); err != nil {
		return err
	}
	link := spec.Path("bin", "kubectl")
	if err := os.Remove(link); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("replace kubectl: %w", err)
	}
	if err := os.Symlink(spec.Kubernetes+"/kubectl", link); err != nil {
		return fmt.Errorf("link kubectl: %w", err)
	}
	return nil
}

func writeControlPlaneKeys(spec plan.Spec, ca *pki.Authority, now time.Time) error {
	dir := spec.Path("pki")
	first := spec.Node(1)
	leaves := []pki.Leaf{
		{
			File: "apiserver", User: "kube-apiserver", Server: true,
			DNS: []string{
				"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc",
				"kubernetes.default.svc." + plan.Domain,
			},
			IPs: []string{"127.0.0.1", "::1", first.IP(), first.IP6(), plan.ServiceIP, plan.ServiceIP6},
		},
		{File: "apiserver-kubelet-client", User: "kube-apiserver-kubelet-client", Groups: []string{"system:masters"}},
	}
	for _, leaf := range leaves {
		if _, _, err := ca.Apply(leaf, now); err != nil {
			return err
		}
	}
	front, err := pki.OpenAuthority(dir, "front-proxy-ca", now)
	if err != nil {
		return err
	}
	if _, _, err := front.Apply(pki.Leaf{File: "front-proxy-client", User: "front-proxy-client"}, now); err != nil {
		return err
	}
	if err := pki.ApplyTokenKey(dir); err != nil {
		return err
	}
	admin := pki.Leaf{File: "admin", User: "kubernetes-admin", Groups: []string{"system:masters"}}
	return errors.Join(
		writeKubeconfig(spec, ca, admin, spec.HostServer(), spec.Kubeconfig(), now),
		writeKubeconfig(spec, ca, admin, spec.Server(), spec.InnerKubeconfig(), now),
		writeKubeconfig(spec, ca, pki.Leaf{File: "controller-manager", User: "system:kube-controller-manager"},
			spec.Server(), first.Path("etc", "controller-manager.kubeconfig"), now),
		writeKubeconfig(spec, ca, pki.Leaf{File: "scheduler", User: "system:kube-scheduler"},
			spec.Server(), first.Path("etc", "scheduler.kubeconfig"), now),
	)
}

func writeNode(n plan.Node, ca *pki.Authority, now time.Time) error {
	server := pki.Leaf{
		File: fmt.Sprintf("kubelet-server-%d", n.Number), User: "system:node:" + n.Name(), Groups: []string{"system:nodes"},
		DNS: []string{n.Name()}, IPs: []string{n.IP(), n.IP6()}, Server: true,
	}
	cert, key, err := ca.Apply(server, now)
	if err != nil {
		return err
	}
	files, err := n.Files()
	if err != nil {
		return err
	}
	files = append(files,
		plan.File{Path: n.Path("etc", "kubelet-server.crt"), Content: cert},
		plan.File{Path: n.Path("etc", "kubelet-server.key"), Content: key})
	for _, f := range files {
		if err := pki.WriteFile(f.Path, f.Content, 0o600); err != nil {
			return err
		}
	}
	kubelet := pki.Leaf{
		File: fmt.Sprintf("kubelet-%d", n.Number), User: "system:node:" + n.Name(), Groups: []string{"system:nodes"},
	}
	return errors.Join(
		writeKubeconfig(n.Spec, ca, kubelet, n.Spec.Server(), n.Path("etc", "kubelet.kubeconfig"), now),
		writeKubeconfig(n.Spec, ca, pki.Leaf{File: "kube-proxy", User: "system:kube-proxy"},
			n.Spec.Server(), n.Path("etc", "kube-proxy.kubeconfig"), now),
	)
}

func writeKubeconfig(spec plan.Spec, ca *pki.Authority, leaf pki.Leaf, server, path string, now time.Time) error {
	cert, key, err := ca.Apply(leaf, now)
	if err != nil {
		return err
	}
	encode := base64.StdEncoding.EncodeToString
	content := plan.Kubeconfig(spec.Name, server, leaf.User, encode(ca.PEM()), encode(cert), encode(key))
	return pki.WriteFile(path, content, 0o600)
}
