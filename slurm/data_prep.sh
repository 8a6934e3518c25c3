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
# slurm/data_prep_array.sh, but no more cores and memory than the partition's largest node has.
# num_workers=N asks for N cores. With filters=[...] the sources are filtered before dedup. Options of
# sbatch replace them, wherever they are typed:
#
#   sbatch --partition=long --time=48:00:00 slurm/data_prep.sh data_dir=data/novels ...
#   bash slurm/data_prep.sh --partition=long --time=48:00:00 data_dir=data/novels ...
#
# and so do SBATCH_PARTITION, SBATCH_TIMELIMIT and similar variables. Wrong settings are refused
# before a job is submitted.
# A job of several steps, such as dedup, has an array for each. After the arrays the same job runs
# once more: it does what the elements left undone and writes the manifest. If that fails, everything
# that waits for it is cancelled. The same command again does what is missing.
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

# inherited: prints the options with which this batch job itself was submitted, one per line
inherited() {
    local job field option value
    job=$(scontrol show job --oneliner "$SLURM_JOB_ID")
    while read -r field option; do
        value=$(sed -n "s|.* $field=\([^ ]*\).*|\1|p" <<<"$job")
        case $field=$value in
            *= | *=\(null\) | TimeLimit=00:10:00 | CPUs/Task=1 | MinMemoryNode=1G) ;; # none, or ours
            *) echo "--$option=$value" ;;
        esac
    done <<'END'
Partition partition
Account account
QOS qos
Reservation reservation
Features constraint
TimeLimit time
CPUs/Task cpus-per-task
MinMemoryNode mem
MinMemoryCPU mem-per-cpu
END
}

options=()
if [ "${0##*/}" = slurm_script ]; then mapfile -t options < <(inherited); fi
for variable in "${!SLURM_@}"; do # variables of an outer job, as SLURM_ARRAY_TASK_ID
    [ "$variable" = SLURM_CONF ] || unset "$variable"
done

sources=(wikipedia bookcorpus) lengths=(128 512) data_dir=data/wikibooks size=${ARRAY_SIZE:-8}
partition=${SBATCH_PARTITION:-} cores='' filters='' settings=()
for option in "${options[@]}"; do
    case $option in --partition=*) partition=${option#*=} ;; esac
done
for override in "$@"; do
    case $override in
        -*) options+=("$override") ;;
        *) settings+=("$override") ;;
    esac
    case $override in
        --partition=*) partition=${override#*=} ;;
        num_workers=[0-9]*) cores=${override#*=} ;;
        +source=* | source=*) sources=("${override#*=}") ;;
        seq_len=*) lengths=("${override#*=}") ;;
        data_dir=*) data_dir=${override#*=} ;;
        filters=*) filters=${override#*=} ;;
        array_size=*) size=${override#*=} ;;
    esac
done

set -- "${settings[@]}"

# Refuse wrong settings now, and not in each job of a long queue
for source in "${sources[@]}"; do
    if [ -d conf/source ] && [ ! -f "conf/source/$source.yaml" ]; then
        known=$(cd conf/source && echo *.yaml)
        echo "source=$source is not known; there are ${known//.yaml/}" >&2
        exit 2
    fi
done
python=${VENV:-.venv}/bin/python
if [ -z "${CONTAINER:-}" ] && [ -x "$python" ]; then # the login node may not have the image
    for source in "${sources[@]}"; do
        "$python" -m data_prep.collect data_dir="$data_dir" +source="$source" "$@" --cfg >/dev/null
    done
fi

# most FIELD: the largest number of a node of the partition, by a field of sinfo; 0 if it is unknown
most() {
    sinfo --noheader --Node --format="%P %$1" | awk -v partition="$partition" '
        partition == "" ? $1 ~ /\*$/ : $1 == partition || $1 == partition "*" {
            if ($2 + 0 > most) most = $2 + 0
        }
        END { print most + 0 }'
}

# First, so that what was typed replaces them
node_cores=$(most c) node_mem=$(most m)
if [ -z "$cores" ] && [ "$node_cores" -gt 0 ] && [ "$node_cores" -lt 16 ]; then cores=$node_cores; fi
# Where memory is not managed, Slurm takes a node to have 1 MB
if [ "$node_mem" -ge 1024 ] && [ "$node_mem" -lt 32768 ]; then
    options=(--mem="$node_mem" "${options[@]}")
fi
options=(${cores:+--cpus-per-task="$cores"} "${options[@]}")

# submit AFTER NAME OPTION... -- JOB OVERRIDE...: prints the job's number; AFTER: a dependency or ''
submit() {
    local after=$1 name=$2 own=()
    shift 2
    while [ "$1" != -- ]; do own+=("$1") && shift; done
    sbatch --parsable --kill-on-invalid-dep=yes --job-name="$name" ${after:+--dependency="$after"} \
        "${options[@]}" "${own[@]}" slurm/data_prep_array.sh "$2" data_dir=data/wikibooks "${@:3}" | cut -d ';' -f 1
}

# single AFTER NAME JOB OVERRIDE...: submits one job and sets `last` to its number
single() {
    last=$(submit "$1" "$2" --output=logs/%x-%j.out -- "${@:3}")
    echo "$2: job $last"
}

# shared AFTER NAME JOB OVERRIDE...: submits an array, and after it the job alone. `steps` are those
# before the last one of a job that has several: a share does its part of the first unfinished step.
shared() {
    local array step after=$1
    for step in ${steps:-} ''; do
        array=$(submit "$after" "$2${step:+-$step}" --array="1-$size" -- "${@:3}")
        echo "$2${step:+-$step}: job $array, an array of $size"
        # not afterany alone, because a cancelled array has ended too
        after=${1:+$1,}afterany:$array
    done
    single "$after" "$2" "${@:3}"
}

collected=afterok
for source in "${sources[@]}"; do
    shared '' "collect-$source" collect +source="$source" "$@"
    collected+=:$last
done
if [ -n "$filters" ]; then
    counting='' # of the lines, before boilerplate can be told
    case $filters in *boilerplate*) counting='count add' ;; esac
    steps=$counting shared "$collected" filter filter "$@"
    collected=afterok:$last
fi
steps='signatures candidates copies choices' shared "$collected" dedup dedup "$@"
single "afterok:$last" vocab vocab "$@"
shared "afterok:$last" encode encode "$@"
encoded=afterok:$last
for seq_len in "${lengths[@]}"; do
    shared "$encoded" "build-$seq_len" build seq_len="$seq_len" "$@"
    shared "afterok:$last" "audit-$seq_len" audit seq_len="$seq_len" "$@"
done
echo "to follow the jobs: squeue --me; python -m data_prep.status data_dir=$data_dir"
