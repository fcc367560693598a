package proxy

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"podseal.io/podseal/internal/extauthz"
	"podseal.io/podseal/internal/jwt"
	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/wire"
	"podseal.io/podseal/internal/workload"
)

// gate says of each HTTP request of one connection whether it may reach the
// application, before anything of it does, and what is to be changed of its head.
// The relays of HTTP/1 and HTTP/2 ask it alike. It may be asked by any number of
// goroutines at a time, and waits when somebody else must be asked.
type gate struct {
	World   func() *workload.World // what is in force now
	Attempt policy.Attempt         // what the connection says
	Now     func() time.Time       // that tokens are held against; nil is time.Now
	// Authorize asks an authorizer; nil denies what would be asked.
	Authorize func(ctx context.Context, a *policy.Authorizer, r *extauthz.Request) (*extauthz.Answer, error)
	// OnJudged is called for each request that an AuthorizationPolicy said something
	// of, OnRefused for each that was refused before; or nil.
	OnJudged  func(j *policy.Judgement, r *policy.Request)
	OnRefused func(reason policy.Reason, detail string, r *policy.Request)
}

// gatedRequest is one request at the gate. The relay that it belongs to keeps it
// until the request is answered, may use it again for the next one, and owns it
// but while it asks.
type gatedRequest struct {
	// Request is what the application would get: the path normalised, the names of
	// fields in lower case, nothing in it that only a proxy may say. Token is the
	// gate's to set, and Header is taken from Fields.
	Request policy.Request
	Fields  fieldLister
	// Protocol is HTTP/1.1 or HTTP/2.
	Protocol string
	// ReadAhead returns the beginning of the body without its framing, up to so
	// many bytes, and whether that is all of it. The relay still passes on what was
	// read. nil is a request without a body.
	ReadAhead func(ctx context.Context, most int) (body []byte, whole bool, err error)
	// Beside is called before somebody else is asked, and stop when that has answered,
	// or the context that it returned has ended. stop reports whether the client is
	// gone, so that there is nothing to decide any more. nil is not to be called.
	Beside func(ctx context.Context) (asking context.Context, stop func() (gone bool))

	// Refusal is the answer if the request may not pass; nil if it may.
	Refusal *refusal
	// Edits are to be made to the head, in this order, before it is passed on.
	Edits []headEdit
	// Reply are edits of the application's response.
	Reply []headEdit

	access    *policy.Access // by which it passed
	agreed    []string       // authorizers that have agreed to it
	attempt   policy.Attempt // scratch
	judgement policy.Judgement
}

// fieldLister are the fields of a request.
type fieldLister interface {
	policy.Header
	// Each calls f for every field in order, with its name in lower case, until f
	// returns false. Nothing that it is given may be kept.
	Each(f func(name, value []byte) bool)
}

// headField is a field with its name in lower case, safe to be sent as it is.
type headField struct{ Name, Value string }

// headEdit changes a head: all fields of this name go, then, if Put is set, one
// with Value comes. The name ":path" is the request's target, and only ever put.
type headEdit struct {
	Name, Value string
	Put         bool
	Keep        bool // what is there stays beside what is put
}

// refusal is the answer to a request that may not pass.
type refusal struct {
	Status int
	Body   string
	Header []headField // beside those of every answer of this proxy's own; it has no content-length
	Flag   string      // Envoy's response flag
}

// denied is the refusal of an AuthorizationPolicy (contract 6.38).
var denied = refusal{Status: 403, Body: accessDenied, Flag: "-"}

// ask reports whether the request may pass, as policy is now (contract 6.9); if
// not, q.Refusal says what to answer. From then on q.Request is what the
// application gets. It returns early when ctx ends.
//
// A relay asks, registers the request for changes of policy, and then asks still
// once, as a change may have come in between.
func (g *gate) ask(ctx context.Context, q *gatedRequest) bool {
	q.Refusal, q.Edits, q.Reply, q.agreed = nil, nil, nil, nil
	q.Request.Header, q.Request.Token = q.Fields, nil
	w := g.World()
	q.access = w.Access
	q.dropOwned(w.Authentication.Owned())
	if q.access.Consults() && q.access.Pending() == "" && !g.authorize(ctx, w, q) {
		return false
	}
	return g.authenticate(w.Authentication, q) && g.judge(q)
}

// dropOwned takes away what only this proxy may say, also in the spelling that a
// gateway to CGI can't tell from it.
func (q *gatedRequest) dropOwned(owned []string) {
	if len(owned) == 0 {
		return
	}
	var sent []string
	q.Fields.Each(func(name, _ []byte) bool {
		if sameName := func(o string) bool { return len(o) == len(name) && dashes(o) == dashes(string(name)) }; slices.ContainsFunc(owned, sameName) {
			sent = append(sent, string(name))
		}
		return true
	})
	for _, name := range sent {
		q.edit(headEdit{Name: name})
	}
}

