package wire

import (
	"math"
	"time"

	meshv1 "podseal.io/podseal/api/mesh/v1"
	"podseal.io/podseal/internal/policy"
)

// maxMillis is the longest time that a time.Duration holds.
const maxMillis = int64(math.MaxInt64 / time.Millisecond)

func authorizersToProto(all []policy.Authorizer) []*meshv1.Authorizer {
	var out []*meshv1.Authorizer
	for i := range all {
		a := &all[i]
		out = append(out, &meshv1.Authorizer{
			Name: a.Name, Host: a.Host, Port: uint32(a.Port), Http: a.HTTP, TimeoutMs: a.Timeout.Milliseconds(), FailOpen: a.FailOpen, StatusOnError: uint32(a.StatusOnError), Unusable: a.Unusable,
			MaxBody: a.MaxBody, PartialBody: a.PartialBody, BodyAsBytes: a.BodyAsBytes,
			PathPrefix: a.PathPrefix, CheckHeaders: a.CheckHeaders, ExtraHeaders: a.ExtraHeaders, UpstreamHeaders: a.UpstreamHeaders, DenyHeaders: a.DenyHeaders, AllowHeaders: a.AllowHeaders,
		})
	}
	return out
}

func authorizersFromProto(f *faults, all []*meshv1.Authorizer) []policy.Authorizer {
	var out []policy.Authorizer
	seen := map[string]bool{}
	for _, m := range all {
		f.require(m.GetName() != "" && !seen[m.GetName()], "the authorizer %q has no name, or comes twice", m.GetName())
		seen[m.GetName()] = true
		a := policy.Authorizer{
			Name: m.GetName(), Host: m.GetHost(), HTTP: m.GetHttp(), FailOpen: m.GetFailOpen(), Unusable: m.GetUnusable(),
			MaxBody: m.GetMaxBody(), PartialBody: m.GetPartialBody(), BodyAsBytes: m.GetBodyAsBytes(),
			PathPrefix: m.GetPathPrefix(), CheckHeaders: m.GetCheckHeaders(), ExtraHeaders: m.GetExtraHeaders(), UpstreamHeaders: m.GetUpstreamHeaders(), DenyHeaders: m.GetDenyHeaders(), AllowHeaders: m.GetAllowHeaders(),
		}
		if a.Unusable == "" {
			a.Port = f.port("authorizer's port", m.GetPort())
			f.require(a.Host != "", "the authorizer %q has no host", a.Name)
			f.require(m.GetTimeoutMs() > 0 && m.GetTimeoutMs() <= maxMillis, "the timeout of the authorizer %q is out of range", a.Name)
			f.require(m.GetStatusOnError() >= 200 && m.GetStatusOnError() <= 599, "the status of the authorizer %q is out of range", a.Name)
			a.Timeout, a.StatusOnError = time.Duration(m.GetTimeoutMs())*time.Millisecond, uint16(m.GetStatusOnError())
		}
		out = append(out, a)
	}
	return out
}
