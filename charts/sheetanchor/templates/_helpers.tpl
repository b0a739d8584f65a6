{{- define "sheetanchor.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Name of the operator's objects, and of its Lease. */}}
{{- define "sheetanchor.operator" -}}
{{- printf "%s-operator" (include "sheetanchor.fullname" .) -}}
{{- end -}}

{{/* Cluster-wide objects of two installations must not meet. */}}
{{- define "sheetanchor.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "sheetanchor.operator" .) | trunc 63 | trimSuffix "-" -}}
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

{{- define "sheetanchor.selector" -}}
app.kubernetes.io/name: sheetanchor
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{/* What every object carries but the labels that select pods. */}}
{{- define "sheetanchor.origin" -}}
app.kubernetes.io/part-of: sheetanchor
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "sheetanchor.labels" -}}
{{ include "sheetanchor.selector" . }}
{{ include "sheetanchor.origin" . }}
{{- end -}}

{{- define "sheetanchor.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "sheetanchor.containerSecurity" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
capabilities:
  drop: [ALL]
{{- end -}}

{{/* "true" if an object of the Prometheus operator is wanted; takes the root and the value true, false or auto. */}}
{{- define "sheetanchor.wanted" -}}
{{- $value := index . 1 | toString -}}
{{- if eq $value "true" -}}true
{{- else if and (eq $value "auto") ((index . 0).Capabilities.APIVersions.Has "monitoring.coreos.com/v1") -}}true
{{- end -}}
{{- end -}}
