#!/usr/bin/env bash
# Set up what the Makefile's commands need:  setup.sh check | run | test | trackers | vllm | site | system
#   check     .venv-check with the launcher and its test tools: no torch, no numpy
#   run       .venv with the launcher and the training stack
#   test      .venv with the test tools as well
#   trackers  .venv-trackers with the training stack, wandb, swanlab and mlflow
#   vllm      .venv-vllm with vLLM's CPU build
#   site      .venv-site with the generator of the documentation site
#   system    the distribution's packages for the Slurm lab, the image, a browser and a registry (only as root on Debian or Ubuntu)
# Running it again costs nothing: each environment carries a stamp of what it was made from.
# PYTHON: the interpreter to use, or its version (3.14), which uv downloads if it is installed.
# TORCH_INDEX_URL: the package index for torch alone.
# Bash 3.2 runs this script on a Mac, except for `system`.
set -euo pipefail
cd "$(dirname "$0")/.."

TORCH=$(grep '^torch==' constraints.txt)
SYSTEM_PACKAGES=(slurm-wlm libslurm-dev libc6-dev munge iproute2 openssh-server openssh-client openssl pdsh docker-registry)

venv=.venv
oldest=11     # DeepSpeed and the pinned numpy need Python 3.11
unpinned=none # names, joined by |, that constraints.txt does not hold for
more=()       # more words for pip install

say() { echo "== $*" >&2; }

usable() {
    # A version manager's shim exists for interpreters that it does not run, so run it.
    "$1" -c '
import ensurepip, sys, venv
sys.exit(sys.version_info < (3, int(sys.argv[1])))' "$oldest" >/dev/null 2>&1
}

from_uv() { # a version: print the path of that interpreter, which uv downloads if need be
    command -v uv >/dev/null || return 1
    uv python find "$1" 2>/dev/null || { uv python install "$1" >&2 && uv python find "$1"; }
}

find_python() {
    local candidate candidates=(python3 python3.13 python3.12 python3.11 python3.14 python)
    case ${PYTHON:-} in
    '') ;;
    [0-9]*) candidates=("python$PYTHON" "$(from_uv "$PYTHON" || true)") ;;
    *) candidates=("$PYTHON") ;;
    esac
    for candidate in "${candidates[@]}"; do
        if usable "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    if [ -n "${PYTHON:-}" ]; then
        say "PYTHON=$PYTHON is not a Python >= 3.$oldest with venv. For a version such as 3.14, install uv: it downloads the interpreter."
    else
        say "No Python >= 3.$oldest with venv was found: install one, or name it: make PYTHON=/path/to/python3"
    fi
    return 1
}

pip() { "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }

has_torch() {
    "$venv/bin/python" -c '
import importlib.metadata, sys
sys.exit(importlib.metadata.version("torch").partition("+")[0] != sys.argv[1])' "${TORCH#torch==}" 2>/dev/null
}

install_torch() {
    # Without an index of its own for torch, pip's configuration decides. On Linux that is often the CUDA build.
    if [ -n "${TORCH_INDEX_URL:-}" ]; then
        pip install --index-url "$TORCH_INDEX_URL" "$TORCH"
    else
        if pip install --dry-run "$TORCH" 2>/dev/null | grep -q 'nvidia-'; then
            say "Installing the CUDA build of torch (several GB). For the CPU build, set TORCH_INDEX_URL to PyTorch's CPU index."
        fi
        pip install "$TORCH"
    fi
}

environment() { # extras
    local python hash made
    python=$(find_python)
    hash=$({ "$python" --version; cat pyproject.toml constraints.txt scripts/setup.sh ${more[@]+"${more[1]}"}; } | cksum | tr ' ' -)
    for made in "$1" train,test; do # the test tools do no harm to a run
        if [ -e "$venv/stamp-$made-$hash" ]; then return; fi
    done
    say "Installing into $venv ($("$python" --version), extras: $1): once ..."
    "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$venv"
    # torch first: what depends on it would otherwise fetch the newest build, with CUDA.
    case $1 in *train*) has_torch || install_torch ;; esac
    grep -vE "^($unpinned)==" constraints.txt >"$venv/constraints.txt"
    pip install --constraint "$venv/constraints.txt" --editable ".[$1]" ${more[@]+"${more[@]}"}
    rm -f "$venv"/stamp-*
    touch "$venv/stamp-$1-$hash"
}

check() { # another version has an environment of its own: .venv-check-3.14
    oldest=10
    case ${PYTHON:-} in
    '') venv=.venv-check ;;
    *) venv=.venv-check-$("$(find_python)" -c 'import sys; print("%d.%d" % sys.version_info[:2])') ;;
    esac
    environment check
    echo "$venv"
}

trackers() {
    # swanlab and mlflow want older releases of these.
    unpinned='protobuf|importlib_metadata'
    venv=.venv-trackers more=(--requirement tests/trackers/requirements.txt)
    environment train
}

vllm() {
    local wanted=tests/serving/requirements.txt
    [ ! -e .venv-vllm/installed ] || [ "$wanted" -nt .venv-vllm/installed ] || return 0
    say "Installing vLLM into .venv-vllm: 3 GB, some minutes, once ..."
    "$(find_python)" -m venv --clear .venv-vllm
    venv=.venv-vllm
    pip install --no-deps ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} --requirement "$wanted"
    touch .venv-vllm/installed
}

site() {
    local wanted=scripts/site/requirements.txt
    [ ! -e .venv-site/installed ] || [ "$wanted" -nt .venv-site/installed ] || return 0
    say "Installing mkdocs-material into .venv-site: once ..."
    oldest=10
    "$(find_python)" -m venv --clear .venv-site
    venv=.venv-site
    pip install --requirement "$wanted"
    touch .venv-site/installed
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
    for tool in chromium-headless-shell chromium chromium-browser google-chrome; do
        ! command -v "$tool" >/dev/null || return 0
    done
    echo chromium-headless-shell
}

# Ubuntu has no package of a browser, and one unknown name would fail them all.
known_packages() {
    local package
    for package in "$@"; do
        if apt-cache show "$package" >/dev/null 2>&1; then
            echo "$package"
        else
            say "The distribution has no $package: the tests that need it are skipped."
        fi
    done
}

system() {
    if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
        say "Not Debian or Ubuntu: the tests that need Slurm, containers or a browser are skipped."
        return
    fi
    local missing
    mapfile -t missing < <(missing_packages)
    [ "${#missing[@]}" -gt 0 ] || return 0
    if [ "$(id -u)" != 0 ]; then
        say "Not root, so ${missing[*]} cannot be installed: the tests that need them are skipped."
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
    apt-get -qq update || say "apt-get update failed in part: using the package lists there are."
    mapfile -t missing < <(known_packages "${missing[@]}")
    [ "${#missing[@]}" -gt 0 ] || return 0
    apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null
}

case ${1:-} in
check | trackers | vllm | site | system) "$1" ;;
run) environment train ;;
test) environment train,test ;;
*)
    sed -n '2,13s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
