#!/bin/sh
# Both strategies on the shipped samples, one after the other and again with the next seed, and
# their curves: tests/benchmarks/time_to_accuracy.sh image [SEED ...]
# The machine should have nothing else to do. With OMP_NUM_THREADS=1 and taskset, one modality can
# run on each core.
set -e
modality=$1
shift
[ $# -gt 0 ] || set -- 0 1
runs=""
for seed in "$@"; do
  for strategy in dense visible; do
    config=configs/$modality/sample.yaml
    [ $strategy = dense ] || config=configs/$modality/sample_visible.yaml
    run=runs/time/$modality-$strategy-$seed
    # evaluations are not counted as training
    steps=$(sed -n 's/^  steps: //p' $config)
    selfdistill pretrain $config seed=$seed run_dir=$run data.workers=0 eval.every=$((steps / 8))
    runs="$runs $run"
  done
done
selfdistill compare $runs --out tests/benchmarks/results/$modality.svg \
  | sed '/^written to/d' | tee tests/benchmarks/results/$modality.txt
