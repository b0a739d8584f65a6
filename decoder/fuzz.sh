#!/bin/sh
# Builds the fuzz target with AddressSanitizer and UndefinedBehaviourSanitizer and runs it: fuzz.sh [SECONDS]
set -eu
seconds=${1:-60}
here=$(cd "$(dirname "$0")" && pwd)
out=$here/../build/fuzz
mkdir -p "$out/corpus"

can_fuzz() {
    command -v clang++ >/dev/null 2>&1 || return 1
    echo 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }' >"$out/probe.cpp"
    clang++ -fsanitize=fuzzer,address,undefined "$out/probe.cpp" -o "$out/probe" >/dev/null 2>&1
}

if ! can_fuzz && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "fuzz: installing clang and its sanitizer runtime" >&2
    apt-get update -qq >&2 && apt-get install -y -qq --no-install-recommends clang libclang-rt-dev >&2 ||
        apt-get install -y -qq --no-install-recommends clang libclang-rt-14-dev >&2 || true
fi
if ! can_fuzz; then
    echo "fuzz: clang++ with libFuzzer and the sanitizer runtime is missing (Debian: clang, libclang-rt-dev)" >&2
    exit 3
fi

clang++ -std=gnu++20 -O1 -g -fno-omit-frame-pointer -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all \
    "$here/fuzz.cpp" -o "$out/fuzz"
# New finds go to build/fuzz/corpus; the seeds in decoder/corpus are only read.
exec "$out/fuzz" -max_total_time="$seconds" -max_len=4096 -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
    -artifact_prefix="$out/" "$out/corpus" "$here/corpus"
