#!/bin/bash
# tests/gpu/run.sh PART...   on a machine with a GPU: build/cab and build/libcab_cuda.so must be there, built here or elsewhere.
#   parity       every op against PyTorch's values and against the CPU; tensors, updates, faults of the device
#   goldens      the golden models of vision and language
#   strategies   strategies, mixing matrices, recomputed blocks and the loader's pictures on the device
#   determinism  every op, and training steps, again and again: equal
#   train        200 steps on the CPU and on the GPU; 1000 steps in bf16
#   faults       broken kernels, lost device, absent device, library for another chip; memory that fails, if build-faults/ is there
#   sanitize     compute-sanitizer: memcheck initcheck racecheck synccheck (or only those named in SANITIZERS)
#   bench        ceilings, kernels, bridge loss, training steps, forward pass
#   align        what the bridge adds to the step of soft distillation, time and memory
#   peer         kernels and bridge loss next to PyTorch
#   language     the language step and the SSD scan
#   dist         on 2 GPUs, in 4 minutes: parity, bits and faults of 2 ranks, then scaling; DIST_DEVICE=cpu: its rehearsal without GPUs
#   profile      time by kernel of one replayed step; PROFILE names precisions and stages of language (default: f32 tf32 bf16 align kl)
# Logs go to ${OUT:-/tmp/gpu-out}/PART.log. Each part has a limit of time. Ends with a line for each; exit code 1 if one failed.
# Where Lua and its libraries are: tests/gpu/env.sh.
# build-faults/: make B=build-faults OPT="-O2 -g -DCAB_FAULTS" CUDA_ARCH="-gencode arch=compute_90,code=sm_90 -DCAB_FAULTS"
set -uo pipefail
cd "$(dirname "$0")/../.."
out=${OUT:-/tmp/gpu-out}
mkdir -p "$out"
cab=$PWD/build/cab
summary=()
failed=0

. tests/gpu/env.sh
nvcc=$(command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null)
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
export sanitizer cab out

# check NAME SECONDS COMMAND...: runs it, shows its last lines, notes how it ended.
check() {
  local name=$1 limit=$2 log="$out/$1.log" begun=$SECONDS state=ok rc
  shift 2
  echo "== $name"
  timeout -k 10 "$limit" "$@" >"$log" 2>&1
  rc=$?
  [ $rc = 0 ] || { state=FAILED; failed=1; }
  [ $rc != 124 ] && [ $rc != 137 ] || state="FAILED (over $limit s)"
  if [ $rc = 0 ]; then tail -n "${LINES_OK:-4}" "$log"; else tail -n 40 "$log"; fi
  summary+=("$(printf '%-14s %-8s %4d s  %s' "$name" "$state" $((SECONDS - begun)) "$(tail -n 1 "$log" | cut -c 1-120)")")
}

spec() { # spec NAME SECONDS FILES...: skipped tests count as failures here
  local name=$1 limit=$2
  shift 2
  check "$name" "$limit" env CAB_TEST_DEVICE=cuda "$cab" run tests/main.lua "$@"
  if grep -q '^skipped ' "$out/$name.log"; then
    summary+=("$(printf '%-14s %s' "$name" "FAILED: $(grep -c '^skipped ' "$out/$name.log") skipped")")
    failed=1
  fi
}

faults() {
  local bad="" foreign="" dir="$out/foreign"
  if [ -n "$nvcc" ]; then
    "$nvcc" -shared -Xcompiler -fPIC -arch=native -o "$out/bad.so" tests/gpu/bad.cu && bad=$out/bad.so
    mkdir -p "$dir/build"
    cp "$cab" "$dir/build/" && ln -sfn "$PWD/lua" "$dir/lua"
    "$nvcc" -std=c++17 -O1 -gencode arch=compute_120,code=sm_120 -Icore/base -Icore/tensor -Ikernels -Xcompiler -fPIC -shared -cudart static \
      -o "$dir/build/libcab_cuda.so" core/tensor/cuda.cu kernels/elementwise.cu kernels/sum_middle.cu -lcublas -lcublasLt && foreign=$dir
  fi
  LINES_OK=40 check faults 280 "$cab" run tests/gpu/faults.lua "$bad" "$foreign"
  if [ -x build-faults/cab ]; then check memory-faults 200 "$cab" run tests/gpu/memory_faults.lua "$PWD/build-faults/cab"
  else summary+=("memory-faults  skipped: no build-faults/cab"); fi
}

