{{/*
Fills the values up: a section or a value that is null, or was left empty, is as if it had not been written, and the chart's
default holds. But resources and tolerations that are null are none: so helm lets one take defaults away. Called first by
every template; files/values.yaml is a copy of values.yaml, which templates cannot read.
*/}}
{{- define "sheetanchor.fill" -}}
{{- $open := list "resources" "tolerations" -}}
{{- range $name, $default := .Files.Get "files/values.yaml" | fromYaml -}}
{{- if kindIs "invalid" (index $.Values $name) -}}
{{- $_ := set $.Values $name (has $name $open | ternary (kindIs "map" $default | ternary dict list) $default) -}}
{{- else if kindIs "map" $default -}}
{{- $section := index $.Values $name -}}
{{- range $key, $value := $default -}}
{{- if and (kindIs "invalid" (index $section $key)) (not (has $name $open)) -}}
{{- $_ := set $section $key (has $key $open | ternary dict $value) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $part := list "requests" "limits" -}}
{{- range $resources := list $.Values.resources $.Values.test.resources -}}
{{- if kindIs "invalid" (index $resources $part) -}}{{- $_ := unset $resources $part -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* One map out of a list of maps, as text: of the same key the last one counts. Texts put together would double it. */}}
{{- define "sheetanchor.joined" -}}
{{- $all := dict -}}
{{- range . -}}
{{- range $key, $value := . -}}
{{- $_ := set $all $key $value -}}
{{- end -}}
{{- end -}}
{{- toYaml $all -}}
{{- end -}}

{{/*
A DNS label that begins with a letter, as a Service's name must, of a text and the most characters that it may have. What
cannot stay as it is gets a hash of the whole, so that no two names become one.
*/}}
{{- define "sheetanchor.label" -}}
{{- $text := index . 0 -}}
{{- if and (le (len $text) (index . 1)) (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $text) -}}
{{- $text -}}
{{- else -}}
{{- $plain := regexReplaceAll "[^a-z0-9]+" (lower $text) "-" | trimAll "-" -}}
{{- $plain = regexMatch "^[a-z]" $plain | ternary $plain (printf "r-%s" $plain) -}}
{{- printf "%s-%s" ($plain | trunc (int (sub (index . 1) 9)) | trimSuffix "-") (sha256sum $text | trunc 8) -}}
{{- end -}}
{{- end -}}

