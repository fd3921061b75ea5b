{{/* Reject bad values before any object is created; each message names the field, the problem and the fix. */}}
{{- define "qwen-job.guard" -}}
{{- $k := .Values.kubernetes -}}
{{- range $field, $value := $k -}}
{{- if regexMatch "[\\x{7f}-\\x{9f}\\x{fffe}\\x{ffff}]" (toJson $value) -}}
{{- fail (printf "kubernetes.%s: contains a control character that Helm cannot represent (U+007F-U+009F); remove it" $field) -}}
{{- end -}}
{{- end -}}
{{- $gang := include "qwen-job.gang" . -}}
{{- if and (eq $k.kind "jobset") (has $gang (list "volcano" "coscheduling")) -}}
{{- fail (printf "kubernetes.queue: %s does not gang-schedule a JobSet; use kueue:QUEUE" $gang) -}}
{{- end -}}
{{- if and $k.master (ne $k.kind "pytorchjob") -}}
{{- fail (printf "kubernetes.master: a %s has no Master; remove the line" $k.kind) -}}
{{- end -}}
{{- if and $k.egress (not $k.network_policy) -}}
{{- fail "kubernetes.egress: has no effect without network_policy: true; set that too" -}}
{{- end -}}
{{- range $field := list "pod" "prepare_pod" -}}
{{- if hasKey (get $k $field) "restartPolicy" -}}
{{- fail (printf "kubernetes.%s: restartPolicy: a %s sets it itself; remove the line" $field $k.kind) -}}
{{- end -}}
{{- end -}}
{{- range $name, $value := $k.labels -}}
{{- if regexMatch "^(app\\.kubernetes\\.io/(name|instance|version|component)$|kueue\\.x-k8s\\.io/queue-name$|training\\.kubeflow\\.org/|jobset\\.sigs\\.k8s\\.io/|batch\\.kubernetes\\.io/)" $name -}}
{{- fail (printf "kubernetes.labels: %s is set by qwen-job, Helm or the operator; choose another label" $name) -}}
{{- end -}}
{{- end -}}
{{- range $name, $value := $k.annotations -}}
{{- if regexMatch "^(qwen-job/|helm\\.sh/|meta\\.helm\\.sh/)" $name -}}
{{- fail (printf "kubernetes.annotations: %s is set by qwen-job, Helm or the operator; choose another" $name) -}}
{{- end -}}
{{- end -}}
{{- range $name, $value := .Values.env -}}
{{- include "qwen-job.guard_secret" (list (printf "env.%s" $name) $name (toString $value)) -}}
{{- end -}}
{{- include "qwen-job.guard_amounts" . -}}
{{- include "qwen-job.guard_volumes" . -}}
{{- include "qwen-job.paths" . -}}
{{- include "qwen-job.cluster" . -}}
{{- end -}}

