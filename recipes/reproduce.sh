#!/usr/bin/env bash
# Everything from nothing to Table 1: without, with hard and with soft counterfactual fine-tuning.
#
#     bash recipes/reproduce.sh [SEED] [CONFIG] [FLAGS...]
#     bash recipes/reproduce.sh                                          # the phantom, 20 minutes on two CPU cores
#     bash recipes/reproduce.sh 0 morphomnist --data_dir FOLDER          # real handwritten digits
#
# CONFIG names a file in recipes/configs. Results go into outputs/CONFIG, for another seed N than 0 into
# outputs/CONFIG-seedN. A run that was stopped goes on where it was when started again; to start anew, delete the folder.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

seed=${1:-0}
config=${2:-phantom}
flags=("${@:3}")
out=outputs/$config
[ "$seed" = 0 ] || out=outputs/$config-seed$seed
mkdir -p "$out/logs"
# One thread a process, two processes at a time: on few cores more threads only wait for each other.
export OMP_NUM_THREADS=1

recipe() { # recipe NAME SCRIPT ARGUMENTS...: the progress on the terminal, everything in the logs
    local name=$1 script=$2
    python "recipes/$script" --config "recipes/configs/$config.yaml" "${@:3}" "${flags[@]}" \
        >"$out/logs/$name.out" 2> >(tee "$out/logs/$name.err" >&2) || return 1
    cat "$out/logs/$name.out"
}
in_background() { # the same, but the progress goes into the logs only
    recipe "$@" 2>/dev/null || { echo "$1 failed:" >&2; tail -n 20 "$out/logs/$1.err" >&2; return 1; }
}
step() { printf '\n== %s\n' "$*"; }

step "1/5 Data and attribute mechanisms"
recipe scm train_scm.py --seed "$seed" --output_dir "$out/scm"

step "2/5 Image model; beside it the guide, then the judge (their logs: $out/logs)"
{
    in_background guide train_classifier.py --role guide --seed "$seed" --output_dir "$out/guide" &&
        in_background judge train_classifier.py --role judge --seed "$((1000 + seed))" --output_dir "$out/judge"
} &
classifiers=$!
recipe hvae train_hvae.py --seed "$seed" --output_dir "$out/hvae"
wait "$classifiers"

step "3/5 Fine-tuning with soft labels; beside it with hard labels"
parts=(--seed "$seed" --scm_dir "$out/scm" --guide_dir "$out/guide" --hvae_dir "$out/hvae")
recipe none soft_cft.py --cft none --output_dir "$out/none" "${parts[@]}"
in_background hard soft_cft.py --cft hard --output_dir "$out/hard" "${parts[@]}" &
hard=$!
recipe soft soft_cft.py --cft soft --output_dir "$out/soft" "${parts[@]}"
wait "$hard"

step "4/5 Counterfactuals of all test images, seen by guide and judge"
ACCELERATE_USE_CPU=true torchrun --nproc-per-node 2 recipes/evaluate.py --config "recipes/configs/$config.yaml" \
    --seed "$seed" --output_dir "$out" --judge_dir "$out/judge" --pipelines "$out/none" "$out/hard" "$out/soft" \
    "${flags[@]}" 2> >(tee "$out/logs/evaluate.err" >&2)

step "5/5 Done after $(((SECONDS + 30) / 60)) minutes. Look at"
cat <<END
    $out/table1.md                  effectiveness and amplification, by guide and by judge
    $out/comparison.png             the same counterfactuals without, with hard and with soft fine-tuning
    $out/counterfactuals_soft.png   more of them, with their effects
    $out/fine_tuning_curves.png     how it was learned; also training_curves.png, metrics.jsonl, table1.csv
and ask for your own:
    from softcft import DSCMPipeline
    pipe = DSCMPipeline.from_pretrained("$out/soft")
    result = pipe(image, parents={...}, do={...})   # the variables: pipe.hvae.causal_graph
END
