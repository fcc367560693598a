package archive

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func entries() []Entry {
	return []Entry{
		{Path: "usr/bin/b", Type: tar.TypeReg, Mode: 0o755, Content: []byte("b")},
		{Path: "etc/a", Type: tar.TypeReg, Mode: 0o644, Content: []byte("a")},
		{Path: "usr/bin/a", Type: tar.TypeLink, Mode: 0o755, Link: "usr/bin/b"},
	}
}

func TestBuildIsReproducible(t *testing.T) {
	var archives [][]byte
	for range 2 {
		in := entries()
		if len(archives) == 1 {
			slices.Reverse(in)
		}
		file := filepath.Join(t.TempDir(), "x.tar")
		if err := WriteFile(file, Image{Tag: "podseal.io/x:1", Entries: in, User: "1337:1337"}); err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		archives = append(archives, content)
	}
	if !bytes.Equal(archives[0], archives[1]) {
		t.Error("two builds of the same image differ")
	}
}

func TestLayerHasParentsFirstAndHardLinksLast(t *testing.T) {
	all, err := withParents(entries())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range all {
		got = append(got, e.Path)
	}
	want := []string{"etc", "etc/a", "usr", "usr/bin", "usr/bin/b", "usr/bin/a"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestBuildRefuses(t *testing.T) {
	for _, path := range []string{"/etc", "../x", "a//b", ".", "a/"} {
		if _, err := Build(Image{Entries: []Entry{{Path: path, Type: tar.TypeReg}}}); err == nil {
			t.Errorf("path %q was accepted", path)
		}
	}
	twice := Entry{Path: "a", Type: tar.TypeReg}
	if _, err := Build(Image{Entries: []Entry{twice, twice}}); err == nil {
		t.Error("an entry given twice was accepted")
	}
}
