{{/* The values with the platform's beneath them, as YAML. An empty text in the values is none, and hides nothing. */}}
{{- define "veer.values" -}}
{{- $upstream := dict
      "cni" (dict "install" "auto" "confDir" "/etc/cni/net.d" "binDir" "/opt/cni/bin" "netnsDir" "/run/netns")
      "priorityClassQuota" "off" "securityContextConstraints" "off" -}}
{{- $platform := dict -}}
{{- with .Values.platform -}}
{{- $platform = $.Files.Get (printf "platforms/%s.yaml" .) | fromYaml -}}
{{- end -}}
{{- if and (eq .Values.platform "openshift") (not (has .Values.cni.install (list "" "off"))) -}}
{{- fail (printf "cni.install=%s on openshift: Multus calls OVN-Kubernetes by one plain file there, so nothing can be chained, and the agent would never be ready; off is what is possible (docs/platforms.md)" .Values.cni.install) -}}
{{- end -}}
{{- mergeOverwrite $upstream $platform (include "veer.given" .Values | fromYaml) | toYaml -}}
{{- end -}}

{{/* A map without its empty texts. */}}
{{- define "veer.given" -}}
{{- $given := dict -}}
{{- range $key, $value := . -}}
{{- if kindIs "map" $value -}}
{{- $_ := set $given $key (include "veer.given" $value | fromYaml) -}}
{{- else if or (not (kindIs "string" $value)) $value -}}
{{- $_ := set $given $key $value -}}
{{- end -}}
{{- end -}}
{{- toYaml $given -}}
{{- end -}}

{{- define "veer.selector" -}}
app.kubernetes.io/name: veer
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "veer.labels" -}}
{{ include "veer.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: veer
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{/* Names of the cluster, not of a namespace, carry the namespace: two releases do not meet. */}}
{{- define "veer.clusterName" -}}
{{ printf "%s-%s" .Release.Name .Release.Namespace }}
{{- end -}}

{{- define "veer.image" -}}
{{- $image := .Values.image -}}
{{ $image.repository }}:{{ $image.tag | default .Chart.AppVersion }}{{ with $image.digest }}@{{ . }}{{ end }}
{{- end -}}
