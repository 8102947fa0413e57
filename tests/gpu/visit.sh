#!/usr/bin/env bash
# One whole visit to a machine with a CUDA device: the tests marked gpu, sampling times, the bundled models trained
# for as long as MINUTES allow. From the repository's root: tests/gpu/visit.sh OUT [MINUTES] [HIPPOCAMPUS_FOLDER]
set -uo pipefail
out=${1:?usage: tests/gpu/visit.sh OUT [MINUTES] [HIPPOCAMPUS_FOLDER]}
minutes=${2:-8}
hippocampus=${3:-}
python=${PYTHON:-python3}
mkdir -p "$out"
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv | tee "$out/gpu.txt"
"$python" -m pytest -m gpu tests/gpu -q 2>&1 | tee "$out/tests.txt"
"$python" - <<'PY' 2>&1 | tee "$out/sampling.txt"
import time
import torch
import medgen
for name in ("brain-t1", "hippocampus-t1"):
    model = medgen.load_model(name, device="cuda")
    model.sample(1, seed=0)
    torch.cuda.synchronize()
    start = time.perf_counter()
    model.sample(4, seed=1)
    torch.cuda.synchronize()
    print(f"{name}: {(time.perf_counter() - start) / 4:.3f} s a volume on {torch.cuda.get_device_name()}")
PY
long="batch_size=32 num_workers=12 steps=40000 checkpoint_every=500 validate_every=4000"
run() { # name, configuration, overrides
    local name=$1 config=$2
    shift 2
    local resume=()
    [ -f "$out/$name/checkpoint.pt" ] && resume=(--resume)
    # shellcheck disable=SC2086
    timeout -s INT "${minutes}m" "$python" -m medgen train "$config" -o "$out/$name" --device cuda "${resume[@]}" $long "$@" \
        2>&1 | tail -n 3
}
run brain_t1 configs/brain_t1.yaml
run brain_t1_inpaint configs/brain_t1_inpaint.yaml
[ -n "$hippocampus" ] && run hippocampus configs/hippocampus.yaml "data=$hippocampus"
families="rectified_flow wavelet_diffusion autoencoder_kl latent_diffusion cascade_diffusion vqvae vq_transformer \
    stylegan2 stylegan3d spade class_conditional attribute_conditional text_conditional mask_conditional controlnet \
    consistency_distillation"
for name in ${FAMILIES:-$families}; do # FAMILIES="": none; FAMILIES="stylegan3d spade": these
    [ -n "$hippocampus" ] && run "$name" "configs/$name.yaml" "data=$hippocampus"
done
ls -l "$out"
