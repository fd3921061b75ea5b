# Sourced by the image scripts: which tool builds (IMAGE_ENGINE=docker or buildah), and this machine's pip configuration.
# shellcheck shell=bash

image_engine() {
    if [ -n "${IMAGE_ENGINE:-}" ]; then
        echo "$IMAGE_ENGINE"
    elif command -v docker >/dev/null && timeout 10 docker info >/dev/null 2>&1; then
        echo docker
    elif command -v buildah >/dev/null; then
        echo buildah
    else
        echo "image: neither a Docker engine nor buildah is here: install one (Debian: apt-get install buildah podman runc)" >&2
        return 5
    fi
}

image_sets() {
    local file
    for file in "$ROOT"/qwen_job/facts/image/*/set.yaml; do basename "$(dirname "$file")"; done | paste -sd ' '
}

image_check_set() {
    if [ ! -f "$ROOT/qwen_job/facts/image/$1/set.yaml" ]; then
        echo "image: unknown SET '$1': one of $(image_sets)" >&2
        return 2
    fi
}

# What pip of this machine was told (a CA bundle, a folder of wheels, another index), as one pip.conf for the build.
pip_setting() {  # one setting's value, or nothing
    : "${PIP_SETTINGS:=$("${PYTHON:-python3}" -m pip config list 2>/dev/null)}"
    awk -F "[.=]" -v key="$1" '{k = $2 != "" ? $2 : $3} k == key {sub(/^[^=]*=/, ""); gsub(/^'"'|'"'$/, ""); print; exit}' <<<"$PIP_SETTINGS"
}

# The folders of wheels that a set may use. One with CUDA must not see a CPU build of torch: pip takes the local version
# for the newer one, and then its hash is wrong.
wheel_folders() {  # SET
    local folder
    for folder in $(pip_setting find-links); do
        grep -q '^cuda: null' "$ROOT/qwen_job/facts/image/$1/set.yaml" || ! compgen -G "$folder/torch-*+cpu*" >/dev/null || continue
        echo "$folder"
    done | paste -sd ' '
}

write_pip_conf() {  # SET
    local key value
    echo '[global]'
    for key in cert index-url extra-index-url find-links timeout; do
        value=$(pip_setting "$key")
        [ "$key" != find-links ] || value=$(wheel_folders "$1")
        [ "$key" != timeout ] || value=${value:-$(pip_setting default-timeout)}
        # A folder of this machine serves the build only where it is mounted: find-links and the CA bundle are.
        [ "$key" != extra-index-url ] || value=$(tr ' ' '\n' <<<"$value" | { grep -v '^file:' || true; } | paste -sd ' ')
        # Not at its own path: a package (ca-certificates) writes there during the build.
        [ "$key" != cert ] || value=${value:+/etc/pip-ca.pem}
        [ -z "$value" ] || echo "$key = $value"
    done
}

pip_mounts() {  # SET; prints HOST:CONTAINER lines
    local path
    path=$(pip_setting cert)
    [ ! -f "$path" ] || echo "$path:/etc/pip-ca.pem"
    for path in $(wheel_folders "$1"); do
        case $path in /*) [ ! -d "$path" ] || echo "$path:$path" ;; esac
    done
}

# A folder with the kernels of some runs, for WARM: each a run's folder or its kernels.zip. Prints the folder.
image_kernels() {  # "RUN ..."
    local folder run file number=0
    folder=$(mktemp -d)
    for run in $1; do
        file=$run
        [ ! -d "$run" ] || file=$run/kernels.zip
        if [ ! -f "$file" ]; then
            echo "image: WARM: $file does not exist: name the folder of a run that compiled its layers" >&2
            rm -rf "$folder"
            return 2
        fi
        number=$((number + 1))
        install -m 0644 "$file" "$folder/$number.zip"
    done
    chmod 0755 "$folder"
    echo "$folder"
}
