"""Feature maps that are read and written slab by slab, in memory or out of it, with the statistics of all of them."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from typing import IO

import torch
from torch import Tensor


class FeatureMap:
    """A feature map ``(C, *spatial)`` that is read and written by slabs along one axis, which is stored first."""

    def __init__(self, channels: int, size: Sequence[int], axis: int, dtype: torch.dtype, device: torch.device) -> None:
        self.channels, self.size, self.axis, self.dtype, self.device = channels, tuple(size), axis, dtype, device
        self.length = self.size[axis]
        self.plane_bytes = channels * math.prod(self.size) // self.length * dtype.itemsize
        self.kept: Tensor | None = None
        self.file: IO[bytes] | None = None
        self.bytes_inside = 0
        self.forget_statistics()

    @classmethod
    def of(cls, x: Tensor, axis: int) -> FeatureMap:
        """The map of a tensor that stays its owner's."""
        made = cls(x.shape[0], x.shape[1:], axis, x.dtype, x.device)
        made.kept = x.movedim(1 + axis, 0)
        return made

    @classmethod
    def empty(
        cls, channels: int, size: Sequence[int], axis: int, dtype: torch.dtype, device: torch.device, inside: bool
    ) -> FeatureMap:
        """A new map: ``inside`` the device's memory, else in host memory (GPU) or a temporary file."""
        made = cls(channels, size, axis, dtype, device)
        if inside:
            made.kept = torch.empty(made._stored_shape(made.length), dtype=dtype, device=device)
            made.bytes_inside = made.plane_bytes * made.length
        else:
            made._open_outside()
        return made

    def _stored_shape(self, planes: int) -> tuple[int, ...]:
        rest = [n for axis, n in enumerate(self.size) if axis != self.axis]
        return (planes, self.channels, *rest)

    def _open_outside(self) -> None:
        if self.device.type == "cpu":
            self.file = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the map)
        else:
            self.kept = torch.empty(self._stored_shape(self.length), dtype=self.dtype)

    def put_out(self) -> None:
        """Move what is in the device's memory out of it."""
        if not self.bytes_inside or self.kept is None:
            return
        inside, self.kept, self.bytes_inside = self.kept, None, 0
        self._open_outside()
        for i in range(self.length):
            self._store(i, inside[i : i + 1])

    def close(self) -> None:
        """Free what it holds."""
        self.kept, self.bytes_inside = None, 0
        if self.file is not None:
            self.file.close()
            self.file = None

    def read(self, low: int, high: int) -> Tensor:
        """Planes ``low..high`` as a contiguous copy ``(C, *spatial)``."""
        if self.kept is not None:
            stored = self.kept[low:high].to(self.device)
        else:
            stored = torch.empty(self._stored_shape(high - low), dtype=self.dtype)
            self._file().seek(low * self.plane_bytes)
            self._file().readinto(stored.view(torch.uint8).numpy())  # type: ignore[attr-defined]
        slab = stored.movedim(0, 1 + self.axis)
        return slab.clone(memory_format=torch.contiguous_format)

    def write(self, low: int, slab: Tensor) -> None:
        """Store planes from ``low`` on, and count their mean and variance."""
        self._count(slab)
        self._store(low, slab.movedim(1 + self.axis, 0))

    def _store(self, low: int, planes: Tensor) -> None:
        if self.kept is not None:
            self.kept[low : low + len(planes)] = planes
        else:
            self._file().seek(low * self.plane_bytes)
            self._file().write(planes.contiguous().view(torch.uint8).numpy().data)

    def _file(self) -> IO[bytes]:
        if self.file is None:
            raise RuntimeError("feature map used after it was closed")
        return self.file

    def whole(self) -> Tensor:
        """All of it, ``(C, *spatial)``."""
        return self.read(0, self.length)

    def forget_statistics(self) -> None:
        """Before it is written anew."""
        self._number = 0
        self._mean = self._square = torch.zeros(self.channels, dtype=torch.float64)

    def _count(self, slab: Tensor) -> None:
        """Merge mean and sum of squared deviations of a slab: Chan, Golub and LeVeque 1983, equation 2.1."""
        values = slab.flatten(1).float()
        mean = values.mean(1, keepdim=True)
        square = (values - mean).square_().sum(1).cpu().double()
        number, mean = values.shape[1], mean[:, 0].cpu().double()
        total, difference = self._number + number, mean - self._mean
        self._square = self._square + square + difference.square() * (self._number * number / total)
        self._mean = self._mean + difference * (number / total)
        self._number = total

    def group_statistics(self, groups: int) -> tuple[Tensor, Tensor]:
        """Mean and (biased) variance of each channel's group, ``(C,)`` float64."""
        if not self._number:  # the map is somebody's tensor: count it now
            for i in range(self.length):
                self._count(self.read(i, i + 1))
        each = self._mean.reshape(groups, -1)
        mean = each.mean(1, keepdim=True)
        variance = self._square.reshape(groups, -1).mean(1, keepdim=True) / self._number
        variance = variance + (each - mean).square().mean(1, keepdim=True)
        return tuple(x.expand_as(each).flatten() for x in (mean, variance))  # type: ignore[return-value]
