#!/bin/bash
# All that is to be known of a GPU, in nine minutes at most: tests, precisions, speed and memory, one part after the other.
#
#   benchmarks/on_gpu.sh [--quick] [--device cuda|cpu] [--output DIR] [--wheels DIR] [--commit NAME] [--only NAMES]
#
# --quick   tiny networks, none of them compiled, to see that it runs; on a CPU, too
# --device  where the networks are (default: cuda)
# --output  folder of results.json, precisions.json, table.md, parts.txt and log.txt, all of them written after each part;
#           relative to the repository (default: output/on_gpu)
# --wheels  folder of wheels of the packages that Python lacks; no network is asked
# --commit  what is measured, for the table (default: that of git)
# --only    names of parts, in quotes: what a first run had no time for; its results stay
#
# The last line of a part says `part NAME: ok|failed|timed out in N s`. Returns 1 unless all of them are ok.
set -u
cd "$(dirname "$0")/.." || exit 2
quick='' device=cuda output=output/on_gpu wheels='' only='' commit=$(git rev-parse HEAD 2>/dev/null || echo unknown)
while [ $# -gt 0 ]; do
    case $1 in
        --quick) quick=--quick; shift; continue ;;
        --device | --output | --wheels | --commit | --only) [ $# -gt 1 ] || { echo "on_gpu.sh: $1 needs a value" >&2; exit 2; } ;;
        *) echo "on_gpu.sh: unknown argument $1; see the head of $0" >&2; exit 2 ;;
    esac
    case $1 in
        --device) device=$2 ;;
        --output) output=$2 ;;
        --wheels) wheels=$2 ;;
        --commit) commit=$2 ;;
        --only) only=$2 ;;
    esac
    shift 2
done
names='tests kernels step generation cost precisions files training compiled_tests compiled'
for name in $only; do
    case " $names " in *" $name "*) ;; *) echo "on_gpu.sh: --only has no part $name; there are: $names" >&2; exit 2 ;; esac
done
python=${PYTHON:-python3}
mkdir -p "$output" || exit 2
[ -n "$only" ] || rm -f "$output"/{results.json,precisions.json,table.md,parts.txt,log.txt}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
if [ -n "$wheels" ]; then
    # Beside the packages that are there: a virtual environment would not see those of another one, such as torch.
    site=$(mktemp -d) && trap 'rm -rf "$site"' EXIT
    "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$wheels"/*.whl || exit 2
    export PYTHONPATH="$PYTHONPATH:$site"
fi

"$python" - <<'END' || exit 2
import importlib.util, sys
needed = {'torch': 'torch', 'torchvision': 'torchvision', 'timm': 'timm', 'accelerate': 'accelerate', 'taming': 'taming-transformers',
          'open_clip': 'open_clip_torch', 'ftfy': 'ftfy', 'fsspec': 'fsspec', 'filelock': 'filelock', 'psutil': 'psutil',
          'pytest': 'pytest', 'hypothesis': 'hypothesis'}
missing = [package for module, package in needed.items() if importlib.util.find_spec(module) is None]
if missing:
    sys.exit(f'on_gpu.sh: Python lacks {", ".join(missing)}: install them, or give their wheels by --wheels')
END

[ -z "$quick" ] || export TORCH_COMPILE_DISABLE=1 # a compiler takes minutes for tiny networks, too
status=0 threads=$([ -n "$quick" ] && echo 1 || nproc)
flags=(--device "$device" --threads "$threads" --results "$output/results.json" ${quick:+"$quick"})

part() { # NAME SECONDS COMMAND ...: run it, and say what became of it
    local name=$1 limit=$2 begin=$SECONDS left code how
    shift 2
    case " ${only:-$name} " in *" $name "*) ;; *) return ;; esac
    left=$((530 - SECONDS))
    [ -n "$quick" ] && left=600 limit=300
    [ "$limit" -gt "$left" ] && limit=$((left > 1 ? left : 1))
    echo "== $name: $*" >>"$output/log.txt"
    timeout -k 5 "$limit" "$@" >>"$output/log.txt" 2>&1
    code=$?
    case $code in 0) how=ok ;; 124 | 137) how='timed out' ;; *) how=failed ;; esac
    [ $code -eq 0 ] || status=1
    echo "part $name: $how in $((SECONDS - begin)) s" | tee -a "$output/parts.txt"
    "$python" benchmarks/gpu_table.py "$output" --commit "$commit" || status=1
}

benchmark() { # NAME SECONDS SCRIPT FLAGS ...
    part "$1" "$2" "$python" "benchmarks/$3" "${flags[@]}" "${@:4}"
}

precisions=(--batch-size 16 --results "$output/precisions.json") # the last --results counts
batches=(--rounds 2 --batches)
set_of=(--only training --rounds 2)
[ -n "$quick" ] || set_of+=(--model resnet50 --img-size 128 --copies 4 --batch-size 64 --workers "$((threads < 8 ? threads : 8))")
full=()
[ -n "$quick" ] || full=(--full --images 256 --batch-size 64)

# Limits but the last add up to 470 s, what is left is for the last. Most of it is choosing algorithms for convolutions; what has to be compiled comes last.
part tests 45 "$python" -m pytest -q -m 'gpu and not compiles' tests/test_gpu.py
benchmark kernels 50 kernels.py --rounds 3 --batch-size 32
benchmark step 50 step.py --rounds 2 --precision bf16 --batch-size 64
benchmark generation 95 generation.py "${batches[@]}" 8 32 128 --more --seconds 40 --precision bf16 tf32 fp32 fp16
benchmark cost 65 online_cost.py --rounds 2 --precision bf16 --batch-size 32
benchmark precisions 35 precisions.py "${precisions[@]}" --only 'fp32, channels-last' tf32 bf16 fp16
benchmark files 35 generator.py --rounds 1 "${full[@]}"
benchmark training 35 reinforced.py "${set_of[@]}"
part compiled_tests 60 "$python" -m pytest -q -m 'gpu and compiles' tests/test_gpu.py
benchmark compiled 300 generation.py "${batches[@]}" 32 --precision bf16 --compile
exit $status
