#!/bin/bash
# Builds the CUDA backend with the tests of the ops and the bench library, checks and times: all in
# one go, for a machine with a Hopper GPU and CUDA 13 that has few of the other libraries.
#
#   tools/gpu_check.sh OUT DEPS [test] [sanitize] [bench PARTS...]
#
# OUT gets objects, programs and logs. DEPS/include holds fmt, GoogleTest and nlohmann-json, DEPS/lib
# GoogleTest's static libraries. A short summary comes last.
set -u
out=$1 deps=$2
shift 2
cd "$(dirname "$0")/.." || exit 1
mkdir -p "$out/o"
cuda=$(dirname "$(dirname "$(readlink -f "$(command -v nvcc)")")")
includes="-I. -isystem $deps/include -isystem $cuda/include"
flags="-std=c++20 -O2 -DNDEBUG -DFMT_HEADER_ONLY -DEI_CUDA"

compile() {
  local source=$1 object=$2/o/$(echo "$1" | tr / _).o
  [ "$object" -nt "$source" ] && [ -z "${EI_REBUILD:-}" ] && return 0
  case $source in
    *.cu) nvcc $4 $3 -O3 -gencode=arch=compute_90a,code=sm_90a --expt-relaxed-constexpr \
            -diag-suppress=554 -lineinfo -Xcompiler=-fPIC -c "$source" -o "$object" ;;
    *) g++ $4 -fPIC $3 -c "$source" -o "$object" ;;
  esac || echo "FAILED $source"
}
export -f compile

sources="ei/cuda/*.cu $(ls ei/cuda/*.cc | grep -v no_cuda) $(ls ei/{base,policy,ops,io,model,cache,prefill,decode}/*.cc 2>/dev/null)
         ei/engine/named_shapes.cc tools/gpu_bench.cc tests/cuda/*.cc tests/ops/*.cc tests/ref/*.cc
         tests/support/backend_test.cc tests/support/device_kv.cc tests/support/numbers.cc"
start=$SECONDS
for source in $sources; do echo "$source"; done |
  xargs -P "$(nproc)" -I{} bash -c 'compile "$@"' _ {} "$out" "$includes" "$flags" >"$out/build.log" 2>&1
grep -A3 -E "FAILED|error" "$out/build.log" | head -40
objects=$(ls "$out"/o/ei_*.o)
links="-L$cuda/lib64 -L$cuda/lib -Wl,-rpath,$cuda/lib64:$cuda/lib -lcublasLt -lcudart_static -ldl -lrt -lpthread"
g++ "$out"/o/tests_*.o $objects -L"$deps/lib" -lgtest_main -lgmock -lgtest $links -o "$out/gpu_test" >>"$out/build.log" 2>&1 &&
  g++ -shared "$out"/o/tools_gpu_bench.cc.o $objects $links -o "$out/libgpu_bench.so" >>"$out/build.log" 2>&1 ||
  { grep -E "undefined|cannot" "$out/build.log" | head -20; exit 1; }
echo "built in $((SECONDS - start)) s"

while [ $# -gt 0 ]; do
  case $1 in
    test)
      timeout 300 "$out/gpu_test" --gtest_brief=1 ${EI_TESTS:-} >"$out/test.log" 2>&1
      echo "tests: exit $?"
      grep -E "FAILED|Failure|PASSED|what\(\)|error" "$out/test.log" | sort | uniq -c | sort -rn | head -30
      ;;
    sanitize)
      for tool in memcheck racecheck; do
        timeout 280 compute-sanitizer --tool $tool --error-exitcode 9 "$out/gpu_test" --gtest_brief=1 \
          "${EI_SANITIZE_TESTS:---gtest_filter=*MatchesReference*/cuda:-*SampleTest*:*MatMul*}" >"$out/$tool.log" 2>&1
        echo "$tool: exit $?"
        grep -E "=========" "$out/$tool.log" | grep -vE "COMPUTE-SANITIZER|Host Frame|in .*\.so" | head -12
      done
      ;;
    bench)
      shift
      timeout 500 python3 tools/bench_gpu.py "$out/libgpu_bench.so" "$@" 2>&1 | tee "$out/bench.log"
      break
      ;;
  esac
  shift
done
