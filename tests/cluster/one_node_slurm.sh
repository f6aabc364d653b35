#!/usr/bin/env bash
# A Slurm of one node with two processors on this machine, without systemd, cgroups or root's folders: to try profiles/slurm on.
#   tests/cluster/one_node_slurm.sh up [folder]      then: export SLURM_CONF=folder/slurm.conf PATH=folder/bin:$PATH
#   tests/cluster/one_node_slurm.sh down [folder]
# Needs Debian's slurm-wlm and munge (apt-get install slurm-wlm munge). Both words may be said twice. Everything it writes is in the folder.
set -euo pipefail
folder=$(realpath -m "${2:-${TMPDIR:-/tmp}/gdpt-slurm-$(id -u)}")
export PATH="$PATH:/usr/sbin:/sbin" SLURM_CONF="$folder/slurm.conf"

alive() { [ -s "$folder/$1.pid" ] && kill -0 "$(cat "$folder/$1.pid")" 2>/dev/null; }

wait_for() {  # a command that has to succeed within 20 seconds
  for _ in $(seq 100); do "$@" >/dev/null 2>&1 && return; sleep .2; done
  echo "not ready after 20 seconds: $*; the logs are in $folder" >&2; exit 1
}

configure() {
  local me; me=$(hostname -s)
  mkdir -p "$folder/state" "$folder/spool" "$folder/bin"
  chmod 755 "$folder"
  [ -s "$folder/munge.key" ] || (umask 077 && head -c 1024 /dev/urandom > "$folder/munge.key")
  cat > "$folder/slurm.conf" <<CONF
ClusterName=one
SlurmctldHost=$me(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
AuthInfo=socket=$folder/munge.socket
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
MinJobAge=3600
MpiDefault=none
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
NodeName=$me NodeAddr=127.0.0.1 CPUs=2 RealMemory=$(awk '/^MemTotal/{print int($2/1024)}' /proc/meminfo)
CONF
  # Snakemake's job steps start srun without SLURM_CONF (snakemake-executor-plugin-slurm-jobstep 0.6.1 drops every SLURM_ variable but a few)
  printf '#!/bin/sh\nSLURM_CONF=%q exec %q "$@"\n' "$SLURM_CONF" "$(command -v srun)" > "$folder/bin/srun"
  chmod +x "$folder/bin/srun"
}

up() {
  for program in munged slurmctld slurmd sbatch; do
    command -v $program >/dev/null || { echo "$program is not here: apt-get install slurm-wlm munge" >&2; exit 1; }
  done
  configure
  alive munged || munged --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" --seed-file="$folder/munge.seed"
  alive slurmctld || slurmctld
  wait_for scontrol ping
  alive slurmd || slurmd
  wait_for sh -c "sinfo --noheader --format %t | grep -qx idle"
  echo "Slurm is up: export SLURM_CONF=$SLURM_CONF PATH=$folder/bin:\$PATH"
}

down() {
  for daemon in slurmd slurmctld munged; do
    if alive $daemon; then kill "$(cat "$folder/$daemon.pid")"; fi
  done
  for daemon in slurmd slurmctld munged; do
    for _ in $(seq 100); do alive $daemon || break; sleep .2; done
    if alive $daemon; then echo "$daemon does not end" >&2; exit 1; fi
  done
  echo "Slurm is down."
}

case "${1:-}" in
  up|down) "$1" ;;
  *) echo "usage: $0 up|down [folder]" >&2; exit 2 ;;
esac
