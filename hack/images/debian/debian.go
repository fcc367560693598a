// Package debian turns Debian packages into the files of an image: all-in-one is a
// web server, HTTP clients, tcpdump and a shell, protocols the servers and clients
// that end-to-end tests let talk through the mesh. It asks the machine's apt which
// packages they need on an empty system, downloads them into a cache, unpacks them
// without running their scripts, drops documentation and what only a package manager
// needs, and adds the few files that the scripts would have made.
package debian

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"podseal.io/hack/images/archive"
)

// Set is what an image is made of.
type Set struct {
	// Roots are the packages that are wanted; what they depend on comes with them.
	Roots []string
	// Unwanted are packages that only installation needs, and what only they need.
	Unwanted []string
	// Passwd and Group are lines for the files of these names.
	Passwd, Group string
	// Texts are files, Links symbolic links with their targets, Dirs directories with
	// their modes, that the packages' scripts would have made; paths are relative.
	Texts, Links map[string]string
	Dirs         map[string]int64
	// Must are files without which the packages are not what they are taken for.
	Must []string
}

// Packages returns the files of all packages of the set, sorted. They are
// downloaded into the cache directory if they are not there yet.
func (s Set) Packages(ctx context.Context, cache string) ([]string, error) {
	if _, err := exec.LookPath("apt-get"); err != nil {
		return nil, errors.New("apt-get is missing: the image is built from Debian's packages")
	}
	if err := os.MkdirAll(filepath.Join(cache, "archives", "partial"), 0o755); err != nil {
		return nil, fmt.Errorf("make cache: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(cache, "none", "partial"), 0o755); err != nil {
		return nil, fmt.Errorf("make cache: %w", err)
	}
	status := filepath.Join(cache, "empty-status")
	if err := os.WriteFile(status, nil, 0o600); err != nil {
		return nil, fmt.Errorf("make cache: %w", err)
	}
	install := func(archives string, option string) []string {
		return append([]string{
			"-o", "Dir::State::status=" + status, "-o", "Dir::Cache=" + cache, "-o", "Dir::Cache::archives=" + archives,
			"-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=root",
			option, "--yes", "--no-install-recommends", "install",
		}, s.Roots...)
	}
	// apt names only what is not in its cache yet; an empty one makes it name all.
	list, err := output(ctx, "apt-get", install(filepath.Join(cache, "none"), "--print-uris")...)
	if err != nil {
		return nil, fmt.Errorf("resolve packages (is \"apt-get update\" needed?): %w", err)
	}
	missing := false
	var files []string
	for _, name := range parseNames(string(list)) {
		if pkg, _, _ := strings.Cut(name, "_"); slices.Contains(s.Unwanted, pkg) {
			continue
		}
		file := filepath.Join(cache, "archives", name)
		if _, err := os.Stat(file); err != nil {
			missing = true
		}
		files = append(files, file)
	}
	if len(files) == 0 {
		return nil, errors.New("resolve packages: apt named none")
	}
	if missing {
		if _, err := output(ctx, "apt-get", install(filepath.Join(cache, "archives"), "--download-only")...); err != nil {
			return nil, fmt.Errorf("download packages: %w", err)
		}
	}
	slices.Sort(files)
	return files, nil
}

// Entries returns the files of the image that is made of these packages.
func (s Set) Entries(ctx context.Context, packages []string) ([]archive.Entry, error) {
	files := make(map[string]archive.Entry)
	for _, deb := range packages {
		stream, err := output(ctx, "dpkg-deb", "--fsys-tarfile", deb)
		if err != nil {
			return nil, fmt.Errorf("unpack %s: %w", filepath.Base(deb), err)
		}
		if err := addPackage(files, bytes.NewReader(stream)); err != nil {
			return nil, fmt.Errorf("unpack %s: %w", filepath.Base(deb), err)
		}
	}
	if err := s.configure(files); err != nil {
		return nil, err
	}
	entries := make([]archive.Entry, 0, len(files))
	for _, e := range files {
		entries = append(entries, e)
	}
	return entries, nil
}

// parseNames returns the file names in what "apt-get --print-uris" prints, one
// package a line: 'URI' FILE SIZE HASH.
func parseNames(list string) []string {
	var names []string
	for line := range strings.Lines(list) {
		if fields := strings.Fields(line); len(fields) >= 3 && strings.HasPrefix(line, "'") {
			names = append(names, fields[1])
		}
	}
	return names
}

func output(ctx context.Context, name string, args ...string) ([]byte, error) {
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(stderr.String()))
	}
	return out, nil
}

// addPackage adds the files of one package. Since Debian merged /bin, /lib and
// /sbin into /usr, so does this.
func addPackage(files map[string]archive.Entry, stream io.Reader) error {
	for r := tar.NewReader(stream); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read package: %w", err)
		}
		name := merged(path.Clean(h.Name))
		if name == "." || dropped(name) || slices.Contains(mergedDirs(), name) {
			continue
		}
		e := archive.Entry{Path: name, Type: h.Typeflag, Mode: h.Mode, UID: h.Uid, GID: h.Gid, Link: h.Linkname}
		switch h.Typeflag {
		case tar.TypeReg:
			if e.Content, err = io.ReadAll(r); err != nil {
				return fmt.Errorf("read %s: %w", name, err)
			}
		case tar.TypeLink:
			e.Link = merged(path.Clean(h.Linkname))
		case tar.TypeDir, tar.TypeSymlink:
		default:
			return fmt.Errorf("%s: unexpected type %q", name, h.Typeflag)
		}
		files[name] = e
	}
}

func mergedDirs() []string { return []string{"bin", "lib", "lib32", "lib64", "libx32", "sbin"} }

func merged(name string) string {
	first, _, deeper := strings.Cut(name, "/")
	if deeper && slices.Contains(mergedDirs(), first) {
		return "usr/" + name
	}
	return name
}

// dropped reports whether the file serves only readers and package managers.
func dropped(name string) bool {
	for _, prefix := range []string{
		"usr/share/doc/", "usr/share/man/", "usr/share/info/", "usr/share/locale/", "usr/share/lintian/",
		"usr/share/bug/", "usr/share/bash-completion/", "usr/share/zsh/", "usr/share/doc-base/", "usr/lib/systemd/",
		"usr/lib/x86_64-linux-gnu/gconv/", "usr/lib/x86_64-linux-gnu/perl/", "usr/share/perl", "usr/share/menu/",
		"etc/init.d/", "etc/logrotate.d/", "etc/ufw/", "var/lib/dpkg/", "usr/share/i18n/", "etc/cron.d/", "etc/default/",
	} {
		if strings.HasPrefix(name+"/", prefix) {
			return true
		}
	}
	return false
}
