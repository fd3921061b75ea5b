#!/usr/bin/env bash
# Makes what the Makefile's commands need:  setup.sh run | test | trackers | system
#   run     .venv with the launcher and the training stack
#   test    .venv with the test tools as well
#   trackers  .venv-trackers with the training stack, wandb, swanlab and mlflow
#   system  the distribution's packages for the Slurm lab and the image (only as root on Debian or Ubuntu)
# Doing it again costs nothing: .venv carries a stamp of what it was made from.
# PYTHON names the interpreter to use; TORCH_INDEX_URL names the package index that torch alone comes from.
set -euo pipefail
cd "$(dirname "$0")/.."

TORCH=$(grep '^torch==' constraints.txt)
SYSTEM_PACKAGES=(slurm-wlm libslurm-dev libc6-dev munge iproute2 openssh-server openssh-client openssl pdsh)

venv=.venv
unpinned= # names that constraints.txt does not hold for
more=()

say() { echo "== $*" >&2; }

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python3.14 python; do
        # A version manager's shim exists for interpreters that it does not run: only running one tells.
        if [ -n "$candidate" ] && "$candidate" -c '
import ensurepip, sys, venv
sys.exit(not (3, 11) <= sys.version_info)' >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    say "No Python >= 3.11 with venv was found (the training stack needs it): install one, or name it: make PYTHON=/path/to/python3"
    [ -z "${PYTHON:-}" ] || say "PYTHON=$PYTHON is not one."
    return 1
}

install_torch() {
    # Without an index of its own for torch, pip's configuration decides. On Linux that is often the CUDA build.
    if [ -n "${TORCH_INDEX_URL:-}" ]; then
        pip install --index-url "$TORCH_INDEX_URL" "$TORCH"
    else
        if pip install --dry-run "$TORCH" 2>/dev/null | grep -q 'nvidia-'; then
            say "Installing the CUDA build of torch (several GB). For the CPU build set TORCH_INDEX_URL to PyTorch's CPU index."
        fi
        pip install "$TORCH"
    fi
}

pip() { "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }

has_torch() {
    "$venv/bin/python" -c '
import importlib.metadata, sys
sys.exit(importlib.metadata.version("torch").partition("+")[0] != sys.argv[1])' "${TORCH#torch==}" 2>/dev/null
}

environment() { # extras
    local python hash made
    python=$(find_python)
    hash=$({ "$python" --version; cat pyproject.toml constraints.txt scripts/setup.sh "${more[@]:1}"; } | cksum | tr ' ' -)
    for made in "$1" train,test; do # the test tools do no harm to a run
        if [ -e "$venv/stamp-$made-$hash" ]; then return; fi
    done
    say "Installing into $venv ($("$python" --version), extras: $1): some minutes, once ..."
    "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$venv"
    # torch first: what depends on it would otherwise fetch the newest build, with CUDA.
    has_torch || install_torch
    grep -vE "^(${unpinned:-none})==" constraints.txt >"$venv/constraints.txt"
    pip install --constraint "$venv/constraints.txt" --editable ".[$1]" "${more[@]}"
    rm -f "$venv"/stamp-*
    touch "$venv/stamp-$1-$hash"
}

trackers() {
    # swanlab and mlflow want older releases of these.
    unpinned='protobuf|importlib_metadata'
    venv=.venv-trackers more=(--requirement tests/trackers/requirements.txt)
    environment train
}

# The container tools, by command: other packages bring them too (docker's runc), and would be removed for Debian's.
CONTAINER_TOOLS=(buildah:buildah podman:podman runc:runc debootstrap:debootstrap mksquashfs:squashfs-tools ch-run:charliecloud-runtime gcc:gcc g++:g++)

missing_packages() {
    local package tool
    for tool in "${CONTAINER_TOOLS[@]}"; do
        command -v "${tool%%:*}" >/dev/null || echo "${tool#*:}"
    done
    for package in "${SYSTEM_PACKAGES[@]}"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || echo "$package"
    done
}

system() {
    if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
        say "Not Debian or Ubuntu: the tests that need Slurm or containers are skipped."
        return
    fi
    local missing
    mapfile -t missing < <(missing_packages)
    [ "${#missing[@]}" -gt 0 ] || return 0
    if [ "$(id -u)" != 0 ]; then
        say "Not root, so ${missing[*]} cannot be installed: the tests that need Slurm or containers are skipped."
        return
    fi
    say "Installing ${missing[*]} from the distribution ..."
    # The lab starts daemons of its own: the machine's must not start only because the tests ran.
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
        printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
        chmod 755 /usr/sbin/policy-rc.d
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update || say "apt-get update failed in part: going on with the lists there are."
    apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null
}

case ${1:-} in
run) environment train ;;
test) environment train,test ;;
trackers) trackers ;;
system) system ;;
*)
    sed -n '2,8s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
