#!/bin/bash
# Trains BERT-large on four nodes with eight GPUs each: NVIDIA's recipe for large batches, 128 and
# then 512 tokens. In the repository's root:
#
#   bash slurm/pretrain_large.sh cluster=dgx_h100              # the plan of this job: time, cost
#   sbatch slurm/pretrain_large.sh run.name=x recipe=paper     # settings replace those below
#   sbatch --nodes=2 --partition=gpu slurm/pretrain_large.sh   # so do options of sbatch
#
# From another folder: sbatch --chdir=REPOSITORY REPOSITORY/slurm/pretrain_large.sh. If the folder
# logs/ is missing, Slurm ends the job without a message.
#SBATCH --job-name=pretrain-large
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=logs/%x-%j.out
# One task per GPU; all memory of a node; a signal five minutes before the end, to save.

if [ ! -f slurm/job.inc ] || [[ -z ${SLURM_JOB_ID:-} && " $*" != *" cluster="* ]]; then
    echo "submit this job by sbatch in the repository's root or with sbatch --chdir=REPOSITORY" >&2
    exit 2
fi
. slurm/job.inc
pretrain +model=large data=wikibooks_512 recipe=nvidia_lamb engine=bf16 \
    engine.tokens_per_micro_batch=36864 engine.device=cuda \
    checkpoint.every_steps=200 eval.every_steps=500 "$@"