{{- define "sheetanchor.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) -}}
{{- include "sheetanchor.label" (list (default $full .Values.fullnameOverride) 46) -}}
{{- end -}}

{{/* Name of the operator's objects, and of its Lease. */}}
{{- define "sheetanchor.operator" -}}
{{- printf "%s-operator" (include "sheetanchor.fullname" .) -}}
{{- end -}}

{{/* Cluster-wide objects of two installations must not meet; no namespace has a dot in its name. */}}
{{- define "sheetanchor.clusterName" -}}
{{- printf "%s.%s" .Release.Namespace (include "sheetanchor.operator" .) -}}
{{- end -}}

{{- define "sheetanchor.account" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "sheetanchor.operator" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name: name the account that the operator runs under, or let serviceAccount.create be true" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "sheetanchor.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{- printf "%s@%s" .repository .digest -}}
{{- else -}}
{{- printf "%s:%s" .repository (default $.Chart.AppVersion .tag) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What selects the operator's pods; a parent chart may contain this one twice in one release. */}}
{{- define "sheetanchor.selector" -}}
app.kubernetes.io/name: sheetanchor
app.kubernetes.io/instance: {{ include "sheetanchor.fullname" . }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "sheetanchor.testSelector" -}}
app.kubernetes.io/name: sheetanchor
app.kubernetes.io/instance: {{ include "sheetanchor.fullname" . }}
app.kubernetes.io/component: test
{{- end -}}

{{/* Where an object comes from. */}}
{{- define "sheetanchor.chart" -}}
app.kubernetes.io/part-of: sheetanchor
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* What every object carries but the labels that select pods. */}}
{{- define "sheetanchor.origin" -}}
{{- include "sheetanchor.joined" (list .Values.commonLabels (include "sheetanchor.chart" . | fromYaml)) -}}
{{- end -}}

{{- define "sheetanchor.labels" -}}
{{- $own := list (include "sheetanchor.chart" . | fromYaml) (include "sheetanchor.selector" . | fromYaml) -}}
{{- include "sheetanchor.joined" (prepend $own .Values.commonLabels) -}}
{{- end -}}

{{/* Of PodMonitors and PrometheusRules, which a Prometheus may select by any label. */}}
{{- define "sheetanchor.monitoringLabels" -}}
{{- include "sheetanchor.joined" (list (include "sheetanchor.labels" . | fromYaml) .Values.monitoring.labels) -}}
{{- end -}}

{{/* Variables of the operator that other values set. */}}
{{- define "sheetanchor.variables" -}}
[POD_NAME, POD_NAMESPACE, NODE_NAME, SHEETANCHOR_LOG_LEVEL, SHEETANCHOR_OPERATOR_LEASE, SHEETANCHOR_OPERATOR_IMAGE,
 SHEETANCHOR_OPERATOR_IMAGE_PULL_POLICY, SHEETANCHOR_OPERATOR_IMAGE_PULL_SECRETS, SHEETANCHOR_OPERATOR_NAMESPACES,
 SHEETANCHOR_OPERATOR_MONITORING_NAMESPACES, SHEETANCHOR_OPERATOR_API_SERVER_PORTS, SHEETANCHOR_OPERATOR_DNS_PORTS,
 SHEETANCHOR_OPERATOR_CLUSTER_DOMAIN, SHEETANCHOR_OPERATOR_NODES, SHEETANCHOR_OPERATOR_WORKERS,
 SHEETANCHOR_OPERATOR_RESYNC_S, SHEETANCHOR_OPERATOR_ASSIGN_IDS, SHEETANCHOR_HTTP_HOST, SHEETANCHOR_PROBE_PORT,
 SHEETANCHOR_OPERATOR_LISTEN_ADDRESS, SHEETANCHOR_OPERATOR_DNS_PEERS]
{{- end -}}

{{/* A policy's rule for asking DNS. */}}
{{- define "sheetanchor.dns" -}}
- ports:
    {{- range .Values.networkPolicy.dnsPorts }}
    - {port: {{ . }}, protocol: UDP}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
  {{- with .Values.networkPolicy.dnsPeers }}
  to:
    {{- range . }}
    {{- if contains "=" . }}
    {{- $label := splitn "/" 2 . }}
    {{- $pair := splitn "=" 2 $label._1 }}
    - namespaceSelector:
        matchLabels: {kubernetes.io/metadata.name: {{ $label._0 | quote }}}
      podSelector:
        matchLabels: { {{- $pair._0 | quote }}: {{ $pair._1 | quote -}} }
    {{- else }}
    - ipBlock: {cidr: {{ . | quote }}}
    {{- end }}
    {{- end }}
  {{- end }}
{{- end -}}

{{- define "sheetanchor.podSecurity" -}}
runAsNonRoot: true
{{- if .Values.assignIds }}
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "sheetanchor.containerSecurity" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
{{- if .Values.assignIds }}
runAsUser: 65532
runAsGroup: 65532
{{- end }}
capabilities:
  drop: [ALL]
{{- end -}}

{{/*
"true" if an object of the Prometheus operator is wanted; takes the root, the value true, false or auto, and the kind. A
cluster may have the group for another of its kinds.
*/}}
{{- define "sheetanchor.wanted" -}}
{{- $value := index . 1 | toString -}}
{{- if eq $value "true" -}}true
{{- else if eq $value "auto" -}}
{{- if (index . 0).Capabilities.APIVersions.Has (printf "monitoring.coreos.com/v1/%s" (index . 2)) -}}true{{- end -}}
{{- end -}}
{{- end -}}
