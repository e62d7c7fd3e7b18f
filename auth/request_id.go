package auth

// MaxRequestID is the longest request id that is taken from a caller, in bytes.
const MaxRequestID = 64

// UsableRequestID reports whether a caller's request id may stand in our logs, answers and headers: 1 to MaxRequestID bytes of [A-Za-z0-9._-], and no key
// or admin token of ours in it, whole or cut off.
func UsableRequestID(id string) bool {
	if id == "" || len(id) > MaxRequestID {
		return false
	}
	for i := range len(id) {
		if c := id[i]; base62Value(c) < 0 && c != '.' && c != '_' && c != '-' {
			return false
		}
	}
	_, key := PrefixOf(id)
	return !key
}
