package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"podseal.io/podseal/internal/extauthz"
	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/workload"
)

// maxAsking bounds the questions to authorizers that are under way.
const maxAsking = 1024

// errBusy says that too many questions are under way.
var errBusy = errors.New("too many questions to authorizers are under way")

// authorizers keeps a client for each authorizer that was asked. The zero value is
// ready once call is set.
type authorizers struct {
	call func(ctx context.Context, host string, port uint16) (net.Conn, error)

	mu      sync.Mutex
	clients map[string]*authorizerClient
	asking  int
	closed  bool
}

// authorizerClient is in use while asking is not 0.
type authorizerClient struct {
	extauthz.Client
	settings policy.Authorizer
	asking   int
	gone     bool // to be closed after the last question
}

// ask asks one authorizer, and waits no longer than its settings say.
func (s *authorizers) ask(ctx context.Context, a *policy.Authorizer, check *extauthz.Check) (*extauthz.Answer, error) {
	c, err := s.take(a)
	if err != nil {
		return nil, err
	}
	defer s.leave(c)
	ctx, cancel := context.WithTimeout(ctx, a.Timeout)
	defer cancel()
	return c.Ask(ctx, check)
}

func (s *authorizers) take(a *policy.Authorizer) (*authorizerClient, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.asking >= maxAsking {
		return nil, errBusy
	}
	c := s.clients[a.Name]
	if c != nil && !reflect.DeepEqual(c.settings, *a) {
		s.retire(c)
		c = nil
	}
	if c == nil {
		host, port := a.Host, a.Port
		client, err := extauthz.New(*a, func(ctx context.Context) (net.Conn, error) { return s.call(ctx, host, port) })
		if err != nil {
			return nil, err
		}
		c = &authorizerClient{Client: client, settings: *a}
		if s.clients == nil {
			s.clients = map[string]*authorizerClient{}
		}
		s.clients[a.Name] = c
	}
	s.asking++
	c.asking++
	return c, nil
}

func (s *authorizers) leave(c *authorizerClient) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asking--
	if c.asking--; c.gone && c.asking == 0 {
		c.Close()
	}
}

// retire closes a client once nobody uses it. Callers hold mu.
func (s *authorizers) retire(c *authorizerClient) {
	if c.gone = true; c.asking == 0 {
		c.Close()
	}
}

// close closes all clients; nobody may ask any more.
func (s *authorizers) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, c := range s.clients {
		s.retire(c)
	}
	clear(s.clients)
}

// authorizerNamed finds an authorizer, and says why it can't be asked.
func authorizerNamed(w *workload.World, name string) (*policy.Authorizer, error) {
	for i := range w.Mesh.Authorizers {
		if a := &w.Mesh.Authorizers[i]; a.Name == name {
			if a.Unusable != "" {
				return nil, fmt.Errorf("the authorizer %s can't be asked: %s", name, a.Unusable)
			}
			return a, nil
		}
	}
	return nil, fmt.Errorf("the authorizer %s is not known", name) // contract 6.44
}

