{{/* The command of a pod; Kubernetes expands $(NAME). */}}
{{- define "qwen-job.command" -}}
{{- $k := .Values.kubernetes -}}
{{- $name := include "qwen-job.name" . -}}
{{- $nodes := int .Values.cluster.nodes -}}
{{- $address := printf "%s-worker-0" $name -}}
{{- $port := int $k.master_port | toString -}}
{{- $rank := "$(QWEN_JOB_NODE_RANK)" -}}
{{- if eq $nodes 1 -}}
{{- $address = "127.0.0.1" -}}
{{- $rank = "0" -}}
{{- else if ne $k.kind "pytorchjob" -}}
{{- $address = printf "%s-node-0-0.%s" $name $name -}}
{{- $rank = "$(JOB_COMPLETION_INDEX)" -}}
{{- else if $k.master -}}
{{- $address = "$(MASTER_ADDR)" -}}
{{- $port = "$(MASTER_PORT)" -}}
{{- $rank = "$(RANK)" -}}
{{- end -}}
{{- $suite := list -}}
{{- $options := (.Values.evaluate | default dict).options | default list -}}
{{- if or (has "--task" $options) (has "--task-folder" $options) -}}
{{- range $options -}}
{{- $word := printf "--word=%s" . -}}
{{- if regexMatch "\\$[$(]" $word -}}
{{- $word = replace "$" "$$" $word -}}
{{- end -}}
{{- $suite = append $suite $word -}}
{{- end -}}
{{- end -}}
{{- if eq $k.kind "prepare" -}}
{{- $words := list "python3" "-m" "qwen_job.node.prepare_job" "--config" "/etc/qwen-job/train.yaml" -}}
{{- $words = concat $words $suite -}}
{{- if not $k.suspend -}}
{{- $words = concat $words (list "--release" (printf "%s/%s" $k.starts $name)) -}}
{{- if eq (include "qwen-job.gang" .) "kueue" -}}
{{- $words = concat $words (list "--queue" (include "qwen-job.queue" .)) -}}
{{- end -}}
{{- end -}}
{{- toYaml $words -}}
{{- else -}}
{{- $words := list "python3" "-m" "qwen_job.node.launcher" -}}
{{- if $suite -}}
{{- $words = concat (list "python3" "-m" "qwen_job.node.suite_check") $suite (list "--") -}}
{{- end -}}
{{- $words = concat $words (list "--nnodes" (toString $nodes) "--node_rank" $rank "--nproc_per_node" (int .Values.cluster.gpus_per_node | toString)
  "--master_addr" $address "--master_port" $port "--rdzv_id" $name
  "--rdzv_timeout" (int $k.rendezvous_timeout | toString)
  "--max_without_progress" (int .Values.max_without_progress | toString)
  "--in_place" (int .Values.in_place | toString)) -}}
{{- if gt $nodes 1 -}}
{{- $words = append $words "--rejoin" -}}
{{- end -}}
{{- if not (kindIs "invalid" $k.active_deadline) -}}
{{- $words = concat $words (list "--time_limit_seconds" (int $k.active_deadline | toString)) -}}
{{- end -}}
{{- concat $words (list "--" "--config" "/etc/qwen-job/train.yaml") | toYaml -}}
{{- end -}}
{{- end -}}

{{/* The environment, sorted by name; the user's overrides the planned, secrets and the node rank override both. */}}
{{- define "qwen-job.env" -}}
{{- $entries := dict -}}
{{- range .Values.config.env -}}
{{- $_ := set $entries .name .value -}}
{{- end -}}
{{- range $name, $value := .Values.env -}}
{{- $_ := set $entries $name (kindIs "string" $value | ternary $value (toJson $value)) -}}
{{- end -}}
{{- range $name, $value := $entries -}}
{{- if regexMatch "\\$[$(]" $value -}}
{{- $value = replace "$" "$$" $value -}}
{{- end -}}
{{- $_ := set $entries $name (dict "name" $name "value" $value) -}}
{{- end -}}
{{- range $name, $reference := .Values.kubernetes.secret_env -}}
{{- $parts := splitList "/" $reference -}}
{{- $_ := set $entries $name (dict "name" $name "valueFrom" (dict "secretKeyRef" (dict "name" (first $parts) "key" (last $parts)))) -}}
{{- end -}}
{{- if and (eq .Values.kubernetes.kind "pytorchjob") (not .Values.kubernetes.master) -}}
{{- $label := "metadata.labels['training.kubeflow.org/replica-index']" -}}
{{- $_ := set $entries "QWEN_JOB_NODE_RANK" (dict "name" "QWEN_JOB_NODE_RANK" "valueFrom" (dict "fieldRef" (dict "fieldPath" $label))) -}}
{{- end -}}
{{- $list := list -}}
{{- range $entries -}}
{{- $list = append $list . -}}
{{- end -}}
{{- $text := toYaml $list -}}
{{- if and $list (not $text) -}}
{{- fail "env: a value contains a control character that Helm cannot represent (U+007F-U+009F); remove it" -}}
{{- end -}}
{{- $text -}}
{{- end -}}

