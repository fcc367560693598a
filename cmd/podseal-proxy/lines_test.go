package main

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// written keeps each piece that was written.
type written struct {
	mu     sync.Mutex
	pieces []string
}

func (w *written) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pieces = append(w.pieces, string(b))
	return len(b), nil
}

func (w *written) all() (pieces int, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.pieces), strings.Join(w.pieces, "")
}

// One line goes out at once, many go out together, soon, in order and whole.
func TestLinesGoOutTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w written
		l := &lines{w: &w}
		want := ""
		line := func(i int) {
			s := fmt.Sprintf("line %d\n", i)
			want += s
			if n, err := l.Write([]byte(s)); n != len(s) || err != nil {
				t.Fatal(n, err)
			}
		}
		line(0)
		if n, text := w.all(); n != 1 || text != want {
			t.Errorf("%d pieces: %q", n, text)
		}
		for i := range 100 {
			line(i)
		}
		if n, _ := w.all(); n != 1 {
			t.Errorf("%d pieces", n)
		}
		time.Sleep(linesWait)
		synctest.Wait()
		if n, text := w.all(); n != 2 || text != want {
			t.Errorf("%d pieces: %q", n, text)
		}
		line(1)
		time.Sleep(linesWait / 2)
		line(2)
		time.Sleep(linesWait)
		synctest.Wait()
		if _, text := w.all(); text != want {
			t.Errorf("%q", text)
		}
		time.Sleep(linesWait)
		line(3)
		if _, text := w.all(); text != want {
			t.Errorf("after a pause: %q", text)
		}
		line(4)
		l.flush()
		if _, text := w.all(); text != want {
			t.Errorf("at the end: %q", text)
		}
	})
}

// What waits is bounded.
func TestLinesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w written
		l := &lines{w: &w}
		long := strings.Repeat("x", 1000) + "\n"
		const many = 1000
		for range many {
			if _, err := l.Write([]byte(long)); err != nil {
				t.Fatal(err)
			}
			if len(l.waiting) >= linesFull {
				t.Fatalf("%d bytes wait", len(l.waiting))
			}
		}
		l.flush()
		if n, text := w.all(); n > 1+many/16+1 || len(text) != many*len(long) {
			t.Errorf("%d pieces, %d bytes", n, len(text))
		}
	})
}
