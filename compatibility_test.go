package podseal

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// sections says how many facts each section of the contract has.
var sections = [...]int{1: 38, 2: 63, 3: 75, 4: 44, 5: 52, 6: 46, 7: 16}

// row is one line of docs/compatibility.md.
type row struct {
	state string   // done, better, in part, not done
	text  string   // what Podseal does, or what users see instead
	tests []string // <package>.<function>
}

// proved is what tests say that they prove: where each number is named, and
// where each function of a test stands.
type proved struct {
	numbers   map[string][]string // "4.1": files
	functions map[string]string   // "ca.TestAnswers": file
}

// TestCompatibility holds docs/compatibility.md against the tests: each fact
// stands there once; what is said to be done names tests that exist and that
// name the fact, as `contract 4.1`, `contract 4.1-4.3` or `contract 4.1, 5.2 and
// 5.4`; and no test claims what is said not to be done.
func TestCompatibility(t *testing.T) {
	rows := compatibilityRows(t)
	tests := provedByTests(t)
	for section, facts := range sections {
		for i := range facts {
			number := fmt.Sprintf("%d.%d", section, i+1)
			r, ok := rows[number]
			if !ok {
				t.Errorf("%s is missing in docs/compatibility.md", number)
				continue
			}
			checkRow(t, number, r, tests)
			delete(rows, number)
		}
	}
	for _, number := range slices.Sorted(maps.Keys(rows)) {
		t.Errorf("%s is no fact of the contract", number)
	}
	for _, number := range slices.Sorted(maps.Keys(tests.numbers)) {
		if !isFact(number) {
			t.Errorf("%s names contract %s, which doesn't exist", tests.numbers[number][0], number)
		}
	}
}

func checkRow(t *testing.T, number string, r row, tests proved) {
	t.Helper()
	files := tests.numbers[number]
	switch r.state {
	case "done", "better", "in part":
		if len(r.tests) == 0 {
			t.Errorf("%s is %s, but names no test", number, r.state)
		}
		for _, name := range r.tests {
			if tests.functions[name] == "" {
				t.Errorf("%s: there is no test %s", number, name)
			}
		}
		if !slices.ContainsFunc(r.tests, func(name string) bool { return slices.Contains(files, tests.functions[name]) }) {
			t.Errorf("%s is %s: none of the files of %s says contract %s", number, r.state, strings.Join(r.tests, ", "), number)
		}
	case "not done":
		if len(files) > 0 {
			t.Errorf("%s is not done, but %s says contract %s", number, strings.Join(files, ", "), number)
		}
		if len(r.tests) > 0 {
			t.Errorf("%s is not done, but names tests", number)
		}
	default:
		t.Errorf("%s: %q is no state", number, r.state)
	}
	if r.state != "done" && r.text == "" {
		t.Errorf("%s is %s: say what users see", number, r.state)
	}
}

func compatibilityRows(t *testing.T) map[string]row {
	t.Helper()
	text, err := os.ReadFile("docs/compatibility.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]row{}
	for line := range strings.Lines(string(text)) {
		if line[0] != '|' {
			continue
		}
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		if !regexp.MustCompile(`^\d+\.\d+$`).MatchString(cells[0]) {
			continue
		}
		if len(cells) != 5 {
			t.Errorf("%s has %d cells, want 5", cells[0], len(cells))
			continue
		}
		if _, twice := rows[cells[0]]; twice {
			t.Errorf("%s stands twice", cells[0])
		}
		r := row{state: cells[2], text: cells[3]}
		for name := range strings.FieldsSeq(cells[4]) {
			r.tests = append(r.tests, strings.Trim(name, "`,"))
		}
		rows[cells[0]] = r
	}
	return rows
}

// provedByTests reads every file of tests in this module.
func provedByTests(t *testing.T) proved {
	t.Helper()
	function := regexp.MustCompile(`(?m)^func (?:\([^)]*\) )?([Tt]est\w+|Fuzz\w+)\(`)
	found := proved{map[string][]string{}, map[string]string{}}
	for _, root := range []string{"internal", "cmd", "test", "api"} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for _, number := range contractNumbers(string(text)) {
				if !slices.Contains(found.numbers[number], path) {
					found.numbers[number] = append(found.numbers[number], path)
				}
			}
			for _, m := range function.FindAllStringSubmatch(string(text), -1) {
				found.functions[filepath.Base(filepath.Dir(path))+"."+m[1]] = path
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return found
}

var (
	lineBreak = regexp.MustCompile(`\n\s*//\s*`)
	mention   = regexp.MustCompile(`(?i)contract (\d+\.\d+(?:(?:, | and | to |-)\d+\.\d+)*)`)
	span      = regexp.MustCompile(`(\d+)\.(\d+)(?:(?: to |-)(\d+)\.(\d+))?`)
)

// contractNumbers is what a text names as `contract N.M`, ranges unfolded.
func contractNumbers(text string) []string {
	var numbers []string
	for _, m := range mention.FindAllStringSubmatch(lineBreak.ReplaceAllString(text, " "), -1) {
		for _, s := range span.FindAllStringSubmatch(m[1], -1) {
			from, _ := strconv.Atoi(s[2])
			to := from
			if s[3] == s[1] {
				to, _ = strconv.Atoi(s[4])
			}
			for n := from; n <= to; n++ {
				numbers = append(numbers, s[1]+"."+strconv.Itoa(n))
			}
		}
	}
	return numbers
}

func isFact(number string) bool {
	section, fact, _ := strings.Cut(number, ".")
	s, err1 := strconv.Atoi(section)
	f, err2 := strconv.Atoi(fact)
	return err1 == nil && err2 == nil && s > 0 && s < len(sections) && f > 0 && f <= sections[s]
}

func TestContractNumbers(t *testing.T) {
	got := contractNumbers("// contract 1.2, contract 3.8, 3.9 and 2.14. Contract 5.15 to 5.17;\n\t// contract\n\t// 4.5-4.6: contract B1, contract §1, 9.9")
	want := []string{"1.2", "3.8", "3.9", "2.14", "5.15", "5.16", "5.17", "4.5", "4.6"}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
