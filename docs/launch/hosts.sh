#!/bin/bash
# Starts a run on the hosts of a file, one name per line, over ssh; in the repository's root, at the
# same path on all hosts, with its environment in .venv:
#
#   bash docs/launch/hosts.sh HOSTS +model=base recipe=base_2k data=wikibooks_512 run.name=first
#
# One rank per GPU (RANKS=N: N per host). The first host is node 0; its port 29500 (PORT=N) must be
# reachable. Ctrl-C, or SIGTERM to this script, makes all ranks save and end. The same command
# continues.
set -uo pipefail

mapfile -t hosts < <(grep -v '^ *\(#\|$\)' "$1")
shift
[ "${#hosts[@]}" -gt 0 ] || { echo "the file of hosts names no host" >&2 && exit 2; }
id=bert-$$-$(date +%s)

# One torchrun is told, and its ranks tell all others. [r]: not the shell that runs pkill.
trap 'ssh -n "${hosts[0]}" "pkill -TERM -f [r]dzv-id=$id"' INT TERM

nodes=()
for node in "${!hosts[@]}"; do
    ssh -n "${hosts[node]}" "cd $(printf %q "$PWD") && exec .venv/bin/python -u" \
        "-m torch.distributed.run --rdzv-id=$id --nnodes=${#hosts[@]} --node-rank=$node" \
        "--master-addr=${hosts[0]} --master-port=${PORT:-29500} --shutdown-timeout=300" \
        "--nproc-per-node=${RANKS:-gpu} -m pretrain.run $(printf '%q ' "$@")" &
    nodes+=($!)
done
failed=0
for node in "${!hosts[@]}"; do
    while kill -0 "${nodes[node]}" 2>/dev/null; do wait "${nodes[node]}"; done # a signal ends wait
    wait "${nodes[node]}"
    status=$?
    [ "$status" -eq 0 ] || { failed=1 && echo "${hosts[node]}: status $status" >&2; }
done
exit "$failed"
