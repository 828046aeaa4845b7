#!/usr/bin/env bash
# Two processes on the CPU of one machine, for trying out what several processes do:
#
#   launch/cpu_2proc.sh configs/image/sample.yaml run_dir=runs/two train.steps=20
#
# accelerate launch would start a single process on a CPU without MPI, hence torchrun.
set -euo pipefail
export ACCELERATE_USE_CPU=true
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec torchrun --standalone --nproc_per_node 2 -m selfdistill pretrain "$@"
