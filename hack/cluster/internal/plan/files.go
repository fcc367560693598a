package plan

import (
	"bytes"
	"embed"
	"fmt"
	"strings"
	"text/template"
)

//go:embed templates
var templates embed.FS

// File is one configuration file of a node: its path in the node's etc directory,
// or an absolute path in the node's mount namespace, and its content.
type File struct {
	Path    string
	Content []byte
}

// Files returns the node's configuration files, without those that hold keys.
func (n Node) Files() ([]File, error) {
	paths := []struct{ template, path string }{
		{"containerd.toml", n.Path("etc", "containerd.toml")},
		{"kubelet.yaml", n.Path("etc", "kubelet.yaml")},
		{"kube-proxy.yaml", n.Path("etc", "kube-proxy.yaml")},
		{"cni.conflist", n.Path("root", "etc-cni", "net.d", "10-podseal-cluster.conflist")},
	}
	files := make([]File, 0, len(paths))
	for _, p := range paths {
		content, err := render(p.template, n)
		if err != nil {
			return nil, err
		}
		files = append(files, File{Path: p.path, Content: content})
	}
	return files, nil
}

// Manifests returns the objects that every cluster begins with: the name server
// and what it may read.
func (s Spec) Manifests() ([]byte, error) { return render("coredns.yaml", s) }

func render(name string, value any) ([]byte, error) {
	text, err := templates.ReadFile("templates/" + name)
	if err != nil {
		return nil, fmt.Errorf("read template: %w", err)
	}
	t, err := template.New(name).Option("missingkey=error").Funcs(template.FuncMap{
		"domain":       func() string { return Domain },
		"dnsIP":        func() string { return DNSIP },
		"podCIDRs":     func() string { return PodCIDRs },
		"serviceCIDRs": func() string { return ServiceCIDRs },
		"pauseImage":   func() string { return PauseImage },
		"corednsImage": func() string { return CoreDNSImage },
		"socket":       func() string { return ContainerdSocket },
	}).Parse(string(text))
	if err != nil {
		return nil, fmt.Errorf("parse template %s: %w", name, err)
	}
	var out bytes.Buffer
	if err := t.Execute(&out, value); err != nil {
		return nil, fmt.Errorf("render %s: %w", name, err)
	}
	return out.Bytes(), nil
}

// Kubeconfig returns a kubeconfig with the certificates inlined. The arguments
// are base64 texts.
func Kubeconfig(cluster, server, user, ca, cert, key string) []byte {
	return []byte(strings.NewReplacer(
		"CLUSTER", cluster, "SERVER", server, "USER", user, "CADATA", ca, "CERTDATA", cert, "KEYDATA", key,
	).Replace(`apiVersion: v1
kind: Config
current-context: CLUSTER
contexts:
- name: CLUSTER
  context: {cluster: CLUSTER, user: USER}
clusters:
- name: CLUSTER
  cluster:
    server: SERVER
    certificate-authority-data: CADATA
users:
- name: USER
  user:
    client-certificate-data: CERTDATA
    client-key-data: KEYDATA
`))
}
