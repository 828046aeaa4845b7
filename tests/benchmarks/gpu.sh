#!/bin/bash
# What only a machine with a GPU can tell, what matters most first:
#
#   bash tests/benchmarks/gpu.sh [FOLDER] [SECONDS]
#
# Each measurement is a file in FOLDER (tests/benchmarks/results/gpu) with its command, date, versions
# and device. What is there already is not measured again, and nothing begins that may not end within
# SECONDS (560), so that several calls do it all. What fails is NAME.failed, and is tried again. Not
# yet run on a GPU.
cd "$(dirname "$0")/../.." || exit
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} # what lies here is measured, installed or not
folder=${1:-tests/benchmarks/results/gpu}
most=${2:-560}
device=$(python -c 'import torch; print("torch", torch.__version__, torch.cuda.get_device_name())') \
  || { echo "torch finds no GPU here" >&2; exit 2; }
inputs=${MADE_INPUTS:-/tmp/made-inputs} # shards of pictures and clips
runs=$(mktemp -d)
trap 'rm -rf "$runs"' EXIT
mkdir -p "$folder"

measure() { # FILE SECONDS COMMAND
  local file=$folder/$1 seconds=$2 command=$3
  [ -e "$file" ] && return
  if [ $((SECONDS + seconds)) -gt "$most" ]; then
    echo "$file: left for another call"
    return
  fi
  rm -rf "${runs:?}"/*
  {
    echo "\$ $command"
    date -u +%Y-%m-%dT%H:%M:%SZ
    echo "$device"
    # a run that hangs does not heed the first signal: it waits for the end of its step
    timeout --kill-after 10 "$seconds" bash -e -c "$command"
  } > "$file.failed" 2>&1
  local code=$?
  [ $code = 0 ] && mv "$file.failed" "$file"
  echo "$file: exit code $code, $SECONDS s by now"
}

steps() { # RECIPE BATCH [key=value ...]: training steps with the real loader
  local recipe=$1 batch=$2
  shift 2
  echo "python -m selfdistill bench $recipe train.batch_size=$batch train.accumulate=1" \
    "train.compile=true data.batch_length=0 data.workers=$(($(nproc) - 1)) $*"
}

losses() { # RUN MODALITY [key=value ...]: of a sample, a little beyond its warm-up
  local run=$1 modality=$2
  shift 2
  echo "selfdistill pretrain $modality/sample run_dir=$runs/$run train.steps=500 log.every=20" \
    "'eval.tasks={}' eval.pictures=false $*"
}

images="'data.train=[$inputs/image-*.tar]'"
clips="'data.train=[$inputs/audio-*.tar]'"
passages="'data.train=[$inputs/text-*.tar]' encoder.vocab_size=4000 encoder.mask_id=4"
compare="python tests/benchmarks/loss_curves.py $runs"
# where packages lie in a folder of their own, no command of theirs is found
launch="python -m accelerate.commands.launch --config_file"
[ -e "$inputs" ] || python tests/benchmarks/made_inputs.py "$inputs"

measure exactness.txt 150 "python tests/golden/replay.py tests/golden/recordings/* --device cuda"
measure no_waiting.txt 150 "python -m pytest -n 0 tests/runs/test_other_device.py -k sees_no_waiting"
measure image_base.txt 120 "$(steps image/base_imagenet 256 "$images")"
measure image_large.txt 120 "$(steps image/large_imagenet 128 "$images")"
measure text_base.txt 120 "$(steps text/base 64 "$passages")"
measure audio_base.txt 120 "$(steps audio/base_librispeech 32 "$clips")"
measure image_visible.txt 120 "$(steps image/base_visible 64 "$images")"
measure text_visible.txt 120 "$(steps text/base_visible 16 "$passages")"
measure audio_visible.txt 120 "$(steps audio/base_visible 16 "$clips")"
measure image_eager.txt 90 "$(steps image/base_imagenet 256 "$images" train.compile=false)"
for modality in image audio text; do
  beside="python tests/benchmarks/against_transformers.py $modality --device cuda --rounds 5"
  measure "beside_transformers_$modality.txt" 120 "$beside"
  measure "beside_transformers_${modality}_compiled.txt" 240 "$beside --compile"
done
for modality in image audio text; do
  # then the loss of the words falls to a tenth and leaps back, sooner or later with any rounding
  [ $modality = audio ] && last=120 || last=200
  measure "bf16_$modality.txt" 120 "
    python -m $(losses fp32 $modality train.precision=fp32)
    python -m $(losses bf16 $modality train.precision=bf16)
    $compare/fp32 $runs/bf16 --steps $last --within 0.02"
done
measure sharded.txt 120 "
  python -m $(losses one image)
  $launch launch/fsdp.yaml --num_processes 1 -m $(losses sharded image)
  $compare/one $runs/sharded --within 0.001"
measure killed.txt 300 "python tests/benchmarks/soak.py --device cuda --kills 10 --steps 300"
measure largest_batch.txt 420 \
  "$(steps image/base_imagenet 256 "$images" train.compile=false) --sweep batch"
