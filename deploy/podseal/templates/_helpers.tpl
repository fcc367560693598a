{{- define "podseal.tag" -}}
{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{/* podseal.labels gives the labels of every object. Deckhouse's label
heritage=deckhouse is not among them: there it marks what only Deckhouse may change. */}}
{{- define "podseal.labels" -}}
app.kubernetes.io/name: podseal
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/version: {{ include "podseal.tag" .root | trunc 63 | trimAll "-_." | quote }}
app.kubernetes.io/component: {{ .component }}
app.kubernetes.io/part-of: podseal
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- if eq .component "control-plane" }}
module: istio
istio.io/rev: default
{{- end }}
{{- end -}}

{{/* podseal.pod gives what both programs' pods share: they pass Pod Security
"restricted". */}}
{{- define "podseal.pod" -}}
securityContext:
  runAsNonRoot: true
  runAsUser: 1337
  runAsGroup: 1337
  seccompProfile: {type: RuntimeDefault}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "podseal.container" -}}
image: {{ printf "%s/podseal:%s" .Values.image.hub (include "podseal.tag" .) | quote }}
imagePullPolicy: {{ .Values.imagePullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end -}}

{{/* podseal.revisions: what labels istio.io/rev may say (contract 5.3). */}}
{{- define "podseal.revisions" -}}
{{ prepend .Values.revisions "default" | uniq | toJson }}
{{- end }}

{{/* podseal.namespacesNotInjected: contract 5.5, and our own. */}}
{{- define "podseal.namespacesNotInjected" -}}
[kube-system, kube-public, kube-node-lease, local-path-storage, d8-istio, podseal-system]
{{- end -}}