# The work of tests/gpu/sanitize.lua under a tool, spread over SANITIZE_PARTS processes.
sanitize_spread() {
  local tool=$1 parts=${SANITIZE_PARTS:-4} pids=() rc=0 k pid
  for k in $(seq "$parts"); do
    CAB_INITCHECK=1 "$sanitizer" --tool "$tool" --error-exitcode 9 --print-limit 20 "$cab" run tests/gpu/sanitize.lua cuda "$k/$parts" >"$out/$tool.$k.log" 2>&1 &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || rc=$?; done
  tail -n 25 "$out/$tool".*.log
  grep -h SUMMARY "$out/$tool".*.log | sort | uniq -c
  return $rc
}

sanitize() {
  if [ -z "$sanitizer" ]; then
    summary+=("sanitize       FAILED: no compute-sanitizer")
    failed=1
    return
  fi
  local tool
  export -f sanitize_spread
  for tool in ${SANITIZERS:-memcheck initcheck racecheck synccheck}; do
    check "$tool" "${SANITIZE_SECONDS:-300}" bash -c "sanitize_spread $tool"
  done
}

profile() {
  local precision cupti
  cupti=$(dirname "$(find /usr/local/cuda*/lib* /usr/local/cuda*/extras/CUPTI -name 'libcupti.so.*' 2>/dev/null | head -n 1)")
  export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:-}:$cupti
  "$nvcc" -shared -Xcompiler -fPIC -I"$cupti/../include" -L"$cupti" -o "$out/profile.so" tests/gpu/profile.cu -lcupti ||
    { failed=1; summary+=("profile        FAILED: tests/gpu/profile.cu does not build"); return; }
  for precision in ${PROFILE:-f32 tf32 bf16 align kl}; do
    CUDA_INJECTION64_PATH=$out/profile.so CAB_PROFILE=$out/profile-$precision.txt check "profiled-$precision" 60 "$cab" run tests/gpu/profile.lua step "$precision"
    LINES_OK=45 check "profile-$precision" 20 "$cab" run tests/gpu/profile.lua table "$out/profile-$precision.txt"
  done
}

dist() {
  local device=${DIST_DEVICE:-cuda} dir
  [ -e .gpu/mpi ] || [ ! -e .gpu/mpi.tar.gz ] || tar -C .gpu -xzf .gpu/mpi.tar.gz
  [ ! -e .gpu/mpi/env.sh ] || . .gpu/mpi/env.sh
  for dir in $(python3 -c 'import nvidia, os; p = list(nvidia.__path__)[0]; print(os.path.join(p, "nccl", "lib"))' 2>/dev/null); do
    ldconfig -p | grep -q 'libnccl\.so\.2' || export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:-}:$dir
  done
  export NCCL_NVLS_ENABLE=${NCCL_NVLS_ENABLE:-0} OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 CAB_TEST_DEVICE=$device
  local mpirun="mpirun --oversubscribe --bind-to none -np 2" # no word of LD_LIBRARY_PATH: ranks of this host have it anyway
  LINES_OK=30 check dist-alone 60 "$cab" run tests/bench/dist.lua
  LINES_OK=30 check dist-two 90 $mpirun "$cab" run tests/bench/dist.lua
  LINES_OK=40 check dist-ranks "${DIST_SECONDS:-150}" "$cab" run tests/gpu/dist.lua
}

for part in "$@"; do
  case $part in
    parity) LINES_OK=140 spec parity 200 tests/ops_spec.lua tests/cuda_spec.lua tests/tensor_spec.lua tests/nn_spec.lua \
      tests/optim_spec.lua tests/bridge_spec.lua tests/device_spec.lua ;;
    goldens) spec goldens 90 tests/goldens_spec.lua tests/language_spec.lua ;;
    strategies) spec strategies 120 tests/strategies_spec.lua tests/mixing_spec.lua tests/recompute_spec.lua tests/input_spec.lua ;;
    determinism)
      check determinism 120 "$cab" run tests/gpu/determinism.lua
      check training 90 "$cab" run tests/gpu/training.lua ;;
    train) LINES_OK=30 check train 280 "$cab" run tests/gpu/loss_gap.lua ;;
    faults) faults ;;
    sanitize) sanitize ;;
    bench) LINES_OK=200 check bench 280 "$cab" run tests/bench/gpu.lua ceilings kernels bridge step align step128 forward ;;
    language) LINES_OK=60 check language 120 "$cab" run tests/bench/gpu.lua ssd language ;;
    align) LINES_OK=20 check align 120 "$cab" run tests/bench/gpu.lua align ;;
    dist) dist ;;
    profile) profile ;;
    peer) LINES_OK=200 check peer 280 "$cab" run tests/bench/gpu.lua kernels bridge peer ;;
    *) echo "unknown part '$part'"; exit 2 ;;
  esac
done
echo "== summary, logs in $out"
printf '%s\n' "${summary[@]}"
exit $failed
