package debian

import (
	"archive/tar"
	"fmt"
	"slices"

	"podseal.io/hack/images/archive"
)

// configure adds what the packages' scripts would have made.
func (s Set) configure(files map[string]archive.Entry) error {
	for from, to := range map[string]struct{ path, more string }{
		"usr/share/base-passwd/passwd.master": {"etc/passwd", s.Passwd},
		"usr/share/base-passwd/group.master":  {"etc/group", s.Group},
	} {
		e, ok := files[from]
		if !ok {
			return fmt.Errorf("package base-passwd lacks %s", from)
		}
		e.Path, e.Content = to.path, append(slices.Clone(e.Content), to.more...)
		files[to.path] = e
	}
	for _, name := range s.Must {
		if _, ok := files[name]; !ok {
			return fmt.Errorf("the packages lack %s", name)
		}
	}
	for name, content := range s.Texts {
		files[name] = archive.Entry{Path: name, Type: tar.TypeReg, Mode: 0o644, Content: []byte(content)}
	}
	for name, target := range s.Links {
		files[name] = archive.Entry{Path: name, Type: tar.TypeSymlink, Mode: 0o777, Link: target}
	}
	for name, mode := range s.Dirs {
		files[name] = archive.Entry{Path: name, Type: tar.TypeDir, Mode: mode}
	}
	return nil
}
