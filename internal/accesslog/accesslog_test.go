package accesslog

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

func entry() *Entry {
	fields := map[string]string{
		"user-agent": `curl "8"`, "x-request-id": "r-1", "x-forwarded-for": "10.0.0.1\nevil", "authorization": "Bearer secret-token", "cookie": "secret-token",
		"x-long": strings.Repeat("é", 2000),
	}
	return &Entry{
		Start: time.Date(2026, 11, 23, 14, 5, 6, 7_008_009, time.FixedZone("x", 3600)), Duration: 12 * time.Millisecond,
		Method: "GET", Path: "/a?access_token=secret-token&b=c&key=secret-token", Authority: "web:80", Protocol: "HTTP/1.1",
		Request: func(name string) (string, bool) { v, ok := fields[name]; return v, ok },
		Response: func(name string) (string, bool) {
			return map[string]string{"x-envoy-upstream-service-time": "3", "set-cookie": "secret-token"}[name], name == "x-envoy-upstream-service-time" || name == "set-cookie"
		},
		Code: 200, CodeDetails: "via_upstream", Flags: "-", Received: 5, Sent: 700,
		UpstreamHost: netip.MustParseAddrPort("10.0.0.7:8080"), Upstream: netip.MustParseAddrPort("127.0.0.6:4000"),
		Local: netip.MustParseAddrPort("10.0.0.7:8080"), Remote: netip.MustParseAddrPort("[fd00::1]:5000"),
		Cluster: "inbound|8080||", SNI: "outbound_.80_._.web.shop.svc.cluster.local",
		Peer:     TLS{PeerURI: "spiffe://cluster.local/ns/shop/sa/client", LocalURI: "spiffe://cluster.local/ns/shop/sa/web", PeerSerial: "1f", Version: "TLSv1.3", Cipher: "TLS_AES_128_GCM_SHA256"},
		Hostname: "web-1",
	}
}

func line(t *testing.T, format string, asJSON bool, e *Entry) string {
	t.Helper()
	f, notes, err := Parse(format, asJSON)
	if err != nil || len(notes) > 0 {
		t.Fatal(format, notes, err)
	}
	return string(f.Append(nil, e))
}

// Contract 7.11: Istio's text, field by field.
func TestDefaultText(t *testing.T) {
	const want = `[2026-11-23T13:05:06.007Z] "GET /a?access_token=***&b=c&key=*** HTTP/1.1" 200 - via_upstream - "-" 5 700 12 3 "10.0.0.1\x0aevil" "curl \"8\"" "r-1" "web:80" ` +
		`"10.0.0.7:8080" inbound|8080|| 127.0.0.6:4000 10.0.0.7:8080 [fd00::1]:5000 outbound_.80_._.web.shop.svc.cluster.local -` + "\n"
	if got := line(t, Default(false), false, entry()); got != want {
		t.Errorf("got  %swant %s", got, want)
	}
	empty := &Entry{Code: -1, Received: -1, Sent: -1}
	if got, want := line(t, Default(false), false, empty), `[-] "- - -" - - - - "-" - - 0 - "-" "-" "-" "-" "-" - - - - - -`+"\n"; got != want {
		t.Errorf("got  %swant %s", got, want)
	}
}

// Contract 7.12: the same in JSON; numbers are numbers, and what is not known is null.
func TestDefaultJSON(t *testing.T) {
	var got map[string]any
	if err := json.Unmarshal([]byte(line(t, Default(true), true, entry())), &got); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]any{
		"start_time": "2026-11-23T13:05:06.007Z", "method": "GET", "path": "/a?access_token=***&b=c&key=***", "protocol": "HTTP/1.1", "response_code": 200.0,
		"response_flags": "-", "response_code_details": "via_upstream", "connection_termination_details": nil, "upstream_transport_failure_reason": nil,
		"bytes_received": 5.0, "bytes_sent": 700.0, "duration": 12.0, "upstream_service_time": "3", "x_forwarded_for": "10.0.0.1\nevil", "user_agent": `curl "8"`,
		"request_id": "r-1", "authority": "web:80", "upstream_host": "10.0.0.7:8080", "upstream_cluster": "inbound|8080||", "upstream_local_address": "127.0.0.6:4000",
		"downstream_local_address": "10.0.0.7:8080", "downstream_remote_address": "[fd00::1]:5000", "requested_server_name": "outbound_.80_._.web.shop.svc.cluster.local", "route_name": nil,
	} {
		if v, there := got[key]; v != want || !there {
			t.Errorf("%s: %v, want %v", key, v, want)
		}
	}
}

