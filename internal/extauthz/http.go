package extauthz

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"podseal.io/podseal/internal/policy"
)

// removeField names, in an answer, fields of the request that are to go.
const removeField = "x-envoy-auth-headers-to-remove"

// httpClient asks with the request's own method and path.
type httpClient struct {
	settings  policy.Authorizer
	transport *http.Transport
}

func newHTTPClient(a policy.Authorizer, dial func(context.Context) (net.Conn, error)) *httpClient {
	return &httpClient{a, &http.Transport{
		DialContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		MaxIdleConnsPerHost: maxKept, MaxIdleConns: maxKept, IdleConnTimeout: keepIdle, MaxResponseHeaderBytes: maxAnswer, DisableCompression: true,
	}}
}

// Close implements Client.
func (c *httpClient) Close() { c.transport.CloseIdleConnections() }

// Ask implements Client. Redirects are answers.
func (c *httpClient) Ask(ctx context.Context, check *Check) (*Answer, error) {
	req, err := c.request(ctx, check.Request)
	if err != nil {
		return nil, err
	}
	res, err := c.transport.RoundTrip(req)
	if err != nil {
		return nil, fmt.Errorf("ask the authorizer: %w", err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read what the authorizer answers: %w", err)
	case len(body) > maxAnswer:
		return nil, fmt.Errorf("the authorizer answers with more than %d bytes", maxAnswer)
	case res.StatusCode >= 500 || res.StatusCode < 200:
		return nil, fmt.Errorf("the authorizer answers with status %d", res.StatusCode)
	case res.StatusCode == http.StatusOK:
		return c.allowed(res.Header), nil
	}
	a := &Answer{Status: res.StatusCode, Body: string(body)}
	for _, f := range fields(res.Header) {
		wanted := len(c.settings.DenyHeaders) == 0 || f.Name == "www-authenticate" || f.Name == "location" || matches(c.settings.DenyHeaders, f.Name)
		if wanted && mayAnswer(f.Name) {
			a.Headers = append(a.Headers, f)
		}
	}
	return a, nil
}

func (c *httpClient) allowed(header http.Header) *Answer {
	a := &Answer{Allowed: true}
	for name := range strings.SplitSeq(header.Get(removeField), ",") {
		if name = strings.ToLower(strings.TrimSpace(name)); mayChange(name) {
			a.Request = append(a.Request, Change{Name: name})
		}
	}
	put := func(to []Change, f Header) []Change {
		again := slices.ContainsFunc(to, func(ch Change) bool { return ch.Name == f.Name && ch.Put })
		return append(to, Change{Name: f.Name, Value: f.Value, Put: true, Keep: again})
	}
	for _, f := range fields(header) {
		if matches(c.settings.UpstreamHeaders, f.Name) && mayChange(f.Name) {
			a.Request = put(a.Request, f)
		}
		if matches(c.settings.AllowHeaders, f.Name) && mayAnswer(f.Name) {
			a.Response = put(a.Response, f)
		}
	}
	return a
}

// fields are those of an answer, by name.
func fields(header http.Header) []Header {
	var out []Header
	for name, values := range header {
		for _, v := range values {
			if clean(v) {
				out = append(out, Header{strings.ToLower(name), v})
			}
		}
	}
	slices.SortStableFunc(out, func(a, b Header) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func (c *httpClient) request(ctx context.Context, r *Request) (*http.Request, error) {
	u, err := url.ParseRequestURI(c.settings.PathPrefix + r.Path)
	if err != nil {
		return nil, fmt.Errorf("the authorizer can't be asked about this path: %w", err)
	}
	u.Scheme, u.Host = "http", net.JoinHostPort(c.settings.Host, strconv.Itoa(int(c.settings.Port)))
	var body io.Reader = http.NoBody
	if c.settings.MaxBody > 0 && len(r.Body) > 0 {
		body = bytes.NewReader(r.Body)
	}
	req, err := http.NewRequestWithContext(ctx, r.Method, u.String(), body)
	if err != nil {
		return nil, fmt.Errorf("ask the authorizer: %w", err)
	}
	req.Host = r.Host
	req.Header = http.Header{"User-Agent": nil, "Idempotency-Key": nil} // nothing of our own; and a connection that was kept and is gone is no error
	for _, f := range r.Headers {
		if (f.Name == "authorization" || matches(c.settings.CheckHeaders, f.Name)) && mayChange(f.Name) {
			req.Header.Add(f.Name, f.Value)
		}
	}
	for name, value := range c.settings.ExtraHeaders {
		req.Header.Set(name, value)
	}
	if c.settings.MaxBody > 0 {
		req.Header.Set(partialBody, strconv.FormatBool(r.Partial))
	}
	return req, nil
}