// dashes is a field's name as a gateway to CGI reads it, which can't tell `_` from `-`.
func dashes(name string) string { return strings.ReplaceAll(name, "_", "-") }

// authenticate looks for a token (contract 1.38, 2.60). What only this proxy may
// tell the application never comes from the client.
func (g *gate) authenticate(a *policy.Authentication, q *gatedRequest) bool {
	if a == nil {
		return true
	}
	if key := a.Pending(); key != "" {
		return g.refuse(q, &denied, policy.PolicyDenied, "RequestAuthentication "+key+" applies and is not known to this proxy yet")
	}
	if isPreflight(&q.Request) {
		return true
	}
	now := time.Now
	if g.Now != nil {
		now = g.Now
	}
	known := a.Authenticate(&q.Request, now())
	if known.Failure != nil {
		return g.refuse(q, unauthorized(&q.Request, known.Failure), policy.TokenRefused, known.Failure.Error())
	}
	q.Request.Token = known.Token
	for _, name := range known.Remove {
		q.edit(headEdit{Name: name})
	}
	if known.Path != "" {
		q.edit(headEdit{Name: ":path", Value: known.Path, Put: true})
	}
	for _, f := range known.Set {
		q.edit(headEdit{Name: f.Name, Value: f.Value, Put: true})
	}
	return true
}

// isPreflight reports whether a browser asks what it may send, which it does
// without the token.
func isPreflight(r *policy.Request) bool {
	if string(r.Method) != "OPTIONS" {
		return false
	}
	_, origin := r.Header.Field("origin")
	_, method := r.Header.Field("access-control-request-method")
	return origin && method
}

