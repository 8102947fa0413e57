"""Put a trained model into the package: ``python -m medgen.models.release RUN/model data_cards/NAME.md CONFIG``.

The weights are read, verified and written again under ``medgen/models/bundled/NAME`` in half precision (read back as
single) with the card of the repository: the one in the model folder and the one in ``data_cards`` are the same text
(tested). The default way to sample is that of the configuration, where it may have been chosen after the training.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from medgen.io.configs import read_yaml
from medgen.models.bundled import BUNDLED
from medgen.models.diffusion_spec import DiffusionSpec
from medgen.models.fields import read_fields
from medgen.models.folder import open_model, save_model
from medgen.models.sampling import Sampling


def release(model: Path, card: Path, sampling: Sampling) -> Path:
    """Copy a verified model with a card into the package; a bundled model of that name is replaced.

    Args:
        model: folder of the trained model.
        card: Markdown card; its name, version and licence must be the model's.
        sampling: default way to sample it.

    Returns:
        The bundled folder.

    Raises:
        MedgenError: a damaged model, or a card that does not fit it.
    """
    files = open_model(model)
    text = card.read_text(encoding="utf-8")
    spec = files.spec
    if isinstance(spec, DiffusionSpec):
        spec = dataclasses.replace(spec, sampling=sampling)
    target = BUNDLED / spec.name
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in files.state.items()}
    save_model(target, spec, half, card=text, overwrite=True)
    return target


def main() -> None:
    """Parse the command line and release."""
    parser = argparse.ArgumentParser(description="Put a trained model and its card into the package.")
    parser.add_argument("model", type=Path)
    parser.add_argument("card", type=Path)
    parser.add_argument("config", type=Path)
    given = parser.parse_args()
    content = read_yaml(given.config.read_text(encoding="utf-8"))
    print(release(given.model, given.card, read_fields(Sampling, content["sampling"], given.config.name)))


if __name__ == "__main__":
    main()
