# The training image. SET names a folder of qwen_job/facts/image/: cpu, ampere (A100, H100), cuda12 or v100.
# Four stages: base (Debian packages), build (compilers, wheels, DeepSpeed's ops), package (our wheel), and the image:
# base plus what build and package made, our own code last, so that a change of it rebuilds only two small layers.
# A set whose set.yaml has "compiler: true" (ampere) gets gcc and Python's headers, for kernels that are compiled as a job
# runs (torch_compile, Liger); WITH_COMPILER=1 or 0 decides otherwise.
# PACKAGES adds Python packages that no lock names ("wandb"); what computes stays at the lock's versions.
# Debian's own image of one day; what is older in it than in the set's debian.lock is brought to the lock's versions.
ARG BASE_IMAGE=docker.io/library/debian:bookworm-20260824-slim@sha256:88200866dfff7ea7f5cbcb6ec7c8a701889efe6fe859fe64d6990e4b07ea4171

FROM ${BASE_IMAGE} AS base
ARG SET=ampere
ARG DEBIAN_SNAPSHOT=
ARG DEBIAN_PINS=exact
COPY scripts/image/apt-install qwen_job/facts/image/${SET}/debian.lock /opt/image/
RUN /opt/image/apt-install /opt/image/debian.lock && dpkg-query -W -f '${Package}\n' >/opt/image/debian.txt

FROM base AS build
ARG SET
ARG DEBIAN_SNAPSHOT
ARG DEBIAN_PINS
ARG MAX_JOBS=
ARG PIP_INDEX_URL=
ARG PIP_EXTRA_INDEX_URL=
COPY qwen_job/facts/image/${SET}/debian-build.lock /opt/build/
RUN /opt/image/apt-install /opt/build/debian-build.lock
COPY qwen_job/facts/image/${SET}/build.lock /opt/build/
RUN python3 -m venv /opt/tools \
    && /opt/tools/bin/python -m pip install --no-cache-dir --require-hashes -r /opt/build/build.lock
COPY qwen_job/facts/image/${SET}/requirements.lock /opt/build/
RUN python3 -m venv --without-pip /opt/venv \
    && /opt/tools/bin/python -m pip --python /opt/venv/bin/python install \
        --no-cache-dir --no-compile --no-deps --require-hashes -r /opt/build/requirements.lock
COPY qwen_job/facts/image/${SET}/deepspeed.lock qwen_job/facts/image/${SET}/set.yaml scripts/image/build_ops.py scripts/image/portable-cxx /opt/build/
RUN /opt/venv/bin/python /opt/build/build_ops.py /opt/build
ARG PACKAGES=
RUN if [ -n "$PACKAGES" ]; then \
        pip="/opt/tools/bin/python -m pip --python /opt/venv/bin/python" \
        && $pip list --format freeze >/opt/build/installed.txt \
        && grep -E '^(torch|triton|nvidia|deepspeed|transformers|accelerate|numpy|safetensors|tokenizers|gigatoken)' \
            /opt/build/installed.txt >/opt/build/kept.txt \
        && $pip install --no-cache-dir --no-compile --constraint /opt/build/kept.txt $PACKAGES; \
    fi
COPY scripts/image/slim.py scripts/image/describe.py scripts/image/has-compiler \
    qwen_job/facts/image/${SET}/debian-compiler.lock /opt/build/
COPY scripts/image/site/ /opt/venv/lib/python3.11/site-packages/
ARG WITH_COMPILER=
RUN compiler=$(/opt/build/has-compiler /opt/build/set.yaml "$WITH_COMPILER") \
    && if [ "$compiler" = 1 ]; then sed -n '/^#/d; s/=.*//p' /opt/build/debian-compiler.lock >>/opt/image/debian.txt; fi \
    && /opt/venv/bin/python /opt/build/slim.py /opt/venv "$compiler" \
    && /opt/venv/bin/python -m compileall -q -j 0 -x /py31[2-9]_ --invalidation-mode unchecked-hash /opt/venv/lib \
    && /opt/venv/bin/python /opt/build/describe.py /opt/build /opt/image

FROM build AS package
COPY pyproject.toml README.md LICENSE AGENTS.md CHANGELOG.md /src/
COPY charts /src/charts
COPY docs /src/docs
COPY configs /src/configs
COPY scripts/package /src/scripts/package
COPY qwen_job /src/qwen_job
WORKDIR /src
RUN /opt/tools/bin/python -m hatchling build -t wheel -d /opt/wheel \
    && /opt/tools/bin/python -m pip --python /opt/venv/bin/python install \
        --no-cache-dir --no-compile --no-deps --no-index --prefix /opt/package /opt/wheel/*.whl \
    && sed -i '1s|^#!.*|#!/opt/venv/bin/python|' /opt/package/bin/qwen-job \
    && /opt/venv/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/package/lib

FROM base
# One variable moves every cache: qwen_job_image.pth derives those of Hugging Face, ModelScope, Triton and the rest.
# USER and LOGNAME stand for a uid that /etc/passwd does not know (OpenShift style).
ENV PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    LANG=C.UTF-8 \
    HOME=/tmp \
    USER=qwen-job \
    LOGNAME=qwen-job \
    QWEN_JOB_CACHE=/tmp/qwen-job \
    QWEN_JOB_IMAGE=/opt/image/image.json \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
ARG SET
ARG DEBIAN_SNAPSHOT
ARG DEBIAN_PINS
ARG WITH_COMPILER=
COPY scripts/image/has-compiler qwen_job/facts/image/${SET}/debian-compiler.lock qwen_job/facts/image/${SET}/set.yaml /opt/image/
RUN if [ "$(/opt/image/has-compiler /opt/image/set.yaml "$WITH_COMPILER")" = 1 ]; then \
        /opt/image/apt-install /opt/image/debian-compiler.lock \
        && rm -rf /usr/lib/python3.11/config-3.11-*; \
    fi
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/image /opt/image
COPY scripts/image/qwen-job-sshd /usr/local/bin/
COPY --from=package /opt/package /opt/venv
ARG VERSION=0.0.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="qwen-job" \
      org.opencontainers.image.description="Multi-node full fine-tuning of Qwen-Chat models (set: ${SET})" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
WORKDIR /tmp
USER 10001:0
ENTRYPOINT ["tini", "--", "qwen-job"]
CMD ["--help"]
