package xds

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"podseal.io/podseal/internal/xds/xdspb"
)

var journalTypes = []string{"type/a", "type/b"}

func openJournal(t *testing.T, path, owner string, types []string) (*Journal, map[string][]Resource) {
	t.Helper()
	j, held, err := OpenJournal(path, owner, types)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	for _, of := range held {
		slices.SortFunc(of, func(a, b Resource) int { return strings.Compare(a.Name, b.Name) })
	}
	return j, held
}

func resource(name, body string) Resource {
	return Resource{Name: name, Version: "v" + body, Body: []byte(body)}
}

// writeJournal fills a journal and returns what it should hold.
func writeJournal(t *testing.T, path string) map[string][]Resource {
	t.Helper()
	j, held := openJournal(t, path, "me", journalTypes)
	if held != nil {
		t.Fatalf("a new journal holds %v", held)
	}
	for _, err := range []error{
		j.Note("type/a", []Resource{resource("x", "1"), resource("y", "2")}, nil),
		j.Note("type/b", []Resource{resource("x", "3")}, nil),
		j.Whole(),
		j.Note("type/a", []Resource{resource("z", "4"), resource("x", "5")}, []string{"y"}),
		j.Close(),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return map[string][]Resource{"type/a": {resource("x", "5"), resource("z", "4")}, "type/b": {resource("x", "3")}}
}

func TestJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "world")
	want := writeJournal(t, path)
	for range 2 { // what is written anew says the same
		_, held := openJournal(t, path, "me", journalTypes)
		if diff := cmp.Diff(want, held); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if _, held := openJournal(t, path, "me", []string{"type/a", "type/b", "type/c"}); held != nil {
		t.Error("a journal that says nothing of a type is used")
	}
}

// Nothing is better than something that doesn't hold together.
func TestJournalIsNotUsed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "world")
	writeJournal(t, path)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	frames := map[int]bool{} // where one ends
	for rest := good; len(rest) > 0; {
		if _, rest, err = nextFrame(rest); err != nil {
			t.Fatal(err)
		}
		frames[len(good)-len(rest)] = true
	}
	for cut := range good {
		state, err := foldJournal(good[:cut], "me", journalTypes)
		if frames[cut] == (err != nil) {
			t.Errorf("cut at %d: %v", cut, err)
		}
		if err == nil && state.whole != (cut > len(good)/2 && frames[cut] && state.held["type/b"] != nil && strings.Contains(string(good[:cut]), frameWhole)) {
			t.Errorf("cut at %d: whole %v", cut, state.whole)
		}
		flipped := slices.Clone(good)
		flipped[cut] ^= 0x20
		if _, err := foldJournal(flipped, "me", journalTypes); err == nil {
			t.Errorf("byte %d is another, and it is used", cut)
		}
	}
	for name, content := range map[string][]byte{"empty": nil, "garbage": []byte("world"), "torn": good[:len(good)-1], "another's": good} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		owner := "me"
		if name == "another's" {
			owner = "another"
		}
		j, held := openJournal(t, path, owner, journalTypes)
		if held != nil {
			t.Errorf("%s: %v", name, held)
		}
		if err := errors.Join(j.Note("type/a", []Resource{resource("n", "1")}, nil), j.Whole(), j.Close()); err != nil {
			t.Errorf("%s: it can't be begun anew: %v", name, err)
		}
		if _, held := openJournal(t, path, owner, journalTypes); len(held["type/a"]) != 1 || len(held["type/b"]) != 0 {
			t.Errorf("%s: begun anew it holds %v", name, held)
		}
	}
}

func TestJournalIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "world")
	j, _ := openJournal(t, path, "me", journalTypes)
	body := strings.Repeat("b", 64<<10)
	for i := range 200 { // 13 MB, of which the last counts
		if err := j.Note("type/a", []Resource{resource("x", fmt.Sprint(body, i))}, nil); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(path); err != nil || info.Size() > smallJournal+128<<10 || info.Size() != j.size {
			t.Fatalf("%d bytes, %v", info.Size(), err)
		}
	}
	if err := j.Whole(); err != nil {
		t.Fatal(err)
	}
	j.limit = j.size + 1000
	if err := j.Note("type/b", []Resource{resource("y", body)}, nil); err == nil {
		t.Error("it grows beyond its limit")
	}
	// What is no longer what is in force must not be there for the next start.
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file is still there: %v", err)
	}
	if err := errors.Join(j.Note("type/b", []Resource{resource("y", "1")}, nil), j.Whole(), j.Close()); err != nil {
		t.Errorf("a journal that was given up: %v", err)
	}
	if _, _, err := OpenJournal(filepath.Join(t.TempDir(), "no", "such", "folder"), "me", journalTypes); err == nil {
		t.Error("a folder that isn't there")
	}
}

func FuzzJournal(f *testing.F) {
	var whole []byte
	for _, frame := range []string{frameHeader, "type/a", frameWhole} {
		b, err := appendFrame(nil, journalFrame(frame))
		if err != nil {
			f.Fatal(err)
		}
		whole = append(whole, b...)
	}
	for i := range len(whole) + 1 { // cut at every byte
		f.Add(whole[:i])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		state, err := foldJournal(b, "me", journalTypes)
		if (err == nil) != (state != nil) {
			t.Fatalf("%v, %v", state, err)
		}
	})
}

func journalFrame(typeURL string) *xdspb.DeltaDiscoveryResponse {
	switch typeURL {
	case frameHeader:
		return &xdspb.DeltaDiscoveryResponse{TypeUrl: typeURL, Nonce: "me"}
	case frameWhole:
		return &xdspb.DeltaDiscoveryResponse{TypeUrl: typeURL, RemovedResources: journalTypes}
	default:
		return &xdspb.DeltaDiscoveryResponse{TypeUrl: typeURL, Resources: []*xdspb.Resource{{Name: "x", Version: "1"}}, RemovedResources: []string{"y"}}
	}
}
