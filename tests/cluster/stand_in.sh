#!/usr/bin/env bash
# Stands in for python where only exit codes matter: python -m selfdistill pretrain CONFIG WORD...
# A job that was queued again succeeds.
run=${!#}
[ -z "${SLURM_RESTART_COUNT:-}" ] || exit 0
echo "process $RANK of $WORLD_SIZE, here $LOCAL_RANK of $LOCAL_WORLD_SIZE: ${*:4}"
echo "they meet at $MASTER_ADDR:$MASTER_PORT, each has $OMP_NUM_THREADS threads"
case $run in
  *-9) kill -KILL $$ ;;
  *-late) # than the other process
    [ "$RANK" = 0 ] || exit 3
    sleep 1
    exit 75
    ;;
  *-hangs)
    [ "$RANK" = 0 ] || exit 3
    exec sleep 300
    ;;
  *-early) exec sleep 300 ;; # which a signal ends: nothing to save yet
  *-deaf)
    trap '' USR1
    exec sleep 300
    ;;
  *-asked | *-evicted | *-cancelled | *-requeued | *-preempted)
    trap 'kill $!; exit 75' USR1 TERM
    sleep 300 &
    wait
    ;;
  *) exit "${run##*-}" ;;
esac
