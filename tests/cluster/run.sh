#!/usr/bin/env bash
# `make reproduce PROFILE=profiles/slurm` through a real Slurm of one node: did every job run there, and did it work? Not part of CI.
#   tests/cluster/run.sh               about a minute; STUDY=d2o for more jobs than one
# Needs slurm-wlm, munge (see one_node_slurm.sh) and the plugin: .venv/bin/uv pip install --python .venv/bin/python snakemake-executor-plugin-slurm
set -euo pipefail
cd "$(dirname "$0")/../.."
study=${STUDY:-pretrain}
folder=$(mktemp -d "${TMPDIR:-/tmp}/gdpt-slurm-test.XXXXXX")
chmod 711 "$folder"      # munge wants its socket within reach
slurm=tests/cluster/one_node_slurm.sh
.venv/bin/python -c 'import snakemake_executor_plugin_slurm' || { echo "install snakemake-executor-plugin-slurm first" >&2; exit 1; }

finish() { "$slurm" down "$folder/slurm" && rm -rf "$folder"; }
trap finish EXIT
"$slurm" up "$folder/slurm"
export SLURM_CONF="$folder/slurm/slurm.conf" PATH="$folder/slurm/bin:$PATH"

# a root of its own: nothing is done yet in it, and this tree's results stay as they are
mkdir "$folder/tree"
GDPT_ROOT="$folder/tree" make reproduce TIER=smoke STUDY="$study" PROFILE=profiles/slurm 2>&1 | tee "$folder/make.log"

jobs=$(ls "$folder/tree/data/runs/smoke/done" | grep -vx results | wc -l)
squeue --states=all --noheader --format '%i %T %k'
completed=$(squeue --states=all --noheader --format '%T %k' | grep -c '^COMPLETED rule_')
ids=$(grep -oP 'SLURM jobid \K\d+' "$folder/make.log" | sort -u | wc -l)
[ "$jobs" -ge 1 ] && [ "$jobs" = "$completed" ] && [ "$jobs" = "$ids" ] || {
  echo "$jobs jobs are done, Slurm completed $completed of $ids submitted" >&2; exit 1; }
[ -s "$folder/tree/data/smoke/results.csv" ] || { echo "no results were collected" >&2; exit 1; }
echo "ok: $jobs job(s) of study $study ran under Slurm"
