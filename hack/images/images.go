package main

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"podseal.io/hack/images/archive"
	"podseal.io/hack/images/debian"
)

const (
	meshUser   = "1337:1337"
	searchPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

func buildImage(kind string, o options) (archive.Image, error) {
	switch kind {
	case "podseal":
		return static(o.tag, o.binary, "/usr/local/bin/podseal", meshUser)
	case "proxy":
		img, err := static(o.tag, o.binary, "/usr/local/bin/podseal-proxy", meshUser)
		// Users' tooling calls the proxy's program by the name it has in Istio.
		img.Entries = append(img.Entries, archive.Entry{
			Path: "usr/local/bin/pilot-agent", Type: tar.TypeSymlink, Mode: 0o777, Link: "podseal-proxy",
		})
		return img, err
	default:
		entrypoint := o.entrypoint
		if entrypoint == "" {
			entrypoint = "/" + filepath.Base(o.binary)
		}
		return static(o.tag, o.binary, entrypoint, o.user)
	}
}

// static returns an image from scratch that holds one program.
func static(tag, binary, entrypoint, user string) (archive.Image, error) {
	if !path.IsAbs(entrypoint) || path.Clean(entrypoint) != entrypoint {
		return archive.Image{}, fmt.Errorf("entrypoint %q: want an absolute path", entrypoint)
	}
	if err := validateStatic(binary); err != nil {
		return archive.Image{}, err
	}
	content, err := os.ReadFile(binary)
	if err != nil {
		return archive.Image{}, fmt.Errorf("read program: %w", err)
	}
	return archive.Image{
		Tag:        tag,
		Entrypoint: []string{entrypoint},
		Env:        []string{searchPath},
		User:       user,
		Entries: []archive.Entry{
			{Path: strings.TrimPrefix(entrypoint, "/"), Type: tar.TypeReg, Mode: 0o755, Content: content},
		},
	}, nil
}

// validateStatic refuses a program that would not start in an empty image.
func validateStatic(binary string) error {
	file, err := elf.Open(binary)
	if err != nil {
		return fmt.Errorf("open program %s: %w", binary, err)
	}
	defer file.Close()
	for _, p := range file.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("program %s is linked dynamically: build it with CGO_ENABLED=0", binary)
		}
	}
	return nil
}

// sets are the images that are made of Debian's packages.
func sets() map[string]debian.Set {
	return map[string]debian.Set{"all-in-one": debian.AllInOne(), "protocols": debian.Protocols()}
}

// writePackages writes an image that is made of Debian's packages. An archive of the
// same packages that is in the cache is taken as it is.
func writePackages(ctx context.Context, kind string, o options) error {
	if o.cache == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			return fmt.Errorf("find cache directory: %w", err)
		}
		o.cache = filepath.Join(base, "podseal", "debian")
	}
	set := sets()[kind]
	files, err := set.Packages(ctx, o.cache)
	if err != nil {
		return err
	}
	kept, err := keptArchive(kind, o, set, files)
	if err != nil {
		return err
	}
	if _, err := os.Stat(kept); err == nil {
		return link(kept, o.out)
	}
	entries, err := set.Entries(ctx, files)
	if err != nil {
		return err
	}
	img := archive.Image{Tag: o.tag, Cmd: []string{"/bin/sh"}, Env: []string{searchPath}, Entries: entries}
	older, err := filepath.Glob(filepath.Join(o.cache, kind+"-*.tar"))
	for _, name := range older {
		err = errors.Join(err, os.Remove(name))
	}
	if err := errors.Join(err, archive.WriteFile(kept, img)); err != nil {
		return err
	}
	return link(kept, o.out)
}

// recipe is to be raised when the same packages and set give another image.
const recipe = 1

// keptArchive is where the archive of an image is kept, by what it is made of.
func keptArchive(kind string, o options, set debian.Set, packages []string) (string, error) {
	sum := sha256.New()
	if err := json.NewEncoder(sum).Encode([]any{recipe, o.tag, set, packages}); err != nil {
		return "", fmt.Errorf("name the archive: %w", err)
	}
	return filepath.Join(o.cache, fmt.Sprintf("%s-%x.tar", kind, sum.Sum(nil)[:8])), nil
}

// link makes a file another name of one that is kept, or a copy where there can be none.
func link(kept, file string) error {
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("replace archive: %w", err)
	}
	if os.Link(kept, file) == nil {
		return nil
	}
	content, err := os.ReadFile(kept)
	if err == nil {
		err = os.WriteFile(file, content, 0o644)
	}
	if err != nil {
		return fmt.Errorf("copy archive: %w", err)
	}
	return nil
}
