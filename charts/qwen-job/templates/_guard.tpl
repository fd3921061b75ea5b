{{/* Everything that is refused before an object is made; each message says what, where, and what to do. */}}
{{- define "qwen-job.guard" -}}
{{- $k := .Values.kubernetes -}}
{{- $gang := include "qwen-job.gang" . -}}
{{- if and (eq $k.kind "jobset") (has $gang (list "volcano" "coscheduling")) -}}
{{- fail (printf "kubernetes.queue: %s does not gang-schedule a JobSet; take kueue:QUEUE" $gang) -}}
{{- end -}}
{{- if and $k.master (ne $k.kind "pytorchjob") -}}
{{- fail (printf "kubernetes.master: a %s has no Master; remove the line" $k.kind) -}}
{{- end -}}
{{- $names := list -}}
{{- range $k.volumes -}}
{{- if has .name (concat $names (list "config" "shm" "tmp")) -}}
{{- fail (printf "kubernetes.volumes: the name %q is taken already; choose another" .name) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- $kinds := 0 -}}
{{- range list (or .pvc .size) .nfs .host_path -}}{{- if . -}}{{- $kinds = add $kinds 1 -}}{{- end -}}{{- end -}}
{{- if ne (int $kinds) 1 -}}
{{- fail (printf "kubernetes.volumes: %q needs exactly one of pvc, nfs and host_path (or a size, to create a claim)" .name) -}}
{{- end -}}
{{- end -}}
{{- include "qwen-job.paths" . -}}
{{- include "qwen-job.cluster" . -}}
{{- end -}}

{{/* Every path that the job touches lies on a volume. */}}
{{- define "qwen-job.paths" -}}
{{- $train := include "qwen-job.train" . | fromYaml -}}
{{- $paths := dict "output" $train.output_dir "train.model.cache_dir" $train.model.cache_dir "train.data.cache_dir" $train.data.cache_dir -}}
{{- if eq $train.model.source "local" -}}{{- $_ := set $paths "train.model.name" $train.model.name -}}{{- end -}}
{{- range $index, $file := $train.data.train -}}{{- $_ := set $paths (printf "train.data.train[%d].path" $index) $file.path -}}{{- end -}}
{{- range $index, $file := $train.data.eval -}}{{- $_ := set $paths (printf "train.data.eval[%d].path" $index) $file.path -}}{{- end -}}
{{- $mounts := list -}}
{{- range .Values.kubernetes.volumes -}}{{- $mounts = append $mounts (clean .mount_path) -}}{{- end -}}
{{- range $field, $path := $paths -}}
{{- if $path -}}
{{- $held := false -}}
{{- range $mounts -}}{{- if hasPrefix (printf "%s/" .) (printf "%s/" (clean $path)) -}}{{- $held = true -}}{{- end -}}{{- end -}}
{{- if not $held -}}
{{- fail (printf "%s: %q lies below no volume's mount_path (%s), so no pod would find it: add it to kubernetes.volumes" $field $path (join ", " $mounts)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What only a real cluster can tell; an offline 'helm template' knows no kinds at all and is let through. */}}
{{- define "qwen-job.cluster" -}}
{{- $kinds := dict "pytorchjob" "kubeflow.org/v1/PyTorchJob" "trainjob" "trainer.kubeflow.org/v1alpha1/TrainJob" "jobset" "jobset.x-k8s.io/v1alpha2/JobSet" -}}
{{- $owners := dict "pytorchjob" "the Kubeflow training-operator" "trainjob" "Kubeflow Trainer v2" "jobset" "JobSet" -}}
{{- $kind := .Values.kubernetes.kind -}}
{{- $wanted := get $kinds $kind -}}
{{- if and .Values.check_cluster (.Capabilities.APIVersions.Has "v1/Pod") (not (.Capabilities.APIVersions.Has $wanted)) -}}
{{- fail (printf "kubernetes.kind: this cluster has no %s: install %s, choose another of pytorchjob, trainjob and jobset, or set check_cluster=false" $wanted (get $owners $kind)) -}}
{{- end -}}
{{- if and .Release.IsUpgrade (not .Values.allow_change) -}}
{{- $parts := splitList "/" $wanted -}}
{{- $name := include "qwen-job.name" . -}}
{{- $old := lookup (printf "%s/%s" (index $parts 0) (index $parts 1)) (index $parts 2) (.Values.kubernetes.namespace | default .Release.Namespace) $name -}}
{{- if $old -}}
{{- if ne (dig "metadata" "annotations" "qwen-job/checksum" "" $old) (include "qwen-job.checksum" .) -}}
{{- fail (printf "the %s %s exists and would compute something else after this upgrade: its pods would be killed, or would mix both. Uninstall the release first, install the change under another name, or set allow_change=true" (index $parts 2) $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
