package main

import (
	"archive/tar"
	"context"
	"debug/elf"
	"fmt"
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

func buildImage(ctx context.Context, kind string, o options) (archive.Image, error) {
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
	case "static":
		entrypoint := o.entrypoint
		if entrypoint == "" {
			entrypoint = "/" + filepath.Base(o.binary)
		}
		return static(o.tag, o.binary, entrypoint, o.user)
	default:
		return allInOne(ctx, o)
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

func allInOne(ctx context.Context, o options) (archive.Image, error) {
	cache := o.cache
	if cache == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			return archive.Image{}, fmt.Errorf("find cache directory: %w", err)
		}
		cache = filepath.Join(base, "podseal", "debian")
	}
	entries, err := debian.Entries(ctx, cache)
	if err != nil {
		return archive.Image{}, err
	}
	return archive.Image{
		Tag:     o.tag,
		Cmd:     []string{"/bin/sh"},
		Env:     []string{searchPath},
		Entries: entries,
	}, nil
}
