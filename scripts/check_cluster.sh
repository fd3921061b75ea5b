#!/usr/bin/env bash
# Asks a real cluster whether it would take four of the example jobs, as every kind of job that it has the CRD of:
#   scripts/check_cluster.sh [NAMESPACE]
# A namespace of its own (default qwen-job-check), which admits pods of the level "restricted" only, is made and removed
# again; nothing is started in it. A cluster for it: kind create cluster, then the training-operator, Trainer or JobSet.
# Needs kubectl, qwen-job and, for the chart, helm. Exit code 1 when the server refuses something or warns.
set -euo pipefail
cd "$(dirname "$0")/.."

namespace=${1:-qwen-job-check}
if kubectl get namespace "$namespace" > /dev/null 2>&1; then
    echo "namespace $namespace is there already: name another" >&2
    exit 2
fi
work=$(mktemp -d)
trap 'rm -rf "$work"; kubectl delete namespace "$namespace" --wait=false > /dev/null' EXIT
kubectl create namespace "$namespace" > /dev/null
kubectl label namespace "$namespace" pod-security.kubernetes.io/enforce=restricted \
    pod-security.kubernetes.io/warn=restricted > /dev/null

kinds=()
known=$(kubectl api-resources --output name)
for pair in pytorchjob:pytorchjobs.kubeflow.org trainjob:trainjobs.trainer.kubeflow.org jobset:jobsets.jobset.x-k8s.io; do
    if grep -qx "${pair#*:}" <<< "$known"; then kinds+=("${pair%%:*}"); fi
done
if [ "${#kinds[@]}" -eq 0 ]; then
    echo "the cluster has the CRD of no kind of job: install the training-operator, Trainer or JobSet" >&2
    exit 2
fi

failed=0
# ask WHAT WORD...: run the words; a refusal or a warning counts against the cluster.
ask() {
    local what=$1
    shift
    if "$@" > "$work/answer" 2>&1 && ! grep -q '^Warning:' "$work/answer"; then
        echo "ok      $what"
    else
        echo "REFUSED $what"
        sed 's/^/        /' "$work/answer"
        failed=1
    fi
}

apply=(kubectl apply --server-side --field-manager=qwen-job --namespace "$namespace")
for job in configs/jobs/{demo,qwen-1_8b-chat-a100,qwen-1_8b-chat-v100,qwen-7b-chat-a100-2x8}.yaml; do
    for kind in "${kinds[@]}"; do
        for prepare in false true; do
            what="$(basename "$job" .yaml) as $kind, prepare: $prepare"
            qwen-job render "$job" --target kubernetes --set "kubernetes.kind=$kind" \
                --set "kubernetes.prepare=$prepare" > "$work/manifest.yaml" 2> "$work/notes"
            # Trainer refuses a TrainJob without its runtime, which starts nothing by itself.
            if [ "$kind" = trainjob ]; then
                awk 'BEGIN { RS = "---\n"; ORS = "" } /kind: TrainingRuntime\n/ { print "---\n" $0 }' \
                    "$work/manifest.yaml" > "$work/runtime.yaml"
                ask "$what: its runtime" "${apply[@]}" -f "$work/runtime.yaml"
            fi
            ask "$what" "${apply[@]}" --dry-run=server -f "$work/manifest.yaml"
            if [ "$kind" = trainjob ]; then
                kubectl delete --namespace "$namespace" -f "$work/runtime.yaml" > /dev/null
            fi
        done
    done
done
if command -v helm > /dev/null; then
    for kind in "${kinds[@]}"; do
        ask "the chart as $kind" helm install check charts/qwen-job --namespace "$namespace" --dry-run=server \
            --set "kubernetes.kind=$kind"
    done
fi
exit "$failed"
