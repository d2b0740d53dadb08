# Predicting with nnU-Net's models: train the timed models once, then measure every row.
#
#   sh benchmarks/nnunet_predict.sh PYTHON PEER_PYTHON WORK [MODEL IMAGES]
#
# WORK keeps the trained models for later runs. MODEL and IMAGES: an nnU-Net folder of one
# channel and 40 scans for it, for the row with many small cases.
set -eu
python=$1 peer=$2 work=$3 model=${4:-} images=${5:-}
here=$(dirname "$0")
train() {
    [ -d "$work/$1/predictions" ] ||
        "$peer" "$here/peers/train_nnunet.py" "$work" --kinds "$1" --minutes "$2" --threads 2 ||
        echo "$1 is timed all the same"
}
train wide 4
train organs 6
"$python" "$here/nnunet_predict.py" large --peer "$peer" --models "$work"
"$python" "$here/nnunet_predict.py" organs --peer "$peer" --models "$work"
if [ -n "$model" ]; then
    "$python" "$here/nnunet_predict.py" batch --peer "$peer" --model "$model" --images "$images"
fi