func TestOperators(t *testing.T) {
	for format, want := range map[string]string{
		"%START_TIME(%Y/%m/%d %T.%6f %s %%)%":                    "2026/11/23 13:05:06.007008 1795439106 %",
		"%START_TIME(%b %e %j %f)%":                              "Nov 23 327 007008009",
		"100%% %REQ(USER-AGENT):4%":                              "100% curl",
		"%REQ(NONE)% %REQ(NONE?:METHOD)% %REQ(:SCHEME)%":         "- GET http",
		"%RESP(NONE?X-ENVOY-UPSTREAM-SERVICE-TIME)%":             "3",
		"%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%":               "fd00::1",
		"%DOWNSTREAM_REMOTE_ADDRESS_PORT%":                       "5000",
		"%UPSTREAM_REMOTE_ADDRESS%":                              "10.0.0.7:8080",
		"%DOWNSTREAM_PEER_URI_SAN% %DOWNSTREAM_LOCAL_URI_SAN%":   "spiffe://cluster.local/ns/shop/sa/client spiffe://cluster.local/ns/shop/sa/web",
		"%DOWNSTREAM_TLS_VERSION% %DOWNSTREAM_TLS_CIPHER%":       "TLSv1.3 TLS_AES_128_GCM_SHA256",
		"%DOWNSTREAM_PEER_SERIAL% %HOSTNAME% %UPSTREAM_CLUSTER%": "1f web-1 inbound|8080||",
		"%UPSTREAM_PEER_URI_SAN% %GRPC_STATUS_NUMBER%":           "- -",
	} {
		if got := line(t, format, false, entry()); got != want+"\n" {
			t.Errorf("%s: %q, want %q", format, got, want)
		}
	}
	if got := line(t, "%REQ(X-LONG)%", false, entry()); len(got) != maxValue+1 {
		t.Errorf("a long value has %d bytes", len(got))
	}
	const nested = `{"b": {"code": "%RESPONSE_CODE%", "list": ["%PROTOCOL%", 1, true, null]}, "a\"": "x %RESPONSE_CODE% \"%REQ(USER-AGENT)%\" %REQ(NONE)%"}`
	if got, want := line(t, nested, true, entry()), `{"a\"":"x 200 \"curl \"8\"\" -","b":{"code":200,"list":["HTTP/1.1",1,true,null]}}`; got != strings.ReplaceAll(want, `curl "8"`, `curl \"8\"`)+"\n" {
		t.Errorf("%s", got)
	}
}

// What may be a secret, and what is not known, is named and not written.
func TestWhatIsNotWritten(t *testing.T) {
	f, notes, err := Parse("%REQ(AUTHORIZATION)% %REQ(COOKIE)%%RESP(Set-Cookie)% %REQ(NONE?AUTHORIZATION)% %REQ(X-FORWARDED-ACCESS-TOKEN)% %DYNAMIC_METADATA(a:b)% %START_TIME(%Q)% %REQ% %ENVIRONMENT(HOME)% %UPSTREAM_HOST_PORT%", false)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(f.Append(nil, entry())), "- -- - - - %Q - - -\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	want := []string{
		"%DYNAMIC_METADATA(a:b)% is not known, and writes nothing", "%ENVIRONMENT(HOME)% is not known, and writes nothing",
		"%REQ% names no field, and writes nothing",
		"%REQ(AUTHORIZATION)% may hold a secret, and writes nothing", "%REQ(COOKIE)% may hold a secret, and writes nothing", "%REQ(NONE?AUTHORIZATION)% may hold a secret, and writes nothing",
		"%REQ(X-FORWARDED-ACCESS-TOKEN)% may hold a secret, and writes nothing", "%RESP(Set-Cookie)% may hold a secret, and writes nothing",
		"%START_TIME(%Q)% has %Q, which is written as it stands", "%UPSTREAM_HOST_PORT% is not known, and writes nothing",
	}
	slices.Sort(want)
	if !slices.Equal(notes, want) {
		t.Errorf("notes:\n%s\nwant:\n%s", strings.Join(notes, "\n"), strings.Join(want, "\n"))
	}
}

func TestFormatsThatAreRefused(t *testing.T) {
	for format, want := range map[string]string{
		"100%":                           "write an operator",
		"%REQ(A%":                        "closing parenthesis",
		"%REQ(A)":                        "closing percent sign",
		"%REQ(A):x%":                     "no length",
		"%REQ(A):0%":                     "no length",
		"%lower%":                        "write an operator",
		strings.Repeat("x", MaxFormat+1): "longer than",
	} {
		if _, _, err := Parse(format, false); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.20s: %v", format, err)
		}
	}
	for _, format := range []string{"", "[]", "x", `{"a": "%x"}`, strings.Repeat(`{"a":`, 20) + "1" + strings.Repeat("}", 20)} {
		if _, _, err := Parse(format, true); err == nil {
			t.Errorf("%s is accepted", format)
		}
	}
}

// Whatever the format and the values, a line is one line, in JSON one value, and no
// secret is in it.
func FuzzFormat(f *testing.F) {
	f.Add(Default(false), false, "x")
	f.Add(Default(true), true, "\"\n\x00\xff")
	f.Add("%START_TIME(%s.%3f)% %REQ(A?B):10%%%", false, `\`)
	f.Fuzz(func(t *testing.T, format string, asJSON bool, v string) {
		parsed, _, err := Parse(format, asJSON)
		if err != nil {
			return
		}
		e := entry()
		e.Path = v
		e.Request = func(string) (string, bool) { return v, true }
		got := string(parsed.Append(nil, e))
		if strings.Count(got, "\n")-strings.Count(format, "\n") > 1 {
			t.Errorf("more than one line: %q", got)
		}
		if asJSON && !json.Valid([]byte(got)) {
			t.Errorf("not JSON: %q", got)
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	for name, asJSON := range map[string]bool{"text": false, "json": true} {
		b.Run(name, func(b *testing.B) {
			f, _, err := Parse(Default(asJSON), asJSON)
			if err != nil {
				b.Fatal(err)
			}
			e, line := entry(), []byte(nil)
			b.ReportAllocs()
			for b.Loop() {
				line = f.Append(line[:0], e)
			}
		})
	}
}
