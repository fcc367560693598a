package datapath

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Markdown is the report as people read it. plot is the path of the drawing, or "".
func (r *Report) Markdown(plot string) string {
	var b strings.Builder
	m := r.Machine
	fmt.Fprintf(&b, "\nPodseal %s, %s, %.0f minutes on %d cores (%s), Linux %s, %s. Load average %s before and %s after. One measurement is %s long%s.\n\n",
		m.Podseal, r.Began.Format(time.RFC3339), r.Seconds/60, m.Cores, m.CPU, m.Kernel, m.Go, r.LoadBefore, r.LoadAfter, r.Length, congestion(r.Congestion))
	r.judged(&b)
	if plot != "" {
		fmt.Fprintf(&b, "![Podseal and its peers](%s)\n\n", plot)
	}
	r.tookPart(&b)
	for _, place := range []string{"pinned", "unpinned"} {
		for _, g := range []struct{ group, title string }{
			{groupBulk, "Bulk"},
			{groupConnect, "New connections"},
			{groupHTTP, "HTTP, one request at a time on each connection"},
			{groupLatency, "Latency at a fixed rate"},
			{groupIdle, "Idle connections"},
			{groupMix, "A mix"},
		} {
			r.table(&b, place, g.group, g.title)
		}
	}
	r.notes(&b)
	return b.String()
}

func congestion(name string) string {
	if name == "" {
		return ""
	}
	return "; TCP with " + name
}

// judged is the table of the figures.
func (r *Report) judged(b *strings.Builder) {
	b.WriteString("| to the best peer of this run, pinned | must | aim | measured | | Podseal | best peer |\n| --- | ---: | ---: | ---: | --- | ---: | --- |\n")
	for _, f := range r.Figures {
		measured := ""
		if f.Known {
			measured = number(f.Measured) + unitOf(f.Unit)
		}
		fmt.Fprintf(b, "| %s | %s | %s | %s | %s | %s | %s |\n", f.Name, f.bound(f.Must), f.bound(f.Aim), measured, f.Verdict(), f.Ours, f.Theirs)
	}
	b.WriteString("\n")
}

// tookPart says who was measured, with what on the wire, and who was not.
func (r *Report) tookPart(b *strings.Builder) {
	b.WriteString("| who | |\n| --- | --- |\n")
	for _, p := range r.Peers {
		text := p.Wire
		if p.Missing != "" {
			text = "not measured: " + strings.TrimPrefix(p.Missing, "not measured: ")
		}
		if p.Aside != "" {
			text = strings.TrimPrefix(text+"; no ratios are taken to it: "+p.Aside, "; ")
		}
		fmt.Fprintf(b, "| %s | %s |\n", p.Title, strings.ReplaceAll(text, "\n", " "))
	}
	b.WriteString("\n")
}

// table has a line for each figure of a group and a column for each peer.
func (r *Report) table(b *strings.Builder, place, group, title string) {
	columns := r.columns(place, group)
	if len(columns) == 0 {
		return
	}
	fmt.Fprintf(b, "### %s, %s\n\n| |", title, place)
	for _, c := range columns {
		fmt.Fprintf(b, " %s |", c)
	}
	b.WriteString(" Podseal ÷ best |\n| --- |" + strings.Repeat(" ---: |", len(columns)+1) + "\n")
	for _, s := range scenarios() {
		if s.group != group {
			continue
		}
		metrics := append(s.metrics(), metric{name: metricCalls})
		for _, m := range metrics {
			r.line(b, place, s, m, columns)
		}
	}
	b.WriteString("\n")
}

// columns are the peers that were measured in a group.
func (r *Report) columns(place, group string) []string {
	var all []string
	for _, p := range r.Peers {
		if slices.ContainsFunc(r.Series, func(s *Series) bool {
			return s.Peer == p.Name && s.Placement == place && groupOf(s.Scenario) == group && len(s.Values) > 0
		}) {
			all = append(all, p.Name)
		}
	}
	return all
}

func groupOf(name string) string {
	for _, s := range scenarios() {
		if s.name == name {
			return s.group
		}
	}
	return ""
}

func (r *Report) line(b *strings.Builder, place string, s scenario, m metric, columns []string) {
	var cells []string
	unit, ratio := "", ""
	for _, c := range columns {
		cell := ""
		if own := r.find(place, s.name, c, m.name); own != nil && len(own.Values) > 0 {
			unit = own.Unit
			cell = number(own.Median)
			if len(own.Values) > 1 {
				cell += fmt.Sprintf(" ±%.0f%%", own.Spread*100)
			}
			if c == ourselves && own.Ratio > 0 {
				ratio = number(own.Ratio)
			}
		}
		cells = append(cells, cell)
	}
	if unit == "" {
		return
	}
	name := m.name + ", " + unit
	switch m.name {
	case metricRate, metricCPU, metricStart, metricEach, metricCalls:
		name = unit
	}
	fmt.Fprintf(b, "| %s: %s | %s | %s |\n", s.title, name, strings.Join(cells, " | "), ratio)
}

// notes say what the tables can't.
func (r *Report) notes(b *strings.Builder) {
	var all []string
	if r.Calls != "" {
		all = append(all, "System calls were not counted: "+r.Calls+".")
	}
	for place, rate := range r.HalfRate {
		all = append(all, fmt.Sprintf("Half the best peer's rate was %s (%s).", rate, place))
	}
	all = append(all, r.limited()...)
	for _, n := range r.Notes {
		all = append(all, n+".")
	}
	for _, f := range r.Faults {
		all = append(all, "Fault: "+strings.ReplaceAll(f, "\n", " ")+".")
	}
	slices.Sort(all)
	for _, n := range all {
		fmt.Fprintf(b, "- %s\n", n)
	}
	if len(all) > 0 {
		b.WriteString("\n")
	}
}

// limited names the measurements where the ends were busier than the proxies: the
// rate is then not the proxies' limit, while CPU time per unit still holds.
func (r *Report) limited() []string {
	var where []string
	for _, s := range r.Series {
		if s.Placement != "pinned" || s.Peer == "direct" || len(s.Loads) == 0 {
			continue
		}
		var ends, proxies []float64
		for _, l := range s.Loads {
			ends, proxies = append(ends, l.Ends), append(proxies, l.Proxies)
		}
		g := groupOf(s.Scenario)
		if (g == groupBulk || g == groupHTTP || g == groupConnect) && median(ends) > 0.9 && median(proxies) < 0.9 {
			where = append(where, s.Scenario+" "+s.Peer)
		}
	}
	if len(where) == 0 {
		return nil
	}
	return []string{"The client and the application were the limit, and not the proxies, of the rate in: " + strings.Join(where, ", ") + ". CPU time per unit is not touched by that."}
}

// number has three digits that count.
func number(v float64) string {
	switch a := max(v, -v); {
	case a >= 1000:
		return thousands(int(v + 0.5))
	case a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	case a >= 0.1 || a == 0:
		return fmt.Sprintf("%.2f", v)
	default:
		return fmt.Sprintf("%.3f", v)
	}
}

func thousands(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// trimmed has no zeros that say nothing.
func trimmed(v float64) string { return strconv.FormatFloat(v, 'g', 3, 64) }
