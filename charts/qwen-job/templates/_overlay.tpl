{{/* Reject user fields that would replace what the job needs, as qwen_job/render/kubernetes/overlays.py does. */}}

{{/* Fields merged into a pod: (root, the field, the user's map, the container that runs the job). */}}
{{- define "qwen-job.guard_overlay_pod" -}}
{{- $root := index . 0 -}}
{{- $field := index . 1 -}}
{{- $pod := index . 2 -}}
{{- $main := index . 3 -}}
{{- range $number, $volume := include "qwen-job.maps" (list $pod "volumes") | fromJsonArray -}}
{{- $where := printf "%s.volumes[%d]" $field $number -}}
{{- if eq (toString $volume.name) "config" -}}
{{- fail (printf "%s: the job reads its configuration from the volume 'config'; rename yours" $where) -}}
{{- else if eq (toString $volume.name) "shm" -}}
{{- fail (printf "%s: the volume 'shm' is /dev/shm; use kubernetes.shm_size, or rename yours" $where) -}}
{{- end -}}
{{- range $root.Values.kubernetes.volumes -}}
{{- $source := empty .host_path | ternary "persistentVolumeClaim" "hostPath" -}}
{{- if .nfs -}}{{- $source = "nfs" -}}{{- end -}}
{{- if and (eq .name (toString $volume.name)) (gt (len $volume) 1) (not (hasKey $volume $source)) -}}
{{- fail (printf "%s: kubernetes.volumes has a volume %q of another kind; change it there, or rename yours" $where .name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $number, $container := include "qwen-job.maps" (list $pod "containers") | fromJsonArray -}}
{{- if eq (toString $container.name) $main -}}
{{- include "qwen-job.guard_overlay_container" (list $root (printf "%s.containers[%d]" $field $number) $container $main) -}}
{{- end -}}
{{- end -}}
{{- $grace := get $pod "terminationGracePeriodSeconds" -}}
{{- if and (kindIs "float64" $grace) (lt (int $grace) (int $root.Values.grace_seconds)) -}}
{{- fail (printf "%s.terminationGracePeriodSeconds: %v s is less than the %d s that a pod needs to save; change grace_seconds" $field $grace (int $root.Values.grace_seconds)) -}}
{{- end -}}
{{- if hasKey $pod "activeDeadlineSeconds" -}}
{{- fail (printf "%s.activeDeadlineSeconds: the training would not save before it; use kubernetes.active_deadline" $field) -}}
{{- end -}}
{{- $gang := include "qwen-job.gang" $root -}}
{{- if and (ne $main "prepare") (has $gang (list "volcano" "coscheduling")) (hasKey $pod "schedulerName") -}}
{{- fail (printf "%s.schedulerName: kubernetes.queue: %s needs its own scheduler; remove one of the two" $field $gang) -}}
{{- end -}}
{{- end -}}

{{/* The items of a list, as JSON, with an empty map in place of any item that is not a map: (map, key). */}}
{{- define "qwen-job.maps" -}}
{{- $found := list -}}
{{- $items := get (index . 0) (index . 1) -}}
{{- range kindIs "slice" $items | ternary $items list -}}
{{- $found = append $found (kindIs "map" . | ternary . dict) -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}

{{- define "qwen-job.guard_overlay_container" -}}
{{- $root := index . 0 -}}
{{- $field := index . 1 -}}
{{- $container := index . 2 -}}
{{- $main := index . 3 -}}
{{- $k := $root.Values.kubernetes -}}
{{- range list "command" "args" -}}
{{- if hasKey $container . -}}
{{- fail (printf "%s.%s: the job's own command runs here; use an init container for what must run before it" $field .) -}}
{{- end -}}
{{- end -}}
{{- if ne (get $container "name" | default $main | toString) $main -}}
{{- fail (printf "%s.name: the container that runs the job is called %q; add others in pod.containers" $field $main) -}}
{{- end -}}
{{- range $number, $variable := include "qwen-job.maps" (list $container "env") | fromJsonArray -}}
{{- if regexMatch "^(QWEN_JOB_NODE_RANK|JOB_COMPLETION_INDEX|MASTER_(ADDR|PORT)|(LOCAL_|NODE_|GROUP_)?RANK|(LOCAL_)?WORLD_SIZE|PET_.*)$" (toString $variable.name) -}}
{{- fail (printf "%s.env[%d]: %s gives a pod its place in the job; remove it" $field $number $variable.name) -}}
{{- end -}}
{{- if kindIs "string" $variable.value -}}
{{- include "qwen-job.guard_secret" (list (printf "%s.env[%d].value" $field $number) (toString $variable.name) $variable.value) -}}
{{- end -}}
{{- end -}}
{{- range $number, $mount := include "qwen-job.maps" (list $container "volumeMounts") | fromJsonArray -}}
{{- $where := printf "%s.volumeMounts[%d]" $field $number -}}
{{- $place := get $mount "mountPath" | toString | clean -}}
{{- if or (eq $place "/") (regexMatch "^(/etc/qwen-job|/dev/shm)/" (printf "%s/" $place)) -}}
{{- fail (printf "%s: mountPath: %q is used by the job; choose another" $where $place) -}}
{{- end -}}
{{- range $k.volumes -}}
{{- if eq (clean .mount_path) $place -}}
{{- if ne (get $mount "name" | default .name | toString) .name -}}
{{- fail (printf "%s: mountPath: kubernetes.volumes mounts %q at %q; change it there" $where .name $place) -}}
{{- else if $mount.readOnly -}}
{{- fail (printf "%s: readOnly: kubernetes.volumes mounts %q; set read_only there" $where $place) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if eq $main "pytorch" -}}
{{- range $number, $port := include "qwen-job.maps" (list $container "ports") | fromJsonArray -}}
{{- $named := eq (toString $port.name) "pytorchjob-port" -}}
{{- $own := eq (int $port.containerPort) (int $k.master_port) -}}
{{- if and (or $named $own) (not (and $own (or $named (not (hasKey $port "name"))))) -}}
{{- fail (printf "%s.ports[%d]: pytorchjob-port is %d, the rendezvous port; change kubernetes.master_port" $field $number (int $k.master_port)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and $k.gpu_resource (ne $main "prepare") -}}
{{- range $group := list "requests" "limits" -}}
{{- $amounts := dig "resources" $group dict $container -}}
{{- if and (kindIs "map" $amounts) (hasKey $amounts $k.gpu_resource) (ne (get $amounts $k.gpu_resource | toString) (int $root.Values.cluster.gpus_per_node | toString)) -}}
{{- fail (printf "%s.resources.%s.%s: the job has a process for each of %d GPUs; change cluster.gpus_per_node" $field $group $k.gpu_resource (int $root.Values.cluster.gpus_per_node)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Reject a number other than the planned one: (place, the user's, the planned one, the field to change). */}}
{{- define "qwen-job.guard_number" -}}
{{- $value := index . 1 -}}
{{- if and (not (kindIs "invalid" $value)) (ne (toString $value) (toString (index . 2))) -}}
{{- fail (printf "%s: %v is not the planned %v, which follows from the job; change %s instead" (index . 0) $value (index . 2) (index . 3)) -}}
{{- end -}}
{{- end -}}

{{- define "qwen-job.guard_overlay_run" -}}
{{- $run := index . 2 -}}
{{- if hasKey $run "activeDeadlineSeconds" -}}
{{- fail (printf "%s.activeDeadlineSeconds: the training would not save before it; use kubernetes.active_deadline" (index . 1)) -}}
{{- end -}}
{{- if and (index . 0).Values.kubernetes.prepare (hasKey $run "suspend") (not $run.suspend) -}}
{{- fail (printf "%s.suspend: kubernetes.prepare starts the job itself; remove one of the two" (index . 1)) -}}
{{- end -}}
{{- end -}}

{{- define "qwen-job.guard_overlay_pytorchjob" -}}
{{- $root := index . 0 -}}
{{- $spec := index . 1 -}}
{{- $k := $root.Values.kubernetes -}}
{{- $nodes := int $root.Values.cluster.nodes -}}
{{- if kindIs "string" $spec.nprocPerNode -}}
{{- include "qwen-job.guard_number" (list "kubernetes.job.nprocPerNode" $spec.nprocPerNode (int $root.Values.cluster.gpus_per_node) "cluster.gpus_per_node") -}}
{{- end -}}
{{- range list "minReplicas" "maxReplicas" -}}
{{- include "qwen-job.guard_number" (list (printf "kubernetes.job.elasticPolicy.%s" .) (dig "elasticPolicy" . nil $spec) $nodes "cluster.nodes") -}}
{{- end -}}
{{- if and $k.master (hasKey $spec "elasticPolicy") -}}
{{- fail "kubernetes.job.elasticPolicy: needs a job of workers only; remove it, or kubernetes.master" -}}
{{- end -}}
{{- include "qwen-job.guard_overlay_run" (list $root "kubernetes.job.runPolicy" (dig "runPolicy" dict $spec)) -}}
{{- $planned := dict "Master" ($k.master | ternary 1 0) "Worker" (sub $nodes ($k.master | ternary 1 0) | int) -}}
{{- range $role, $replica := dig "pytorchReplicaSpecs" dict $spec -}}
{{- $field := printf "kubernetes.job.pytorchReplicaSpecs.%s" $role -}}
{{- if hasKey $planned $role -}}
{{- if not (get $planned $role) -}}
{{- fail (printf "%s: the job has no %s; change kubernetes.master or cluster.nodes" $field $role) -}}
{{- end -}}
{{- if gt (dig "replicas" 0 $replica | int) 0 -}}
{{- include "qwen-job.guard_number" (list (printf "%s.replicas" $field) $replica.replicas (get $planned $role) "cluster.nodes") -}}
{{- end -}}
{{- end -}}
{{- include "qwen-job.guard_overlay_pod" (list $root (printf "%s.template.spec" $field) (dig "template" "spec" dict $replica) "pytorch") -}}
{{- end -}}
{{- end -}}

{{- define "qwen-job.guard_overlay_trainjob" -}}
{{- $root := index . 0 -}}
{{- $spec := index . 1 -}}
{{- include "qwen-job.guard_overlay_run" (list $root "kubernetes.job" $spec) -}}
{{- if hasKey $spec "runtimeRef" -}}
{{- fail "kubernetes.job.runtimeRef: the job comes with its own TrainingRuntime, which defines its pods; remove it" -}}
{{- end -}}
{{- $trainer := dig "trainer" dict $spec -}}
{{- $instead := dict "image" "set image instead" "numProcPerNode" "follows from the job; change cluster.gpus_per_node instead"
  "resourcesPerNode" "replaces all requests of the pods, including GPUs; use kubernetes.cpu, memory or resources" -}}
{{- range $word, $text := $instead -}}
{{- if hasKey $trainer $word -}}{{- fail (printf "kubernetes.job.trainer.%s: %s" $word $text) -}}{{- end -}}
{{- end -}}
{{- if gt (dig "numNodes" 0 $trainer | int) 0 -}}
{{- include "qwen-job.guard_number" (list "kubernetes.job.trainer.numNodes" $trainer.numNodes (int $root.Values.cluster.nodes) "cluster.nodes") -}}
{{- end -}}
{{- include "qwen-job.guard_overlay_container" (list $root "kubernetes.job.trainer" (pick $trainer "command" "args" "env") "node") -}}
{{- end -}}

{{- define "qwen-job.guard_overlay_jobset" -}}
{{- $root := index . 0 -}}
{{- $spec := index . 1 -}}
{{- $nodes := int $root.Values.cluster.nodes -}}
{{- include "qwen-job.guard_overlay_run" (list $root "kubernetes.job" $spec) -}}
{{- $network := dig "network" dict $spec -}}
{{- range list "enableDNSHostnames" "publishNotReadyAddresses" -}}
{{- if and (hasKey $network .) (not (get $network .)) -}}
{{- fail (printf "kubernetes.job.network.%s: the pods need it to find each other; remove it" .) -}}
{{- end -}}
{{- end -}}
{{- if hasKey $network "subdomain" -}}
{{- fail "kubernetes.job.network.subdomain: the pods use the job's name to find each other; remove it" -}}
{{- end -}}
{{- range $number, $jobs := include "qwen-job.maps" (list $spec "replicatedJobs") | fromJsonArray -}}
{{- if eq (toString $jobs.name) "node" -}}
{{- $field := printf "kubernetes.job.replicatedJobs[%d]" $number -}}
{{- include "qwen-job.guard_number" (list (printf "%s.replicas" $field) $jobs.replicas 1 "cluster.nodes") -}}
{{- $job := dig "template" "spec" dict $jobs -}}
{{- range list "parallelism" "completions" -}}
{{- include "qwen-job.guard_number" (list (printf "%s.template.spec.%s" $field .) (get $job . | default nil) $nodes "cluster.nodes") -}}
{{- end -}}
{{- include "qwen-job.guard_overlay_pod" (list $root (printf "%s.template.spec.template.spec" $field) (dig "template" "spec" dict $job) "node") -}}
{{- end -}}
{{- end -}}
{{- end -}}
