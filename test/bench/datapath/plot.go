package datapath

import (
	"fmt"
	"strings"
)

// panel is one drawing: a bar for each peer.
type panel struct {
	title            string
	scenario, metric string
}

func panels() []panel {
	return []panel{
		{"CPU-seconds of both proxies per GB, one stream up", bulkUp, metricCPU},
		{"new connections per second, 64 clients", connectMany, metricRate},
		{"CPU ms per 1,000 new connections", connectMany, metricCPU},
		{"HTTP/1.1 requests per second, 32 connections", httpMany, metricRate},
		{"CPU ms per 1,000 HTTP/1.1 requests", httpMany, metricCPU},
		{"p50 of one request on one connection, µs", httpOne, metricP50},
		{"kB of memory per idle connection and proxy", idleFew, metricEach},
		{"MB of memory of a proxy at start", idleFew, metricStart},
	}
}

// Sizes of the drawing, in pixels.
const (
	panelWidth, barHeight, labelWidth, valueWidth = 460, 17, 170, 70
	titleHeight, panelGap, columnCount            = 26, 18, 2
)

// SVG draws the pinned figures: one panel for each, Podseal's bars in colour.
// What is better is said in each title; the drawing has no script and no font of
// its own, and is readable on light and on dark ground.
func (r *Report) SVG() string {
	type bar struct {
		label string
		value float64
		ours  bool
	}
	var body strings.Builder
	columns := [columnCount]int{}
	for i, p := range panels() {
		var bars []bar
		most, more := 0.0, false
		for _, peer := range r.Peers {
			s := r.find("pinned", p.scenario, peer.Name, p.metric)
			if s == nil || len(s.Values) == 0 || peer.Name == "direct" {
				continue
			}
			more = s.More
			bars = append(bars, bar{strings.ReplaceAll(peer.Title, "*", ""), s.Median, isPodseal(peer.Name)})
			most = max(most, s.Median)
		}
		if len(bars) == 0 || most <= 0 {
			continue
		}
		c := i % columnCount
		x, y := c*(panelWidth+panelGap), columns[c]
		better := "less is better"
		if more {
			better = "more is better"
		}
		fmt.Fprintf(&body, `<text x="%d" y="%d" class="t">%s (%s)</text>`+"\n", x, y+16, p.title, better)
		y += titleHeight
		for _, b := range bars {
			class := "p"
			if b.ours {
				class = "o"
			}
			width := max(1, b.value/most*float64(panelWidth-labelWidth-valueWidth))
			fmt.Fprintf(&body, `<text x="%d" y="%d" class="l">%s</text><rect x="%d" y="%d" width="%.1f" height="%d" class="%s"/><text x="%.1f" y="%d">%s</text>`+"\n",
				x+labelWidth-6, y+12, short(b.label), x+labelWidth, y+2, width, barHeight-4, class, float64(x+labelWidth)+width+4, y+12, number(b.value))
			y += barHeight
		}
		columns[c] = y + panelGap
	}
	width, height := columnCount*panelWidth+panelGap, max(columns[0], columns[1])
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11">
<style>text{fill:#24292f}.t{font-weight:bold;font-size:12px}.l{text-anchor:end}.p{fill:#9aa5b1}.o{fill:#1f6feb}@media(prefers-color-scheme:dark){text{fill:#e6edf3}}</style>
%s</svg>
`, width, height, width, height, body.String())
}

// short is a label that fits.
func short(label string) string {
	label = strings.NewReplacer("plain Go (io.Copy over crypto/tls)", "plain Go", "&", "&amp;", "<", "&lt;").Replace(label)
	if r := []rune(label); len(r) > 28 {
		return string(r[:27]) + "…"
	}
	return label
}
