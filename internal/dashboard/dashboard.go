// Package dashboard holds the page that shows the mesh in a browser: who talks to
// whom and how, certificates, and what is wrong. It has no outside assets, asks for
// one document of data, and changes nothing.
package dashboard

import (
	"embed"
	"net/http"
	"strings"
)

//go:embed assets
var assets embed.FS

// Path is where the control plane serves the page, to who may look; Data is where
// the page asks for its document, beside itself.
const (
	Path = "/dashboard/"
	Data = "data"
)

// Policy is what a browser may do with the page: run what comes with it, ask where
// it came from, and nothing else.
const Policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

var contentTypes = map[string]string{".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8"}

// Serve answers with a part of the page: "" or the name of a file.
func Serve(w http.ResponseWriter, name string) {
	if name == "" {
		name = "index.html"
	}
	text, err := assets.ReadFile("assets/" + name)
	kind := contentTypes[name[max(strings.LastIndexByte(name, '.'), 0):]]
	if err != nil || kind == "" {
		http.Error(w, "the dashboard has no such page", http.StatusNotFound)
		return
	}
	h := w.Header()
	h.Set("Content-Type", kind)
	h.Set("Content-Security-Policy", Policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-store")
	_, _ = w.Write(text) // who asked is gone
}
