#!/bin/bash
# Runs one data_prep job. As an array, each element does its share of the tasks. Alone, the job does
# all that is left and writes the manifest.
#
#   sbatch --array=1-8 slurm/data_prep_array.sh encode data_dir=data/mine
#   sbatch slurm/data_prep_array.sh encode data_dir=data/mine
#
# slurm/data_prep.sh submits all jobs in this way, executor=slurm a single one. Finished tasks are
# skipped, also after a requeue. SBATCH_PARTITION, SBATCH_TIMELIMIT and similar variables replace
# the lines below.
#SBATCH --job-name=data-prep-array
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=16
#SBATCH --mem=32G
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=logs/%x-%A_%a.out

if [ -z "${SLURM_JOB_ID:-}" ] || [ ! -f slurm/job.inc ]; then
    echo "submit this job by sbatch in the repository's root or with sbatch --chdir=REPOSITORY" >&2
    exit 2
fi
. slurm/job.inc

share=()
[ -z "${SLURM_ARRAY_TASK_ID:-}" ] || share=("share=$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT")
set -- "$1" num_workers="$SLURM_CPUS_PER_TASK" "${@:2}" executor=local "${share[@]}"
echo "$(date '+%F %T') data_prep.$1 ${*:2}"
containerize "${@:2}"
if [ "${#srun_options[@]}" -gt 0 ]; then # pyxis is a part of srun
    python=(srun --ntasks=1 --export=ALL --cpus-per-task="$SLURM_CPUS_PER_TASK"
        "${srun_options[@]}" "${python[@]}")
fi
exec "${python[@]}" -u -m "data_prep.$1" "${@:2}"
