"""Model folders of what a visit brought back: ``python -m tests.gpu.unpack OUT FOLDER``."""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path

import torch

from medgen.models.folder import save_model
from medgen.models.specification import ModelSpec


def main() -> None:
    """Join the pieces, write each model and what lies beside it."""
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    pieces = b"".join(path.read_bytes() for path in sorted(source.glob("models.tar.*")))
    with tarfile.open(fileobj=io.BytesIO(pieces)) as tar:
        tar.extractall(target, filter="data")
    for path in sorted(target.glob("*/*.pt")):
        found = torch.load(path, weights_only=True)
        if "spec" in found:
            spec = ModelSpec.from_dict(found["spec"], str(path))
            save_model(path.parent / "model", spec, found["state"], overwrite=True)
            print(path.parent / "model")


if __name__ == "__main__":
    main()
