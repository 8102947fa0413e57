"""Attributes computed from labels and from other attributes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from medgen.checks import MedgenError
from medgen.io.datasets.case import Attribute
from medgen.trainers.data_config import Bins, Measured

Attributes = dict[str, Attribute]


def measure_label(
    label: Tensor, spacing: Sequence[float], table: Mapping[str, Measured], volumes: Mapping[str, float] | None = None
) -> Attributes:
    """What a label map says.

    Args:
        label: ids, ``(1, *spatial)``, 2D or 3D.
        spacing: mm per axis.
        table: what to measure; bins are left out.
        volumes: for a slice: ``label_volume`` of its subject, in ml, by attribute.

    Returns:
        Volumes in ml, areas in mm2, shares in 0..1; a share of nothing is left out.
    """
    voxel = float(np.prod(np.asarray(spacing, dtype=np.float64)))
    found: Attributes = {}
    for name, measured in table.items():
        if measured.label_volume is not None:
            if volumes is not None:
                found[name] = volumes[name]
            else:
                found[name] = count(label, measured.label_volume) * voxel / 1000
        elif measured.label_area is not None:
            found[name] = count(label, measured.label_area) * voxel
        elif measured.label_share is not None:
            part, whole = (count(label, ids) for ids in measured.label_share)
            if whole:
                found[name] = part / whole
    return found


def count(label: Tensor, ids: Iterable[int]) -> int:
    """Voxels of a label map with one of ``ids``."""
    return int(torch.isin(label, torch.tensor(list(ids), dtype=label.dtype)).sum())


def resolved_edges(
    name: str, edges: Sequence[float], quantiles: Sequence[float], names: int, values: Sequence[float]
) -> tuple[float, ...]:
    """Edges of the ranges of a number: those given, or quantiles of the training subjects.

    Args:
        name: of the attribute, for errors.
        edges: as given.
        quantiles: shares below each edge; equal shares where both are empty.
        names: how many ranges.
        values: of the training subjects.

    Raises:
        MedgenError: quantiles of fewer different values than ranges.
    """
    if edges:
        return tuple(edges)
    shares = quantiles or [i / names for i in range(1, names)]
    if len(set(values)) < names:
        raise MedgenError(
            f"attribute '{name}': {names} ranges need as many different values in the training subjects. "
            f"Got {len(set(values))}. Give edges."
        )
    found = tuple(float(f"{edge:.6g}") for edge in np.quantile(np.asarray(values, dtype=np.float64), shares))
    if len(set(found)) < len(found):
        raise MedgenError(f"attribute '{name}': quantiles {list(shares)} fall together at {found}. Give edges.")
    return found


def binned(value: float, edges: Sequence[float], names: Sequence[str]) -> str:
    """The name of the range that holds a value; one at an edge is in the upper range.

    Example:
        >>> binned(3.0, [3.0], ["small", "large"]), binned(2.9, [3.0], ["small", "large"])
        ('large', 'small')
    """
    return names[bisect_right(edges, value)]


def numbers_of(name: str, records: Iterable[Mapping[str, Attribute]]) -> list[float]:
    """The values of an attribute that is a number, those missing left out.

    Raises:
        MedgenError: a value is a text.
    """
    found = []
    for record in records:
        value = record.get(name)
        if isinstance(value, str):
            raise MedgenError(f"attribute '{name}' must be a number. Got '{value}'. Use a control of kind class.")
        if value is not None:
            found.append(value)
    return found


class BinnedAttributes:
    """The attributes of ``measured`` that name ranges of others.

    Args:
        table: of the configuration.
        records: attributes of the training subjects, measured ones included.

    Raises:
        MedgenError: see :func:`resolved_edges` and :func:`numbers_of`.
    """

    def __init__(self, table: Mapping[str, Measured], records: Sequence[Mapping[str, Attribute]]) -> None:
        self.bins: dict[str, Bins] = {name: entry.bins for name, entry in table.items() if entry.bins is not None}
        self.edges = {
            name: resolved_edges(bins.of, bins.edges, bins.quantiles, len(bins.names), numbers_of(bins.of, records))
            for name, bins in self.bins.items()
        }

    def names(self, attribute: str) -> tuple[str, ...] | None:
        """Names of the ranges that an attribute has, rising; None for another attribute."""
        return self.bins[attribute].names if attribute in self.bins else None

    def added(self, attributes: Mapping[str, Attribute]) -> Attributes:
        """A subject's attributes with the names of ranges."""
        found = dict(attributes)
        for name, bins in self.bins.items():
            value = attributes.get(bins.of)
            if isinstance(value, float | int):
                found[name] = binned(value, self.edges[name], bins.names)
        return found
