package discovery

import "k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

// readInForce reads an object of ours as it is or, if that is wrong, its last good
// version, and notes in verdicts what is wrong. It reports whether there is
// something to put in force.
func readInForce[T any](c *Cluster, kind string, obj *unstructured.Unstructured, verdicts Verdicts, read func(*unstructured.Unstructured) (T, *reader)) (T, bool) {
	var none T
	if rev := obj.GetLabels()[labelRevision]; rev != "" && !c.Settings.Serves(rev) {
		return none, false // another control plane's: contract 1.37
	}
	key := Key{kind, obj.GetNamespace(), obj.GetName()}
	now, r := read(obj)
	if len(r.faults) == 0 {
		return now, true
	}
	if last := c.LastGood[key]; last != nil {
		if good, again := read(last); len(again.faults) == 0 {
			verdicts[key] = Verdict{Reason: ReasonInvalid, Message: Describe(r.faults) + " · the last good version stays in force"}
			return good, true
		}
	}
	verdicts[key] = Verdict{Reason: ReasonInvalid, Message: Describe(r.faults) + " · it is left out"}
	return none, false
}
