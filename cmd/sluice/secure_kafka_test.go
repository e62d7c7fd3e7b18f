package main

import (
	"net/http"
	"os"
	"strings"
	"testing"
)

// The program speaks to a Kafka that asks for TLS and a password: it makes its topics, writes to them and reads them, and says what is wrong with a wrong password.
func TestSecureKafka(t *testing.T) {
	script := os.Getenv("TEST_SERVICES_SH")
	if script == "" {
		if os.Getenv("SLUICE_REQUIRE_SERVICES") == "1" {
			t.Fatal("TEST_SERVICES_SH is required")
		}
		t.Skip("TEST_SERVICES_SH is not set")
	}
	kafka := startBrokers(t, script, 1, "KAFKA_SECURE=1")
	for _, mechanism := range []string{"PLAIN", "SCRAM-SHA-512"} {
		t.Run(mechanism, func(t *testing.T) {
			p := onServers(t)
			p.env = append(p.env, "SLUICE_KAFKA_BROKERS="+kafka.get("KAFKA_SSL"), "SLUICE_KAFKA_TLS=true", "SLUICE_KAFKA_TLS_CA="+kafka.get("KAFKA_CA"),
				"SLUICE_KAFKA_SASL="+mechanism, "SLUICE_KAFKA_USER="+kafka.get("KAFKA_USER"), "SLUICE_KAFKA_PASSWORD="+kafka.get("KAFKA_PASSWORD"))
			p.must(t, nil, "migrate", "--replication=1")
			var created struct {
				Key string `json:"key"`
			}
			p.must(t, &created, "accounts", "create", "--org=acme", "--name=secure", "--environment=production", "--json")
			g := p.start(t, "serve", "--roles=edge,admin,alerts")
			for path, body := range map[string][]byte{"/v1/signals": signalsJSON([]string{"a"}), "/v1/logs": logsJSON([]string{"b"})} {
				got, err := send(t.Context(), http.DefaultClient, http.MethodPost, g.Edge+path, string(body), "X-Flowstate-Key", created.Key)
				if err != nil || got.status != http.StatusOK {
					t.Errorf("%s: %d %s, %v", path, got.status, got.body, err)
				}
			}
			resolveOne(t, p, g, openDatabase(t, p.url))
			g.stop(t)

			p.env = append(p.env, "SLUICE_KAFKA_PASSWORD=wrong")
			if text, code := p.command(t, "migrate"); code == 0 || !strings.Contains(text, "SASL Authentication Failed") || strings.Contains(text, "wrong") {
				t.Errorf("with a wrong password: status %d, %s", code, text)
			}
		})
	}
}
