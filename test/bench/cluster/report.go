package cluster

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Machine is what the figures were measured on.
type Machine struct {
	Podseal string `json:"podseal"`
	Cores   int    `json:"cores"`
	CPU     string `json:"cpu"`
	Kernel  string `json:"kernel"`
	Go      string `json:"go"`
}

// Figure is one line of the table. Values of a series are in its unit, in the
// order in which they were measured.
type Figure struct {
	Name   string    `json:"name"`
	Unit   string    `json:"unit"`
	Value  float64   `json:"value"` // of a series the median
	Series []float64 `json:"series,omitempty"`
	Limit  float64   `json:"limit,omitempty"` // what it must not exceed; 0 is no limit
	Note   string    `json:"note,omitempty"`
}

// Report is a run.
type Report struct {
	Began     time.Time `json:"began"`
	Machine   Machine   `json:"machine"`
	Load      string    `json:"load_average_before"`
	LoadAfter string    `json:"load_average_after"`
	Figures   []Figure  `json:"figures"`
}

func (r *Report) add(f Figure) {
	if len(f.Series) > 0 {
		f.Value = median(f.Series)
	}
	r.Figures = append(r.Figures, f)
}

// Markdown is the report as people read it.
func (r *Report) Markdown() string {
	var b strings.Builder
	m := r.Machine
	fmt.Fprintf(&b, "\nPodseal %s, %s, on %d cores (%s), Linux %s, %s. Load average %s before and %s after.\n\n",
		m.Podseal, r.Began.Format(time.RFC3339), m.Cores, m.CPU, m.Kernel, m.Go, r.Load, r.LoadAfter)
	b.WriteString("| what | figure | worst | of | limit | |\n| --- | ---: | ---: | ---: | ---: | --- |\n")
	for _, f := range r.Figures {
		worst, count, limit, verdict := "", "", "", ""
		if len(f.Series) > 0 {
			worst, count = number(slices.Max(f.Series)), fmt.Sprint(len(f.Series))
			if strings.HasSuffix(f.Unit, "/s") { // less is worse
				worst = number(slices.Min(f.Series))
			}
		}
		if f.Limit > 0 {
			limit, verdict = number(f.Limit), "reached"
			if f.Value > f.Limit {
				verdict = "**not reached**"
			}
		}
		if f.Note != "" {
			verdict = strings.TrimPrefix(verdict+"; "+f.Note, "; ")
		}
		fmt.Fprintf(&b, "| %s | %s %s | %s | %s | %s | %s |\n", f.Name, number(f.Value), f.Unit, worst, count, limit, verdict)
	}
	return b.String() + "\n"
}

// number has three digits that count.
func number(v float64) string {
	switch a := max(v, -v); {
	case a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}

func median(values []float64) float64 {
	s := slices.Sorted(slices.Values(values))
	n := len(s)
	return (s[(n-1)/2] + s[n/2]) / 2
}

// ThisMachine describes where we are.
func ThisMachine(version string) Machine {
	m := Machine{Podseal: version, Cores: runtime.NumCPU(), CPU: "unknown", Go: runtime.Version()}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return m
	}
	for line := range strings.Lines(string(info)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			m.CPU = strings.TrimSpace(value)
			break
		}
	}
	return m
}

// LoadAverage is that of the last minute.
func LoadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	one, _, _ := strings.Cut(string(b), " ")
	return one
}
