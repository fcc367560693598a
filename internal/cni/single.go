package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
)

// A configuration of the older form, NAME.conf or NAME.json with one plugin, has no
// place for a second. It is set aside as NAME.conf.podseal, where no runtime looks, and
// NAME.conf.conflist has it as the first of a list, which sorts where it stood.
const (
	asideSuffix = ".podseal"
	listSuffix  = ".conflist"
)

// isList reports whether a configuration has a list of plugins, or is so broken that
// whoever reads it says what is wrong.
func isList(conf []byte) bool {
	var all map[string]json.RawMessage
	if len(conf) > maxConfig || json.Unmarshal(conf, &all) != nil {
		return true
	}
	_, ok := all["plugins"]
	return ok
}

// makeList puts a list with the plugin in the place of a configuration with one
// plugin. First the list is there, and not used as the other sorts before it; then, in
// one step, the other is not: at no moment is there no network, or none that captures
// after one that did.
func (a *Agent) makeList(name string, conf []byte) error {
	list, err := listOf(conf)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if list, _, err = insert(list, a.Exclude); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	path := filepath.Join(a.ConfDir, name)
	was, err := os.Lstat(path)
	if err != nil {
		return fmt.Errorf("look at %s: %w", name, err)
	}
	if err := replace(path+listSuffix, was.Mode().Perm(), nil, func(w io.Writer) error {
		_, err := w.Write(list)
		return err
	}); err != nil {
		return fmt.Errorf("write %s: %w", name+listSuffix, err)
	}
	now, err := a.readConfiguration(name)
	if err == nil && string(now) != string(conf) {
		err = errors.New("somebody else is changing it")
	}
	if err != nil {
		return fmt.Errorf("set %s aside: %w", name, err)
	}
	if err := os.Rename(path, path+asideSuffix); err != nil {
		return fmt.Errorf("set %s aside: %w", name, err)
	}
	a.Log.Info("list made of the network configuration", slog.String("path", path+listSuffix), slog.String("set_aside", path+asideSuffix))
	return nil
}

// setAside are the names of the configurations that lists were made of.
func (a *Agent) setAside() ([]string, error) {
	all, err := os.ReadDir(a.ConfDir)
	if err != nil {
		return nil, fmt.Errorf("list network configurations: %w", err)
	}
	var names []string
	for _, e := range all {
		if name, ok := strings.CutSuffix(e.Name(), asideSuffix); ok && e.Type().IsRegular() {
			names = append(names, name)
		}
	}
	return names, nil
}

// putBack puts what was set aside in its place again and takes the lists away that were
// made of it. A list that somebody has changed since is theirs: it stays, and what was
// set aside goes. So it does when its place has been taken.
func (a *Agent) putBack() (changed bool, err error) {
	names, err := a.setAside()
	if err != nil {
		return false, err
	}
	for _, name := range names {
		path := filepath.Join(a.ConfDir, name)
		aside, err := a.readConfiguration(name + asideSuffix)
		if err != nil {
			return changed, fmt.Errorf("read %s: %w", name+asideSuffix, err)
		}
		_, taken := os.Lstat(path)
		done := os.Remove
		if errors.Is(taken, fs.ErrNotExist) && a.madeOf(name, aside) {
			done = func(old string) error { return os.Rename(old, path) }
		}
		ours := a.madeOf(name, aside) || taken == nil
		if err := done(path + asideSuffix); err != nil {
			return changed, fmt.Errorf("put %s back: %w", name, err)
		}
		changed = true
		if ours {
			if err := os.Remove(path + listSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return changed, fmt.Errorf("remove %s: %w", name+listSuffix, err)
			}
		}
		a.Log.Info("network configuration put back", slog.String("path", path))
	}
	return changed, nil
}

// madeOf reports whether the list beside what was set aside is what was made of it, or
// is gone.
func (a *Agent) madeOf(name string, aside []byte) bool {
	have, err := a.readConfiguration(name + listSuffix)
	if errors.Is(err, fs.ErrNotExist) {
		return true
	}
	if err != nil {
		return false
	}
	have, _, errHave := remove(have)
	want, errWant := listOf(aside)
	return errHave == nil && errWant == nil && sameJSON(have, want)
}