{{- define "qwen-job.env_from" -}}
{{- range .Values.kubernetes.env_from_secrets }}
- secretRef:
    name: {{ . | toJson }}
{{- end }}
{{- end -}}

{{/* Values that the user sets are request and limit; the plan's other needs are requests only. */}}
{{- define "qwen-job.resources" -}}
{{- $k := .Values.kubernetes -}}
{{- $limits := dict -}}
{{- if $k.cpu -}}{{- $_ := set $limits "cpu" (toString $k.cpu) -}}{{- end -}}
{{- if $k.memory -}}{{- $_ := set $limits "memory" (toString $k.memory) -}}{{- end -}}
{{- if and $k.gpu_resource (ne $k.kind "prepare") -}}{{- $_ := set $limits $k.gpu_resource (int .Values.cluster.gpus_per_node | toString) -}}{{- end -}}
{{- range $name, $value := $k.resources -}}{{- $_ := set $limits $name (toString $value) -}}{{- end -}}
{{- $requests := deepCopy $limits -}}
{{- if ne $k.kind "prepare" -}}
{{- $root := . -}}
{{- range $name, $amount := .Values.config.needs | default dict -}}
{{- if and $amount (not (include "qwen-job.written" (list $root $name))) -}}{{- $_ := set $requests $name (toString $amount) -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- dict "requests" $requests "limits" $limits | toYaml -}}
{{- end -}}

