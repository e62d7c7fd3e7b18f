package auth

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"errors"
)

// A seal encrypts and signs what is given to a browser to keep, for one use only: nothing sealed for another opens.
type seal struct{ aead cipher.AEAD }

func newSeal(secret []byte, use string) (seal, error) {
	key, err := hkdf.Key(sha256.New, secret, nil, use, 32)
	if err != nil {
		return seal{}, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return seal{}, err
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	return seal{aead: aead}, err
}

func (s seal) close(plain []byte) string {
	return base64.RawURLEncoding.EncodeToString(s.aead.Seal(nil, nil, plain, nil))
}

func (s seal) open(sealed string) ([]byte, error) {
	b, err := base64.RawURLEncoding.DecodeString(sealed)
	if err != nil {
		return nil, errors.New("sealed text is damaged")
	}
	plain, err := s.aead.Open(nil, nil, b, nil)
	if err != nil {
		return nil, errors.New("sealed text is damaged, or of another process")
	}
	return plain, nil
}
