{{/* Names: at most 63 characters, as DNS has it, with room for the longest suffix. */}}
{{- define "shoal.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "shoal.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains (include "shoal.name" .) .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "shoal.name" .) | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "shoal.selector" -}}
app.kubernetes.io/name: {{ include "shoal.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "shoal.labels" -}}
{{ include "shoal.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "shoal.secret" -}}
{{- default (printf "%s-token" (include "shoal.fullname" .)) .Values.token.existingSecret }}
{{- end }}

{{- define "shoal.image" -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}

{{/* Label values and amounts as `shoal start` wants them: JSON. */}}
{{- define "shoal.nodeArgs" -}}
{{- with .labels }}
- --labels
- {{ toJson . | quote }}
{{- end }}
{{- with .customResources }}
- --resources
- {{ toJson . | quote }}
{{- end }}
{{- range .extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end }}

{{- define "shoal.env" -}}
- name: SHOAL_HOST
  valueFrom:
    fieldRef:
      fieldPath: status.podIP
- name: SHOAL_TOKEN_SOURCE
  value: /etc/shoal/token/token
- name: SHOAL_TMPDIR
  value: /tmp/shoal
- name: HOME
  value: /tmp
{{- end }}

{{- define "shoal.mounts" -}}
- name: token
  mountPath: /etc/shoal/token
  readOnly: true
- name: scratch
  mountPath: /tmp
{{- end }}

{{- define "shoal.tokenVolume" -}}
- name: token
  secret:
    secretName: {{ include "shoal.secret" . }}
    defaultMode: 0440
    items:
      - key: token
        path: token
{{- end }}
