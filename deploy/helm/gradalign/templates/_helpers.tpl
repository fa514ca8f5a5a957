{{- define "gradalign.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- define "gradalign.fullname" -}}
{{- if .Values.fullnameOverride -}}{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "gradalign.name" . -}}
{{- if contains $name .Release.Name -}}{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- define "gradalign.selector" -}}
app.kubernetes.io/name: {{ include "gradalign.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}
{{- define "gradalign.labels" -}}
{{ include "gradalign.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}
{{- define "gradalign.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}{{- default (include "gradalign.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}{{- default "default" .Values.serviceAccount.name -}}{{- end -}}
{{- end -}}
{{- define "gradalign.ownKey" -}}
{{- if and (not .Values.auth.existingSecret) (or .Values.auth.apiKey (not .Values.auth.keyFileSecret)) -}}true{{- end -}}
{{- end -}}
{{- define "gradalign.keySecret" -}}
{{- if .Values.auth.existingSecret -}}{{ .Values.auth.existingSecret }}
{{- else if include "gradalign.ownKey" . -}}{{ include "gradalign.fullname" . }}-api-key{{- end -}}
{{- end -}}
{{- define "gradalign.keySecretKey" -}}
{{- if .Values.auth.existingSecret -}}{{ .Values.auth.existingSecretKey }}{{- else -}}api-key{{- end -}}
{{- end -}}
{{- define "gradalign.redisSecret" -}}
{{- default (printf "%s-redis" (include "gradalign.fullname" .)) .Values.redis.existingSecret -}}
{{- end -}}
{{- define "gradalign.redisSecretKey" -}}
{{- if .Values.redis.existingSecret -}}{{ .Values.redis.existingSecretKey }}{{- else -}}redis-password{{- end -}}
{{- end -}}
{{/* A value that was given, else the one in the cluster, else a new one; base64. Takes root, secret, key, given. */}}
{{- define "gradalign.kept" -}}
{{- if .given -}}{{- .given | b64enc -}}
{{- else -}}
{{- $old := lookup "v1" "Secret" .root.Release.Namespace .secret -}}
{{- if and $old $old.data (index $old.data .key) -}}{{- index $old.data .key -}}
{{- else -}}{{- randAlphaNum 48 | b64enc -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- define "gradalign.host" -}}
{{- if or (regexMatch "^(127[.].*|::1|::ffff:127[.].*|localhost[.]?)$" (lower .Values.host)) (not (regexMatch "^[0-9A-Za-z.:%_-]+$" .Values.host)) -}}
{{- fail (printf "host is %q; expected an address that probes and the Service reach, without brackets: 0.0.0.0, or :: for IPv6 and IPv4" .Values.host) -}}
{{- end -}}
{{- .Values.host -}}
{{- end -}}
