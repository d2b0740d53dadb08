#!/bin/sh
# Train on the phantoms, segment those that were held out, and show how good it is.
set -eu
cd "$(dirname "$0")/.."
data=sample_data/abdomen
medseg() { .venv/bin/python -m medseg "$@"; }

rm -rf demo
medseg train "$data" --out demo/run --config demo

held_out=$(.venv/bin/python -c '
import json, sys
print(" ".join(json.load(open(sys.argv[1]))[0]["val"]))' "$data/splits.json")
set --
for case in $held_out; do
    set -- "$@" "$data/imagesTr/$case.nii.gz"
done
medseg predict demo/run/model "$@" --out demo/masks
medseg evaluate demo/masks "$data/labelsTr" --cases "$data/splits.json:0" \
    --images "$data/imagesTr" --out demo/evaluation

echo
echo "masks:    demo/masks"
echo "figures:  demo/evaluation/metrics.json, demo/evaluation/metrics.csv"
echo "picture:  demo/evaluation/worst.png (scan, truth and prediction in three planes)"
