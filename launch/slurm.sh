#!/usr/bin/env bash
# Several nodes under SLURM, one process per GPU:
#
#   sbatch --nodes=4 launch/slurm.sh CONFIG [key=value ...]
#
# Submit it from a folder that all nodes see, with selfdistill's environment active. What is asked
# for below are defaults: options of sbatch stand before the script and win. On CPUs:
#
#   ACCELERATE_USE_CPU=true sbatch --nodes=1 --ntasks-per-node=2 --gpus-per-node=0 \
#     launch/slurm.sh CONFIG [key=value ...]
#
# In a job array %A and %a in the words are the numbers of the array and of the task:
#
#   sbatch --array=0-2 launch/slurm.sh CONFIG seed=%a run_dir=runs/mine-%a
#
# selfdistill-JOB.out has what this script says, selfdistill-JOB/rank-N.log what process N says.
# 120 seconds before the time limit SLURM sends USR1: time for a step and a checkpoint; where these
# take longer, raise --signal and PATIENCE. Then, and whenever the run was preempted after saving,
# the job is queued again and goes on where it was.
#
# srun starts the processes without accelerate launch or torchrun in between, which exit with 1
# where this script has to know 75, preempted after saving, from a mistake.
#SBATCH --job-name=selfdistill
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
set -u
PATIENCE=90 # seconds from USR1 to queueing again what has not ended; less than --signal leaves
GRACE=30    # seconds that the other processes have after one failed

say() { echo "$(date '+%F %T') $*"; }

job=$SLURM_JOB_ID
if [ -n "${SLURM_ARRAY_JOB_ID:-}" ]; then
  job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID # one task's id alone may stand for the whole array
  own=
  for word in "$@"; do [[ $word != run_dir=*%a* ]] || own=1; done
  if [ -z "$own" ]; then
    say "the tasks of an array need a run_dir each: add run_dir=FOLDER-%a"
    exit 2
  fi
  set -- "${@//%A/$SLURM_ARRAY_JOB_ID}"
  set -- "${@//%a/$SLURM_ARRAY_TASK_ID}"
fi

logs=$SLURM_JOB_NAME-$SLURM_JOB_ID
export FIRST_EXIT="$PWD/$logs/first-exit"
mkdir -p "$logs" && rm -f "$FIRST_EXIT" || exit 1

MASTER_ADDR=${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}
MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 10000))} # below those given out by the system
OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
export MASTER_ADDR MASTER_PORT OMP_NUM_THREADS

# each process: python is what the signals are for; the first exit code that is not 0 is kept,
# because srun reports the highest of all
# shellcheck disable=SC2016
task='
trap : USR1 TERM
export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_STEP_NUM_TASKS
export LOCAL_WORLD_SIZE=${SLURM_STEP_TASKS_PER_NODE%%[(,]*}
python -m selfdistill pretrain "$@"
code=$?
[ $code = 0 ] || (set -C; echo "$code $RANK" >"$FIRST_EXIT") 2>/dev/null
exit $code'

# a job that somebody cancelled is no longer running; to queue it would bring it back
running() { [ "$(squeue --noheader --jobs="$job" --format=%T)" = RUNNING ]; }

# to queue a running job ends it first, and at times the command that asked for it, too
queued() {
  local count
  count=$(squeue --noheader --jobs="$job" --Format=RestartCnt)
  ((${count:-0} > ${SLURM_RESTART_COUNT:-0}))
}

requeue() {
  if queued; then
    say "queued again by SLURM"
  elif { running && scontrol requeue "$job"; } || queued; then
    say "queued again"
  else
    say "not queued again: cancelled, or SLURM does not allow it"
  fi
}

srun=
asked=
# shellcheck disable=SC2317
stop() {
  say "asked to stop; passed on to all processes"
  asked=${asked:-$SECONDS}
  [ -z "$srun" ] || kill -USR1 "$srun" # which hands it to them; of TERM it would kill them
}
trap stop USR1
trap 'if running; then stop; fi' TERM # SLURM's own TERM reaches the processes too

say "job $job, start $((${SLURM_RESTART_COUNT:-0} + 1)): ${SLURM_NTASKS:-?} processes on" \
  "$SLURM_JOB_NODELIST, logs in $logs"
srun --kill-on-bad-exit=0 --wait=0 --input=none --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
  --open-mode=append --output="$logs/rank-%t.log" bash -c "$task" task "$@" &
srun=$!
[ -z "$asked" ] || kill -USR1 "$srun"
failed=
while kill -0 "$srun" 2>/dev/null; do
  sleep 1 &
  wait $! # which a signal interrupts
  if [ -n "$asked" ] && ((SECONDS - asked >= PATIENCE)); then
    say "not ended $PATIENCE s after the signal; the last checkpoint must do"
    requeue
    exit 75
  fi
  if [ -z "$failed" ] && [ -e "$FIRST_EXIT" ] && ! grep -q "^75 " "$FIRST_EXIT"; then
    failed=$SECONDS
  elif [ -n "$failed" ] && ((SECONDS - failed >= GRACE)); then
    kill -TERM "$srun" # a process that failed leaves others waiting for it
    failed=
  fi
done
wait "$srun"
code=$?

rank=0
if [ -e "$FIRST_EXIT" ]; then
  read -r code rank <"$FIRST_EXIT"
fi
if [ -n "$asked" ] && { [ "$code" = 138 ] || [ "$code" = 143 ]; }; then
  code=75 # the signal came before there was a step to save
fi
case $code in
  0) say "finished" ;;
  2) say "stopped by a mistake in the config, the command or the data" ;;
  3) say "stopped by the guard: collapsed, or step after step had to be left out" ;;
  4) say "stopped by too many bad samples" ;;
  75) say "preempted" ;;
  *) say "failed with exit code $code" ;;
esac
if [ "$code" = 75 ]; then
  requeue
elif [ "$code" != 0 ]; then
  say "process $rank was the first to end; what it and process 0 said last:"
  last=("$logs/rank-0.log")
  [ "$rank" = 0 ] || last+=("$logs/rank-$rank.log")
  tail --verbose --lines=5 "${last[@]}"
fi
exit "$code"
