#!/usr/bin/env bash
# All tests under two instruction sets, with one and two threads, and beside two busy processes; a table at the end.
#
#     make test-matrix                 # everything; five times as long as `make test`
#     make test-matrix ARGS=tests/unit # what pytest is to run
set -uo pipefail
cd "$(dirname "$0")/.."
logs=$(mktemp -d)
table=""
failed=0

run() { # name, then NAME=value settings
    local name=$1 began=$SECONDS result
    shift
    echo "==> $name"
    if env "$@" make --no-print-directory test ARGS="-m '' ${ARGS:-}" 2>&1 | tee "$logs/$name.log"; then result=green; else result=RED failed=1; fi
    table+=$(printf '%-26s %-6s %5d s  %s' "$name" "$result" $((SECONDS - began)) "$(tail -n 1 "$logs/$name.log")")$'\n'
}

for capability in default avx2; do
    for threads in 1 2; do
        run "$capability-threads-$threads" ATEN_CPU_CAPABILITY="$capability" OMP_NUM_THREADS="$threads"
    done
done

busy=()
trap 'kill "${busy[@]}" 2>/dev/null' EXIT
for _ in 1 2; do
    "${PYTHON:-python3}" -c "while True: pass" &
    busy+=($!)
done
run beside-two-busy-processes OMP_NUM_THREADS=1
printf '\n%slogs: %s\n' "$table" "$logs"
exit "$failed"
