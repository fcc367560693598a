package proxy

import "time"

// usedEntry is what is kept under a name, and knows when it was used last.
type usedEntry interface{ lastUsed() *time.Time }

// keptEntry finds or makes the entry of a name; the one that was used longest ago
// makes room. Callers hold the lock that guards them all.
func keptEntry[E usedEntry](kept map[string]E, name string, most int, now time.Time, fresh func() E) E {
	e, ok := kept[name]
	if !ok {
		if len(kept) >= most {
			oldest, found := "", false
			for other, o := range kept {
				if !found || o.lastUsed().Before(*kept[oldest].lastUsed()) {
					oldest, found = other, true
				}
			}
			delete(kept, oldest)
		}
		e = fresh()
		kept[name] = e
	}
	*e.lastUsed() = now
	return e
}
