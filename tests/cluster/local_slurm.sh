#!/usr/bin/env bash
# SLURM with two nodes, node0 and node1, both of them this machine, until standard input ends:
#
#   local_slurm.sh FOLDER PORT PORT PORT
#
# Says "ready" once it takes jobs. Everything lies in FOLDER, whose slurm.conf is for SLURM_CONF.
# Daemons and jobs are in a PID namespace of their own, with which the last of them ends, and know
# the nodes by name. The nodes claim to have 64 CPUs and 8 GPUs each. Jobs of partition "urgent"
# preempt those of "all", the default.
set -eu
[ $$ = 1 ] || exec unshare --pid --fork --kill-child --mount-proc "$0" "$@"
PATH=$PATH:/usr/sbin:/sbin
folder=$1
host=$(hostname -s)
export SLURM_CONF=$folder/slurm.conf
mkdir -p "$folder/state" "$folder/spool/node0" "$folder/spool/node1"
head -c 1024 /dev/urandom >"$folder/key"
chmod 400 "$folder/key"
cat >"$SLURM_CONF" <<END
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$2
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=3
SchedulerParameters=batch_sched_delay=0
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/%n.log
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/%n.pid
GresTypes=gpu
NodeName=DEFAULT CPUs=64 Gres=gpu:8 State=UNKNOWN
NodeName=node0 NodeHostname=$host NodeAddr=127.0.0.1 Port=$3
NodeName=node1 NodeHostname=$host NodeAddr=127.0.0.1 Port=$4
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=all Nodes=node[0-1] Default=YES State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=node[0-1] State=UP PriorityTier=2 PreemptMode=OFF
END

touch "$folder"/gpu{0..7}
echo "Name=gpu File=$folder/gpu[0-7]" >"$folder/gres.conf"
{
  cat /etc/hosts
  echo "127.0.0.1 node0 node1"
} >"$folder/hosts"
mount --bind "$folder/hosts" /etc/hosts

munged --foreground --force --socket="$folder/munge" --key-file="$folder/key" \
  --pid-file="$folder/munged.pid" --seed-file="$folder/seed" >"$folder/munged.log" 2>&1 &
slurmctld -D -c 2>"$folder/slurmctld.err" &
for node in node0 node1; do
  slurmd -D -N "$node" 2>"$folder/$node.err" &
done
until [ "$(sinfo --noheader --format=%T 2>"$folder/sinfo.log")" = idle ]; do
  [ "$(jobs -r | wc -l)" = 4 ] || exit 1
  sleep 0.1
done
echo ready
cat >/dev/null
