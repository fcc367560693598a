package wire

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

func TestAppendNormalPath(t *testing.T) { // contract 2.53, 2.54
	for _, tt := range []struct{ path, want string }{
		{"/", "/"},
		{"/a/b?x=../y", "/a/b?x=../y"},
		{"/a/./b", "/a/b"},
		{"/a/../b", "/b"},
		{"/a/b/..", "/a/"},
		{"/a/.", "/a/"},
		{"/..", "/"},
		{"/../../a", "/a"},
		{"/a//b", "/a//b"}, // slashes are not merged
		{"/a//../b", "/a/b"},
		{`/a\..\b`, "/b"},
		{"/a%2fb", "/a%2fb"}, // escaped slashes stay
		{"/a%5C..%5Cb", "/a%5C..%5Cb"},
		{"/%61dmin", "/admin"},
		{"/%2e%2E/a", "/a"},
		{"/a%20b", "/a%20b"},
		{"/%6%31dmin", "/admin"}, // what decodes to an escape
		{"/100%", "/100%"},
		{"/%zz", "/%zz"},
		{"/a#b?c", "/a"},
		{"/a?b#c", "/a?b"},
		{"/.well-known/x", "/.well-known/x"},
		{"/...", "/..."},
		{"/a/..;/b", "/a/..;/b"},
	} {
		got, err := AppendNormalPath([]byte("x"), []byte(tt.path))
		if err != nil || string(got) != "x"+tt.want {
			t.Errorf("%q: %q, %v, want %q", tt.path, got, err, tt.want)
		}
		if IsNormalPath([]byte(tt.path)) && tt.path != tt.want {
			t.Errorf("%q is said to be normal", tt.path)
		}
	}
	for _, bad := range []string{"/a%00b", "/" + strings.Repeat("%2", 20) + "5" + strings.Repeat("35", 20), "/%%3%3%3%3%3%3%33333331"} {
		if got, err := AppendNormalPath(nil, []byte(bad)); err == nil {
			again, _ := AppendNormalPath(nil, got)
			if !bytes.Equal(got, again) {
				t.Errorf("%q: %q, and then %q", bad, got, again)
			}
		} else if !errors.Is(err, ErrMalformed) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// FuzzAppendNormalPath: what is normal stays as it is, has no dot segment and
// begins with a slash.
func FuzzAppendNormalPath(f *testing.F) {
	for _, p := range []string{"/a/../b?c#d", `/\..%2e/%2e%2e/%61`, "/%6%31", "/a/.", "//..//"} {
		f.Add([]byte(p))
	}
	f.Fuzz(func(t *testing.T, path []byte) {
		if len(path) == 0 || path[0] != '/' {
			return
		}
		given := bytes.Clone(path)
		got, err := AppendNormalPath(nil, path)
		if !bytes.Equal(given, path) {
			t.Fatalf("%q was changed", given)
		}
		if err != nil {
			return
		}
		if IsNormalPath(path) && !bytes.Equal(got, path) {
			t.Fatalf("%q is said to be normal, and becomes %q", path, got)
		}
		again, err := AppendNormalPath(nil, got)
		if err != nil || !bytes.Equal(again, got) {
			t.Fatalf("%q becomes %q, and then %q (%v)", path, got, again, err)
		}
		p, _, _ := strings.Cut(string(got), "?")
		if p == "" || p[0] != '/' || strings.Contains(p+"/", "/../") || strings.Contains(p+"/", "/./") || strings.ContainsAny(p, `\#`) {
			t.Fatalf("%q becomes %q", path, got)
		}
	})
}
