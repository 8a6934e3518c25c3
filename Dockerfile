# Everything that data preparation and training need, and the code itself.
#
#   docker build --tag bert-pretraining .
#   docker run --rm bert-pretraining python -m pretrain.run --help
#   docker run --rm --gpus all --ipc host --volume "$PWD/runs:/opt/bert-pretraining/runs" \
#       bert-pretraining torchrun --nproc-per-node 8 -m pretrain.run +model=tiny run.name=demo
#
# It runs as user 1000, who cannot change the code or the packages: those are root's. If you mount a
# folder of your own and are another user, add --user "$(id -u):$(id -g)".
#
# A tag can move. To build on the same base every time, name it by its digest:
#   docker buildx imagetools inspect python:3.11-slim      # prints it
#   docker build --build-arg BASE=python@sha256:... --tag bert-pretraining .
#
# The base is not a CUDA image: torch's packages contain CUDA, cuDNN and
# NCCL in the versions they were built with, and the host has the driver.
ARG BASE=python:3.11-slim
FROM ${BASE}

LABEL org.opencontainers.image.title="bert-pretraining" \
      org.opencontainers.image.description="Distributed BERT pretraining, from raw text to a Hugging Face model" \
      org.opencontainers.image.licenses="Apache-2.0"

# git records the commit of a run, g++ is for engine.compile, elfutils for native stacks of a run that
# hangs. The rest is for NCCL, which otherwise uses TCP instead of InfiniBand.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends elfutils g++ git ibverbs-providers libibverbs1 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/bert-pretraining
# Dependencies first: a change of the code then leaves this layer of gigabytes as it is.
# Only files with a checksum listed here are installed; the tools of development are among them.
COPY .ci/hashes.txt .ci/hashes-cuda.txt .ci/
RUN DS_BUILD_OPS=0 pip install --no-cache-dir --require-hashes --no-deps \
    --requirement .ci/hashes.txt --requirement .ci/hashes-cuda.txt
COPY pyproject.toml README.md LICENSE ./
COPY conf conf
COPY data_prep data_prep
COPY pretrain pretrain
COPY scripts scripts
# data_prep/executors/slurm_scripts is a link to it, for `bert-data slurm`
COPY slurm slurm
RUN pip install --no-cache-dir --no-deps --no-build-isolation --editable . \
    && pip check \
    && python -m compileall -q data_prep pretrain scripts \
    && chmod --recursive a+rX,go-w . \
    && useradd --uid 1000 --create-home bert \
    && mkdir data runs \
    && chmod 1777 data runs
USER 1000

# Ignore packages in the user's home folder (Apptainer mounts it); show enroot and pyxis the GPUs, and
# the InfiniBand adapters, without which NCCL uses TCP.
ENV PYTHONNOUSERSITE=1 \
    MELLANOX_VISIBLE_DEVICES=all \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

CMD ["python", "-m", "pretrain.run", "--help"]
