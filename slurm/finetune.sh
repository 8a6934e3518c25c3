#!/bin/bash
# Fine-tunes one model on several tasks with several seeds: an array with one element per task and
# seed, and after it a job that prints one table. In the repository's root, on a machine that can
# submit jobs, or with sbatch:
#
#   bash slurm/finetune.sh model=runs/first/export tasks=sst2,rte,wnut17 seeds=3 \
#       out=runs/finetune/first
#   bash slurm/finetune.sh model=... tasks=rte,mrpc epochs=4 rte:task.folder=glue/RTE \
#       mrpc:task.folder=glue/MRPC
#
# Settings apply to every task; a setting with a task's name and a colon applies to that task. The
# same command again submits only the members that failed. The resources of an element are those in
# slurm/finetune_array.sh; SBATCH_PARTITION, SBATCH_TIMELIMIT and similar variables replace them.
#SBATCH --job-name=finetune
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --mem=1G
#SBATCH --time=00:10:00
#SBATCH --output=logs/%x-%j.out

if [ ! -f slurm/finetune_array.sh ]; then
    echo "start this script in the repository's root, or submit it with sbatch --chdir=REPOSITORY" >&2
    exit 2
fi
set -euo pipefail
mkdir -p logs # without it Slurm ends the jobs without a message
for variable in "${!SLURM_@}"; do # variables of an outer job, as SLURM_ARRAY_TASK_ID
    [ "$variable" = SLURM_CONF ] || unset "$variable"
done

tasks=() seeds=1 out=runs/finetune/array settings=()
for word in "$@"; do
    case $word in
        tasks=*) IFS=, read -ra tasks <<<"${word#*=}" ;;
        seeds=*) seeds=${word#*=} ;;
        out=*) out=${word#*=} ;;
        *) settings+=("$word") ;;
    esac
done
[ "${#tasks[@]}" -gt 0 ] || { echo "no task is named; add tasks=sst2,rte" >&2 && exit 2; }
for task in "${tasks[@]}"; do
    [ -f "conf/task/$task.yaml" ] || { echo "there is no conf/task/$task.yaml" >&2 && exit 2; }
done

mkdir -p "$out"
members=() missing=()
for task in "${tasks[@]}"; do
    for seed in $(seq "$seeds"); do
        members+=("$task $seed")
        [ -f "$out/$task/seed-$seed/results.json" ] || missing+=("${#members[@]}")
    done
done
printf '%s\n' "${members[@]}" >"$out/members"

submit() { sbatch --parsable "$@" | cut -d ';' -f 1; }
after=()
if [ "${#missing[@]}" -gt 0 ]; then
    numbers=$(IFS=, && echo "${missing[*]}")
    array=$(submit --array="$numbers" slurm/finetune_array.sh out="$out" "${settings[@]}")
    echo "finetune: job $array, ${#missing[@]} of ${#members[@]} members"
    after=(--dependency="afterany:$array")
fi
last=$(submit "${after[@]}" --job-name=finetune-table --gpus-per-node=0 --output=logs/%x-%j.out \
    slurm/finetune_array.sh out="$out")
echo "finetune-table: job $last, logs/finetune-table-$last.out"
