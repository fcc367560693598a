package settings

import "slices"

// maxReplicas bounds a slip of the finger.
const maxReplicas = 100

// replicas reads controlPlane.replicasManagement:
//
//	{mode: Standard | Static | HPA, static: {replicas}, hpa: {minReplicas, maxReplicas, metrics}}
//
// Under HPA the number is minReplicas: nothing scales it yet.
func (p *parser) replicas(path string, v any) {
	object, ok := p.withMode(path, v, "hpa")
	if !ok {
		return
	}
	switch p.oneOf(path+".mode", object["mode"], "Standard", "Static", "HPA") {
	case "Static":
		p.replicaCount(path+".static", "replicas", object["static"])
	case "HPA":
		p.replicaCount(path+".hpa", "minReplicas", object["hpa"])
		p.warn(path+".mode", "HPA has no effect in this version; minReplicas is the number of replicas")
	}
}

// withMode reads an object of a mode and of what there is to say for "static"
// and for the mode that bears the name other.
func (p *parser) withMode(path string, v any, other string) (map[string]any, bool) {
	object, ok := v.(map[string]any)
	if !ok {
		p.fault(path, v, "write an object with mode")
		return nil, false
	}
	p.onlyKeys(path, object, "mode", "static", other)
	return object, true
}

func (p *parser) replicaCount(path, key string, v any) {
	object, ok := v.(map[string]any)
	if !ok {
		p.fault(path, v, "write an object with "+key)
		return
	}
	allowed := []string{key}
	if key == "minReplicas" {
		allowed = append(allowed, "maxReplicas", "metrics")
	}
	p.onlyKeys(path, object, allowed...)
	n, isInt := integer(object[key])
	if !isInt || n < 1 || n > maxReplicas {
		p.fault(path+"."+key, object[key], "write a whole number from 1 to 100")
		return
	}
	p.out.ControlPlane.Replicas = int32(n)
}

// controlPlaneResources reads controlPlane.resourcesManagement:
//
//	{mode: VPA | Static, static: {requests: {cpu, memory}, limits: {cpu, memory}}, vpa: {mode, cpu: {min, max, limitRatio}, memory: {…}}}
//
// Under VPA the requests are the minima: nothing moves them yet.
func (p *parser) controlPlaneResources(path string, v any) {
	object, ok := p.withMode(path, v, "vpa")
	if !ok {
		return
	}
	cp := &p.out.ControlPlane
	mode := "VPA"
	if m, given := object["mode"]; given {
		mode = p.oneOf(path+".mode", m, "VPA", "Static")
	}
	switch mode {
	case "Static":
		static := p.inner(path+".static", object["static"], "requests", "limits")
		requests := p.inner(path+".static.requests", static["requests"], "cpu", "memory")
		limits := p.inner(path+".static.limits", static["limits"], "cpu", "memory")
		p.optionalQuantity(path+".static.requests.cpu", requests["cpu"], &cp.RequestCPU)
		p.optionalQuantity(path+".static.requests.memory", requests["memory"], &cp.RequestMemory)
		p.optionalQuantity(path+".static.limits.cpu", limits["cpu"], &cp.LimitCPU)
		p.optionalQuantity(path+".static.limits.memory", limits["memory"], &cp.LimitMemory)
	case "VPA":
		vpa := p.inner(path+".vpa", object["vpa"], "mode", "cpu", "memory")
		cpu := p.inner(path+".vpa.cpu", vpa["cpu"], "min", "max", "limitRatio")
		memory := p.inner(path+".vpa.memory", vpa["memory"], "min", "max", "limitRatio")
		p.optionalQuantity(path+".vpa.cpu.min", cpu["min"], &cp.RequestCPU)
		p.optionalQuantity(path+".vpa.memory.min", memory["min"], &cp.RequestMemory)
		p.warn(path+".mode", "VPA has no effect in this version; the minima are the requests")
	}
}

func (p *parser) optionalQuantity(path string, v any, out *string) {
	if v != nil {
		p.quantity(path, v, out)
	}
}

// inner is the object v, empty if v is absent or no object.
func (p *parser) inner(path string, v any, keys ...string) map[string]any {
	if v == nil {
		return nil
	}
	object, ok := v.(map[string]any)
	if !ok {
		p.fault(path, v, "write an object")
	}
	p.onlyKeys(path, object, keys...)
	return object
}

func (p *parser) onlyKeys(path string, object map[string]any, keys ...string) {
	for key := range object {
		if slices.Contains(keys, key) {
			continue
		}
		text := "unknown setting"
		if best := nearest(key, keys); best != "" {
			text += "; did you mean " + best + "?"
		}
		p.faults = append(p.faults, fault{at(path, key), text})
	}
}
