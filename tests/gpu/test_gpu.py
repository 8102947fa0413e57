"""What only a CUDA device can show: equality with the CPU, mixed precision, refusal in a forked worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data import MetaTensor

import medgen
from medgen.checks import MedgenError
from medgen.models.bundled import bundled_models
from medgen.restoration.inpaint import inpaint
from medgen.trainers import train
from medgen.transforms import InpaintRegion

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("name", [name for name in bundled_models() if not name.endswith("inpaint")])
def test_a_seed_gives_the_same_sample_on_both_devices(name: str) -> None:
    torch.backends.cudnn.allow_tf32 = False
    made = [medgen.load_model(name, device=device).sample(1, seed=1)[0]["image"] for device in ("cpu", "cuda")]
    assert float((made[0].as_tensor() - made[1].as_tensor()).abs().max()) <= 1e-4


@pytest.mark.parametrize("precision", ["auto", "bf16", "fp16", "fp32"])
def test_training_runs_in_each_precision(precision: str, tmp_path: Path) -> None:
    overrides = [f"precision={precision}"]
    folder = train(CONFIGS / "brain_t1.yaml", tmp_path / "run", overrides, fast_dev_run=True, device="cuda")
    assert medgen.load_model(folder, device="cuda").spec.training["steps"] == 2


def test_a_scan_on_the_gpu_is_filled_there_as_on_the_cpu() -> None:
    torch.backends.cudnn.allow_tf32 = False
    grid = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, 40)] * 3, indexing="ij"))
    affine = torch.diag(torch.tensor([3.0, 3, 3, 1], dtype=torch.float64))
    image = MetaTensor(1000 * torch.exp(-2 * (grid**2).sum(0))[None], affine=affine)
    hole = MetaTensor(((grid - 0.1) ** 2).sum(0, keepdim=True).lt(0.05).float(), affine=affine)
    on_cpu = inpaint(image, hole, device="cpu")
    for mask in (hole, hole.cuda()):
        on_gpu = inpaint(image.cuda(), mask, device="cuda")
        assert on_gpu.device.type == "cuda"
        assert torch.equal(on_gpu.affine.cpu(), affine)
        assert float((on_gpu.as_tensor().cpu() - on_cpu.as_tensor()).abs().max()) <= 0.1
    region = InpaintRegion(mode="mean", device="cuda")(image.cuda(), hole)
    assert region.device.type == "cuda"


class _OnTheGpu(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> str:
        try:
            medgen.load_model("brain-t1", device="cuda")
        except MedgenError as error:
            return str(error)
        return ""


def test_a_forked_worker_is_refused_with_the_remedy() -> None:
    loader = torch.utils.data.DataLoader(_OnTheGpu(), num_workers=1, multiprocessing_context="fork")
    assert "spawn" in next(iter(loader))[0]
