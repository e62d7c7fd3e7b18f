package scope

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// anyModel is asked for where the server does not say what it has: servers of a single model take any name.
const anyModel = "default"

// otherModels are words in the names of models that do not chat, which some servers list among the others.
var otherModels = []string{"embed", "rerank", "whisper", "tts", "moderation"}

// Model is the model that is asked; "" where none was configured and the server was not asked for one yet.
func (j *Judge) Model() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.model
}

// findModel is the model to ask: the one that was configured, else the first that the server lists. Its error is ErrAway, wrapped, or ctx's.
func (j *Judge) findModel(ctx context.Context) (string, error) {
	if model := j.Model(); model != "" {
		return model, nil
	}
	model := anyModel
	err := j.probe(ctx, func(ctx context.Context) (time.Duration, error) {
		names, failed := j.models(ctx)
		if failed != nil {
			j.metrics.errors.WithLabelValues(failed.reason).Inc()
			return failed.retryAfter, fmt.Errorf("%w: %s", ErrAway, failed.text)
		}
		if len(names) > 0 {
			model = names[0]
		}
		j.mu.Lock()
		j.model = model
		j.mu.Unlock()
		log := j.cfg.Logger.Info
		if len(names) != 1 {
			log = j.cfg.Logger.Warn // it may not be the one that was meant
		}
		log("no --judge-model is given; the judge is asked for this one", "model", model, "listed", len(names))
		return 0, nil
	})
	return model, err
}

// models lists what the server has that may chat; nothing where it has no list.
func (j *Judge) models(ctx context.Context) ([]string, *failure) {
	code, header, b, _, err := j.send(ctx, http.MethodGet, modelsPath, nil, maxModelsBytes)
	if err != nil {
		return nil, broken(ctx, err, false)
	}
	if code != http.StatusOK {
		if failed := j.failed(code, header, readError(b)); failed.reason != "refused" {
			return nil, failed
		}
		return nil, nil
	}
	var list struct {
		Data []struct {
			ID string `json:"id"`
		} `json:"data"`
	}
	if json.Unmarshal(b, &list) != nil {
		return nil, nil
	}
	var names []string
	for _, m := range list.Data {
		name := strings.ToLower(m.ID)
		if m.ID != "" && len(m.ID) <= 200 && !slices.ContainsFunc(otherModels, func(w string) bool { return strings.Contains(name, w) }) {
			names = append(names, m.ID)
		}
	}
	return names, nil
}

// forget has the server asked anew for a model, where none was configured and it no longer has the one it listed.
func (j *Judge) forget() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.model = j.cfg.Model
}
