{{/* The job's name: that of the release unless values set name. It must leave room for -worker-9999. */}}
{{- define "qwen-job.name" -}}
{{- $name := .Values.name | default .Release.Name -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) -}}
{{- fail (printf "name: %q is not a Kubernetes name (a-z, 0-9 and -, a letter first; pods are called NAME-worker-N): choose another release name, or set name" $name) -}}
{{- end -}}
{{- $most := has .Values.kubernetes.kind (list "pytorchjob" "prepare") | ternary 51 45 -}}
{{- if gt (len $name) $most -}}
{{- $pods := eq .Values.kubernetes.kind "pytorchjob" | ternary "NAME-worker-N" "NAME-node-0-N-XXXXX" -}}
{{- fail (printf "name: %q has %d characters, over %d (pods are called %s): choose a shorter release name, or set name" $name (len $name) $most $pods) -}}
{{- end -}}
{{- $name -}}
{{- end -}}

{{/* Override the first map with the second, in place: maps are merged key by key, other values replaced. */}}
{{- define "qwen-job.overlay" -}}
{{- $base := index . 0 -}}
{{- range $key, $value := index . 1 -}}
{{- if and (kindIs "map" $value) (kindIs "map" (get $base $key)) -}}
{{- include "qwen-job.overlay" (list (get $base $key) $value) -}}
{{- else -}}
{{- $_ := set $base $key $value -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The batch as JSON. Another number of GPUs keeps the planned global batch, unless train.training overrides it. */}}
{{- define "qwen-job.batch" -}}
{{- $planned := fromYaml (index .Values.config.files "train.yaml") -}}
{{- $user := get (.Values.train | default dict) "training" | default dict -}}
{{- $world := mul (int .Values.cluster.nodes) (int .Values.cluster.gpus_per_node) | int -}}
{{- $micro := get $user "per_device_train_batch_size" | default $planned.training.per_device_train_batch_size | int -}}
{{- $accumulation := get $user "gradient_accumulation_steps" | default $planned.training.gradient_accumulation_steps | int -}}
{{- $chosen := or (hasKey $user "per_device_train_batch_size") (hasKey $user "gradient_accumulation_steps") -}}
{{- if and (ne $world (int $planned.world_size)) (not $chosen) -}}
{{- $rows := mul $micro $accumulation (int $planned.world_size) | int -}}
{{- if mod $rows $world -}}
{{- fail (printf "cluster: the planned global batch of %d rows does not divide by %d GPUs: set train.training.per_device_train_batch_size and train.training.gradient_accumulation_steps" $rows $world) -}}
{{- end -}}
{{- $each := div $rows $world | int -}}
{{- $fit := 1 -}}
{{- range untilStep 1 (int (add 1 $micro)) 1 -}}{{- if not (mod $each .) -}}{{- $fit = . -}}{{- end -}}{{- end -}}
{{- $micro = $fit -}}
{{- $accumulation = div $each $fit | int -}}
{{- end -}}
{{- $same := and (eq $world (int $planned.world_size)) (eq $micro (int $planned.training.per_device_train_batch_size)) (eq $accumulation (int $planned.training.gradient_accumulation_steps)) -}}
{{- dict "world" $world "micro" $micro "accumulation" $accumulation "same" $same | toJson -}}
{{- end -}}

{{/* train.yaml: the planned text, with the release's name and the user's train overriding it. */}}
{{- define "qwen-job.train" -}}
{{- $text := index .Values.config.files "train.yaml" -}}
{{- $planned := fromYaml $text -}}
{{- $over := deepCopy (.Values.train | default dict) -}}
{{- $name := include "qwen-job.name" . -}}
{{- if and (ne $name $planned.name) (not (hasKey $over "name")) -}}
{{- $_ := set $over "name" $name -}}
{{- end -}}
{{- $output := include "qwen-job.output" . -}}
{{- if ne $output $planned.output_dir -}}
{{- $_ := set $over "output_dir" $output -}}
{{- end -}}
{{- $batch := include "qwen-job.batch" . | fromJson -}}
{{- if not $batch.same -}}
{{- $_ := set $planned "world_size" $batch.world -}}
{{- $_ := set $planned.training "per_device_train_batch_size" $batch.micro -}}
{{- $_ := set $planned.training "gradient_accumulation_steps" $batch.accumulation -}}
{{- end -}}
{{- if or $over (not $batch.same) -}}
{{- include "qwen-job.overlay" (list $planned $over) -}}
{{- if not (toYaml $planned) -}}
{{- fail "train: a value contains a control character that Helm cannot represent (U+007F-U+009F); remove it" -}}
{{- end -}}
{{/* JSON is valid YAML, but YAML 1.1 reads 1e-08 as a string, so it becomes 1.0e-08. No string here spans lines. */}}
{{- $text = regexReplaceAll "(?m)^( *\"[^\"]+\": -?[0-9]+)(e[-+][0-9]+,?)$" (toPrettyJson $planned) "${1}.0${2}" | printf "%s\n" -}}
{{- end -}}
{{- $text -}}
{{- end -}}

