#!/bin/bash
# Builds the engine with its CUDA backend, the tests that need a GPU, the Python package and the bench
# library, checks and times: all in one go, for a machine with a Hopper GPU and CUDA 13 that has few
# other libraries.
#
#   tools/gpu_check.sh OUT DEPS [test] [gpu2] [sanitize] [python] [serve] [bench PARTS...]
#
# OUT gets objects, programs and logs; objects newer than their sources are kept. DEPS/include holds
# the headers of fmt, GoogleTest, nlohmann-json, Highway, PCRE2, utf8proc and Eigen, DEPS/lib the
# libraries of those that have one. NCCL is taken where NVIDIA's or PyTorch's packages have put it;
# without it there are no ranks on GPUs, and gpu2, which tests two of them, is skipped. For `python`,
# whose package goes to OUT/python, DEPS also has CLI11, curl and OpenSSL's crypto, and python3 has
# nanobind, pytest, torch and transformers. For `serve`, which lets the server's clients loose on the
# program OUT/entropyinfer, on one GPU, with a cache in fp8, on two that share a model and, where
# mpicc works, on two of MPI's ranks, DEPS also has Boost, spdlog, CLI11, libedit, curl and OpenSSL's
# crypto, DEPS/share the page's libraries (apps/CMakeLists.txt names them), and python3 has pytest,
# pytest-xdist, openai, anthropic and jsonschema. A short summary comes last.
set -u
out=$1 deps=$2
shift 2
cd "$(dirname "$0")/.." || exit 1
mkdir -p "$out/o"
cuda=$(dirname "$(dirname "$(readlink -f "$(command -v nvcc)")")")
includes="-I. -isystem $deps/include -isystem $cuda/include"
nccl=$(for d in /usr $(python3 -c 'import nvidia.nccl; print(*nvidia.nccl.__path__)' 2>/dev/null); do
         [ -e "$d/include/nccl.h" ] && echo "$d"; done | head -1)
without='no_cuda|model/(config|rope)_test|cuda/nccl.cc' nccl_links=
if [ -n "$nccl" ]; then
  without='no_cuda|model/(config|rope)_test|no_nccl'
  nccl_links="-L$nccl/lib -Wl,-rpath,$nccl/lib -l:libnccl.so.2"
  [ "$nccl" != /usr ] && includes+=" -isystem $nccl/include"
fi
# CPU kernels for this machine alone: those of every instruction set take longer than all the rest.
flags="-std=c++20 -O2 -DNDEBUG -DFMT_HEADER_ONLY -march=native -DHWY_COMPILE_ONLY_STATIC -fPIC"