{{/* Reject a secret in a variable that others can read: (field, name, value). */}}
{{- define "qwen-job.guard_secret" -}}
{{- $name := index . 1 -}}
{{- $value := index . 2 -}}
{{- /* The patterns of qwen_job/render/secret.py. */ -}}
{{- $words := regexReplaceAll `([a-z0-9])([A-Z])` $name "${1}_${2}" -}}
{{- $named := and (regexMatch `(?i)((^|[_.-])(token|pass|pwd|secrets?|cred(ential)?s?|key|(api|access|private|secret)_?keys?|pat|bearer|auth|authorization|jwt|cookie|dsn|webhook(_url)?)|passwd|passwords?|passphrase|sshpass|(hf|gh|hub|api|auth|access|bot)_?tokens?|(wandb|hf)key)([_.-](ro|rw|read|write|prod|production|staging|dev|test|main|old|new))?[_.-]?[0-9]*$` $words) (not (regexMatch `(?i)(^|[_.-])((bos|eos|pad|unk|sep|cls|mask|end|stop)_token|(public|pub|sort|primary|group|cache|json|label)_?key)$` $words)) -}}
{{- if or (regexMatch `//[^\s/?#@:]*:[^\s/?#@$][^\s/?#@]*@|-----BEGIN [A-Z ]*PRIVATE KEY-----|\b(AccountKey|SharedAccessKey)=[^;$]|[?&]sig=[^&$]|\bBearer [\w.~+/=-]{16}|\b(hf_[A-Za-z0-9]{30}|gh[pousr]_[A-Za-z0-9]{30}|github_pat_\w{30}|glpat-[\w-]{20}|sk-[\w-]{30}|xox[abprs]-[\w-]{20}|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.)` $value) (and $named (not (regexMatch `(?i)^\s*(|0|1|true|false|yes|no|on|off|none|null|(~|\.|\.\.)?(/[\w.-]+){2,}/?)\s*$` $value))) -}}
{{- fail (printf "%s: looks like a secret, and others can read env; use kubernetes.secret_env: {%s: SECRET/KEY}" (index . 0) $name) -}}
{{- end -}}
{{- end -}}

{{/* Amounts that the user sets below what the job needs, as in qwen_job/render/kubernetes/needs.py. */}}
{{- define "qwen-job.guard_amounts" -}}
{{- $k := .Values.kubernetes -}}
{{- if not .Values.enabled -}}
{{- fail "enabled: is for a parent chart's condition; leave the chart out instead" -}}
{{- end -}}
{{/* The plan's figures hold only for its own model and data. */}}
{{- $need := empty .Values.train | ternary (.Values.config.needs | default dict).memory nil | default "0" | toString -}}
{{- range include "qwen-job.written" (list . "memory") | trim | splitList " " | compact -}}
{{- if regexMatch "^[0-9]+(\\.[0-9]+)?(k|[MGTPE]|[KMGTPE]i)?$" . -}}
{{- if lt (include "qwen-job.bytes" . | float64) (include "qwen-job.bytes" $need | float64) -}}
{{- fail (printf "kubernetes.memory: %s is less than the %s of host memory that the plan estimates per node; use %s" . $need $need) -}}
{{- else if lt (include "qwen-job.bytes" . | float64) (include "qwen-job.bytes" $k.shm_size | float64) -}}
{{- fail (printf "kubernetes.memory: %s is less than kubernetes.shm_size (%v), which is part of it; use a smaller one" . $k.shm_size) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and (regexMatch "/(mig-.*|.*\\.shared)$" ($k.gpu_resource | default "")) (gt (int .Values.cluster.gpus_per_node) 1) -}}
{{- fail (printf "kubernetes.gpu_resource: a process sees only one %s, and the pod has %d; set cluster.gpus_per_node: 1" $k.gpu_resource (int .Values.cluster.gpus_per_node)) -}}
{{- end -}}
{{- if and (not (kindIs "invalid" $k.active_deadline)) (le (int $k.active_deadline) (int .Values.grace_seconds)) -}}
{{- fail (printf "kubernetes.active_deadline: %d s leaves no time to train: saving alone may take %d s (grace_seconds); use a longer one" (int $k.active_deadline) (int .Values.grace_seconds)) -}}
{{- end -}}
{{- end -}}

