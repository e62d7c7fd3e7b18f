package rig

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// Policy puts a policy of n rules into force, none of which matches: so each of them is tried. Servers that start afterwards have it.
func (r *Rig) Policy(ctx context.Context, n int) error {
	s, err := r.Sluice(ctx, r.Bin.Sluice, r.Brokers, "--roles=admin")
	if err != nil {
		return err
	}
	defer s.Stop()
	made, err := output(ctx, r.Dir, r.Bin.Sluice, "tokens", "create", "--org", org, "--permission", "AI_POLICY_ADMIN", "--json", "--postgres-url", r.PostgresURL)
	if err != nil {
		return err
	}
	var token struct{ Token string }
	if err := json.Unmarshal([]byte(made), &token); err != nil {
		return err
	}
	rules := make([]map[string]any, n)
	for i := range rules {
		rules[i] = map[string]any{
			"id": fmt.Sprintf("rule-%04d", i), "types": []string{GrowthType}, "action": "WARN", "scope": map[string]any{"org": true},
			"when": fmt.Sprintf(`session_id == "no session is called that %d"`, i),
		}
	}
	draft, err := call(ctx, token.Token, "http://"+s.admin+"/api/v1/policy/drafts", map[string]any{"rules": rules})
	if err != nil {
		return err
	}
	var id struct{ ID string }
	if err := json.Unmarshal(draft, &id); err != nil {
		return err
	}
	_, err = call(ctx, token.Token, "http://"+s.admin+"/api/v1/policy/drafts/"+id.ID+"/activate", nil)
	return err
}

// GrowthType is a signal type that machines raise too.
const GrowthType = "secret_detected"

func call(ctx context.Context, token, url string, in any) ([]byte, error) {
	body, err := json.Marshal(in)
	if err != nil {
		return nil, err
	}
	if in == nil {
		body = nil
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode/100 != 2 {
		err = fmt.Errorf("%s: %s: %s", url, res.Status, strings.TrimSpace(string(answer)))
	}
	return answer, err
}
