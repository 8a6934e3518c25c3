#!/bin/bash
# Submits all data_prep jobs, from text to shards, as job arrays that wait for each other, and ends.
# In the repository's root, on a machine that can submit jobs, or with sbatch:
#
#   bash slurm/data_prep.sh                       # Wikipedia and BookCorpus, 128 and 512 tokens
#   bash slurm/data_prep.sh data_dir=data/novels +source=books source.path=FOLDER seq_len=128 \
#       array_size=4
#
# Settings replace those below; +source= or seq_len= chooses a single source or length. An array has
# array_size= elements (or ARRAY_SIZE, by default 8). Their resources are those in
# slurm/data_prep_array.sh; SBATCH_PARTITION, SBATCH_TIMELIMIT and similar variables replace them.
# After each array the same job runs once more: it does what the elements left undone and writes the
# manifest. If that fails, everything that waits for it is cancelled. The same command again does
# what is missing.
#SBATCH --job-name=data-prep
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --mem=1G
#SBATCH --time=00:10:00
#SBATCH --output=logs/%x-%j.out

if [ ! -f slurm/data_prep_array.sh ]; then
    echo "start this script in the repository's root, or submit it with sbatch --chdir=REPOSITORY" >&2
    exit 2
fi
set -euo pipefail
mkdir -p logs # without it Slurm ends the jobs without a message
for variable in "${!SLURM_@}"; do # variables of an outer job, as SLURM_ARRAY_TASK_ID
    [ "$variable" = SLURM_CONF ] || unset "$variable"
done

sources=(wikipedia bookcorpus) lengths=(128 512) data_dir=data/wikibooks size=${ARRAY_SIZE:-8}
for override in "$@"; do
    case $override in
        +source=* | source=*) sources=("${override#*=}") ;;
        seq_len=*) lengths=("${override#*=}") ;;
        data_dir=*) data_dir=${override#*=} ;;
        array_size=*) size=${override#*=} ;;
    esac
done

# submit AFTER NAME OPTION... -- JOB OVERRIDE...: prints the job's number; AFTER: a dependency or ''
submit() {
    local after=$1 name=$2 options=()
    shift 2
    while [ "$1" != -- ]; do options+=("$1") && shift; done
    sbatch --parsable --kill-on-invalid-dep=yes --job-name="$name" ${after:+--dependency="$after"} \
        "${options[@]}" slurm/data_prep_array.sh "$2" data_dir=data/wikibooks "${@:3}" | cut -d ';' -f 1
}

# single AFTER NAME JOB OVERRIDE...: submits one job and sets `last` to its number
single() {
    last=$(submit "$1" "$2" --output=logs/%x-%j.out -- "${@:3}")
    echo "$2: job $last"
}

# shared AFTER NAME JOB OVERRIDE...: submits an array, and after it the job alone
shared() {
    local array
    array=$(submit "$1" "$2" --array="1-$size" -- "${@:3}")
    echo "$2: job $array, an array of $size"
    # not afterany alone, because a cancelled array has ended too
    single "${1:+$1,}afterany:$array" "$2" "${@:3}"
}

collected=afterok
for source in "${sources[@]}"; do
    shared '' "collect-$source" collect +source="$source" "$@"
    collected+=:$last
done
single "$collected" dedup dedup "$@"
single "afterok:$last" vocab vocab "$@"
shared "afterok:$last" encode encode "$@"
encoded=afterok:$last
for seq_len in "${lengths[@]}"; do
    shared "$encoded" "build-$seq_len" build seq_len="$seq_len" "$@"
    single "afterok:$last" "audit-$seq_len" audit seq_len="$seq_len" "$@"
done
echo "to follow the jobs: squeue --me; python -m data_prep.status data_dir=$data_dir"