{{- define "qwen-job.output" -}}
{{- $planned := fromYaml (index .Values.config.files "train.yaml") -}}
{{- $name := include "qwen-job.name" . -}}
{{- $default := $planned.output_dir -}}
{{- if ne $name $planned.name -}}
{{- $default = printf "%s/%s" (dir $planned.output_dir) $name -}}
{{- end -}}
{{- get (.Values.train | default dict) "output_dir" | default .Values.output | default $default -}}
{{- end -}}

{{- define "qwen-job.deepspeed" -}}
{{- $text := index .Values.config.files "deepspeed.json" -}}
{{- $batch := include "qwen-job.batch" . | fromJson -}}
{{- if or .Values.deepspeed (not $batch.same) -}}
{{- $planned := fromJson $text -}}
{{- $_ := set $planned "train_batch_size" (mul (int $batch.world) (int $batch.micro) (int $batch.accumulation)) -}}
{{- $_ := set $planned "train_micro_batch_size_per_gpu" (int $batch.micro) -}}
{{- $_ := set $planned "gradient_accumulation_steps" (int $batch.accumulation) -}}
{{- include "qwen-job.overlay" (list $planned .Values.deepspeed) -}}
{{- $text = printf "%s\n" (toPrettyJson $planned) -}}
{{- end -}}
{{- $text -}}
{{- end -}}

{{- define "qwen-job.checksum" -}}
{{- printf "%s\n%d\n%d\n%s\n%s" .Values.image (int .Values.cluster.nodes) (int .Values.cluster.gpus_per_node) (include "qwen-job.train" .) (include "qwen-job.deepspeed" .) | sha256sum -}}
{{- end -}}

{{- define "qwen-job.gang" -}}
{{- splitList ":" (.Values.kubernetes.queue | default "") | first -}}
{{- end -}}

{{- define "qwen-job.queue" -}}
{{- $parts := splitList ":" (.Values.kubernetes.queue | default "") -}}
{{- if gt (len $parts) 1 -}}{{- index $parts 1 -}}{{- end -}}
{{- end -}}

{{- define "qwen-job.pod_labels" -}}
{{- $labels := dict "app.kubernetes.io/name" "qwen-job" "app.kubernetes.io/instance" (include "qwen-job.name" .) "app.kubernetes.io/version" (replace "+" "_" .Chart.AppVersion) -}}
{{- include "qwen-job.overlay" (list $labels .Values.kubernetes.labels) -}}
{{- toYaml $labels -}}
{{- end -}}

{{- define "qwen-job.labels" -}}
{{- $labels := include "qwen-job.pod_labels" . | fromYaml -}}
{{/* Kueue starts what it admits, so a job that waits for its preparation gets the label only afterwards. */}}
{{- if and (eq (include "qwen-job.gang" .) "kueue") (not .Values.kubernetes.prepare) -}}
{{- $_ := set $labels "kueue.x-k8s.io/queue-name" (include "qwen-job.queue" .) -}}
{{- end -}}
{{- toYaml $labels -}}
{{- end -}}

{{- define "qwen-job.annotations" -}}
{{- $all := deepCopy .Values.kubernetes.annotations -}}
{{- $_ := set $all "qwen-job/checksum" (include "qwen-job.checksum" .) -}}
{{- $_ := set $all "qwen-job/output" (include "qwen-job.output" .) -}}
{{- with (.Values.config.needs | default dict).memory -}}{{- $_ := set $all "qwen-job/needs-memory" (toString .) -}}{{- end -}}
{{- toYaml $all -}}
{{- end -}}

{{- define "qwen-job.pod_annotations" -}}
{{- $all := deepCopy .Values.kubernetes.annotations -}}
{{- $_ := set $all "qwen-job/checksum" (include "qwen-job.checksum" .) -}}
{{- if and .Values.kubernetes.topology (eq (include "qwen-job.gang" .) "kueue") -}}
{{- $_ := set $all "kueue.x-k8s.io/podset-required-topology" .Values.kubernetes.topology -}}
{{- end -}}
{{- toYaml $all -}}
{{- end -}}

{{- define "qwen-job.metadata" -}}
name: {{ include "qwen-job.name" . | toJson }}
{{- with .Values.kubernetes.namespace }}
namespace: {{ . | toJson }}
{{- end }}
labels:
  {{- include "qwen-job.labels" . | nindent 2 }}
annotations:
  {{- include "qwen-job.annotations" . | nindent 2 }}
{{- end -}}

