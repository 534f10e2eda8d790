#!/usr/bin/env bash
# Everything from nothing to Table 1: without, with hard and with soft counterfactual fine-tuning.
#
#     bash recipes/reproduce.sh [SEED] [CONFIG] [FLAGS...]
#     bash recipes/reproduce.sh                                          # the phantom, 17 to 20 minutes on two CPU cores
#     bash recipes/reproduce.sh 0 morphomnist --data_dir FOLDER          # real handwritten digits
#
# CONFIG names a file in recipes/configs; FLAGS are of its section data. Results go into outputs/CONFIG, for another seed N
# than 0 into outputs/CONFIG-seedN. A run that was stopped goes on where it was when started again; to start anew, delete
# the folder.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -d .venv/bin ] && PATH="$PWD/.venv/bin:$PATH"

seed=${1:-0}
config=${2:-phantom}
flags=("${@:3}")
yaml=recipes/configs/$config.yaml
[ -f "$yaml" ] || { echo "There is no $yaml; CONFIG is one of: $(cd recipes/configs && echo *.yaml)" >&2; exit 2; }
out=outputs/$config
[ "$seed" = 0 ] || out=outputs/$config-seed$seed
mkdir -p "$out/logs"
# One thread a process, two processes at a time: on few cores more threads only wait for each other.
export OMP_NUM_THREADS=1

# Each job its own process group, so that nothing trains on when this script is stopped or a step fails.
set -m
trap 'for job in $(jobs -p); do kill -- "-$job" 2>/dev/null || true; done' EXIT
trap 'exit 130' INT TERM

recipe() { # recipe NAME SCRIPT ARGUMENTS...: the progress on the terminal, everything in the logs
    local name=$1 script=$2
    python "recipes/$script" --config "$yaml" "${@:3}" ${flags[@]+"${flags[@]}"} \
        >"$out/logs/$name.out" 2> >(tee "$out/logs/$name.err" >&2) || return 1
    cat "$out/logs/$name.out"
}
in_background() { # the same, but the progress goes into the logs only
    recipe "$@" 2>/dev/null || { echo "$1 failed:" >&2; tail -n 20 "$out/logs/$1.err" >&2; return 1; }
}
step() { printf '\n== %s\n' "$*"; }
training=(--seed "$seed" --resume_from_checkpoint latest)

step "1/5 Data and attribute mechanisms"
recipe scm train_scm.py "${training[@]}" --output_dir "$out/scm"

step "2/5 Image model; beside it the guide, then the judge (their logs: $out/logs)"
{
    in_background guide train_classifier.py --role guide "${training[@]}" --output_dir "$out/guide" &&
        in_background judge train_classifier.py --role judge "${training[@]}" --seed "$((1000 + seed))" \
            --output_dir "$out/judge"
} &
classifiers=$!
recipe hvae train_hvae.py "${training[@]}" --output_dir "$out/hvae"
wait "$classifiers"

step "3/5 Fine-tuning with soft labels; beside it with hard labels"
fine_tuning=("${training[@]}" --output_dir "$out" --scm_dir "$out/scm" --guide_dir "$out/guide" --hvae_dir "$out/hvae")
recipe none soft_cft.py --cft none "${fine_tuning[@]}"
in_background hard soft_cft.py --cft hard "${fine_tuning[@]}" &
hard=$!
recipe soft soft_cft.py --cft soft "${fine_tuning[@]}"
wait "$hard"

step "4/5 Counterfactuals of all test images, seen by guide and judge"
command -v nvidia-smi >/dev/null || export ACCELERATE_USE_CPU=true
torchrun --standalone --nproc-per-node 2 recipes/evaluate.py --config "$yaml" --seed "$seed" --output_dir "$out" \
    --judge_dir "$out/judge" --pipelines "$out/none" "$out/hard" "$out/soft" ${flags[@]+"${flags[@]}"} \
    2> >(tee "$out/logs/evaluate.err" >&2)

step "5/5 Done after $(((SECONDS + 30) / 60)) minutes. Look at"
cat <<END
    $out/table1.md                  effectiveness and amplification, by guide and by judge
    $out/comparison.png             the same counterfactuals without, with hard and with soft fine-tuning
    $out/counterfactuals_soft.png   more of them, with their effects
    $out/training_curves.png        how it was learned; also metrics.jsonl, table1.csv
and ask for your own:
    from softcft import DSCMPipeline
    pipe = DSCMPipeline.from_pretrained("$out/soft")
    result = pipe(image, parents={...}, do={...})   # the variables: pipe.hvae.causal_graph
END
