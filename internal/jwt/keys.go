package jwt

import (
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/go-jose/go-jose/v4"
)

// Bounds of a key set.
const (
	MaxKeySet = 256 << 10 // bytes
	maxKeys   = 100
	maxRSA    = 8192 // bits: verifying takes the longer, the larger a key is
)

// Keys are the public keys of one issuer. They are immutable.
type Keys struct{ keys []jose.JSONWebKey }

// ParseKeys reads a JSON Web Key Set (RFC 7517 5). Keys of kinds that it can't use
// are passed over, as are those for encryption; none that is left is an error. So
// is a secret, which has no place in what everybody may read.
func ParseKeys(set []byte) (*Keys, error) {
	if len(set) > MaxKeySet {
		return nil, fmt.Errorf("is %d bytes long, at most %d are allowed", len(set), MaxKeySet)
	}
	var all struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(set, &all); err != nil {
		return nil, errors.New("is not the JSON of a key set")
	}
	if len(all.Keys) > maxKeys {
		return nil, fmt.Errorf("has %d keys, at most %d are allowed", len(all.Keys), maxKeys)
	}
	k := &Keys{}
	for i, raw := range all.Keys {
		var kind struct {
			Type    string `json:"kty"`
			Private string `json:"d"`
		}
		if err := json.Unmarshal(raw, &kind); err != nil {
			continue
		}
		if kind.Type == "oct" || kind.Private != "" {
			return nil, fmt.Errorf("key %d is a secret, and not the public key of a pair", i)
		}
		var key jose.JSONWebKey
		if err := key.UnmarshalJSON(raw); err == nil && usable(&key) {
			k.keys = append(k.keys, key)
		}
	}
	if len(k.keys) == 0 {
		return nil, errors.New("has no key that a signature can be verified with")
	}
	return k, nil
}

func usable(key *jose.JSONWebKey) bool {
	if r, ok := key.Key.(*rsa.PublicKey); ok && r.N.BitLen() > maxRSA {
		return false
	}
	return key.IsPublic() && key.Valid() && (key.Use == "" || key.Use == "sig")
}

// Len is how many keys there are.
func (k *Keys) Len() int { return len(k.keys) }

// Verify checks a token's signature. The error is an Error.
func (k *Keys) Verify(t *Token) error {
	tried := false
	for i := range k.keys {
		key := &k.keys[i]
		if (t.key != "" && key.KeyID != "" && t.key != key.KeyID) || (key.Algorithm != "" && key.Algorithm != t.algorithm) {
			continue
		}
		tried = true
		if _, err := t.signed.Verify(key.Key); err == nil {
			return nil
		}
	}
	if !tried {
		return ErrNoKey
	}
	return ErrVerification
}