{{/* All amounts of cpu or memory that the user sets, separated by spaces: (root, cpu or memory). */}}
{{- define "qwen-job.written" -}}
{{- $k := (index . 0).Values.kubernetes -}}
{{- $name := index . 1 -}}
{{- with get $k $name }}{{ toString . }} {{ end -}}
{{- with get $k.resources $name }}{{ toString . }} {{ end -}}
{{- $containers := list $k.pod_container -}}
{{- $main := eq $k.kind "pytorchjob" | ternary "pytorch" "node" -}}
{{- range include "qwen-job.maps" (list $k.pod "containers") | fromJsonArray -}}
{{- if eq (toString .name) $main -}}{{- $containers = append $containers . -}}{{- end -}}
{{- end -}}
{{- range $container := $containers -}}
{{- $resources := get $container "resources" -}}
{{- range kindIs "map" $resources | ternary (list "limits" "requests") list -}}
{{- $amounts := get $resources . -}}
{{- if kindIs "map" $amounts -}}{{- with get $amounts $name }}{{ toString . }} {{ end -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* A quantity in bytes. */}}
{{- define "qwen-job.bytes" -}}
{{- $units := dict "" 1 "k" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000 "P" 1000000000000000 "E" 1000000000000000000
  "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 "Pi" 1125899906842624 "Ei" 1152921504606846976 -}}
{{- $text := toString . -}}
{{- $unit := regexFind "([kKMGTPE]i?)?$" $text -}}
{{- mulf (trimSuffix $unit $text | float64) (get $units $unit | float64) -}}
{{- end -}}

{{- define "qwen-job.container_security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop:
    - ALL
  {{- if .Values.kubernetes.ipc_lock }}
  add:
    - IPC_LOCK
  {{- end }}
{{- end -}}

{{- define "qwen-job.mounts" -}}
- name: config
  mountPath: /etc/qwen-job
  readOnly: true
- name: shm
  mountPath: /dev/shm
- name: tmp
  mountPath: /tmp
{{- range .Values.kubernetes.volumes }}
{{- $mount := dict "name" .name "mountPath" .mount_path }}
{{- if .sub_path }}{{- $_ := set $mount "subPath" .sub_path }}{{- end }}
{{- if .read_only }}{{- $_ := set $mount "readOnly" true }}{{- end }}
{{ list $mount | toYaml }}
{{- end }}
{{- end -}}

{{- define "qwen-job.volumes" -}}
- name: config
  configMap:
    name: {{ include "qwen-job.name" . | toJson }}
- name: shm
  emptyDir:
    medium: Memory
    sizeLimit: {{ .Values.kubernetes.shm_size | toString | toJson }}
- name: tmp
  emptyDir: {}
{{- $name := include "qwen-job.name" . -}}
{{- range .Values.kubernetes.volumes }}
{{- $volume := dict "name" .name }}
{{- if .nfs }}
{{- $parts := splitn ":" 2 .nfs }}
{{- $_ := set $volume "nfs" (dict "server" $parts._0 "path" $parts._1) }}
{{- else if .host_path }}
{{- $_ := set $volume "hostPath" (dict "path" .host_path) }}
{{- else }}
{{- $_ := set $volume "persistentVolumeClaim" (dict "claimName" (.pvc | default (printf "%s-%s" $name .name))) }}
{{- end }}
{{ list $volume | toYaml }}
{{- end }}
{{- end -}}

{{- define "qwen-job.pod_security" -}}
runAsNonRoot: true
{{- with .Values.kubernetes.run_as_user }}
runAsUser: {{ int . }}
{{- end }}
{{- with .Values.kubernetes.fs_group }}
fsGroup: {{ int . }}
fsGroupChangePolicy: OnRootMismatch
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* The pod's spec, the same for every kind of job, with pod_container and pod merged into it. */}}
{{- define "qwen-job.pod" -}}
{{- $pod := include "qwen-job.pod_planned" . | fromYaml -}}
{{- if hasKey $pod "Error" -}}
{{- fail (printf "the pod is not valid YAML: %s" $pod.Error) -}}
{{- end -}}
{{- $wanted := (first $pod.containers).name -}}
{{- $field := printf "kubernetes.%s" (eq $wanted "prepare" | ternary "prepare_pod" "pod") -}}
{{- include "qwen-job.merge" (list (first $pod.containers) .Values.kubernetes.pod_container "kubernetes.pod_container") -}}
{{- include "qwen-job.merge" (list $pod .Values.kubernetes.pod $field) -}}
{{- include "qwen-job.guard_overlay_container" (list . "kubernetes.pod_container" .Values.kubernetes.pod_container $wanted) -}}
{{- include "qwen-job.guard_overlay_pod" (list . $field .Values.kubernetes.pod $wanted) -}}
{{- include "qwen-job.guard_pod" (list $pod $wanted $field) -}}
{{- toYaml $pod -}}
{{- end -}}

{{- define "qwen-job.pod_planned" -}}
{{- $k := .Values.kubernetes -}}
{{- $name := include "qwen-job.name" . -}}
{{- $gang := include "qwen-job.gang" . -}}
automountServiceAccountToken: {{ and (eq $k.kind "prepare") (not $k.suspend) }}
enableServiceLinks: false
terminationGracePeriodSeconds: {{ int .Values.grace_seconds }}
securityContext:
  {{- include "qwen-job.pod_security" . | nindent 2 }}
{{- if $k.host_network }}
hostNetwork: true
dnsPolicy: ClusterFirstWithHostNet
{{- end }}
{{- if eq $k.kind "prepare" }}
{{- else if eq $gang "volcano" }}
schedulerName: volcano
{{- else if eq $gang "coscheduling" }}
schedulerName: scheduler-plugins-scheduler
{{- end }}
{{- with $k.priority_class }}
priorityClassName: {{ . | toJson }}
{{- end }}
{{- with $k.service_account }}
serviceAccountName: {{ . | toJson }}
{{- end }}
{{- with $k.image_pull_secrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | toJson }}
  {{- end }}
{{- end }}
{{- with $k.node_selector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if or $k.gpu_resource $k.tolerations }}
tolerations:
  {{- if $k.gpu_resource }}
  {{- range list $k.gpu_resource (printf "%s/gpu" (splitList "/" $k.gpu_resource | first)) | uniq }}
  - key: {{ . | toJson }}
    operator: Exists
    effect: NoSchedule
  {{- end }}
  {{- end }}
  {{- with $k.tolerations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
{{- $near := and $k.topology (ne $gang "kueue") (ne $k.kind "prepare") }}
{{- if or $k.gpu_products $near }}
affinity:
  {{- with $k.gpu_products }}
  nodeAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      nodeSelectorTerms:
        - matchExpressions:
            - key: nvidia.com/gpu.product
              operator: In
              values:
                {{- toYaml . | nindent 16 }}
  {{- end }}
  {{- if $near }}
  podAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      - topologyKey: {{ $k.topology | toJson }}
        labelSelector:
          matchLabels:
            app.kubernetes.io/instance: {{ $name | toJson }}
  {{- end }}
{{- end }}
{{- with $k.spread }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: {{ . | toJson }}
    whenUnsatisfiable: DoNotSchedule
    labelSelector:
      matchLabels:
        app.kubernetes.io/instance: {{ $name | toJson }}
{{- end }}
containers:
  - name: {{ get (dict "pytorchjob" "pytorch" "prepare" "prepare") $k.kind | default "node" }}
    image: {{ .Values.image | toJson }}
    command:
      {{- include "qwen-job.command" . | nindent 6 }}
    env:
      {{- include "qwen-job.env" . | nindent 6 }}
    {{- if $k.env_from_secrets }}
    envFrom:
      {{- include "qwen-job.env_from" . | nindent 6 }}
    {{- end }}
    {{- if eq $k.kind "pytorchjob" }}
    ports:
      - name: pytorchjob-port
        containerPort: {{ int $k.master_port }}
    {{- end }}
    terminationMessagePolicy: FallbackToLogsOnError
    resources:
      {{- include "qwen-job.resources" . | nindent 6 }}
    securityContext:
      {{- include "qwen-job.container_security" . | nindent 6 }}
    volumeMounts:
      {{- include "qwen-job.mounts" . | nindent 6 }}
volumes:
  {{- include "qwen-job.volumes" . | nindent 2 }}
{{- end -}}
