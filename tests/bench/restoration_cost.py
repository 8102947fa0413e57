"""Seconds and peak memory of a restorer on a whole head of 181 x 217 x 181 voxels of 1 mm.

    python -m tests.bench.restoration_cost --model FOLDER --data SHARED_DATA -o OUT.json [--limit 3] [--threads 2]

Each run is a process of its own on so many threads: seconds of the restoration alone and of the whole process, and the
largest resident memory, that of Python and its libraries included. A restorer of noise is given the head with 5% noise,
one of slices the head at 4 mm, one of holes a sphere of 40 mm, others the head.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from tests.bench.restoration_figures import MODEL, Row, arguments, finish, table

CHILD = "--child"
FORMS = {"seconds": ".1f", "process_seconds": ".1f", "peak_gib": ".2f"}


def child(model: str, data: str) -> dict[str, float]:
    """One restoration in this process."""
    from medgen.io.nifti import read_nifti
    from medgen.models import load_model
    from medgen.models.restorer import RestorerModel
    from medgen.restoration.restore import restore
    from tests.bench.restoration_methods import rician, thick
    from tests.bench.restoration_people import Scan, as_meta, sphere

    volume = read_nifti(Path(data) / "colin27" / "t1_head_1mm.nii.gz")
    image, affine = np.maximum(volume.numpy()[0], 0), np.asarray(volume.affine)
    top, none = float(np.percentile(image, 99.9)), np.zeros(image.shape, bool)
    scan = Scan("head", image, affine, image > 0, top, none.astype(np.int8), none)
    loaded = load_model(model, "cpu")
    task = loaded.spec.restores if isinstance(loaded, RestorerModel) else ""
    options, given = {}, volume
    if task == "denoise":
        given = as_meta(rician(image, 0.05 * top, 0), affine)
    elif task == "superres":
        given = thick(scan, 2)[0]
    elif task == "inpaint":
        options["inpaint_mask"] = as_meta(sphere(image.shape, [n / 2 for n in image.shape], 20, (1, 1, 1)), affine)
    start = time.perf_counter()
    restore(given, task, loaded, guard="off", **options)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def measured(model: str, data: Path, threads: int) -> Row:
    """One run in a process of its own."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(names, str(threads))}
    command = [sys.executable, "-m", "tests.bench.restoration_cost", CHILD, model, str(data)]
    start = time.perf_counter()
    found = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    seconds = time.perf_counter() - start
    return {"threads": threads, "method": MODEL, "process_seconds": seconds, **json.loads(found.splitlines()[-1])}


def main() -> None:
    """Parse the command line, run, print the table."""
    given = arguments(__doc__, threads=(2, "of each run"))
    rows = []
    for _ in range(given.limit):
        rows.append(measured(given.model, given.data, given.threads))
        print(rows[-1], f"load of the machine {os.getloadavg()[0]:.1f}", flush=True)
    finish(rows, given.output, table(rows, ("method", "threads"), FORMS))


if __name__ == "__main__":
    if sys.argv[1:2] == [CHILD]:
        print(json.dumps(child(*sys.argv[2:4])))
    else:
        main()