compile() {  # SOURCE OUT INCLUDES FLAGS
  local source=$1 object=$2/o/$(echo "$1" | tr / _).o
  [ "$object" -nt "$source" ] && return 0
  case $source in
    *.cu) nvcc -std=c++20 -O3 -DNDEBUG $3 -gencode=arch=compute_90a,code=sm_90a \
            --expt-relaxed-constexpr -diag-suppress=554 -lineinfo -Xcompiler=-fPIC -c "$source" -o "$object" ;;
    tests/*) g++ $4 $3 -DEI_CUDA -DEI_SOURCE_DIR="\"$PWD\"" -c "$source" -o "$object" ;;
    *) g++ $4 $3 -fopenmp -c "$source" -o "$object" ;;
  esac || echo "FAILED $source"
}
export -f compile

# The program's pages and its commit, as apps/CMakeLists.txt has them made.
make_pages() {
  mkdir -p "$out/pages"
  page() { cmake "-DIN=$4" "-DOUT=$out/pages/$1_$2.cc" "-DHEADER=apps/$1/page.h" "-DNAMESPACE=ei::$1" "-DNAME=$3" -P cmake/page.cmake; }
  page eval report kReportPage apps/eval/report.html
  page eval profile kProfilePage apps/eval/profile.html
  page server page kPageFiles "$(ls apps/server/page/* "$deps"/share/{marked.umd.min,purify.min,pdf,pdf.worker}.js | paste -sd ';')"
  cmake "-DOUT=$out/pages/commit.h" "-DSOURCE=$PWD" -P cmake/commit.cmake
}

wants() { [[ " $modes " == *" $1 "* ]]; }
modes=$*
folders="ei/*/*.cc ei/cuda/*.cu apps/bench/gpu/*.cc"
if wants test || wants gpu2 || wants sanitize; then
  folders+=" apps/eval/document.cc"
  for folder in ops cuda cache decode engine golden model prefill end_to_end ref support; do
    folders+=" tests/$folder/*.cc"
  done
fi
if wants python; then  # and what it uses of the program
  nanobind=$(dirname "$(python3 -m nanobind --include_dir)")
  includes+=" -isystem $nanobind/include -isystem $nanobind/ext/robin_map/include"
  includes+=" -isystem $(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')"
  flags+=" -fno-strict-aliasing -DNB_COMPACT_ASSERTIONS"
  program=$(ls apps/hub/*.cc apps/cli/{limits,model_argument,options,progress,ranks,report,terminal,units}.cc \
              apps/eval/{head_profile,policies}.cc python/src/*.cc "$nanobind/src/nb_combined.cpp")
  folders+=" $program"
fi
if wants serve; then  # the program
  make_pages
  version=$(sed -n 's/^project(entropyinfer VERSION \([0-9.]*\).*/\1/p' CMakeLists.txt)
  flags+=" -DSPDLOG_FMT_EXTERNAL -DOMPI_SKIP_MPICXX -DEI_VERSION=\"$version\""
  includes+=" -I$out/pages"
  mpi=no_mpi mpi_links=
  if echo '#include <mpi.h>' | mpicc -xc -c - -o /dev/null 2>/dev/null; then
    mpi=mpi mpi_links=$(mpicc --showme:link)
    includes+=" $(mpicc --showme:incdirs | sed 's/[^ ]*/-isystem &/g')"
  fi
  served=$(ls apps/{bench,cli,eval,hub,server}/*.cc apps/mpi/$mpi.cc "$out"/pages/*.cc)
  folders+=" $served"
fi
sources=$(ls -S $(printf '%s\n' $folders | sort -u) | grep -vE "$without")
object_of() { for source in "$@"; do echo "$out/o/$(echo "$source" | tr / _).o"; done; }
start=$SECONDS
for source in $sources; do echo "$source"; done |
  xargs -P "$(nproc)" -I{} bash -c 'compile "$@"' _ {} "$out" "$includes" "$flags" >"$out/build.log" 2>&1
grep -A3 -E "FAILED|error:" "$out/build.log" | head -40
links="-L$deps/lib -L$cuda/lib64 -L$cuda/lib -L$cuda/targets/x86_64-linux/lib
       -Wl,--disable-new-dtags,-rpath,$deps/lib:$cuda/lib64:$cuda/lib -lcublasLt -lcudart_static $nccl_links -ldl -lrt -lpthread -fopenmp"
bench=$(ls "$out"/o/ei_{base,policy,ops,io,model,cache,prefill,decode,cuda}_*.o 2>/dev/null)
if wants test || wants gpu2 || wants sanitize; then
  g++ "$out"/o/{tests_,ei_,apps_eval_document}*.o -lgtest_main -lgmock -lgtest -lhwy -lpcre2-8 -lutf8proc \
    $links -o "$out/gpu_test" >>"$out/build.log" 2>&1
fi &&
  if wants python; then
    mkdir -p "$out/python/entropyinfer" && cp python/entropyinfer/*.py "$out/python/entropyinfer" &&
      g++ -shared $(object_of $program) "$out"/o/ei_*.o -lcurl -lcrypto -lhwy -lpcre2-8 -lutf8proc $links \
        -o "$out/python/entropyinfer/_core.so" >>"$out/build.log" 2>&1
  fi &&
  if wants serve; then
    g++ $(object_of $served) "$out"/o/ei_*.o -lcurl -lcrypto -ledit -lhwy -lpcre2-8 -lutf8proc $mpi_links $links \
      -o "$out/entropyinfer" >>"$out/build.log" 2>&1
  fi &&
  g++ -shared "$out"/o/{apps_bench_gpu_*,ei_engine_named_shapes}.cc.o $bench -lutf8proc $links \
    -o "$out/libgpu_bench.so" >>"$out/build.log" 2>&1 ||
  { grep -E "undefined|cannot" "$out/build.log" | head -20; exit 1; }
echo "built in $((SECONDS - start)) s"

summary() {  # LOGS
  cat "$@" | grep -E "FAILED|Failure|PASSED|what\(\)|rror" | sort | uniq -c | sort -rn | head -40
  for log in "$@"; do  # one that ran out of time or crashed: what it did last
    grep -qE "PASSED|FAILED" "$log" || { echo "$log did not end:"; tail -n 4 "$log"; }
  done
}

tests() {
  local n=8 i
  # Those of whole engines keep all cores busy, and one takes all memory: they are run alone.
  for i in $(seq 0 $((n - 1))); do
    GTEST_TOTAL_SHARDS=$n GTEST_SHARD_INDEX=$i timeout 200 "$out/gpu_test" \
      --gtest_filter="*/cuda:AttentionTiles*:DecodeSplits*:-*CudaTest*" >"$out/test$i.log" 2>&1 &
  done
  wait
  timeout 600 "$out/gpu_test" --gtest_brief=1 --gtest_filter="*CudaTest*" >"$out/test$n.log" 2>&1
  summary "$out"/test*.log
}

# What two GPUs do together, and the ops on the second alone.
two_gpus() {
  if [ -z "$nccl" ]; then echo "skipped: no NCCL was found"; return; fi
  timeout 300 "$out/gpu_test" --gtest_filter="*/two_cuda" >"$out/two.log" 2>&1
  timeout 300 "$out/gpu_test" --gtest_brief=1 --gtest_filter="*/second_cuda" >"$out/second.log" 2>&1
  summary "$out/two.log" "$out/second.log"
}

