package controlplane

import (
	"strings"
	"testing"

	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"podseal.io/podseal/internal/discovery"
)

// What turns wrong is one Event, however often it is looked at; what turns well,
// or changes its text only, is none.
func TestStatusEvents(t *testing.T) {
	obj := specified(discovery.KindPeerAuthentication, "shop", "p", map[string]any{})
	c := fake.NewClientBuilder().WithScheme(newScheme()).WithObjects(obj).WithStatusSubresource(newPolicy(discovery.KindPeerAuthentication)).Build()
	recorder := events.NewFakeRecorder(10)
	now := epoch
	s := &statusWriter{client: c, events: recorder, log: quietLog, written: map[discovery.Key]writing{}}
	key := discovery.Key{Kind: discovery.KindPeerAuthentication, Namespace: "shop", Name: "p"}
	for step, tc := range []struct {
		next []condition
		want string
	}{
		{[]condition{{conditionAccepted, "True", "Accepted", "m"}}, ""},
		{[]condition{{conditionAccepted, "False", discovery.ReasonInvalid, "bad mode"}}, "Warning Invalid bad mode"},
		{[]condition{{conditionAccepted, "False", discovery.ReasonInvalid, "bad mode, again"}}, ""},
		{[]condition{{conditionAccepted, "True", "Accepted", "m"}, {conditionEnforced, "False", reasonProgressing, "late"}}, ""},
		{[]condition{{conditionAccepted, "True", "Accepted", "m"}, {conditionEnforced, "False", reasonRejected, "refused by shop/api"}}, "Warning Rejected refused by shop/api"},
		{[]condition{{conditionAccepted, "False", discovery.ReasonShadowed, "older"}, {conditionEnforced, "False", discovery.ReasonShadowed, "ignored: older"}}, "Warning Shadowed older"},
	} {
		now = now.Add(2 * statusAgain)
		s.now = at(now)
		if wrote, err := s.write(t.Context(), key, tc.next); err != nil || !wrote {
			t.Fatalf("step %d: wrote %v, %v", step, wrote, err)
		}
		var got []string
		for len(recorder.Events) > 0 {
			got = append(got, <-recorder.Events)
		}
		if strings.Join(got, "|") != tc.want {
			t.Errorf("step %d: %q, want %q", step, got, tc.want)
		}
	}
}
