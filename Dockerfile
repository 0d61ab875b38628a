# syntax=docker/dockerfile:1
# MegaPonder on CUDA GPUs.
#
#   docker build --tag megaponder .
#   docker run --gpus all --shm-size 16g --volume "$PWD/runs:/home/megaponder/runs" megaponder \
#       megaponder train --config recipe.yaml
#
# Everything comes as wheels; those of torch bring CUDA, cuDNN and NCCL along, so that a machine needs only a driver.
# `--target with-extensions` adds apex and Transformer Engine, which takes an hour; Megatron then takes its optimizer
# and norms of gradients from them. The same image serves SLURM (enroot, apptainer) and Ray (KubeRay): see
# docs/cluster.md.

FROM python:3.12-slim AS installed

SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
ENV DEBIAN_FRONTEND=noninteractive \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# gcc: Triton compiles its launchers. ibverbs and rdmacm: NCCL over InfiniBand. wget: KubeRay asks with it whether a
# node lives.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
       ca-certificates gcc ibverbs-providers libc6-dev libibverbs1 librdmacm1 wget \
    && rm -rf /var/lib/apt/lists/*

# The dependencies alone, so that a change of the sources does not install them again.
WORKDIR /opt/megaponder
COPY pyproject.toml LICENSE README.md ./
RUN python - <<'REQUIREMENTS' > /tmp/requirements.txt && pip install --requirement /tmp/requirements.txt
import tomllib
with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)
for requirement in (
    *project["build-system"]["requires"],
    *project["project"]["dependencies"],
    *(extra for name in ("hf", "ray") for extra in project["project"]["optional-dependencies"][name]),
):
    print(requirement)
REQUIREMENTS

COPY . .
RUN pip install --no-deps . && pip check && megaponder --help && ray --version
RUN useradd --create-home --shell /bin/bash megaponder


# Only for the target with-extensions. torch of the package index is built for CUDA 13.0; extensions must be compiled
# with the same toolkit. Ubuntu 24.04 has Python 3.12.
FROM nvidia/cuda:13.0.3-cudnn-devel-ubuntu24.04 AS extensions

SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
ENV DEBIAN_FRONTEND=noninteractive PIP_NO_CACHE_DIR=1 PATH=/opt/venv/bin:$PATH
RUN apt-get update \
    && apt-get install --yes --no-install-recommends cmake git python3.12-dev python3.12-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3.12 -m venv /opt/venv
COPY --from=installed /tmp/requirements.txt /tmp/requirements.txt
COPY --from=installed /opt/megaponder/pyproject.toml /tmp/pyproject.toml
RUN python - <<'TOOLS' > /tmp/tools.txt && pip install --requirement /tmp/requirements.txt --requirement /tmp/tools.txt
import tomllib
with open("/tmp/pyproject.toml", "rb") as file:
    print("\n".join(tomllib.load(file)["project"]["optional-dependencies"]["gpu"]))
TOOLS

# Compute capabilities to build for: A100, H100, B200.
ARG TORCH_CUDA_ARCH_LIST="8.0;9.0;10.0"
ARG NVTE_CUDA_ARCHS="80;90;100"
# Compilers at once; each may take 4 GiB of memory.
ARG MAX_JOBS=8
ARG APEX_RELEASE=26.09
ARG TRANSFORMER_ENGINE_RELEASE=v2.11

RUN git clone --quiet --depth 1 --branch "$APEX_RELEASE" https://github.com/NVIDIA/apex.git /tmp/apex \
    && APEX_CPP_EXT=1 APEX_CUDA_EXT=1 \
       pip wheel --no-deps --no-build-isolation --wheel-dir /wheels /tmp/apex

RUN git clone --quiet --depth 1 --branch "$TRANSFORMER_ENGINE_RELEASE" --recurse-submodules --shallow-submodules \
        https://github.com/NVIDIA/TransformerEngine.git /tmp/transformer_engine \
    && NVTE_FRAMEWORK=pytorch \
       pip wheel --no-deps --no-build-isolation --wheel-dir /wheels /tmp/transformer_engine


FROM installed AS with-extensions

RUN --mount=type=bind,from=extensions,source=/wheels,target=/wheels pip install /wheels/*.whl
USER megaponder
WORKDIR /home/megaponder
CMD ["megaponder", "--help"]


# What is built unless a target is named.
FROM installed AS megaponder

USER megaponder
WORKDIR /home/megaponder
CMD ["megaponder", "--help"]
