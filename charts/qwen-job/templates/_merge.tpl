{{/* Merge a map into another in place, as kubectl's strategic merge does: (map, the user's map, its field). Lists are
     merged by their items' keys, lists without keys are appended to. qwen_job/render/kubernetes/merge.py does the same. */}}
{{- define "qwen-job.merge" -}}
{{- $base := index . 0 -}}
{{- $place := index . 2 -}}
{{- range $key, $value := index . 1 -}}
{{- $where := printf "%s.%s" $place $key -}}
{{- if hasPrefix "$" $key -}}
{{- fail (printf "%s: patch directives of kubectl have no effect here; remove it" $where) -}}
{{- end -}}
{{- $old := get $base $key -}}
{{- $known := and (hasKey $base $key) (not (kindIs "invalid" $old)) -}}
{{- $free := regexMatch "\\.(annotations|labels|limits|matchLabels|nodeSelector|requests)$" $place -}}
{{- $map := or (and (not $free) (regexMatch "^(affinity|annotations|capabilities|configMap|elasticPolicy|emptyDir|labels|limits|metadata|network|nodeAffinity|nodeSelector|podAffinity|pytorchReplicaSpecs|requests|resources|runPolicy|runtimeRef|schedulingPolicy|seccompProfile|secret|securityContext|selector|spec|template|trainer|valueFrom)$" $key)) (hasSuffix ".pytorchReplicaSpecs" $place) -}}
{{- $slice := and (not $free) (regexMatch "^(containers|initContainers|ephemeralContainers|env|volumes|volumeMounts|volumeDevices|ports|imagePullSecrets|hostAliases|topologySpreadConstraints|resourceClaims|claims|schedulingGates|replicatedJobs|envFrom|matchExpressions|matchFields|nodeSelectorTerms|tolerations|add|args|command|drop)$" $key) -}}
{{- range $kind, $what := dict "map" "a mapping" "slice" "a list" -}}
{{- $wanted := or (and $known (kindIs $kind $old)) (eq $kind "map" | ternary $map $slice) -}}
{{- if and $wanted (not (kindIs $kind $value)) -}}
{{- fail (printf "%s: must be %s" $where $what) -}}
{{- else if and $known (kindIs $kind $value) (not (kindIs $kind $old)) -}}
{{- fail (printf "%s: cannot be %s" $where $what) -}}
{{- end -}}
{{- end -}}
{{- if kindIs "map" $value -}}
{{- if not $known -}}{{- $_ := set $base $key dict -}}{{- end -}}
{{- include "qwen-job.merge" (list (get $base $key) $value $where) -}}
{{- else if kindIs "slice" $value -}}
{{- include "qwen-job.merge_list" (list $base $key ($known | ternary $old list) $value $where) -}}
{{- else -}}
{{- $_ := set $base $key $value -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The same for a list: (map, the list's key in it, the list so far, the user's list, its field). */}}
{{- define "qwen-job.merge_list" -}}
{{- $base := index . 0 -}}
{{- $key := index . 1 -}}
{{- $old := index . 2 -}}
{{- $new := index . 3 -}}
{{- $place := index . 4 -}}
{{- $keys := dict "containers" "name" "initContainers" "name" "ephemeralContainers" "name" "env" "name" "volumes" "name"
  "volumeMounts" "mountPath" "volumeDevices" "devicePath" "ports" "containerPort" "imagePullSecrets" "name"
  "hostAliases" "ip" "topologySpreadConstraints" "topologyKey" "resourceClaims" "name" "claims" "name"
  "schedulingGates" "name" "replicatedJobs" "name" -}}
{{- $items := list -}}
{{- if hasKey $keys $key -}}
{{- $first := get $keys $key -}}
{{- $layers := dict -}}
{{- $order := list -}}
{{- range $number, $item := $new -}}
{{- $where := printf "%s[%d]" $place $number -}}
{{- $name := "" -}}
{{- if kindIs "map" $item -}}{{- $name = include "qwen-job.item_key" (list $key $first $item) -}}{{- end -}}
{{- if not $name -}}
{{- fail (printf "%s: has no %s, which identifies the items of %s; add one" $where $first $key) -}}
{{- end -}}
{{- if has $name $order -}}
{{- fail (printf "%s: appears twice (%s: %s); remove one" $where $first $name) -}}
{{- end -}}
{{- $order = append $order $name -}}
{{- $_ := set $layers $name (list $item $where) -}}
{{- end -}}
{{- range $item := $old -}}
{{- $name := include "qwen-job.item_key" (list $key $first $item) -}}
{{- $kept := $item -}}
{{- if has $name $order -}}
{{- $layer := index (get $layers $name) 0 -}}
{{- $source := keys (omit $layer "name") -}}
{{/* A volume or a variable has one source, so another source replaces it. */}}
{{- if and (has $key (list "volumes" "env")) $source -}}
{{- $same := false -}}
{{- range $source -}}{{- if hasKey $item . -}}{{- $same = true -}}{{- end -}}{{- end -}}
{{- if not $same -}}{{- $kept = dict "name" $item.name -}}{{- end -}}
{{- end -}}
{{- include "qwen-job.merge" (list $kept $layer (index (get $layers $name) 1)) -}}
{{- $order = without $order $name -}}
{{- end -}}
{{- $items = append $items $kept -}}
{{- end -}}
{{- range $name := $order -}}
{{- $made := dict -}}
{{- include "qwen-job.merge" (list $made (index (get $layers $name) 0) (index (get $layers $name) 1)) -}}
{{- $items = append $items $made -}}
{{- end -}}
{{- else -}}
{{- $made := list -}}
{{- range $number, $item := $new -}}
{{- if kindIs "map" $item -}}
{{- $copy := dict -}}
{{- include "qwen-job.merge" (list $copy $item (printf "%s[%d]" $place $number)) -}}
{{- $made = append $made $copy -}}
{{- else if has $key (list "envFrom" "matchExpressions" "matchFields" "nodeSelectorTerms" "tolerations") -}}
{{- fail (printf "%s[%d]: must be a mapping" $place $number) -}}
{{- else -}}
{{- $made = append $made $item -}}
{{- end -}}
{{- end -}}
{{- if and (eq $key "nodeSelectorTerms") $old -}}
{{/* Terms are alternatives, so each of the user's must also require ours. */}}
{{- range $mine := $old -}}
{{- range $yours := $made -}}
{{- if kindIs "map" $yours -}}
{{- $both := merge (deepCopy $yours) (deepCopy $mine) -}}
{{- range $field := list "matchExpressions" "matchFields" -}}
{{- with concat (get $mine $field | default list) (get $yours $field | default list) -}}{{- $_ := set $both $field . -}}{{- end -}}
{{- end -}}
{{- $items = append $items $both -}}
{{- else -}}
{{- $items = append $items $yours -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- else -}}
{{- $items = $old -}}
{{- range $item := $made -}}{{- if not (has $item $old) -}}{{- $items = append $items $item -}}{{- end -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- $_ := set $base $key $items -}}
{{- end -}}

{{/* The key that identifies an item of a list, or nothing if it has none: (list's name, first key, item). */}}
{{- define "qwen-job.item_key" -}}
{{- $value := get (index . 2) (index . 1) -}}
{{- if and $value (not (kindIs "map" $value)) (not (kindIs "slice" $value)) -}}
{{- $value = toString $value -}}
{{- if eq (index . 0) "volumeMounts" -}}{{- $value = clean $value -}}{{- end -}}
{{- $value -}}
{{- if eq (index . 0) "ports" }} {{ get (index . 2) "protocol" | default "TCP" }}{{- end -}}
{{- if eq (index . 0) "topologySpreadConstraints" }} {{ get (index . 2) "whenUnsatisfiable" | default "DoNotSchedule" }}{{- end -}}
{{- end -}}
{{- end -}}
