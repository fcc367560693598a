package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func staticProgram(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	source := filepath.Join(dir, "main.go")
	if err := os.WriteFile(source, []byte("package main\n\nfunc main() {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(dir, "program")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", binary, source)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	return binary
}

func TestProxyImage(t *testing.T) {
	binary := staticProgram(t)
	var archives [2][]byte
	for i := range archives {
		out := filepath.Join(t.TempDir(), "proxy.tar")
		if err := run(t.Context(), []string{"proxy", "--binary", binary, "--tag", "podseal.io/proxy:1", "--out", out}, io.Discard, io.Discard); err != nil {
			t.Fatal(err)
		}
		img, err := tarball.ImageFromPath(out, nil)
		if err != nil {
			t.Fatal(err)
		}
		config, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(config.Config.Entrypoint, " "); got != "/usr/local/bin/podseal-proxy" {
			t.Errorf("entrypoint %q", got)
		}
		if config.Config.User != "1337:1337" {
			t.Errorf("user %q", config.Config.User)
		}
		layers, err := img.Layers()
		if err != nil || len(layers) != 1 {
			t.Fatalf("layers: %d, %v", len(layers), err)
		}
		content, err := layers[0].Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		if got := linkIn(t, content, "usr/local/bin/pilot-agent"); got != "podseal-proxy" {
			t.Errorf("pilot-agent leads to %q", got)
		}
		if archives[i], err = os.ReadFile(out); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(archives[0], archives[1]) {
		t.Error("two builds of the same image differ")
	}
}

// TestKeptArchive: an archive that is kept is taken again, for the same image alone, and
// can be written over another.
func TestKeptArchive(t *testing.T) {
	set, o := sets()["all-in-one"], options{cache: t.TempDir(), tag: "a:1", out: filepath.Join(t.TempDir(), "a.tar")}
	name := func(o options, packages ...string) string {
		t.Helper()
		kept, err := keptArchive("all-in-one", o, set, packages)
		if err != nil {
			t.Fatal(err)
		}
		return kept
	}
	kept, other := name(o, "x_1.deb"), o
	other.tag = "a:2"
	if kept != name(o, "x_1.deb") || kept == name(o, "x_2.deb") || kept == name(other, "x_1.deb") {
		t.Errorf("%s is the name of others, too", kept)
	}
	for _, content := range []string{"old", "new"} {
		if err := os.WriteFile(kept, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := link(kept, o.out); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(o.out); err != nil || string(got) != content {
			t.Errorf("%q, %v", got, err)
		}
	}
}

// linkIn returns where a link in the layer leads to.
func linkIn(t *testing.T, layer io.Reader, name string) string {
	t.Helper()
	files := filesIn(t, layer)
	if _, ok := files[name]; !ok {
		t.Fatalf("%s is not in the image", name)
	}
	return files[name].Linkname
}

// file is a file of an image: what its header says, and its content.
type file struct {
	*tar.Header
	content []byte
}

func filesIn(t *testing.T, layer io.Reader) map[string]file {
	t.Helper()
	files := make(map[string]file)
	for r := tar.NewReader(layer); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = file{h, content}
	}
}

func TestRunRefuses(t *testing.T) {
	for _, test := range []struct{ args, want string }{
		{"", "want podseal, proxy, static, all-in-one or protocols"},
		{"pxoy", `unknown image "pxoy"`},
		{"podseal", "--binary is missing"},
		{"all-in-one --out x", "--tag is missing"},
		{"static --tag x:1 --out y --binary z extra", `unexpected argument "extra"`},
		{"static --tag x:1 --out y --binary /bin/sh", "linked dynamically"},
		{"static --tag x:1 --out y --binary z --entrypoint bin", "want an absolute path"},
	} {
		err := run(context.Background(), strings.Fields(test.args), io.Discard, io.Discard)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("images %s: got %v, want %q", test.args, err, test.want)
		}
	}
}

func TestAllInOne(t *testing.T) {
	if _, err := exec.LookPath("apt-get"); err != nil {
		t.Fatal("needs apt-get")
	}
	cache := t.TempDir()
	var archives [2][]byte
	for i := range archives {
		out := filepath.Join(t.TempDir(), "aio.tar")
		args := []string{"all-in-one", "--tag", "registry.example/aio:1", "--out", out, "--cache", cache}
		if err := run(t.Context(), args, io.Discard, io.Discard); err != nil {
			t.Fatal(err)
		}
		var err error
		if archives[i], err = os.ReadFile(out); err != nil {
			t.Fatal(err)
		}
		kept, err := filepath.Glob(filepath.Join(cache, "all-in-one-*.tar"))
		if err != nil || len(kept) != 1 {
			t.Fatalf("kept: %v, %v", kept, err)
		}
		if err := os.Remove(kept[0]); err != nil { // or it would be taken as it is
			t.Fatal(err)
		}
	}
	if !bytes.Equal(archives[0], archives[1]) {
		t.Error("two builds of the same image differ")
	}
	img, err := tarball.Image(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archives[0])), nil }, nil)
	if err != nil {
		t.Fatal(err)
	}
	layer := mutate.Extract(img)
	defer layer.Close()
	files := filesIn(t, layer)
	for _, program := range []string{"sbin/nginx", "bin/sh", "bin/wget", "bin/curl", "bin/nc", "bin/sleep", "bin/timeout", "bin/tcpdump"} {
		if _, ok := files["usr/"+program]; !ok {
			t.Errorf("the image lacks /usr/%s", program)
		}
	}
	if !bytes.Contains(files["etc/passwd"].content, []byte("\ntcpdump:")) {
		t.Error("the image lacks the user tcpdump")
	}
}
