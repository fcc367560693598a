// Package build provides a cluster's programs: it installs Debian's packages for
// containerd, runc and the CNI plugins, and builds etcd, Kubernetes and CoreDNS
// from Go modules.
//
// What it builds is kept in the user's cache directory, podseal/PART-HASH, where
// HASH covers what the part is built from. A directory with that name is whole: it
// is renamed into place when everything in it is built. A lock makes a second
// builder wait for the first.
package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"podseal.io/hack/cluster/internal/host"
	"podseal.io/hack/cluster/internal/plan"
)

// KubernetesVersion is the version that `kubectl version` prints.
const KubernetesVersion = "v1.34.4"

// Builder builds the parts.
type Builder struct {
	// Source is the directory of the module podseal.io/hack/cluster.
	Source string
	// Cache is the directory that holds what is built.
	Cache string
	// Progress is told what begins.
	Progress func(format string, args ...any)
}

// Output is where the parts are.
type Output struct {
	Kubernetes string
	Images     string
}

// part is something built from some files into a directory.
type part struct {
	name   string
	inputs []string
	build  func(ctx context.Context, dir string) error
}

// Build returns the parts, built where they are missing.
func (b Builder) Build(ctx context.Context) (Output, error) {
	if _, err := exec.LookPath("go"); err != nil {
		return Output{}, errors.New("the go command is missing from PATH: Kubernetes is built with it")
	}
	kubernetes, err := b.apply(ctx, part{
		name:   "kubernetes",
		inputs: []string{"go.mod", "go.sum", "etcd"},
		build:  b.buildKubernetes,
	})
	if err != nil {
		return Output{}, err
	}
	images, err := b.apply(ctx, part{
		name:   "images",
		inputs: []string{"pause/main.go", "coredns/go.mod", "coredns/go.sum", "coredns/main.go", "../images"},
		build:  b.buildImages,
	})
	if err != nil {
		return Output{}, err
	}
	return Output{Kubernetes: kubernetes, Images: images}, nil
}

func (b Builder) apply(ctx context.Context, p part) (string, error) {
	hash, err := b.hash(p)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(b.Cache, p.name+"-"+hash)
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	unlock, err := host.Lock(ctx, b.Cache, p.name+".lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	temporary := dir + ".part"
	if err := errors.Join(os.RemoveAll(temporary), os.MkdirAll(temporary, 0o755)); err != nil {
		return "", fmt.Errorf("make build directory: %w", err)
	}
	if err := p.build(ctx, temporary); err != nil {
		return "", fmt.Errorf("build %s: %w", p.name, err)
	}
	if err := os.Rename(temporary, dir); err != nil {
		return "", fmt.Errorf("keep %s: %w", p.name, err)
	}
	return dir, nil
}

// hash covers the inputs' names and contents, without tests, and the toolchain.
func (b Builder) hash(p part) (string, error) {
	sum := sha256.New()
	fmt.Fprintln(sum, "3", p.name, runtime.Version(), runtime.GOARCH, KubernetesVersion, flags())
	for _, input := range p.inputs {
		err := filepath.WalkDir(filepath.Join(b.Source, input), func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() || strings.HasSuffix(path, "_test.go") {
				return err
			}
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			name, err := filepath.Rel(b.Source, path)
			fmt.Fprintf(sum, "%s %x\n", name, sha256.Sum256(content))
			return err
		})
		if err != nil {
			return "", fmt.Errorf("read sources of %s: %w", p.name, err)
		}
	}
	return hex.EncodeToString(sum.Sum(nil))[:16], nil
}

// flags returns the linker's flags. The version goes where `kubectl version` and
// the servers' /version take it from.
func flags() string {
	var list strings.Builder
	list.WriteString("-s -w")
	major, minor, _ := strings.Cut(strings.TrimPrefix(KubernetesVersion, "v"), ".")
	minor, _, _ = strings.Cut(minor, ".")
	for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		for _, v := range [][2]string{
			{"gitVersion", KubernetesVersion},
			{"gitMajor", major},
			{"gitMinor", minor},
			{"gitTreeState", "clean"},
			{"buildDate", "2026-02-10T00:00:00Z"},
		} {
			fmt.Fprintf(&list, " -X %s.%s=%s", pkg, v[0], v[1])
		}
	}
	return list.String()
}

func (b Builder) buildKubernetes(ctx context.Context, dir string) error {
	b.Progress("building Kubernetes %s and etcd: this takes minutes, once", KubernetesVersion)
	packages := []string{"./etcd"}
	for _, name := range []string{
		"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl",
	} {
		packages = append(packages, "k8s.io/kubernetes/cmd/"+name)
	}
	return b.compile(ctx, b.Source, dir+"/", flags(), packages...)
}

func (b Builder) buildImages(ctx context.Context, dir string) error {
	for _, p := range []struct{ name, source, tag string }{
		{"pause", filepath.Join(b.Source, "pause"), plan.PauseImage},
		{"coredns", filepath.Join(b.Source, "coredns"), plan.CoreDNSImage},
	} {
		b.Progress("building the image of %s", p.name)
		binary := filepath.Join(dir, p.name)
		if err := b.compile(ctx, p.source, binary, "-s -w", "."); err != nil {
			return err
		}
		err := run(ctx, filepath.Join(b.Source, "..", "images"),
			"go", "run", ".", "static", "--binary", binary, "--tag", p.tag, "--out", binary+".tar")
		if err != nil {
			return err
		}
		if err := os.Remove(binary); err != nil {
			return fmt.Errorf("remove program: %w", err)
		}
	}
	return nil
}

func (b Builder) compile(ctx context.Context, dir, out, ldflags string, packages ...string) error {
	args := []string{"go", "build", "-trimpath", "-buildvcs=false", "-ldflags", ldflags, "-o", out}
	return run(ctx, dir, append(args, packages...)...)
}

func run(ctx context.Context, dir string, args ...string) error {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, tail(string(out)))
	}
	return nil
}

// tail returns the end of a long text, where the compiler's complaint is.
func tail(text string) string {
	text = strings.TrimSpace(text)
	if len(text) > 4000 {
		return "…" + text[len(text)-4000:]
	}
	return text
}

// Archives returns the image archives that every node starts with.
func Archives(images string) []string {
	return []string{filepath.Join(images, "pause.tar"), filepath.Join(images, "coredns.tar")}
}
