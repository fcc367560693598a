// Package jwt reads JSON Web Tokens and the keys that they are signed with.
//
// A token is parsed ([Parse]), which proves nothing, looked at, and then verified
// with keys of whoever it says has issued it ([Keys.Verify]). Signatures are
// RS256 to RS512, PS256 to PS512, ES256 to ES512 and EdDSA, never `none` and never
// with a shared secret (RFC 8725 3.1). What is wrong with a token is an [Error]
// in the words that users of Istio know from its answers.
//
// Nothing here does I/O or reads a clock, and no error holds a part of a token.
package jwt

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const (
	// MaxToken bounds a token, in bytes.
	MaxToken = 64 << 10
	// Skew is by how much clocks may differ.
	Skew = time.Minute
)

// Error is what is wrong with a token, as its sender is told.
type Error string

func (e Error) Error() string { return string(e) }

// What can be wrong with a token.
const (
	ErrForm             Error = "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"
	ErrHeaderBase64     Error = "Jwt header is an invalid Base64url encoded"
	ErrHeaderJSON       Error = "Jwt header is an invalid JSON"
	ErrAlgorithm        Error = "Jwt header [alg] is not supported"
	ErrPayloadBase64    Error = "Jwt payload is an invalid Base64url encoded"
	ErrPayloadJSON      Error = "Jwt payload is an invalid JSON"
	ErrSignatureBase64  Error = "Jwt signature is an invalid Base64url encoded"
	ErrIssuer           Error = "Jwt issuer is not configured"
	ErrNotYet           Error = "Jwt not yet valid"
	ErrExpired          Error = "Jwt is expired"
	ErrAudience         Error = "Audiences in Jwt are not allowed"
	ErrVerification     Error = "Jwt verification fails"
	ErrNoKey            Error = "Jwks doesn't have key to match kid or alg from Jwt"
	ErrKeysNotFetched   Error = "Jwks remote fetch is failed"
	ErrIssuerNotText    Error = "Jwt payload [iss] field is not a string"
	ErrSubjectNotText   Error = "Jwt payload [sub] field is not a string"
	ErrAudienceNotText  Error = "Jwt payload [aud] field is not a string or string list"
	ErrExpiresNotNumber Error = "Jwt payload [exp] field is not a positive number"
	ErrNotYetNotNumber  Error = "Jwt payload [nbf] field is not a positive number"
)

// algorithms are those that a token may be signed with.
func algorithms() []jose.SignatureAlgorithm {
	return []jose.SignatureAlgorithm{
		jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.ES384, jose.ES512, jose.EdDSA,
	}
}

// Token is a token that was parsed. Until [Keys.Verify] has said so, nothing that
// it says is true.
type Token struct {
	Issuer, Subject string
	Audiences       []string
	// Claims are all claims, as encoding/json decodes them, numbers as json.Number.
	Claims map[string]any
	// Payload is the second part of the token, as it was written (base64url).
	Payload string

	expires, notBefore time.Time // zero if it doesn't say
	algorithm, key     string    // of the header; key is the id, "" if it doesn't say
	signed             *jose.JSONWebSignature
}

// Parse reads a token in the compact form (RFC 7515 3.1). The error is an Error.
func Parse(raw string) (*Token, error) {
	parts := strings.Split(raw, ".")
	if len(parts) != 3 || len(raw) > MaxToken {
		return nil, ErrForm
	}
	t := &Token{Payload: parts[1]}
	if err := t.readHeader(parts[0]); err != nil {
		return nil, err
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return nil, ErrPayloadBase64
	}
	if t.Claims, err = object(payload); err != nil {
		return nil, ErrPayloadJSON
	}
	if err := t.readClaims(); err != nil {
		return nil, err
	}
	if _, err := base64.RawURLEncoding.DecodeString(parts[2]); err != nil {
		return nil, ErrSignatureBase64
	}
	if t.signed, err = jose.ParseSignedCompact(raw, algorithms()); err != nil {
		return nil, ErrHeaderJSON // all else was looked at
	}
	return t, nil
}

func (t *Token) readHeader(part string) error {
	raw, err := base64.RawURLEncoding.DecodeString(part)
	if err != nil {
		return ErrHeaderBase64
	}
	header, err := object(raw)
	if err != nil {
		return ErrHeaderJSON
	}
	t.algorithm, _ = header["alg"].(string)
	if !slices.Contains(algorithms(), jose.SignatureAlgorithm(t.algorithm)) {
		return ErrAlgorithm
	}
	t.key, _ = header["kid"].(string)
	return nil
}

// readClaims reads the claims that have a meaning (RFC 7519 4.1). Others are for
// whoever uses the token.
func (t *Token) readClaims() error {
	var ok bool
	if t.Issuer, ok = text(t.Claims, "iss"); !ok {
		return ErrIssuerNotText
	}
	if t.Subject, ok = text(t.Claims, "sub"); !ok {
		return ErrSubjectNotText
	}
	if t.expires, ok = seconds(t.Claims, "exp"); !ok {
		return ErrExpiresNotNumber
	}
	if t.notBefore, ok = seconds(t.Claims, "nbf"); !ok {
		return ErrNotYetNotNumber
	}
	switch aud := t.Claims["aud"].(type) {
	case nil:
	case string:
		t.Audiences = []string{aud}
	case []any:
		for _, one := range aud {
			s, ok := one.(string)
			if !ok {
				return ErrAudienceNotText
			}
			t.Audiences = append(t.Audiences, s)
		}
	default:
		return ErrAudienceNotText
	}
	return nil
}

// Current says whether the token is in force at this time: nil, ErrNotYet or
// ErrExpired. One that says nothing of time always is.
func (t *Token) Current(now time.Time) error {
	switch {
	case !t.notBefore.IsZero() && now.Add(Skew).Before(t.notBefore):
		return ErrNotYet
	case !t.expires.IsZero() && now.Add(-Skew).After(t.expires):
		return ErrExpired
	}
	return nil
}

// object decodes one JSON object and nothing behind it.
func object(b []byte) (map[string]any, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var m map[string]any
	if err := d.Decode(&m); err != nil {
		return nil, fmt.Errorf("decode: %w", err)
	}
	if _, err := d.Token(); m == nil || !errors.Is(err, io.EOF) {
		return nil, errors.New("not one object")
	}
	return m, nil
}

// text is a claim that must be a string if it is there.
func text(claims map[string]any, name string) (string, bool) {
	v, present := claims[name]
	s, ok := v.(string)
	return s, ok || !present
}

// seconds is a claim that must be a time if it is there (RFC 7519 2, NumericDate).
func seconds(claims map[string]any, name string) (time.Time, bool) {
	v, present := claims[name]
	if !present {
		return time.Time{}, true
	}
	n, ok := v.(json.Number)
	if !ok {
		return time.Time{}, false
	}
	f, err := n.Float64()
	if err != nil || f < 0 || math.IsNaN(f) {
		return time.Time{}, false
	}
	const latest = 253402300799 // the year 9999: nobody means a later one
	return time.Unix(int64(min(f, latest)), 0), true
}
