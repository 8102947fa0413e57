"""Put a trained model into the package: ``python -m medgen.models.release RUN/model data_cards/NAME.md CONFIG``.

The weights are read, verified and written again under ``medgen/models/bundled/NAME`` in half precision (read back as
single) with the card of the repository: the one in the model folder and the one in ``data_cards`` are the same text
(tested). The name is the card's; licence and the like, and the default way to sample, are those of the configuration,
where they may have been chosen after the training; of a restorer, the scans that it is for (``domain``).
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medgen.io.configs import read_yaml
from medgen.models.bundled import BUNDLED
from medgen.models.card import parse_card
from medgen.models.diffusion_spec import DiffusionSpec
from medgen.models.domain import Domain
from medgen.models.fields import read_fields
from medgen.models.folder import open_model, save_model
from medgen.models.restorer_spec import RestorerSpec
from medgen.models.sampling import Sampling

TAKEN = ("version", "licence", "authors", "copyright", "description", "modality", "body_part")


def release(model: Path, card: Path, config: Mapping[str, Any]) -> Path:
    """Copy a verified model with a card into the package; a bundled model of that name is replaced.

    Args:
        model: folder of the trained model.
        card: Markdown card; its name, version and licence must be the model's.
        config: content of the configuration: ``sampling`` or ``domain``, and what of ``TAKEN`` it has.

    Returns:
        The bundled folder.

    Raises:
        MedgenError: a damaged model, or a card that does not fit it.
    """
    files = open_model(model)
    text = card.read_text(encoding="utf-8")
    name = str(parse_card(text, card.name)[0].get("name", files.spec.name))
    spec = dataclasses.replace(files.spec, name=name, **{key: config[key] for key in TAKEN if key in config})
    if isinstance(spec, DiffusionSpec):
        spec = dataclasses.replace(spec, sampling=read_fields(Sampling, config["sampling"], "configuration"))
    if isinstance(spec, RestorerSpec) and "domain" in config:
        spec = dataclasses.replace(spec, domain=read_fields(Domain, config["domain"], "configuration"))
    target = BUNDLED / spec.name
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in files.state.items()}
    save_model(target, spec, half, card=text, overwrite=True, pickled=False)
    return target


def main() -> None:
    """Parse the command line and release."""
    parser = argparse.ArgumentParser(description="Put a trained model and its card into the package.")
    parser.add_argument("model", type=Path)
    parser.add_argument("card", type=Path)
    parser.add_argument("config", type=Path)
    parser.add_argument("--licence", help="of the weights, where the data's decides")
    parser.add_argument("--copyright", help="line about the data")
    given = parser.parse_args()
    content = dict(read_yaml(given.config.read_text(encoding="utf-8")))
    content |= {name: getattr(given, name) for name in ("licence", "copyright") if getattr(given, name)}
    print(release(given.model, given.card, content))


if __name__ == "__main__":
    main()
