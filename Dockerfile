# syntax=docker/dockerfile:1
# MegaPonder on CUDA GPUs, with apex and Transformer Engine built from pinned releases.
#
#   docker build --tag megaponder .
#   docker run --gpus all --shm-size 16g --volume "$PWD/runs:/home/megaponder/runs" megaponder \
#       megaponder train --config recipe.yaml
#
# The same image serves SLURM (enroot, apptainer) and Ray (KubeRay): see docs/cluster.md.

# torch 2.13.0 from the package index is built for CUDA 13.0; extensions must be compiled with the same toolkit.
FROM nvidia/cuda:13.0.3-cudnn-devel-ubuntu24.04 AS base

SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
ENV DEBIAN_FRONTEND=noninteractive \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    UV_PYTHON_INSTALL_DIR=/opt/python \
    VIRTUAL_ENV=/opt/venv \
    PATH=/opt/venv/bin:$PATH

# ibverbs and rdmacm: NCCL over InfiniBand. wget: KubeRay asks with it whether a node lives.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
       ca-certificates cmake git ibverbs-providers libibverbs1 librdmacm1 wget \
    && rm -rf /var/lib/apt/lists/*

# Python 3.11, as in the measured runs. Ubuntu 24.04 has 3.12 only; the package supports both.
COPY --from=ghcr.io/astral-sh/uv:0.8.22 /uv /usr/local/bin/uv
RUN uv venv --seed --python 3.11.13 "$VIRTUAL_ENV"

# The dependencies alone, so that a change of the sources does not build the extensions again.
WORKDIR /opt/megaponder
COPY pyproject.toml LICENSE README.md ./
RUN python - <<'REQUIREMENTS' > /tmp/requirements.txt && pip install --requirement /tmp/requirements.txt
import tomllib
with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)
for requirement in (
    *project["build-system"]["requires"],
    *project["project"]["dependencies"],
    *(extra for name in ("gpu", "hf", "ray") for extra in project["project"]["optional-dependencies"][name]),
):
    print(requirement)
REQUIREMENTS


FROM base AS extensions

# Compute capabilities to build for: A100, H100, B200.
ARG TORCH_CUDA_ARCH_LIST="8.0;9.0;10.0"
ARG NVTE_CUDA_ARCHS="80;90;100"
# Compilers at once; each may take 4 GiB of memory.
ARG MAX_JOBS=8
ARG APEX_RELEASE=26.09
# The newest release that Megatron-Core 0.16.1 names.
ARG TRANSFORMER_ENGINE_RELEASE=v2.11

RUN git clone --quiet --depth 1 --branch "$APEX_RELEASE" https://github.com/NVIDIA/apex.git /tmp/apex \
    && APEX_CPP_EXT=1 APEX_CUDA_EXT=1 \
       pip wheel --no-deps --no-build-isolation --wheel-dir /wheels /tmp/apex

RUN git clone --quiet --depth 1 --branch "$TRANSFORMER_ENGINE_RELEASE" --recurse-submodules --shallow-submodules \
        https://github.com/NVIDIA/TransformerEngine.git /tmp/transformer_engine \
    && NVTE_FRAMEWORK=pytorch \
       pip wheel --no-deps --no-build-isolation --wheel-dir /wheels /tmp/transformer_engine


FROM base AS megaponder

RUN --mount=type=bind,from=extensions,source=/wheels,target=/wheels pip install /wheels/*.whl

COPY . .
RUN pip install --no-deps . && pip check

RUN useradd --create-home --shell /bin/bash megaponder
USER megaponder
WORKDIR /home/megaponder

RUN megaponder --help && ray --version
CMD ["megaponder", "--help"]
