package scope

import (
	"regexp"

	"flowstate.inc/sluice/signals"
)

// secrets are what is cut out of a text before it leaves or is kept: credentials that can be told by their shape, each with the name that stands in its place.
// A secret without a shape of its own is found only behind a word that announces it.
var secrets = []struct {
	name string
	find *regexp.Regexp
}{
	{"private-key", regexp.MustCompile(`-----BEGIN [A-Z0-9 ]{0,32}PRIVATE KEY-----(?s:.*?)(?:-----END [A-Z0-9 ]{0,32}PRIVATE KEY-----|\z)`)},
	{"jwt", regexp.MustCompile(`\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*`)},
	{"aws-key", regexp.MustCompile(`\b(?:AKIA|ASIA|ABIA|ACCA)[0-9A-Z]{16}\b`)},
	{"github-token", regexp.MustCompile(`\b(?:gh[pousr]_[0-9A-Za-z]{20,}|github_pat_[0-9A-Za-z_]{20,})`)},
	{"gitlab-token", regexp.MustCompile(`\bgl(?:pat|dt|rt|cbt|ptt|ft|soat)-[0-9A-Za-z_-]{20,}`)},
	{"slack-token", regexp.MustCompile(`\bxox[abeoprs]-[0-9A-Za-z-]{10,}|https://hooks\.slack\.com/(?:services|workflows)/[0-9A-Za-z/+]{20,}`)},
	{"google-key", regexp.MustCompile(`\bAIza[0-9A-Za-z_-]{35}|\bya29\.[0-9A-Za-z_-]{20,}|\bGOCSPX-[0-9A-Za-z_-]{20,}`)},
	{"stripe-key", regexp.MustCompile(`\b(?:sk|rk|pk)_(?:live|test)_[0-9A-Za-z]{16,}|\bwhsec_[0-9A-Za-z]{20,}`)},
	{"api-key", regexp.MustCompile(`\bsk-[0-9A-Za-z_-]{20,}|\bhf_[0-9A-Za-z]{20,}|\bnpm_[0-9A-Za-z]{30,}|\bpypi-[0-9A-Za-z_-]{40,}|\bSG\.[0-9A-Za-z_-]{16,}\.[0-9A-Za-z_-]{16,}|\bdop_v1_[0-9a-f]{40,}|\bxai-[0-9A-Za-z]{30,}|\bgsk_[0-9A-Za-z]{30,}|\bshp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}`)},
	{"sealed-token", regexp.MustCompile(`\bhv[sbr]\.[0-9A-Za-z_-]{20,}|\bAGE-SECRET-KEY-1[0-9A-Z]{20,}`)},
	{"bearer", regexp.MustCompile(`(?i)\b(?:bearer|basic)\s+[0-9a-z+/._~-]{16,}=*`)},
	{"password-in-url", regexp.MustCompile(`\b([a-z][a-z0-9+.-]{1,20})://[^\s/:@]{0,200}:[^\s/@]{1,200}@`)},
	{"secret", regexp.MustCompile(`(?i)(` + announced + `\\{0,4}["']?\s{0,3}(?:\b(?:is|ist|es|est)\b\s{0,3}[:=]?|:=?|=>?)\s{0,3}\\{0,4}["']?)[^\s"',;]{6,}`)},
	{"secret", regexp.MustCompile(`(?i)((?:^|\s)--?[a-z0-9-]{0,40}` + announced + `[ =]\s{0,3}["']?)[^\s"',;-][^\s"',;]{5,}`)},
	{"secret", regexp.MustCompile(`((?:^|\s)(?:-u|--user)[ =]\s{0,3}["']?[^\s:"']{1,100}:)[^\s"']{4,}`)},
}

// announced are the words that announce a secret, alone or at the end of a longer name: DB_PASSWORD, "client_secret", --api-key.
const announced = `(?:password|passwd|passphrase|passwort|mot de passe|contraseña|pwd|(?:secret|private|signing|encryption|master|api|access|account|auth)[_ -]?(?:access[_ -]?)?key|secret|token)`

// Redact cuts keys of ours and other credentials out of a text. It finds shapes, so it is a net and not a wall: a secret that looks like a word passes.
func Redact(s string) string {
	s = signals.Redact(s)
	for _, one := range secrets {
		mark := "[redacted:" + one.name + "]"
		switch one.name {
		case "secret":
			s = one.find.ReplaceAllString(s, "${1}"+mark)
		case "password-in-url":
			s = one.find.ReplaceAllString(s, "${1}://"+mark+"@")
		default:
			s = one.find.ReplaceAllString(s, mark)
		}
	}
	return s
}
