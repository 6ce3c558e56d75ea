#!/bin/bash
# tests/gpu/studies.sh [STUDY...]   the shipped studies on the embedded data, by name, most wanted first, while the time lasts.
#   LIMIT    seconds for all together (400): the study then running ends at its next step, the others are not begun
#   WORKERS  runs at a time (3 a GPU)
#   SET      overrides for all runs, as "precision=bf16"; TEACHER_SET: for the teachers that two of the studies train first
# $OUT/studies.tar.gz: the studies' folders as `cab sweep` makes them, without weights; $OUT/studies.txt: tables and times.
# Where gnuplot is, tables and charts again, with the same overrides:
#   tar xf studies.tar.gz -C DIR; for s in DIR/*/; do cab sweep recipes/studies/$(basename $s).lua $SET --table --out $s; done
set -uo pipefail
cd "$(dirname "$0")/../.."
. tests/gpu/env.sh
out=${OUT:-/tmp/gpu-out} runs=runs/gpu-studies limit=${LIMIT:-400}
mkdir -p "$out" "$runs"
gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU')
workers=${WORKERS:-$((gpus > 0 ? 3 * gpus : 1))}
read -ra set <<<"${SET:-}"
read -ra teacher_set <<<"${TEACHER_SET:-}"
[ $# -gt 0 ] || set -- methods controls bridges maps layers weight stopping smallest taps teacher_size lengths best

left() { echo $((limit - SECONDS)); }

# What a study's teachers are trained by, where that is not in the repository.
teachers() {
  case $1 in
    teacher_size) timeout -k 10 "$(left)" build/cab run recipes/teachers_fashion.lua --quiet "${teacher_set[@]}" --out "$runs/.teachers" ;;
    lengths) timeout -k 10 "$(left)" build/cab run recipes/shakespeare.lua --quiet "${teacher_set[@]}" --out "$runs/.shakespeare" ;;
  esac
}

for study in "$@"; do
  begun=$SECONDS
  [ "$(left)" -gt 5 ] || { echo "== $study: not begun, $limit s are over"; continue; }
  echo "== $study"
  teachers "$study" &&
    timeout -k 10 "$(left)" build/cab sweep "recipes/studies/$study.lua" "${set[@]}" --workers "$workers" --quiet --out "$runs/$study"
  rc=$?
  build/cab sweep "recipes/studies/$study.lua" "${set[@]}" --table --out "$runs/$study" 2>&1
  echo "== $study: exit code $rc, $((SECONDS - begun)) s with $workers workers on $gpus GPU"
done 2>&1 | tee "$out/studies.txt"
tar czf "$out/studies.tar.gz" -C "$runs" --exclude='*.safetensors' --exclude='.teachers' --exclude='.shakespeare' .
ls -l "$out/studies.tar.gz"
