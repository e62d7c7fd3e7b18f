// Package tools checks what Sluice is deployed with, by the programs and types of those who read it: the chart by Helm and Kubernetes, the compose file by
// Compose, the Dockerfile by BuildKit, the rules and the dashboards by Prometheus. It is a module of its own, so that none of them is a requirement of
// the product; .ci/full runs it. It promises nothing to anybody and fails as tests do.
package tools
