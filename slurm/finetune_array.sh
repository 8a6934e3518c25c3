#!/bin/bash
# Runs one member of the array of slurm/finetune.sh: the task and seed in the line of OUT/members
# with the element's number. Alone, it prints the table of all members.
#
#   sbatch --array=1-6 slurm/finetune_array.sh out=OUT SETTING=VALUE ... TASK:SETTING=VALUE ...
#   sbatch slurm/finetune_array.sh out=OUT
#
# A requeued member continues from its last epoch. SBATCH_PARTITION and similar variables replace
# the lines below.
#SBATCH --job-name=finetune-array
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=logs/%x-%A_%a.out

if [ -z "${SLURM_JOB_ID:-}" ] || [ ! -f slurm/job.inc ]; then
    echo "submit this job by sbatch in the repository's root or with sbatch --chdir=REPOSITORY" >&2
    exit 2
fi
. slurm/job.inc

out=${1#out=} module=scripts.finetune_table words=("$1")
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    read -r task seed < <(sed -n "${SLURM_ARRAY_TASK_ID}p" "$out/members")
    [ -n "${seed:-}" ] || { echo "$out/members has no line $SLURM_ARRAY_TASK_ID" >&2 && exit 2; }
    folder=$out/$task/seed-$seed
    mkdir -p "$folder" || exit
    echo "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" >"$folder/job" || exit
    module=scripts.finetune_$(sed -n 's/^ *kind: *//p' "conf/task/$task.yaml")
    words=("+task=$task" "out=$folder" first_seed="$seed")
    for word in "${@:2}"; do
        case ${word%%:*} in
            *=*) words+=("$word") ;;
            "$task") words+=("${word#*:}") ;;
        esac # otherwise it is a setting of another task
    done
fi
echo "$(date '+%F %T') $module ${words[*]}"
containerize "${words[@]}"
if [ "${#srun_options[@]}" -gt 0 ]; then # pyxis is a part of srun
    python=(srun --ntasks=1 --export=ALL --cpus-per-task="$SLURM_CPUS_PER_TASK"
        "${srun_options[@]}" "${python[@]}")
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}
exec "${python[@]}" -u -m "$module" "${words[@]}"
