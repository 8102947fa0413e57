"""Items that depend on seed, epoch and index only: the same bytes with any number of DataLoader workers."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Sized
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.transforms import Compose, Randomizable
from monai.transforms.transform import apply_transform
from torch.utils.data import Dataset, IterableDataset

from medgen.checks import MedgenError
from medgen.diffusion.randomness import derive_seed

if TYPE_CHECKING:
    from ignite.engine import Engine

__all__ = ["SeededDataset"]

_LARGEST_SEED = 2**32 - 1


class SeededDataset(Dataset[Any]):
    """A data set whose random transforms (MONAI's and medgen's) are seeded anew for every item.

    Before an item is made, every ``Randomizable`` found in ``data`` (its transforms, and those of data sets it wraps)
    and in ``transform`` gets a state that is a function of ``seed``, epoch and index. Which worker makes the item, in
    which order, and how many there are then changes nothing. Transforms that draw from a global generator (numpy's,
    torch's) stay outside of this.

    Call :meth:`set_epoch` before each epoch, as for a ``DistributedSampler``, or :meth:`attach` the data set to an
    Ignite or MONAI trainer; the epoch reaches workers that persist.

    Args:
        data: a sequence, or a data set such as MONAI's ``CacheDataset``.
        transform: applied to each item of ``data``.
        seed: of the run.

    Raises:
        MedgenError: ``data`` has no length (an iterable data set).

    Example:
        >>> from monai.data import Dataset
        >>> from monai.transforms import RandGaussianNoise
        >>> items = SeededDataset(Dataset([torch.zeros(1, 4)] * 8, RandGaussianNoise(prob=1.0)), seed=5)
        >>> bool(torch.equal(items[0], items[0])), bool(torch.equal(items[0], items[1]))
        (True, False)
    """

    def __init__(self, data: Any, transform: Callable[..., Any] | None = None, seed: int = 0) -> None:
        if isinstance(data, IterableDataset) or not isinstance(data, Sized) or not hasattr(data, "__getitem__"):
            raise MedgenError(
                f"SeededDataset: data must have a length and items by index. Got {type(data).__name__}. "
                "Wrap a list, monai.data.Dataset or CacheDataset."
            )
        self.data, self.transform, self.seed = data, transform, int(seed)
        self._state = torch.tensor([0, 0, 0]).share_memory_()  # epoch, whether it was ever set, items read
        self._lock = threading.Lock()

    @property
    def epoch(self) -> int:
        """The epoch that the next items are drawn for."""
        return int(self._state[0])

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch, for all workers. Call it before the loader is iterated.

        Args:
            epoch: counted from 0.
        """
        self._state[0], self._state[1] = int(epoch), 1

    def attach(self, engine: Engine) -> None:
        """Lets an Ignite engine (so any MONAI trainer) set the epoch; its first epoch is 0 here, resumed or not."""
        from ignite.engine import Events

        engine.add_event_handler(Events.STARTED, lambda: self.set_epoch(engine.state.epoch))
        engine.add_event_handler(Events.EPOCH_STARTED, lambda: self.set_epoch(engine.state.epoch - 1))

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        place = int(index) + (len(self) if index < 0 else 0)
        if not 0 <= place < len(self):
            raise IndexError(f"SeededDataset: index {index} is outside of 0..{len(self) - 1}.")
        self._count()
        with self._lock:  # loaders with threads share the transforms
            self._seed_parts(place)
            item = self.data[place]
            return item if self.transform is None else apply_transform(self.transform, item)

    def _seed_parts(self, index: int) -> None:
        """Gives every random part its state for this item."""
        drawn = derive_seed(self.seed, "item", self.epoch, index)
        root = np.random.RandomState([drawn & _LARGEST_SEED, drawn >> 32])
        for part in _random_parts([self.transform, self.data], set()):
            if isinstance(part, Compose):
                part.set_random_state(state=root)
            else:
                part.set_random_state(seed=int(root.randint(_LARGEST_SEED, dtype=np.uint32)))

    def _count(self) -> None:
        """Warns once if a second pass begins and no epoch was ever set: it would repeat the first one's draws."""
        self._state[2] += 1
        if self._state[1] == 0 and self._state[2] > len(self):
            self._state[1] = 1
            if any(map(_draws, _random_parts([self.transform, self.data], set()))):
                warnings.warn(
                    "SeededDataset: items are read again for epoch 0 and repeat its random draws. Call "
                    "set_epoch(epoch) before each epoch, or attach(trainer).",
                    stacklevel=3,
                )

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()


def _random_parts(values: list[Any], seen: set[int]) -> Iterator[Randomizable]:
    """The outermost ``Randomizable`` objects in transforms and data sets, in the order of their attributes."""
    for value in values:
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Randomizable):
            yield value
        elif isinstance(value, Dataset):
            yield from _random_parts(list(vars(value).values()), seen)
        elif isinstance(value, list | tuple) and value and isinstance(value[0], Dataset | Randomizable):
            yield from _random_parts(list(value), seen)


def _draws(part: Randomizable) -> bool:
    """Whether anything random is in a transform: a ``Compose`` is ``Randomizable`` even when its parts are not."""
    if type(part) is not Compose:
        return True
    return any(isinstance(inner, Randomizable) and _draws(inner) for inner in part.transforms)
