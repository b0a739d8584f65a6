{{- define "sheetanchor.name" -}}
{{- if contains "sheetanchor" .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-sheetanchor" .Release.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{/* Cluster-wide objects carry the namespace, so that two releases do not meet. */}}
{{- define "sheetanchor.clusterName" -}}
{{- printf "%s-%s-operator" .Release.Namespace (include "sheetanchor.name" .) | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "sheetanchor.selector" -}}
app.kubernetes.io/name: sheetanchor
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "sheetanchor.labels" -}}
{{ include "sheetanchor.selector" . }}
app.kubernetes.io/part-of: sheetanchor
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "sheetanchor.image" -}}
{{- if .Values.image.digest }}{{ .Values.image.repository }}@{{ .Values.image.digest }}{{ else }}{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{/* Whether the Prometheus operator's objects are wanted: true, false, or auto. Arguments: root, the value. */}}
{{- define "sheetanchor.wanted" -}}
{{- $root := index . 0 }}{{ $value := index . 1 | toString }}
{{- if or (eq $value "true") (and (eq $value "auto") ($root.Capabilities.APIVersions.Has "monitoring.coreos.com/v1")) }}yes{{ end }}
{{- end }}

{{/* What the operator does to a namespace with pipelines. */}}
{{- define "sheetanchor.rules" -}}
- apiGroups: [sheetanchor.dev]
  resources: [predictionpipelines]
  verbs: [get, list, watch, patch]
- apiGroups: [sheetanchor.dev]
  resources: [reanchors]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [sheetanchor.dev]
  resources: [predictionpipelines/status, reanchors/status]
  verbs: [get, patch]
# Owner references that block deletion may only be set by who may update the owner's finalizers.
- apiGroups: [sheetanchor.dev]
  resources: [predictionpipelines/finalizers, reanchors/finalizers]
  verbs: [update]
- apiGroups: [""]
  resources: [serviceaccounts, configmaps, secrets, services]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods, events]
  verbs: [get, list, watch]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get]
- apiGroups: [apps]
  resources: [deployments, statefulsets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
# For the processors' right to create ReAnchors, which the operator therefore holds itself.
- apiGroups: [rbac.authorization.k8s.io]
  resources: [roles, rolebindings]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}
