{{- define "sluice.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* The names that are made of it end in at most 12 characters more. */}}
{{- define "sluice.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "sluice.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "sluice.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* The labels that select pods: (dict "root" $ "role" "edge") */}}
{{- define "sluice.selector" -}}
app.kubernetes.io/name: {{ include "sluice.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .role }}
{{- end -}}

{{- define "sluice.labels" -}}
{{ include "sluice.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: sluice
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "sluice.image" -}}
{{- with .Values.image -}}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end -}}
{{- end -}}
{{- end -}}

{{- define "sluice.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "sluice.fullname" .) }}{{ else }}{{ .Values.serviceAccount.name | default "default" }}{{ end -}}
{{- end -}}

{{- define "sluice.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "sluice.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* How PostgreSQL and Kafka are reached: what migrate needs, and serve too. */}}
{{- define "sluice.storeEnv" -}}
- {name: SLUICE_POSTGRES_URL_FILE, value: /etc/sluice/postgres/url}
- {name: SLUICE_KAFKA_BROKERS, value: {{ required "kafka.brokers: give Kafka's addresses, as [kafka-0.kafka:9092]" (.Values.kafka.brokers | join ",") | quote }}}
{{- with .Values.kafka.tls }}
{{- if .enabled }}
- {name: SLUICE_KAFKA_TLS, value: "true"}
{{- if .existingSecret }}
- {name: SLUICE_KAFKA_TLS_CA, value: /etc/sluice/kafka-tls/ca.crt}
{{- end }}
{{- end }}
{{- end }}
{{- with .Values.kafka.sasl }}
{{- if .mechanism }}
- {name: SLUICE_KAFKA_SASL, value: {{ .mechanism }}}
- {name: SLUICE_KAFKA_USER, value: {{ required "kafka.sasl.user is needed with kafka.sasl.mechanism" .user | quote }}}
- {name: SLUICE_KAFKA_PASSWORD_FILE, value: /etc/sluice/kafka-sasl/password}
{{- end }}
{{- end }}
{{- with .Values.kafka.topics }}
- {name: SLUICE_TOPIC_LOGS, value: {{ .logs | quote }}}
- {name: SLUICE_TOPIC_SPANS, value: {{ .spans | quote }}}
- {name: SLUICE_TOPIC_METRICS, value: {{ .metrics | quote }}}
- {name: SLUICE_TOPIC_SIGNALS, value: {{ .signals | quote }}}
- {name: SLUICE_TOPIC_SIGNALS_DLQ, value: {{ .signalsDlq | quote }}}
{{- end }}
{{- end -}}

{{- define "sluice.storeMounts" -}}
- {name: postgres, mountPath: /etc/sluice/postgres, readOnly: true}
{{- if and .Values.kafka.tls.enabled .Values.kafka.tls.existingSecret }}
- {name: kafka-tls, mountPath: /etc/sluice/kafka-tls, readOnly: true}
{{- end }}
{{- if .Values.kafka.sasl.mechanism }}
- {name: kafka-sasl, mountPath: /etc/sluice/kafka-sasl, readOnly: true}
{{- end }}
{{- end -}}

{{- define "sluice.storeVolumes" -}}
- name: postgres
  secret:
    secretName: {{ required "postgres.existingSecret: the secret that holds PostgreSQL's URL" .Values.postgres.existingSecret }}
    items: [{key: {{ .Values.postgres.key }}, path: url}]
{{- with .Values.kafka.tls }}
{{- if and .enabled .existingSecret }}
- name: kafka-tls
  secret:
    secretName: {{ .existingSecret }}
    items: [{key: {{ .key }}, path: ca.crt}]
{{- end }}
{{- end }}
{{- with .Values.kafka.sasl }}
{{- if .mechanism }}
- name: kafka-sasl
  secret:
    secretName: {{ required "kafka.sasl.existingSecret is needed with kafka.sasl.mechanism" .existingSecret }}
    items: [{key: {{ .key }}, path: password}]
{{- end }}
{{- end }}
{{- end -}}

{{/* The pod of one role: (dict "root" $ "role" "edge") */}}
{{- define "sluice.pod" -}}
{{- $root := .root -}}
{{- $role := .role -}}
{{- $v := index $root.Values $role -}}
metadata:
  labels:
    {{- include "sluice.labels" . | nindent 4 }}
  annotations:
    kubectl.kubernetes.io/default-container: sluice
    {{- if $root.Values.signalTypes }}
    sluice/signal-types: {{ toJson $root.Values.signalTypes | sha256sum }}
    {{- end }}
    {{- with $v.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "sluice.serviceAccount" $root }}
  automountServiceAccountToken: false
  {{- with $root.Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $v.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  # The drain delay, 20 s in which every answer is given and the spool is closed, and room.
  terminationGracePeriodSeconds: {{ add $v.drainDelaySeconds 30 }}
  securityContext:
    {{- include "sluice.podSecurity" . | nindent 4 }}
  {{- with $v.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $v.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $v.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  topologySpreadConstraints:
    {{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
    - maxSkew: 1
      topologyKey: {{ $key }}
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "sluice.selector" $ | nindent 10 }}
    {{- end }}
  containers:
    - name: sluice
      image: {{ include "sluice.image" $root }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      args: [serve]
      securityContext:
        {{- include "sluice.containerSecurity" . | nindent 8 }}
      env:
        - {name: GOMEMLIMIT, value: {{ $v.goMemLimit }}}
        - {name: SLUICE_ROLES, value: {{ $role }}}
        - {name: SLUICE_DRAIN_DELAY, value: {{ $v.drainDelaySeconds }}s}
        {{- include "sluice.storeEnv" $root | nindent 8 }}
        - {name: SLUICE_REDIS_URL_FILE, value: /etc/sluice/redis/url}
        {{- include (printf "sluice.%sEnv" $role) $root | nindent 8 }}
        {{- if $root.Values.signalTypes }}
        - {name: SLUICE_SIGNAL_TYPES_FILE, value: /etc/sluice/signal-types/types.json}
        {{- end }}
        {{- range $flag, $value := $root.Values.config }}
        - {name: SLUICE_{{ $flag | replace "-" "_" | upper }}, value: {{ include "sluice.plain" $value | quote }}}
        {{- end }}
      ports:
        {{- if eq $role "edge" }}
        - {name: otlp-http, containerPort: 4318}
        - {name: otlp-grpc, containerPort: 4317}
        {{- else if eq $role "admin" }}
        - {name: admin, containerPort: 8318}
        {{- end }}
        - {name: ops, containerPort: 9318}
      # An edge looks through its whole spool before it answers.
      startupProbe:
        httpGet: {path: /livez, port: ops}
        periodSeconds: 2
        timeoutSeconds: 2
        failureThreshold: 150
      livenessProbe:
        httpGet: {path: /livez, port: ops}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
      # It fails while starting and draining, and with nothing to answer from: not because something is away.
      readinessProbe:
        httpGet: {path: /readyz, port: ops}
        periodSeconds: 5
        timeoutSeconds: 4
        failureThreshold: 2
      resources:
        {{- toYaml $v.resources | nindent 8 }}
      volumeMounts:
        {{- include "sluice.storeMounts" $root | nindent 8 }}
        - {name: redis, mountPath: /etc/sluice/redis, readOnly: true}
        {{- if $root.Values.signalTypes }}
        - {name: signal-types, mountPath: /etc/sluice/signal-types, readOnly: true}
        {{- end }}
        {{- if eq $role "edge" }}
        - {name: spool, mountPath: /var/lib/sluice/spool}
        {{- if $v.tls.existingSecret }}
        - {name: tls, mountPath: /etc/sluice/tls, readOnly: true}
        {{- end }}
        {{- end }}
        {{- if and (eq $role "admin") $root.Values.oidc.issuer }}
        - {name: oidc, mountPath: /etc/sluice/oidc, readOnly: true}
        {{- end }}
        {{- if and (include "sluice.knowsJudge" .) $root.Values.scope.judge.existingSecret }}
        - {name: judge, mountPath: /etc/sluice/judge, readOnly: true}
        {{- end }}
  volumes:
    {{- include "sluice.storeVolumes" $root | nindent 4 }}
    - name: redis
      secret:
        secretName: {{ required "redis.existingSecret: the secret that holds Redis's URL" $root.Values.redis.existingSecret }}
        items: [{key: {{ $root.Values.redis.key }}, path: url}]
    {{- if $root.Values.signalTypes }}
    - name: signal-types
      configMap: {name: {{ include "sluice.fullname" $root }}-signal-types}
    {{- end }}
    {{- if and (eq $role "edge") $v.tls.existingSecret }}
    - name: tls
      secret: {secretName: {{ $v.tls.existingSecret }}}
    {{- end }}
    {{- if and (eq $role "admin") $root.Values.oidc.issuer }}
    - name: oidc
      secret: {secretName: {{ required "oidc.existingSecret is needed with oidc.issuer: all admin pods sign cookies with the same secret" $root.Values.oidc.existingSecret }}}
    {{- end }}
    {{- if and (include "sluice.knowsJudge" .) $root.Values.scope.judge.existingSecret }}
    - name: judge
      secret:
        secretName: {{ $root.Values.scope.judge.existingSecret }}
        items: [{key: {{ $root.Values.scope.judge.key }}, path: key}]
    {{- end }}
{{- end -}}

{{/* What each role is told beside. */}}
{{- define "sluice.edgeEnv" -}}
- {name: SLUICE_SPOOL_DIR, value: /var/lib/sluice/spool/log}
- {name: SLUICE_SPOOL_MAX_BYTES, value: {{ .Values.edge.spool.maxBytes | int64 | quote }}}
{{- if .Values.edge.tls.existingSecret }}
- {name: SLUICE_TLS_CERT, value: /etc/sluice/tls/tls.crt}
- {name: SLUICE_TLS_KEY, value: /etc/sluice/tls/tls.key}
{{- end }}
{{- end -}}

{{- define "sluice.adminEnv" -}}
{{- with .Values.edge.url }}
- {name: SLUICE_EDGE_URL, value: {{ . | quote }}}
{{- end }}
{{- with .Values.admin.url }}
- {name: SLUICE_CONSOLE_URL, value: {{ . | quote }}}
{{- end }}
{{- with .Values.oidc }}
{{- if .issuer }}
- {name: SLUICE_OIDC_ISSUER, value: {{ .issuer | quote }}}
- {name: SLUICE_OIDC_CLIENT_ID, value: {{ required "oidc.clientId is needed with oidc.issuer" .clientId | quote }}}
- {name: SLUICE_OIDC_GROUPS_CLAIM, value: {{ .groupsClaim | quote }}}
{{- with .grants }}
- {name: SLUICE_OIDC_GRANT, value: {{ . | join "," | quote }}}
{{- end }}
- {name: SLUICE_OIDC_COOKIE_SECRET_FILE, value: /etc/sluice/oidc/{{ .cookieSecretKey }}}
{{- with .clientSecretKey }}
- {name: SLUICE_OIDC_CLIENT_SECRET_FILE, value: /etc/sluice/oidc/{{ . }}}
{{- end }}
{{- $_ := required "admin.url is needed with oidc.issuer: the issuer sends admins back there" $.Values.admin.url }}
{{- end }}
{{- end }}
{{- if .Values.scope.enabled }}
{{ include "sluice.judgeEnv" . }}
{{- end }}
{{- end -}}

{{- define "sluice.alertsEnv" -}}
{{- end -}}

{{- define "sluice.scopeEnv" -}}
{{- include "sluice.judgeEnv" . }}
{{- end -}}

{{/* Whether a role is told of the judge, as (dict "root" $ "role" "admin"): the one that asks it, and the console, which says whether prompts are judged. */}}
{{- define "sluice.knowsJudge" -}}
{{- if and .root.Values.scope.enabled (has .role (list "admin" "scope")) }}yes{{ end -}}
{{- end -}}

{{- define "sluice.judgeEnv" -}}
{{- with .Values.scope.judge }}
- {name: SLUICE_JUDGE_URL, value: {{ required "scope.judge.url is needed with scope.enabled" .url | quote }}}
{{- with .model }}
- {name: SLUICE_JUDGE_MODEL, value: {{ . | quote }}}
{{- end }}
{{- if .existingSecret }}
- {name: SLUICE_JUDGE_KEY_FILE, value: /etc/sluice/judge/key}
{{- end }}
{{- end }}
{{- end -}}

{{/* A setting as the program reads it. Helm has every number as a float, and prints large ones with an exponent. */}}
{{- define "sluice.plain" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) }}{{ printf "%.0f" . }}{{ else }}{{ toString . }}{{ end -}}
{{- end -}}

{{/* The port of host:port or of a URL, which may leave it out. */}}
{{- define "sluice.port" -}}
{{- $host := . -}}
{{- if contains "://" . }}{{ $host = (urlParse .).host }}{{ end -}}
{{- regexFind ":[0-9]+$" $host | trimPrefix ":" | default (ternary "80" "443" (hasPrefix "http://" .)) -}}
{{- end -}}

{{/* The ports that a role connects to, as a JSON list: what the values say, and networkPolicy.egressPorts for what only secrets say. (dict "root" $ "role" "edge") */}}
{{- define "sluice.egressPorts" -}}
{{- $v := .root.Values -}}
{{- $to := $v.kafka.brokers -}}
{{- if ne .role "migrate" }}{{ with index $v.config "trace-endpoint" }}{{ $to = append $to . }}{{ end }}{{ end -}}
{{- if and (eq .role "admin") $v.oidc.issuer }}{{ $to = append $to $v.oidc.issuer }}{{ end -}}
{{- if and (include "sluice.knowsJudge" .) $v.scope.judge.url }}{{ $to = append $to $v.scope.judge.url }}{{ end -}}
{{- $ports := list -}}
{{- range $v.networkPolicy.egressPorts }}{{ $ports = append $ports (int .) }}{{ end -}}
{{- range $to }}{{ $ports = append $ports (include "sluice.port" . | int) }}{{ end -}}
{{- uniq $ports | toJson -}}
{{- end -}}

{{/* The roles that are on, as a JSON list. */}}
{{- define "sluice.roles" -}}
{{- $on := list "edge" -}}
{{- range list "admin" "alerts" "scope" }}{{ if (index $.Values .).enabled }}{{ $on = append $on . }}{{ end }}{{ end -}}
{{- toJson $on -}}
{{- end -}}