{{/* Whether the job is created without pods: if suspend is set, or until it is prepared. A started job stays started. */}}
{{- define "qwen-job.suspend" -}}
{{- $suspend := or .Values.kubernetes.suspend .Values.kubernetes.prepare -}}
{{- if and $suspend (not .Values.kubernetes.suspend) -}}
{{- range include "qwen-job.live" . | fromJsonArray -}}
{{- if not .suspended -}}{{- $suspend = false -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- $suspend -}}
{{- end -}}

{{/* Objects of a pod that starts a suspended job, unless the user does: (root, its metadata, the rules of its role). */}}
{{- define "qwen-job.account" -}}
{{- $metadata := index . 1 -}}
# The account of a pod that starts a suspended job; it is allowed nothing else.
apiVersion: v1
kind: ServiceAccount
metadata:
  {{- toYaml $metadata | nindent 2 }}
automountServiceAccountToken: false
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  {{- toYaml $metadata | nindent 2 }}
rules:
  {{- toYaml (index . 2) | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  {{- toYaml $metadata | nindent 2 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: {{ $metadata.name | toJson }}
subjects:
  - kind: ServiceAccount
    name: {{ $metadata.name | toJson }}
---
{{- end -}}

{{/* The rule of a role about one job: (API group, resource, name, verbs). */}}
{{- define "qwen-job.rule" -}}
{{- dict "apiGroups" (list (index . 0)) "resources" (list (index . 1)) "resourceNames" (list (index . 2)) "verbs" (index . 3) | toJson -}}
{{- end -}}

{{- define "qwen-job.group" -}}
{{- get (dict "pytorchjob" "kubeflow.org" "trainjob" "trainer.kubeflow.org" "jobset" "jobset.x-k8s.io") .Values.kubernetes.kind -}}
{{- end -}}

{{/* The values with which the training's pod has nothing to do with GPUs, other pods or their network, as JSON:
(root, account, cpu, memory, the user's pod fields). */}}
{{- define "qwen-job.side_values" -}}
{{- $root := index . 0 -}}
{{- $values := deepCopy $root.Values -}}
{{- $there := dict "kind" "prepare" "starts" $root.Values.kubernetes.kind "cpu" (index . 2) "memory" (index . 3) "resources" dict
  "host_network" false "ipc_lock" false "priority_class" nil "node_selector" dict "gpu_products" list "spread" nil
  "service_account" (index . 1) "pod_container" dict "pod" (index . 4) -}}
{{- range $field, $value := $there }}{{- $_ := set $values.kubernetes $field $value }}{{- end -}}
{{- toJson $values -}}
{{- end -}}

{{/* A Job beside the training: (root, its name, its component, annotations, its pod, fields of its spec, the container's name). */}}
{{- define "qwen-job.side_job" -}}
{{- $root := index . 0 -}}
{{- $k := $root.Values.kubernetes -}}
{{- $metadata := include "qwen-job.side_metadata" (list $root (index . 1)) | fromYaml -}}
{{- $labels := include "qwen-job.pod_labels" $root | fromYaml -}}
{{- $_ := set $labels "app.kubernetes.io/instance" $metadata.name -}}
{{- $_ := set $labels "app.kubernetes.io/component" (index . 2) -}}
{{- $annotations := deepCopy $k.annotations -}}
{{- $_ := set $annotations "qwen-job/checksum" (include "qwen-job.checksum" $root) -}}
{{- range $name, $value := index . 3 }}{{- $_ := set $annotations $name $value }}{{- end -}}
apiVersion: batch/v1
kind: Job
metadata:
  {{- toYaml $metadata | nindent 2 }}
spec:
  backoffLimit: 6
  {{- with index . 5 }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- if not (kindIs "invalid" $k.ttl_after_finished) }}
  ttlSecondsAfterFinished: {{ int $k.ttl_after_finished }}
  {{- end }}
  podFailurePolicy:
    rules:
      - action: Ignore
        onPodConditions:
          - type: DisruptionTarget
            status: "True"
      # The schema of releases before 1.30 requires this empty list.
      - action: FailJob
        onPodConditions: []
        onExitCodes:
          containerName: {{ index . 6 }}
          operator: In
          values:
            {{- untilStep 1 128 1 | toYaml | nindent 12 }}
  template:
    metadata:
      labels:
        {{- toYaml $labels | nindent 8 }}
      annotations:
        {{- toYaml $annotations | nindent 8 }}
    spec:
      {{- toYaml (index . 4) | nindent 6 }}
      restartPolicy: Never
{{- end -}}

{{- define "qwen-job.side_metadata" -}}
{{- $metadata := include "qwen-job.metadata" (first .) | fromYaml -}}
{{- $_ := set $metadata "name" (index . 1) -}}
{{- $_ := set $metadata "labels" (include "qwen-job.pod_labels" (first .) | fromYaml) -}}
{{- toYaml $metadata -}}
{{- end -}}