sanitized() {
  local tool
  for tool in memcheck racecheck; do
    (timeout 110 compute-sanitizer --tool $tool --error-exitcode 9 "$out/gpu_test" --gtest_brief=1 \
      "${EI_SANITIZE_TESTS:---gtest_filter=*/cuda:-*Reject*:*CudaTest*:*ParityTest*:*MemoryTest*:*SampleTest*:*MatMul*:*ThreadsDo*}" \
      >"$out/$tool.log" 2>&1; echo "$tool: exit $?") &
  done
  wait
  # What racecheck makes of mbarriers alone, in a program that is right.
  nvcc -std=c++20 -O3 -I. -gencode=arch=compute_90a,code=sm_90a --expt-relaxed-constexpr -lineinfo \
    tests/cuda/hand_over.cu -o "$out/hand_over" >>"$out/build.log" 2>&1 && "$out/hand_over" &&
    timeout 30 compute-sanitizer --tool racecheck "$out/hand_over" | tail -n 1
  for tool in memcheck racecheck; do
    grep -E "=========|PASSED|FAILED" "$out/$tool.log" | grep -vE "Host Frame|in .*\.so" | sort | uniq -c | sort -rn | head -12
  done
}

python_tests() {
  PYTHONPATH=$out/python:${PYTHONPATH:-} PYTHONDONTWRITEBYTECODE=1 timeout 400 python3 -m pytest -q -rs -p no:cacheprovider \
    python/tests -k cuda >"$out/python.log" 2>&1
  grep -E "^(FAILED|ERROR|SKIPPED|E  )|passed|failed" "$out/python.log" | cut -c1-300 | tail -n 60
}

# The server's clients: which GPUs it has, its flags as environment variables, which tests.
clients() {  # NAME GPUS VARIABLES... -- PYTEST OPTIONS
  local name=$1 gpus=$2 settings=()
  shift 2
  while [ "$1" != -- ]; do settings+=("$1"); shift; done
  shift
  env CUDA_VISIBLE_DEVICES="$gpus" ENTROPYINFER="$out/entropyinfer" ENTROPYINFER_DEVICE=cuda "${settings[@]}" \
    PYTHONDONTWRITEBYTECODE=1 timeout 300 python3 -m pytest -q -rfEs --tb=short -p no:cacheprovider "$@" >"$out/serve_$name.log" 2>&1
  echo "$name: exit $?: $(tail -n 1 "$out/serve_$name.log")"
}

# What the clients of every API ask, whoever hangs up, mixed loads, sessions and files of prefixes.
serve_tests() {
  local gpus n_gpus all=() shared
  IFS=, read -ra gpus <<<"${CUDA_VISIBLE_DEVICES:-$(seq -s, 0 $(($(nvidia-smi -L | wc -l) - 1)))}"
  n_gpus=${#gpus[@]}
  for name in contract faults messages responses fields agents load device; do all+=("tests/server/${name}_test.py"); done
  shared="(contract or device) and not outlives and not files_alone and not session"  # files are one rank's
  clients one "${gpus[0]}" -- -n 8 "${all[@]}" -k "not rank" &
  clients fp8 "${gpus[n_gpus - 1]}" ENTROPYINFER_KV_TYPE=fp8 -- -n 4 tests/server/{contract,load,device}_test.py -k "not rank" &
  if [ "$n_gpus" -gt 1 ]; then
    clients two "${gpus[0]},${gpus[1]}" ENTROPYINFER_TP=2 -- -n 4 tests/server/{contract,device,faults}_test.py -k "($shared) or rank_that_hangs" &
    if [ $mpi = mpi ]; then
      clients mpi "${gpus[0]},${gpus[1]}" ENTROPYINFER="$PWD/tests/server/two_ranks" TWO_RANKS_OF="$out/entropyinfer" -- \
        -n 2 tests/server/{contract,device,faults}_test.py -k "($shared) or process_of_a_rank" &
    else
      echo "skipped: ranks of MPI: there is no mpicc that works"
    fi
  else
    echo "skipped: models shared by two GPUs: this machine has one"
  fi
  wait
  clients memory "${gpus[0]}" -- tests/server/device_test.py --hold-memory  # takes all of the GPU's
  grep -hE "^(FAILED|ERROR|SKIPPED|E   )" "$out"/serve_*.log | cut -c1-300 | sort | uniq -c | sort -rn | head -60
}

while [ $# -gt 0 ]; do
  start=$SECONDS
  case $1 in
    test) tests ;;
    gpu2) two_gpus ;;
    sanitize) sanitized ;;
    python) python_tests ;;
    serve) serve_tests ;;
    bench)
      shift
      PYTHONPATH=$out/python:${PYTHONPATH:-} timeout 400 python3 apps/bench/gpu/bench_gpu.py "$out/libgpu_bench.so" "$@" 2>&1 | tee "$out/bench.log"
      exit
      ;;
  esac
  echo "$1 took $((SECONDS - start)) s"
  shift
done