// unauthorized is the answer to a token that isn't good, as Istio's users know it:
// 401, or 403 for one that is meant for somebody else, and in which words.
func unauthorized(r *policy.Request, failure error) *refusal {
	const longest = 256
	path, _, _ := bytes.Cut(r.Path, []byte{'?'}) // behind it there may be a token
	realm := strings.NewReplacer(`"`, "%22", `\`, "%5C").Replace("http://" + string(r.Host) + string(path[:min(len(path), longest)]))
	status := 401
	if errors.Is(failure, jwt.ErrAudience) {
		status = 403
	}
	return &refusal{
		Status: status, Body: failure.Error(), Flag: "-",
		Header: []headField{{"www-authenticate", `Bearer realm="` + realm + `", error="invalid_token"`}},
	}
}

// refuse notes why a request doesn't pass.
func (g *gate) refuse(q *gatedRequest, answer *refusal, reason policy.Reason, detail string) bool {
	q.Refusal = answer
	if g.OnRefused != nil {
		g.OnRefused(reason, detail, &q.Request)
	}
	return false
}

// judge asks the AuthorizationPolicies.
func (g *gate) judge(q *gatedRequest) bool {
	if q.access == nil {
		return true
	}
	q.attempt = g.Attempt
	q.attempt.Request, q.attempt.Agreed = &q.Request, q.agreed
	j := &q.judgement
	*j = q.access.Judge(&q.attempt)
	if g.OnJudged != nil && (!j.Allowed || j.Audited != "" || j.DryRun.Judged) {
		g.OnJudged(j, &q.Request)
	}
	if !j.Allowed {
		q.Refusal = &denied
	}
	return j.Allowed
}

// open reports whether ask lets every request pass as it is, as policy is now.
func (g *gate) open() bool {
	w := g.World()
	return w.Access == nil && w.Authentication == nil
}

// waits reports whether ask may have to wait for somebody, as policy is now. If not,
// the relay of HTTP/2 asks while the other requests of the connection wait.
func (g *gate) waits() bool { return g.World().Access.Consults() }

// still reports whether a request that has passed may go on under this policy. It
// changes nothing of q, so it may be called while others read it.
func (g *gate) still(access *policy.Access, q *gatedRequest) bool {
	if access == q.access || access.Pending() != "" {
		return true
	}
	attempt := g.Attempt
	attempt.Request, attempt.Agreed = &q.Request, q.agreed
	return access.Still(&attempt)
}

// headerOnly reports whether a field of the request may stand in its header only: an
// application that joins trailers to the header would take for this proxy's, or for
// what policy has judged, what nobody has looked at. The name is in lower case. The
// request has passed, or is nil where nobody judges.
func (g *gate) headerOnly(q *gatedRequest, name string) bool {
	name = dashes(name)
	if onlyInHeader(name) {
		return true
	}
	if g == nil || q == nil {
		return false
	}
	same := func(other string) bool { return dashes(other) == name }
	w := g.World()
	if slices.ContainsFunc(w.Authentication.Owned(), same) || w.Authentication.Carries(name) || slices.ContainsFunc(w.Access.Fields(), same) {
		return true
	}
	if slices.ContainsFunc(q.Edits, func(e headEdit) bool { return same(e.Name) }) {
		return true
	}
	return slices.ContainsFunc(q.agreed, func(agreed string) bool {
		a, err := authorizerNamed(w, agreed)
		return err == nil && extauthz.Tells(a, name)
	})
}

// onlyInHeader reports whether no trailer of a request may have this name, which is
// in lower case and has `-` for `_`: it says where a message goes, who its sender is
// (RFC 9110 6.5.1), or what only a proxy may say.
func onlyInHeader(name string) bool {
	switch name {
	case "host", "content-length", "transfer-encoding", "connection", "upgrade", "authorization", "proxy-authorization", "cookie", "forwarded", "x-request-id":
		return true
	}
	return strings.HasPrefix(name, "x-envoy-") || strings.HasPrefix(name, "x-forwarded-")
}

// edit notes a change, and shows it to whoever looks at the request afterwards.
func (q *gatedRequest) edit(e headEdit) {
	q.Edits = append(q.Edits, e)
	if e.Name == ":path" {
		q.Request.Path = []byte(e.Value)
		return
	}
	q.Request.Header = &editedFields{q.Fields, q.Edits}
}

// editedFields are the fields of a request after changes of its head.
type editedFields struct {
	fields fieldLister
	edits  []headEdit
}

// Field implements policy.Header.
func (f *editedFields) Field(name string) (value []byte, ok bool) {
	value, ok = f.fields.Field(name)
	for i := range f.edits {
		e := &f.edits[i]
		if e.Name != name {
			continue
		}
		if !e.Keep {
			value, ok = nil, false
		}
		switch {
		case e.Put && ok:
			value = append(append(slices.Clip(value), ','), e.Value...)
		case e.Put:
			value, ok = []byte(e.Value), true
		}
	}
	return value, ok
}

// Each implements fieldLister.
func (f *editedFields) Each(visit func(name, value []byte) bool) {
	whole := true
	f.fields.Each(func(name, value []byte) bool {
		if !replaces(f.edits, name) {
			whole = visit(name, value)
		}
		return whole
	})
	for i := range f.edits {
		e := &f.edits[i]
		if e.Put && e.Name != ":path" && whole && !overtaken(f.edits[i+1:], e.Name) {
			whole = visit([]byte(e.Name), []byte(e.Value))
		}
	}
}

// overtaken reports whether a later edit takes a field away again.
func overtaken(later []headEdit, name string) bool {
	return slices.ContainsFunc(later, func(e headEdit) bool { return e.Name == name && !e.Keep })
}

// editHead returns a head of HTTP/1 with these edits made.
func editHead(head []byte, edits []headEdit) []byte {
	for _, e := range edits {
		line, rest, _ := bytes.Cut(head, []byte("\r\n"))
		out := make([]byte, 0, len(head)+len(e.Name)+len(e.Value)+len(": \r\n"))
		if e.Name == ":path" {
			first, last := bytes.IndexByte(line, ' '), bytes.LastIndexByte(line, ' ')
			out = append(append(append(out, line[:first+1]...), e.Value...), line[last:]...)
			head = append(append(out, "\r\n"...), rest...)
			continue
		}
		out = append(append(out, line...), "\r\n"...)
		for len(rest) > 0 && !bytes.HasPrefix(rest, []byte("\r\n")) {
			line, rest, _ = bytes.Cut(rest, []byte("\r\n"))
			if e.Keep || !isField(line, e.Name) {
				out = append(append(out, line...), "\r\n"...)
			}
		}
		if e.Put {
			out = append(append(append(append(out, e.Name...), ": "...), e.Value...), "\r\n"...)
		}
		head = append(out, rest...)
	}
	return head
}

// replaces reports whether one of the edits takes this field's place.
func replaces(edits []headEdit, name []byte) bool {
	for i := range edits {
		if !edits[i].Keep && (wire.Field{Name: name}).Is(edits[i].Name) {
			return true
		}
	}
	return false
}

// isField reports whether a line, whose name is in lower case, is of a field.
func isField(line []byte, name string) bool {
	return len(line) > len(name) && line[len(name)] == ':' && string(line[:len(name)]) == name
}
