package rig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// CollectorVersion is what is built. The Kafka exporter of other releases is not served by every module proxy.
const CollectorVersion = "0.155.0"

const collectorManifest = `dist:
  module: flowstate.inc/sluice-bench-collector
  name: otelcol
  description: The Collector with what a team would deploy for this job
  version: "` + CollectorVersion + `"
  output_path: ./src
receivers:
  - gomod: go.opentelemetry.io/collector/receiver/otlpreceiver v` + CollectorVersion + `
processors:
  - gomod: github.com/open-telemetry/opentelemetry-collector-contrib/processor/filterprocessor v` + CollectorVersion + `
  - gomod: github.com/open-telemetry/opentelemetry-collector-contrib/processor/resourceprocessor v` + CollectorVersion + `
exporters:
  - gomod: github.com/open-telemetry/opentelemetry-collector-contrib/exporter/kafkaexporter v` + CollectorVersion + `
extensions:
  - gomod: github.com/open-telemetry/opentelemetry-collector-contrib/extension/bearertokenauthextension v` + CollectorVersion + `
  - gomod: github.com/open-telemetry/opentelemetry-collector-contrib/extension/pprofextension v` + CollectorVersion + `
  - gomod: github.com/open-telemetry/opentelemetry-collector-contrib/extension/storage/filestorage v` + CollectorVersion + `
`

// BuildCollector builds the OpenTelemetry Collector with its own builder, once: the program is kept in the cache. The builder writes the sources; its last
// step, go mod tidy, needs modules that only tests import, so that its failure is no reason to stop, and the build is made here.
func (r *Rig) BuildCollector(ctx context.Context) error {
	dir := filepath.Join(r.Cache, "otelcol-"+CollectorVersion)
	r.Bin.Collector = filepath.Join(dir, "otelcol")
	if _, err := os.Stat(r.Bin.Collector); err == nil {
		return nil
	}
	fmt.Fprintln(r.Log, "building the OpenTelemetry Collector "+CollectorVersion+" (some minutes, once)")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "builder.yaml"), []byte(collectorManifest), 0o644); err != nil {
		return err
	}
	_, tidy := output(ctx, dir, "go", "run", "go.opentelemetry.io/collector/cmd/builder@v"+CollectorVersion, "--config", "builder.yaml", "--skip-compilation")
	if _, err := os.Stat(filepath.Join(dir, "src", "go.mod")); err != nil {
		return errors.Join(err, tidy)
	}
	part := r.Bin.Collector + ".part"
	if _, err := output(ctx, filepath.Join(dir, "src"), "go", "build", "-mod=mod", "-o", part, "."); err != nil {
		return errors.Join(err, tidy)
	}
	return os.Rename(part, r.Bin.Collector)
}

// A CollectorSetup is how the Collector runs.
type CollectorSetup struct {
	Name    string
	GOGC    string // "": as shipped
	Brokers string
	Disk    bool // answers when the records are fsynced in its file queue, instead of after Kafka
}

// Collector starts the OpenTelemetry Collector: OTLP, a bearer token per key, a filter by attribute, four attributes on the resource, and Kafka with
// acks=all, answered after. It has no queue and no batches (but with Disk), because they answer before Kafka has the records.
func (r *Rig) Collector(ctx context.Context, setup CollectorSetup) (*Server, error) {
	addrs, err := freeAddrs(2)
	if err != nil {
		return nil, err
	}
	tokens := filepath.Join(r.Dir, "collector.tokens")
	if err := os.WriteFile(tokens, []byte(strings.Join(r.Keys[:min(100, len(r.Keys))], "\n")+"\n"), 0o600); err != nil {
		return nil, err
	}
	extension, extensions, queue := "", "bearertokenauth", "    sending_queue:\n      enabled: false\n    retry_on_failure:\n      enabled: false\n"
	if setup.Disk {
		disk := filepath.Join(r.Dir, setup.Name+".queue")
		if err := os.RemoveAll(disk); err != nil {
			return nil, err
		}
		extension = "  file_storage:\n    directory: " + disk + "\n    create_directory: true\n    fsync: true\n"
		extensions += ", file_storage"
		queue = "    sending_queue:\n      enabled: true\n      storage: file_storage\n      queue_size: 1000000\n    retry_on_failure:\n      enabled: true\n      max_elapsed_time: 0s\n"
	}
	config := `extensions:
  bearertokenauth:
    filename: ` + tokens + `
` + extension + `receivers:
  otlp:
    protocols:
      http:
        endpoint: ` + addrs[0] + `
        auth:
          authenticator: bearertokenauth
processors:
  filter:
    error_mode: propagate
    logs:
      log_record:
        - attributes["signal.type"] == "personal_use_company_account"
  resource:
    attributes:
      - {key: flowstate.org, value: bench, action: upsert}
      - {key: flowstate.subject.kind, value: service_account, action: upsert}
      - {key: flowstate.subject.id, value: sa_0123456789abcdef, action: upsert}
      - {key: flowstate.key_prefix, value: fsk_AbCdEf012345, action: upsert}
exporters:
  kafka:
    brokers: ["` + setup.Brokers + `"]
    logs:
      topic: ` + CollectorTopic + `
      encoding: otlp_proto
    producer:
      required_acks: -1
      compression: none
      max_message_bytes: 1000000
` + queue + `service:
  extensions: [` + extensions + `]
  telemetry:
    logs:
      level: error
    metrics:
      readers:
        - pull:
            exporter:
              prometheus:
                host: 127.0.0.1
                port: ` + addrs[1][strings.LastIndexByte(addrs[1], ':')+1:] + `
  pipelines:
    logs:
      receivers: [otlp]
      processors: [filter, resource]
      exporters: [kafka]
`
	file := filepath.Join(r.Dir, setup.Name+".yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return nil, err
	}
	var env []string
	if setup.GOGC != "" {
		env = append(env, "GOGC="+setup.GOGC)
	}
	s := &Server{Name: setup.Name, Addr: addrs[0], Path: "/v1/logs", Topic: CollectorTopic}
	// Its metrics come up before its receivers, which answer anything but a POST with 405.
	return s, r.start(ctx, s, "http://"+addrs[1]+"/metrics", env, r.Bin.Collector, "--config", file)
}
