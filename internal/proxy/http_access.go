package proxy

import (
	"bytes"
	"slices"

	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/wire"
)

// accessDenied is the body of a refusal (contract 6.38).
const accessDenied = "RBAC: access denied"

// normalisePath replaces the path by what policy judges and the application gets
// (contract 2.53). The target of CONNECT and `*` are no paths.
func (h *httpRelay) normalisePath(r *wire.RequestHead) error {
	if r.Path[0] != '/' || wire.IsNormalPath(r.Path) {
		return nil
	}
	path, err := wire.AppendNormalPath(h.path[:0], r.Path)
	if err != nil {
		return err
	}
	r.Path = path
	if cap(path) <= httpSmall {
		h.path = path
	}
	return nil
}

// judge says whether the request with this head may pass, as policy is now
// (contract 6.9). From then on every change of policy asks again, until the
// request has its answer.
func (h *httpRelay) judge(head []byte) bool {
	if h.Access == nil {
		return true
	}
	h.setHead(head)
	access := h.Access()
	if access == nil {
		return true
	}
	h.asked.read(head)
	h.asked.attempt = h.Attempt
	h.asked.attempt.Request = &h.asked.request
	j := &h.asked.judgement
	*j = access.Judge(&h.asked.attempt)
	if h.OnJudged != nil && (!j.Allowed || j.Audited != "" || j.DryRun.Judged) {
		h.OnJudged(j, &h.asked.request)
	}
	return j.Allowed
}

// setHead puts a head, with what is there of the body, under way.
func (h *httpRelay) setHead(head []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ex.head, h.underWay = head, true
}

// deny answers a request that may not pass (contract 6.38).
func (h *httpRelay) deny() bool { return h.answer(403, "Forbidden", accessDenied, "-", false) }

// stillAllowed reports whether the request that is under way, if there is one,
// may go on. It may be called at any time.
func (h *httpRelay) stillAllowed(access *policy.Access) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.underWay || access.Pending() != "" {
		return true
	}
	asked := judgedRequest{attempt: h.Attempt}
	asked.read(h.ex.head)
	asked.attempt.Request = &asked.request
	return access.Judge(&asked.attempt).Allowed
}

// judgedRequest is a request as policy sees it: what the application gets, so
// that neither can be told something that the other is not.
type judgedRequest struct {
	attempt   policy.Attempt
	request   policy.Request
	fields    headFields
	judgement policy.Judgement
}

// read takes the head apart, which this proxy has written itself.
func (q *judgedRequest) read(head []byte) {
	line, rest, _ := bytes.Cut(head, []byte("\r\n"))
	method, line, _ := bytes.Cut(line, []byte{' '})
	path := line
	if end := bytes.LastIndexByte(line, ' '); end >= 0 {
		path = line[:end]
	}
	q.fields = rest
	host, _ := q.fields.Field("host")
	q.request = policy.Request{Method: method, Host: host, Path: path, Header: &q.fields}
}

// headFields are the fields of a head with lower-case names, up to the empty line.
type headFields []byte

// Field implements policy.Header.
func (f *headFields) Field(name string) (value []byte, ok bool) {
	for rest := []byte(*f); ; {
		var line []byte
		line, rest, _ = bytes.Cut(rest, []byte("\r\n"))
		if len(line) == 0 {
			return value, ok
		}
		if len(line) <= len(name) || line[len(name)] != ':' || string(line[:len(name)]) != name {
			continue
		}
		v := bytes.TrimLeft(line[len(name)+1:], " ")
		if !ok {
			value, ok = slices.Clip(v), true
			continue
		}
		value = append(append(value, ','), v...) // copies, as the first value has no room
	}
}
