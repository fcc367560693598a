package settings

import (
	"encoding/json"

	"podseal.io/podseal/internal/accesslog"
)

// accessLog reads dataPlane.accessLog:
//
//	{type: Text | JSON, textFormat: "…", jsonLabels: {…}}
//
// jsonFormat is read as jsonLabels. Without a format it is Istio's own (contract
// 7.11, 7.12).
func (p *parser) accessLog(path string, v any) {
	object, ok := v.(map[string]any)
	if !ok {
		p.fault(path, v, "write an object with type, textFormat and jsonLabels")
		return
	}
	p.onlyKeys(path, object, "type", "textFormat", "jsonLabels", "jsonFormat")
	kind := "Text"
	if v, given := object["type"]; given {
		kind = p.oneOf(path+".type", v, "Text", "JSON")
	}
	key, format := "textFormat", ""
	switch kind {
	case "Text":
		if v, given := object[key]; given {
			format, _ = p.text(path+"."+key, v)
		}
	case "JSON":
		key = "jsonLabels"
		if object[key] == nil && object["jsonFormat"] != nil {
			key = "jsonFormat"
		}
		format = p.labels(path+"."+key, object[key])
	default:
		return
	}
	for _, other := range []string{"textFormat", "jsonLabels", "jsonFormat"} {
		if _, given := object[other]; given && other != key {
			p.warn(path+"."+other, "has no effect beside type "+kind+" and "+key)
		}
	}
	log := AccessLog{JSON: kind == "JSON", Format: format}
	if format == "" {
		log.Format = accesslog.Default(log.JSON)
	}
	_, notes, err := accesslog.Parse(log.Format, log.JSON)
	if err != nil {
		p.faults = append(p.faults, fault{path + "." + key, err.Error()})
		return
	}
	for _, note := range notes {
		p.warn(path+"."+key, note)
	}
	p.out.AccessLog = log
}

// labels are the fields of a line of JSON, as JSON.
func (p *parser) labels(path string, v any) string {
	if v == nil {
		return ""
	}
	object, ok := v.(map[string]any)
	if !ok {
		p.fault(path, v, "write an object of names and formats")
		return ""
	}
	if len(object) == 0 {
		return ""
	}
	b, err := json.Marshal(object)
	if err != nil {
		p.fault(path, v, "write an object of names and formats")
	}
	return string(b)
}
