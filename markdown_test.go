package podseal

import (
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	mdLink    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	mdHeading = regexp.MustCompile(`^#{1,6}\s+(.*?)\s*#*$`)
	mdPath    = regexp.MustCompile("`(docs/[A-Za-z0-9_./-]+\\.md)`")
	mdSpan    = regexp.MustCompile("`[^`]*`")
)

// TestMarkdownLinks: what the documents of this repository link to is there, file and
// heading, and so is each document that is named without a link.
func TestMarkdownLinks(t *testing.T) {
	headings := map[string][]string{}
	for _, path := range markdown(t) {
		headings[path] = anchors(read(t, path))
	}
	links := 0
	for _, path := range markdown(t) {
		for i, line := range strings.Split(withoutFences(read(t, path)), "\n") {
			for _, m := range mdPath.FindAllStringSubmatch(line, -1) {
				if _, err := os.Stat(m[1]); err != nil {
					t.Errorf("%s:%d: there is no %s", path, i+1, m[1])
				}
			}
			for _, m := range mdLink.FindAllStringSubmatch(mdSpan.ReplaceAllString(line, ""), -1) {
				links++
				if fault := deadLink(path, m[1], headings); fault != "" {
					t.Errorf("%s:%d: %s: %s", path, i+1, m[1], fault)
				}
			}
		}
	}
	if links < 50 {
		t.Errorf("only %d links were found: the test doesn't see them", links)
	}
}

// deadLink says what is wrong with a link, "" for nothing. Nobody is asked about other
// servers.
func deadLink(from, link string, headings map[string][]string) string {
	u, err := url.Parse(link)
	switch {
	case err != nil:
		return err.Error()
	case u.Scheme == "https":
		return ""
	case u.Scheme != "" || u.Host != "" || strings.HasPrefix(u.Path, "/"):
		return "write a path from the document's folder, or https"
	}
	to := from
	if u.Path != "" {
		to = filepath.Join(filepath.Dir(from), u.Path)
	}
	if _, err := os.Stat(to); err != nil {
		return "there is no such file"
	}
	if all, ok := headings[to]; u.Fragment != "" && ok && !slices.Contains(all, u.Fragment) {
		return "there is no such heading"
	}
	return ""
}

// anchors are the names by which headings of a document are linked to.
func anchors(text string) []string {
	var all []string
	for line := range strings.Lines(withoutFences(text)) {
		m := mdHeading.FindStringSubmatch(strings.TrimRight(line, "\n"))
		if m == nil {
			continue
		}
		name := strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-' || r == '_' || r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r > 127:
				return r
			}
			return -1
		}, strings.ToLower(mdLink.ReplaceAllString(m[1], "]")))
		all = append(all, name)
	}
	return all
}

// withoutFences blanks what stands between fences, line by line.
func withoutFences(text string) string {
	lines, inside := strings.Split(text, "\n"), false
	for i, line := range lines {
		fence := strings.HasPrefix(strings.TrimSpace(line), "```")
		if inside || fence {
			lines[i] = ""
		}
		inside = inside != fence
	}
	return strings.Join(lines, "\n")
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// markdown are the documents of this repository.
func markdown(t *testing.T) (paths []string) {
	t.Helper()
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (path == "bin" || d.Name() == "node_modules" || (path != "." && strings.HasPrefix(d.Name(), "."))):
			return filepath.SkipDir
		case !d.IsDir() && filepath.Ext(path) == ".md":
			paths = append(paths, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

func TestDeadLink(t *testing.T) {
	headings := map[string][]string{"README.md": anchors("# A `b`, and c-d\n\n```\n# no heading\n```\n## [Linked](x.md) too\n")}
	for link, dead := range map[string]bool{
		"https://example.com/x": false, "#a-b-and-c-d": false, "#linked-too": false, "#no-heading": true, "docs/ca.md": false, "docs": false,
		"docs/nowhere.md": true, "/docs/ca.md": true, "http://example.com": true, "README.md#x": true,
	} {
		if fault := deadLink("README.md", link, headings); (fault != "") != dead {
			t.Errorf("%s: %q", link, fault)
		}
	}
}
