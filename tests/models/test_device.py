"""Words for devices, and CUDA in forked workers."""

from __future__ import annotations

import multiprocessing
from multiprocessing.queues import SimpleQueue
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from medgen.checks import MedgenError
from medgen.models.device import check_not_forked, in_forked_process, resolve_device

FORK = "fork" in multiprocessing.get_all_start_methods()


class Asks(Dataset[str]):
    """Each item is the error of asking for CUDA where the item is made, or 'fine'."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> str:
        try:
            check_not_forked("cuda:0", "InpaintRegiond")
        except MedgenError as error:
            return str(error)
        return "fine"


def _answer(queue: SimpleQueue[Any]) -> None:
    queue.put((in_forked_process(), resolve_device("auto").type))


def test_plain_names() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device(torch.device("cpu")) == torch.device("cpu")
    assert resolve_device("cpu:0") == torch.device("cpu")
    assert resolve_device("auto").type in {"cpu", "cuda", "mps"}


@pytest.mark.parametrize("name", ["gpu", "", "cuda:", "cuda:-1", "cuda:x", "cpu:1", "cuda:1234", "Cpu", "meta"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(MedgenError, match="must be one of auto, cpu, cuda, cuda:N, mps"):
        resolve_device(name, "medgen generate")


def test_absent_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device("auto").type == "cpu"
    for name in ("cuda", "cuda:0", "mps"):
        with pytest.raises(MedgenError, match="not available on this machine"):
            resolve_device(name)


def test_index_out_of_range(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(MedgenError, match=r"'cuda:2' does not exist, there are 2\. Use cuda:0\.\.1"):
        resolve_device("cuda:2")


@pytest.mark.skipif(not FORK, reason="this system does not fork")
def test_cuda_in_a_forked_worker_is_refused() -> None:
    loader = DataLoader(Asks(), batch_size=None, num_workers=1, multiprocessing_context="fork")
    (message,) = list(loader)
    for word in ("InpaintRegiond", "cuda:0", "multiprocessing_context='spawn'", "num_workers=0"):
        assert word in message


def test_cuda_elsewhere_is_fine() -> None:
    assert Asks()[0] == "fine"
    assert not in_forked_process()
    check_not_forked("cpu", "x")


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_the_way_a_process_was_started_is_known(method: str) -> None:
    context = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    process = context.Process(target=_answer, args=(queue,))
    process.start()
    forked, device = queue.get()
    process.join()
    assert forked == (method == "fork")
    if method == "fork":
        assert device == "cpu"
