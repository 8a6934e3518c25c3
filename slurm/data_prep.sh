#!/bin/bash
# The five data_prep jobs, one after another, on one node. In the repository's root:
#
#   sbatch slurm/data_prep.sh                                           # data=wikibooks_128 and _512
#   sbatch slurm/data_prep.sh data_dir=data/novels +source=books source.path=FOLDER seq_len=128
#
# Settings replace those below; with +source= or seq_len= there is that one alone. A job that was
# ended is submitted again with the same command: what is done is skipped.
#SBATCH --job-name=data-prep
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=32
#SBATCH --mem=64G
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=logs/%x-%j.out

if [ -z "${SLURM_JOB_ID:-}" ] || [ ! -f slurm/job.inc ]; then
    echo "submit this job by sbatch in the repository's root or with sbatch --chdir=REPOSITORY" >&2
    exit 2
fi
. slurm/job.inc
set -e

sources=(wikipedia bookcorpus) lengths=(128 512)
for override in "$@"; do
    case $override in
        +source=*) sources=("${override#*=}") ;;
        seq_len=*) lengths=("${override#*=}") ;;
    esac
done

job() { # job NAME OVERRIDE...
    echo "$(date '+%F %T') data_prep.$1 ${*:2}"
    "$python" -u -m "data_prep.$1" data_dir=data/wikibooks num_workers="$SLURM_CPUS_PER_TASK" "${@:2}"
}

for source in "${sources[@]}"; do job collect +source="$source" "$@"; done
job vocab "$@"
job encode "$@"
for seq_len in "${lengths[@]}"; do
    job build seq_len="$seq_len" "$@"
    job audit seq_len="$seq_len" "$@"
done
