// Package archive writes container images as Docker archives ("docker save"),
// without a container engine. An archive depends on nothing but the files and the
// configuration that it is built from: entries are sorted, times are the epoch,
// owners are numbers. Building twice gives the same bytes.
package archive

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Entry is one file, directory or link of an image.
type Entry struct {
	// Path is relative to the image's root, without a leading slash.
	Path string
	// Type is tar.TypeReg, tar.TypeDir, tar.TypeSymlink or tar.TypeLink.
	Type byte
	// Mode is the permission bits with set-user-id and its like, as in a tar header.
	Mode int64
	UID  int
	GID  int
	// Link is the target of a link.
	Link    string
	Content []byte
}

// Image is what an archive is built from.
type Image struct {
	Tag        string
	Entries    []Entry
	Entrypoint []string
	Cmd        []string
	Env        []string
	User       string
}

// Build returns the image with its one layer.
func Build(img Image) (v1.Image, error) {
	layer, err := appendLayer(nil, img.Entries)
	if err != nil {
		return nil, err
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer)), nil }
	l, err := tarball.LayerFromOpener(open, tarball.WithCompressionLevel(gzip.BestSpeed))
	if err != nil {
		return nil, fmt.Errorf("build layer: %w", err)
	}
	epoch := v1.Time{Time: time.Unix(0, 0).UTC()}
	built, err := mutate.Append(empty.Image, mutate.Addendum{
		Layer:   l,
		History: v1.History{Created: epoch, CreatedBy: "hack/images"},
	})
	if err != nil {
		return nil, fmt.Errorf("append layer: %w", err)
	}
	file, err := built.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	file = file.DeepCopy()
	file.Architecture = "amd64"
	file.OS = "linux"
	file.Created = epoch
	file.Config = v1.Config{Entrypoint: img.Entrypoint, Cmd: img.Cmd, Env: img.Env, User: img.User}
	built, err = mutate.ConfigFile(built, file)
	if err != nil {
		return nil, fmt.Errorf("set configuration: %w", err)
	}
	return built, nil
}

// WriteFile builds the image and replaces the file by its archive in one step.
func WriteFile(file string, img Image) error {
	tag, err := name.NewTag(img.Tag, name.WeakValidation)
	if err != nil {
		return fmt.Errorf("tag %q: %w", img.Tag, err)
	}
	built, err := Build(img)
	if err != nil {
		return err
	}
	temporary, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+".*")
	if err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	err = tarball.Write(tag, built, temporary)
	err = errors.Join(err, temporary.Chmod(0o644), temporary.Close())
	if err == nil {
		err = os.Rename(temporary.Name(), file)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", file, errors.Join(err, os.Remove(temporary.Name())))
	}
	return nil
}

// appendLayer appends the entries as a tar stream, sorted, with the directories
// that they lie in.
func appendLayer(b []byte, entries []Entry) ([]byte, error) {
	out := bytes.NewBuffer(b)
	w := tar.NewWriter(out)
	all, err := withParents(entries)
	if err != nil {
		return nil, err
	}
	for _, e := range all {
		header := &tar.Header{
			Typeflag: e.Type, Name: e.Path, Linkname: e.Link, Mode: e.Mode, Uid: e.UID, Gid: e.GID,
			Size: int64(len(e.Content)), ModTime: time.Unix(0, 0), Format: tar.FormatPAX,
		}
		if e.Type == tar.TypeDir {
			header.Name += "/"
		}
		if err := w.WriteHeader(header); err != nil {
			return nil, fmt.Errorf("write header of %s: %w", e.Path, err)
		}
		if _, err := w.Write(e.Content); err != nil {
			return nil, fmt.Errorf("write %s: %w", e.Path, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("write layer: %w", err)
	}
	return out.Bytes(), nil
}

// withParents adds the directories that are missing and sorts by path, hard links
// last, since a hard link must follow the file that it names.
func withParents(entries []Entry) ([]Entry, error) {
	seen := make(map[string]bool, len(entries))
	for _, e := range entries {
		if e.Path != path.Clean(e.Path) || e.Path == "." || strings.HasPrefix(e.Path, "/") || strings.HasPrefix(e.Path, "..") {
			return nil, fmt.Errorf("entry %q: not a clean relative path", e.Path)
		}
		if seen[e.Path] {
			return nil, fmt.Errorf("entry %q: given twice", e.Path)
		}
		seen[e.Path] = true
	}
	all := slices.Clone(entries)
	for _, e := range entries {
		for dir := path.Dir(e.Path); dir != "." && !seen[dir]; dir = path.Dir(dir) {
			seen[dir] = true
			all = append(all, Entry{Path: dir, Type: tar.TypeDir, Mode: 0o755})
		}
	}
	slices.SortFunc(all, func(a, b Entry) int {
		if x, y := a.Type == tar.TypeLink, b.Type == tar.TypeLink; x != y {
			if y {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.Path, b.Path)
	})
	return all, nil
}
