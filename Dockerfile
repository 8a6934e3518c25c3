# Everything that data preparation and training need, and the code itself.
#
#   docker build --tag bert-pretraining .
#   docker run --rm bert-pretraining python -m pretrain.run --help
#   docker run --rm --gpus all --ipc host --volume "$PWD/runs:/opt/bert-pretraining/runs" \
#       bert-pretraining torchrun --nproc-per-node 8 -m pretrain.run +model=tiny run.name=demo
#
# It runs as user 1000. If you mount a folder of your own and are another user, add
# --user "$(id -u):$(id -g)". The base is not a CUDA image: torch's packages contain CUDA, cuDNN and
# NCCL in the versions they were built with, and the host has the driver.
FROM python:3.11-slim

LABEL org.opencontainers.image.title="bert-pretraining" \
      org.opencontainers.image.description="Distributed BERT pretraining, from raw text to a Hugging Face model" \
      org.opencontainers.image.licenses="Apache-2.0"

# git records the commit of a run, g++ is for engine.compile. The rest is for NCCL, which otherwise
# uses TCP instead of InfiniBand.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ git ibverbs-providers libibverbs1 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/bert-pretraining
# Dependencies first: a change of the code then leaves this layer of gigabytes as it is.
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN DS_BUILD_OPS=0 pip install --no-cache-dir --constraint constraints.txt --editable '.[finetune]'
COPY conf conf
COPY data_prep data_prep
COPY pretrain pretrain
COPY scripts scripts
RUN pip install --no-cache-dir --no-deps --editable . \
    && useradd --uid 1000 --create-home bert \
    && mkdir data runs \
    && chmod --recursive a+rwX .
USER 1000

# Ignore packages in the user's home folder (Apptainer mounts it); show enroot and pyxis the GPUs.
ENV PYTHONNOUSERSITE=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

CMD ["python", "-m", "pretrain.run", "--help"]