{{- define "qwen-job.guard_volumes" -}}
{{- $names := list "config" "shm" "tmp" -}}
{{- $mounts := list "/" "/tmp" -}}
{{- range .Values.kubernetes.volumes -}}
{{- if has .name $names -}}
{{- fail (printf "kubernetes.volumes: the name %q is already in use; choose another" .name) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- $mount := clean .mount_path -}}
{{- if or (has $mount $mounts) (regexMatch "^/(etc/qwen-job|dev|proc|sys|var/run/secrets)/" (printf "%s/" $mount)) -}}
{{- fail (printf "kubernetes.volumes: the mount_path %q is already in use; choose another" .mount_path) -}}
{{- end -}}
{{- $mounts = append $mounts $mount -}}
{{- $kinds := 0 -}}
{{- range list (or .pvc .size) .nfs .host_path -}}{{- if . -}}{{- $kinds = add $kinds 1 -}}{{- end -}}{{- end -}}
{{- if ne (int $kinds) 1 -}}
{{- fail (printf "kubernetes.volumes: %q needs exactly one of pvc, nfs and host_path (or a size, to create a claim)" .name) -}}
{{- end -}}
{{- range $field, $path := dict "host_path" .host_path "sub_path" .sub_path -}}
{{- if has ".." (splitList "/" ($path | default "")) -}}
{{- fail (printf "kubernetes.volumes: %s: must not contain '..'; write the path without it" $field) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Faults that a server accepts, in a pod with the user's fields merged in: (pod, container, field). */}}
{{- define "qwen-job.guard_pod" -}}
{{- $pod := index . 0 -}}
{{- $wanted := index . 1 -}}
{{- $field := index . 2 -}}
{{- $names := list -}}
{{- range $pod.containers -}}{{- $names = append $names .name -}}{{- end -}}
{{- if not (has $wanted $names) -}}
{{- fail (printf "%s: containers: there must be one named %q, which runs the job; use kubernetes.pod_container" $field $wanted) -}}
{{- end -}}
{{- range $word, $known := dict "dnsPolicy" (list "ClusterFirst" "ClusterFirstWithHostNet" "Default" "None") -}}
{{- $value := get $pod $word -}}
{{- if and $value (not (has $value $known)) -}}
{{- fail (printf "%s: %s: %q must be one of %s" $field $word (toString $value) (join ", " $known)) -}}
{{- end -}}
{{- end -}}
{{- $volumes := list -}}
{{- range $pod.volumes -}}{{- $volumes = append $volumes .name -}}{{- end -}}
{{- range concat ($pod.initContainers | default list) $pod.containers -}}
{{- range .env -}}
{{- if and (hasKey . "value") (not (kindIs "string" .value)) -}}
{{- fail (printf "%s: env: %s: must be text: write it in quotes" $field .name) -}}
{{- end -}}
{{- end -}}
{{- range .volumeMounts -}}
{{- if not (has .name $volumes) -}}
{{- fail (printf "%s: volumeMounts: no volume is named %q" $field .name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "qwen-job.guard_pytorchjob" -}}
{{- $clean := dig "runPolicy" "cleanPodPolicy" "Running" . -}}
{{- if not (has $clean (list "All" "Running" "None")) -}}
{{- fail (printf "kubernetes.job: runPolicy.cleanPodPolicy: %q must be one of All, Running, None" $clean) -}}
{{- end -}}
{{- if not (kindIs "string" .nprocPerNode) -}}
{{- fail "kubernetes.job: nprocPerNode: must be text: write it in quotes" -}}
{{- end -}}
{{- range $role, $replica := .pytorchReplicaSpecs -}}
{{- if not (has $role (list "Master" "Worker")) -}}
{{- fail (printf "kubernetes.job: pytorchReplicaSpecs: %q is neither Master nor Worker" $role) -}}
{{- end -}}
{{- if not (has $replica.restartPolicy (list "Always" "OnFailure" "Never" "ExitCode")) -}}
{{- fail (printf "kubernetes.job: pytorchReplicaSpecs.%s.restartPolicy: %q must be one of Always, OnFailure, Never, ExitCode" $role (toString $replica.restartPolicy)) -}}
{{- end -}}
{{- if lt (int $replica.replicas) 1 -}}
{{- fail (printf "kubernetes.job: pytorchReplicaSpecs.%s.replicas: %v is not a number of pods" $role $replica.replicas) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Every path that the job uses must be on a volume. */}}
{{- define "qwen-job.paths" -}}
{{- $train := include "qwen-job.train" . | fromYaml -}}
{{- $paths := dict "output" $train.output_dir "train.model.cache_dir" $train.model.cache_dir "train.data.cache_dir" $train.data.cache_dir -}}
{{- if eq $train.model.source "local" -}}{{- $_ := set $paths "train.model.name" $train.model.name -}}{{- end -}}
{{- range $index, $file := $train.data.train -}}{{- $_ := set $paths (printf "train.data.train[%d].path" $index) $file.path -}}{{- end -}}
{{- range $index, $file := $train.data.eval -}}{{- $_ := set $paths (printf "train.data.eval[%d].path" $index) $file.path -}}{{- end -}}
{{- $mounts := list -}}
{{- range .Values.kubernetes.volumes -}}{{- $mounts = append $mounts (clean .mount_path) -}}{{- end -}}
{{- $main := eq .Values.kubernetes.kind "pytorchjob" | ternary "pytorch" "node" -}}
{{- $containers := list .Values.kubernetes.pod_container -}}
{{- range include "qwen-job.maps" (list .Values.kubernetes.pod "containers") | fromJsonArray -}}
{{- if eq (toString .name) $main -}}{{- $containers = append $containers . -}}{{- end -}}
{{- end -}}
{{- range $containers -}}
{{- range include "qwen-job.maps" (list . "volumeMounts") | fromJsonArray -}}
{{- if .mountPath -}}{{- $mounts = append $mounts (clean (toString .mountPath)) -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- range $field, $path := $paths -}}
{{- if $path -}}
{{- $held := false -}}
{{- range $mounts -}}{{- if hasPrefix (printf "%s/" .) (printf "%s/" (clean $path)) -}}{{- $held = true -}}{{- end -}}{{- end -}}
{{- if not $held -}}
{{- fail (printf "%s: %q is not below any volume's mount_path (%s), so no pod would see it: add it to kubernetes.volumes" $field $path (join ", " $mounts)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Checks that need a real cluster; skipped for an offline 'helm template', which knows no kinds. */}}
{{- define "qwen-job.cluster" -}}
{{- $kinds := dict "pytorchjob" "kubeflow.org/v1/PyTorchJob" "trainjob" "trainer.kubeflow.org/v1alpha1/TrainJob" "jobset" "jobset.x-k8s.io/v1alpha2/JobSet" -}}
{{- $owners := dict "pytorchjob" "the Kubeflow training-operator" "trainjob" "Kubeflow Trainer v2" "jobset" "JobSet" -}}
{{- $kind := .Values.kubernetes.kind -}}
{{- $wanted := get $kinds $kind -}}
{{- if and .Values.check_cluster (.Capabilities.APIVersions.Has "v1/Pod") (not (.Capabilities.APIVersions.Has $wanted)) -}}
{{- fail (printf "kubernetes.kind: this cluster has no %s: install %s, choose another of pytorchjob, trainjob and jobset, or set check_cluster=false" $wanted (get $owners $kind)) -}}
{{- end -}}
{{- if and .Release.IsUpgrade (not .Values.allow_change) -}}
{{- include "qwen-job.upgrade" . -}}
{{- end -}}
{{- end -}}

{{/* Reject an upgrade that would end a running job or mix it with another. */}}
{{- define "qwen-job.upgrade" -}}
{{- $kind := .Values.kubernetes.kind -}}
{{- $name := include "qwen-job.name" . -}}
{{- $checksum := include "qwen-job.checksum" . -}}
{{- $way := "Uninstall the release first, install the change under another name, or set allow_change=true" -}}
{{- range include "qwen-job.live" . | fromJsonArray -}}
{{- if or (ne (lower .kind) $kind) (ne .name $name) -}}
{{- if not .finished -}}
{{- fail (printf "the %s %s runs, and this upgrade would delete it, because the job would become the %s %s. %s" .kind .name $kind $name $way) -}}
{{- end -}}
{{- else if ne .checksum $checksum -}}
{{- fail (printf "the %s %s exists and would compute something else after this upgrade: its pods would be killed, or would mix both. %s" .kind .name $way) -}}
{{- else if and $.Values.kubernetes.suspend (not .finished) (not .suspended) -}}
{{- fail (printf "the %s %s runs, and kubernetes.suspend would end its pods. Set allow_change=true to do so; the run can later resume from its newest checkpoint" .kind .name) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* This release's jobs on the server, as JSON; none if Helm runs without a server. */}}
{{- define "qwen-job.live" -}}
{{- $found := list -}}
{{- $root := . -}}
{{- $namespace := .Values.kubernetes.namespace | default .Release.Namespace -}}
{{- if .Release.IsUpgrade -}}
{{- range list (list "kubeflow.org/v1" "PyTorchJob") (list "trainer.kubeflow.org/v1alpha1" "TrainJob") (list "jobset.x-k8s.io/v1alpha2" "JobSet") -}}
{{- if $root.Capabilities.APIVersions.Has (join "/" .) -}}
{{- $kind := index . 1 -}}
{{- range (lookup (index . 0) $kind $namespace "").items | default list -}}
{{- $annotations := .metadata.annotations | default dict -}}
{{- if eq (get $annotations "meta.helm.sh/release-name") $root.Release.Name -}}
{{- $finished := false -}}
{{- range dig "status" "conditions" list . -}}
{{- if and (eq .status "True") (has .type (list "Succeeded" "Failed" "Complete" "Completed")) -}}{{- $finished = true -}}{{- end -}}
{{- end -}}
{{- $suspended := dig "spec" "runPolicy" "suspend" (dig "spec" "suspend" false .) . -}}
{{- $found = append $found (dict "kind" $kind "name" .metadata.name "checksum" (get $annotations "qwen-job/checksum") "finished" $finished "suspended" $suspended) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}

{{/* Reject what a ClusterTrainingRuntime would not use, as in qwen_job/render/kubernetes/cluster_runtime.py. */}}
{{- define "qwen-job.guard_runtime" -}}
{{- $k := .Values.kubernetes -}}
{{- if ne $k.kind "trainjob" -}}
{{- fail (printf "kubernetes.kind: a ClusterTrainingRuntime is for TrainJobs, not for a %s; set trainjob" $k.kind) -}}
{{- end -}}
{{- range $field := list "namespace" "prepare" "suspend" "network_policy" "active_deadline" "job" -}}
{{- if get $k $field -}}
{{- fail (printf "kubernetes.%s: belongs to one job, and a ClusterTrainingRuntime serves many; remove it" $field) -}}
{{- end -}}
{{- end -}}
{{- range $k.volumes -}}
{{- if .size -}}
{{- fail (printf "kubernetes.volumes: %q: a ClusterTrainingRuntime creates no claim; name an existing one with pvc" .name) -}}
{{- end -}}
{{- end -}}
{{- range $field := list "train" "deepspeed" -}}
{{- if get $.Values $field -}}
{{- fail (printf "%s: has no effect with cluster_runtime, whose pods plan again; render the values from another job.yaml" $field) -}}
{{- end -}}
{{- end -}}
{{- $planned := fromYaml (index .Values.config.files "job.yaml") -}}
{{- if and .Values.output (ne .Values.output (toString $planned.output)) -}}
{{- fail "output: has no effect with cluster_runtime; a TrainJob's is QWEN_JOB_OUTPUT, or its name beside the planned one" -}}
{{- end -}}
{{- if ne (int .Values.cluster.gpus_per_node) (int (dig "cluster" "gpus_per_node" 1 $planned)) -}}
{{- fail "cluster.gpus_per_node: has no effect with cluster_runtime, whose pods plan again; render the values from another job.yaml" -}}
{{- end -}}
{{- end -}}