// authorize asks the authorizers that CUSTOM policies name (contract 6.4, 6.44), one
// after the other. All must agree.
func (g *gate) authorize(ctx context.Context, w *workload.World, q *gatedRequest) bool {
	attempt := g.Attempt
	attempt.Request = &q.Request
	for _, c := range q.access.Consult(&attempt) {
		a, err := authorizerNamed(w, c.Authorizer)
		if err != nil || g.Authorize == nil {
			return g.refuse(q, &denied, policy.PolicyDenied, fmt.Sprintf("%s: %v", c.Rule, err))
		}
		r := q.told()
		if a.MaxBody > 0 && q.ReadAhead != nil {
			body, whole, err := q.ReadAhead(ctx, int(a.MaxBody))
			switch {
			case err != nil:
				return g.refuse(q, &refusal{Status: 400, Flag: "DPE"}, policy.BadRequest, c.Rule+": the body can't be read")
			case !whole && !a.PartialBody:
				return g.refuse(q, &refusal{Status: 413, Flag: "-"}, policy.PolicyDenied, c.Rule+": the body is larger than what the authorizer "+a.Name+" gets")
			}
			r.Body, r.Partial = slices.Clone(body), !whole
		}
		answer, gone, err := g.askBeside(ctx, a, q, r)
		switch {
		case gone:
			q.Refusal = &denied // which nobody gets
			return false
		case err != nil && !a.FailOpen:
			return g.refuse(q, &refusal{Status: int(a.StatusOnError), Flag: "UAEX"}, policy.PolicyDenied, fmt.Sprintf("%s: %v", c.Rule, err))
		case err == nil && !answer.Allowed:
			no := &refusal{Status: answer.Status, Body: answer.Body, Flag: "UAEX"}
			for _, f := range answer.Headers {
				no.Header = append(no.Header, headField{f.Name, f.Value})
			}
			return g.refuse(q, no, policy.PolicyDenied, c.Rule+": the authorizer "+a.Name+" denies it")
		case err == nil:
			for _, ch := range answer.Request {
				q.edit(headEdit{Name: ch.Name, Value: ch.Value, Put: ch.Put, Keep: ch.Keep})
			}
			for _, ch := range answer.Response {
				q.Reply = append(q.Reply, headEdit{Name: ch.Name, Value: ch.Value, Put: ch.Put, Keep: ch.Keep})
			}
		}
		q.agreed = append(q.agreed, a.Name)
	}
	return true
}

// askBeside asks while the client is looked at.
func (g *gate) askBeside(ctx context.Context, a *policy.Authorizer, q *gatedRequest, r *extauthz.Request) (answer *extauthz.Answer, gone bool, err error) {
	if q.Beside == nil {
		answer, err = g.Authorize(ctx, a, r)
		return answer, false, err
	}
	ctx, stop := q.Beside(ctx)
	answer, err = g.Authorize(ctx, a, r)
	return answer, stop(), err
}

// told is what an authorizer is told of the request.
func (q *gatedRequest) told() *extauthz.Request {
	r := &extauthz.Request{Method: string(q.Request.Method), Path: string(q.Request.Path), Host: string(q.Request.Host), Protocol: q.Protocol}
	header, ok := q.Request.Header.(fieldLister)
	if !ok {
		header = q.Fields
	}
	header.Each(func(name, value []byte) bool {
		r.Headers = append(r.Headers, extauthz.Header{Name: strings.ToLower(string(name)), Value: string(value)})
		return true
	})
	return r
}

// check is what an authorizer is told of this connection.
func (in *inbound) check(r *extauthz.Request) *extauthz.Check {
	c := &extauthz.Check{
		Time: time.Now(), Source: addrPort(in.c.client.RemoteAddr()), Destination: in.dst, SourcePrincipal: in.id.URI(), SNI: in.sni, Request: r,
	}
	if own, ok := in.p.worlds.own(); ok {
		c.DestinationPrincipal = own.Identity.URI()
	}
	return c
}

// authorized asks about a connection that isn't HTTP, and returns who has agreed.
// Authorizers over HTTP have nothing to say of it (contract 6.35).
func (in *inbound) authorized(ctx context.Context, attempt *policy.Attempt) (agreed []string, err error) {
	w := in.p.worlds.world()
	for _, c := range w.Access.Consult(attempt) {
		a, err := authorizerNamed(w, c.Authorizer)
		if err != nil {
			return agreed, fmt.Errorf("%s: %w", c.Rule, err)
		}
		if !a.HTTP {
			answer, err := in.p.authorizers.ask(ctx, a, in.check(nil))
			if err != nil && !a.FailOpen {
				return agreed, fmt.Errorf("%s: %w", c.Rule, err)
			}
			if err == nil && !answer.Allowed {
				return agreed, fmt.Errorf("%s: the authorizer %s denies it", c.Rule, a.Name)
			}
		}
		agreed = append(agreed, a.Name)
	}
	return agreed, nil
}
