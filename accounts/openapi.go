package accounts

import (
	_ "embed"
	"encoding/json"
	"net/http"

	"flowstate.inc/sluice/auth"
)

// openAPI describes this room's part of the admin API. It is written by hand; a test holds it against every answer of the handlers, both ways.
//
//go:embed openapi.json
var openAPI []byte

// joinOpenAPI adds the paths and the schemas, parameters and responses of other rooms' documents to ours. It panics where two say the same.
func joinOpenAPI(others [][]byte) []byte {
	if len(others) == 0 {
		return openAPI
	}
	type document = map[string]any
	parse := func(b []byte) document {
		var d document
		if err := json.Unmarshal(b, &d); err != nil {
			panic("BUG: an OpenAPI document is not JSON: " + err.Error())
		}
		return d
	}
	section := func(d document, name string) document {
		s, ok := d[name].(document)
		if !ok {
			s = document{}
			d[name] = s
		}
		return s
	}
	join := func(dst, src document) {
		for name, v := range src {
			if _, twice := dst[name]; twice {
				panic("BUG: two OpenAPI documents describe " + name)
			}
			dst[name] = v
		}
	}
	whole := parse(openAPI)
	for _, b := range others {
		other := parse(b)
		join(section(whole, "paths"), section(other, "paths"))
		for _, kind := range []string{"schemas", "parameters", "responses", "headers"} {
			join(section(section(whole, "components"), kind), section(section(other, "components"), kind))
		}
	}
	b, err := json.MarshalIndent(whole, "", "  ")
	if err != nil {
		panic("BUG: the OpenAPI document is not JSON: " + err.Error())
	}
	return append(b, '\n')
}

func (a *API) serveOpenAPI(w http.ResponseWriter, _ *http.Request, _ auth.Admin) error {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "public, max-age=300") // it holds no secret and changes with the binary only
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(a.openapi) // the client has gone; nobody is left to tell
	return nil
}

// serveIndex is for people who try the address in a browser or with curl.
func (a *API) serveIndex(w http.ResponseWriter, _ *http.Request, _ auth.Admin) error {
	return WriteJSON(w, http.StatusOK, map[string]any{"openapi": "/api/v1/openapi.json", "paths": a.paths})
}
