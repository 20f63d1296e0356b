{{/* The flags of `veer agent`. */}}
{{- define "veer.args" -}}
{{- $v := .v -}}
- agent
- --pods-from=kube
- --node-name=$(NODE_NAME)
- --cni-install={{ $v.cni.install }}
{{- if ne $v.cni.install "off" }}
- --cni-conf-dir={{ $v.cni.confDir }}
- --cni-bin-dir={{ $v.cni.binDir }}
{{- end }}
- --cni-cache={{ $v.cni.cacheDir }}
- --admin-addr={{ $v.metrics.address }}:{{ $v.metrics.port }}
- --health-addr={{ $v.health.address }}:{{ $v.health.port }}
- --backend={{ $v.agent.backend }}
- --exclude-namespaces={{ append $v.agent.excludeNamespaces .release.Namespace | uniq | join "," }}
- --proxy-identity={{ $v.agent.proxyIdentity }}
{{- with $v.agent.beforeProxy }}
- --before-proxy={{ . }}
{{- end }}
{{- if ne $v.proxy.mode "none" }}
- --proxy-dir={{ $v.proxy.dir }}
{{- if $v.proxy.config }}
- --proxy-config=/etc/veer/proxy-config
{{- end }}
{{- end }}
{{- if $v.nodeTaint.enabled }}
- --node-taint
{{- end }}
{{- if $v.ztunnel.enabled }}
- --ztunnel-socket={{ $v.ztunnel.socketDir }}/ztunnel.sock
{{- end }}
- --reconcile-interval={{ $v.agent.reconcileInterval }}
- --log-level={{ $v.agent.logLevel }}
- --log-format={{ $v.agent.logFormat }}
{{- with $v.agent.extraArgs }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "veer.probe" -}}
httpGet: { path: {{ .path }}, port: health{{ if ne .address "0.0.0.0" }}, host: {{ .address }}{{ end }} }
{{- end -}}

{{/* Live: it answers. Ready: a pod that is created now would be redirected. */}}
{{- define "veer.probes" -}}
startupProbe:
  {{- include "veer.probe" (dict "path" "/healthz" "address" .health.address) | nindent 2 }}
  periodSeconds: 1
  failureThreshold: 120
livenessProbe:
  {{- include "veer.probe" (dict "path" "/healthz" "address" .health.address) | nindent 2 }}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  {{- include "veer.probe" (dict "path" "/readyz" "address" .health.address) | nindent 2 }}
  periodSeconds: 2
  timeoutSeconds: 2
{{- end -}}

{{/* The runtime's default seccomp profile lets bpf(2), setns(2) and pidfd_getfd(2) through for these capabilities. */}}
{{- define "veer.securityContext" -}}
privileged: false
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsUser: 0
runAsGroup: 0
runAsNonRoot: false
seccompProfile: { type: RuntimeDefault }
{{- if eq .securityContext.appArmor "field" }}
appArmorProfile: { type: Unconfined }
{{- end }}
{{- with .securityContext.seLinuxType }}
seLinuxOptions: { type: {{ . }} }
{{- end }}
capabilities:
  drop: [ALL]
  add:
    - BPF # programs and maps
    - PERFMON # the verifier follows pointers
    - NET_ADMIN # programs onto cgroups and network namespaces; nftables
    - NET_BROADCAST # to hear of addresses in other network namespaces
    - NET_RAW # to see istio-init's rules, which iptables tells to raw sockets alone
    - SYS_ADMIN # setns(2); on Linux before 5.8 it stands for BPF and PERFMON
    - SYS_PTRACE # namespaces and listeners of processes that are older than the agent
    - DAC_READ_SEARCH # the same processes' descriptors, which are their owners'
{{- if ne .cni.install "off" }}
    - DAC_OVERRIDE # the runtime's directories, where they belong to another user
{{- end }}
{{- end -}}

{{/* The node's Envoy. A container that is not root's has no capability at all, whatever it asks for (Kubernetes knows no
ambient ones), so it is root's, without any of root's rights but the one that network namespaces are entered with, and is
known as the proxy by its group. */}}
{{- define "veer.proxy" -}}
{{- $v := . -}}
- name: proxy
  image: {{ $v.proxy.image.repository }}:{{ $v.proxy.image.tag }}{{ with $v.proxy.image.digest }}@{{ . }}{{ end }}
  imagePullPolicy: {{ $v.proxy.image.pullPolicy }}
  command: [{{ $v.proxy.command | quote }}]
  args:
    # The agent writes it; before it has, on a node that has just booted, Envoy ends and is started again.
    - --config-path
    - {{ $v.proxy.dir }}/envoy.json
    - --concurrency
    - {{ $v.proxy.concurrency | quote }}
    - --log-level
    - {{ $v.proxy.logLevel }}
    - --drain-strategy
    - immediate
    - --drain-time-s
    - "45"
    # Another one is never beside it.
    - --disable-hot-restart
    {{- with $v.proxy.extraArgs }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  securityContext:
    privileged: false
    allowPrivilegeEscalation: false
    readOnlyRootFilesystem: true
    runAsUser: 0
    runAsGroup: 1337
    runAsNonRoot: false
    seccompProfile: { type: RuntimeDefault }
    {{- if eq $v.securityContext.appArmor "field" }}
    appArmorProfile: { type: Unconfined }
    {{- end }}
    {{- with $v.securityContext.seLinuxType }}
    seLinuxOptions: { type: {{ . }} }
    {{- end }}
    capabilities:
      drop: [ALL]
      add: [SYS_ADMIN] # setns(2), into the network namespaces of pods
  resources:
    {{- toYaml $v.proxy.resources | nindent 4 }}
  terminationMessagePolicy: FallbackToLogsOnError
  volumeMounts:
    - { name: proxy, mountPath: {{ $v.proxy.dir }} }
    - { name: netns, mountPath: {{ $v.cni.netnsDir }}, readOnly: true, mountPropagation: HostToContainer }
{{- end -}}
