package debian

import (
	"archive/tar"
	"bytes"
	"slices"
	"testing"

	"podseal.io/hack/images/archive"
)

func TestParseNames(t *testing.T) {
	got := parseNames("Reading package lists...\n'http://deb/x_1%3a2_amd64.deb' x_1%3a2_amd64.deb 70936 MD5Sum:abc\n'http://deb/y_1_all.deb' y_1_all.deb 5\n")
	if want := []string{"x_1%3a2_amd64.deb", "y_1_all.deb"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestAddPackageMergesUsr(t *testing.T) {
	var stream bytes.Buffer
	w := tar.NewWriter(&stream)
	for _, h := range []*tar.Header{
		{Name: "./", Typeflag: tar.TypeDir},
		{Name: "./bin/", Typeflag: tar.TypeDir},
		{Name: "./bin/dash", Typeflag: tar.TypeReg, Mode: 0o755},
		{Name: "./bin/twin", Typeflag: tar.TypeLink, Linkname: "./bin/dash"},
		{Name: "./usr/share/doc/dash/README", Typeflag: tar.TypeReg},
	} {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	files := make(map[string]archive.Entry)
	if err := addPackage(files, &stream); err != nil {
		t.Fatal(err)
	}
	if len(files) != 2 {
		t.Fatalf("got %d files, want 2: %v", len(files), files)
	}
	if e := files["usr/bin/twin"]; e.Link != "usr/bin/dash" {
		t.Errorf("hard link leads to %q", e.Link)
	}
}
