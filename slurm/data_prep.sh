#!/bin/bash
# Submits all data_prep jobs, text to shards, as job arrays that wait for each other, and ends. In the
# repository's root:
#
#   bash slurm/data_prep.sh                                             # Wikipedia and BookCorpus, 128 and 512
#   bash slurm/data_prep.sh data_dir=data/novels +source=books source.path=FOLDER seq_len=128 array_size=4
#
# where jobs are submitted, or by sbatch. Settings replace those below; with +source= or seq_len= there
# is that one alone. An array has array_size= elements (or ARRAY_SIZE, else 8); their sizes are those
# of slurm/data_prep_array.sh, which SBATCH_PARTITION, SBATCH_TIMELIMIT and the like replace. Behind
# each array the same job once more does what an element has left, and writes the manifest; where that
# fails, all that waits for it is cancelled. The same command again does what is missing.
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
for variable in "${!SLURM_@}"; do # an outer job's, such as SLURM_ARRAY_TASK_ID, are not these jobs'
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

submit() { # submit AFTER NAME OPTION... -- JOB OVERRIDE...: prints the number; AFTER: a dependency or none
    local after=$1 name=$2 options=()
    shift 2
    while [ "$1" != -- ]; do options+=("$1") && shift; done
    sbatch --parsable --kill-on-invalid-dep=yes --job-name="$name" ${after:+--dependency="$after"} \
        "${options[@]}" slurm/data_prep_array.sh "$2" data_dir=data/wikibooks "${@:3}" | cut -d ';' -f 1
}

single() { # single AFTER NAME JOB OVERRIDE...: sets `last` to its number
    last=$(submit "$1" "$2" --output=logs/%x-%j.out -- "${@:3}")
    echo "$2: job $last"
}

shared() { # shared AFTER NAME JOB OVERRIDE...: an array, and behind it the job alone
    local array
    array=$(submit "$1" "$2" --array="1-$size" -- "${@:3}")
    echo "$2: job $array, an array of $size"
    single "${1:+$1,}afterany:$array" "$2" "${@:3}" # not afterany alone: a cancelled array has ended, too
}

collected=afterok
for source in "${sources[@]}"; do
    shared '' "collect-$source" collect +source="$source" "$@"
    collected+=:$last
done
single "$collected" vocab vocab "$@"
shared "afterok:$last" encode encode "$@"
encoded=afterok:$last
for seq_len in "${lengths[@]}"; do
    shared "$encoded" "build-$seq_len" build seq_len="$seq_len" "$@"
    single "afterok:$last" "audit-$seq_len" audit seq_len="$seq_len" "$@"
done
echo "look at them: squeue --me; python -m data_prep.status data_dir=$data_dir"
