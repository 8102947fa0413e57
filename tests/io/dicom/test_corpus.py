"""Every case of the corpus through medgen's DICOM reader, as one test each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from medgen.io.dicom import survey_dicom
from medgen.io.findings import CODES, FileRecord, Refused
from tests.io.dicom.corpus import CASES
from tests.io.dicom.judge import Reading, Volume, difference, judge
from tests.io.dicom.phantom import Field, Grid, Truth
from tests.io.dicom.registry import Expected


def read(folder: Path) -> Reading:
    """What medgen makes of all files below a folder."""
    files = sorted(path for path in folder.rglob("*") if not path.is_dir())
    survey = survey_dicom(files)
    assert sorted(record.path for record in survey.files) == files, "every file is accounted for once"
    reading = Reading()
    late: dict[Path, str] = {}
    used = {record.path for record in survey.files if record.status == "used"}
    for source in survey.volumes:
        assert set(source.files) <= used, "the files of a volume are reported as used"
        try:
            volume = source.load()
        except Refused as refused:
            late.update(dict.fromkeys(source.files, refused.code))
            continue
        assert tuple(volume.shape) == (1, *source.shape)
        np.testing.assert_allclose(np.asarray(volume.affine), source.affine, atol=1e-9)
        codes = frozenset(finding.code for finding in source.findings)
        reading.volumes.append(Volume(volume.as_tensor()[0].numpy(), np.asarray(source.affine), codes))
    reading.refused = _codes(survey.files, "refused") | late
    reading.skipped = _codes(survey.files, "skipped")
    _check_codes(reading)
    return reading


def _codes(records: Sequence[FileRecord], status: str) -> dict[Path, str]:
    return {record.path: str(record.code) for record in records if record.status == status}


def _check_codes(reading: Reading) -> None:
    findings = {code for volume in reading.volumes for code in volume.findings}
    unknown = (findings | set(reading.refused.values()) | set(reading.skipped.values())) - set(CODES)
    assert not unknown, f"codes that are not listed: {unknown}"


@pytest.mark.parametrize("name", list(CASES))
def test_case(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    expected = case.make(tmp_path / "case")
    verdict = judge(case, expected, read(tmp_path / "case"))
    assert verdict.outcome in ("right", "flagged"), f"{verdict.outcome}: {verdict.why}"


def test_the_corpus_is_large() -> None:
    assert len(CASES) >= 120
    kinds = [case.kind for case in CASES.values()]
    assert kinds.count("faulty") >= 40
    assert kinds.count("readable") >= 80
    asked_for = set().union(*(case.codes for case in CASES.values()))
    assert asked_for <= set(CODES), f"codes that are not listed: {asked_for - set(CODES)}"


class TestJudge:
    """The judge sees what it must see."""

    def truth(self) -> Truth:
        return Grid().truth()

    def right(self) -> Volume:
        grid = Grid()
        array = np.stack([Field()(grid.points(k)).T for k in range(grid.slices)], axis=-1)
        return Volume(array, grid.truth().affine)

    def test_right_in_any_order(self) -> None:
        volume = self.right()
        assert difference(self.truth(), volume) == ""
        turn = np.array([[0, 0, -1, 19], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])
        moved = Volume(np.moveaxis(volume.array, 1, 0)[::-1].transpose(0, 1, 2), volume.affine)
        assert difference(self.truth(), moved) != ""
        flipped = np.diag([1, 1, -1, 1.0])
        flipped[2, 3] = 7
        assert difference(self.truth(), Volume(volume.array[..., ::-1], volume.affine @ flipped)) == ""
        swapped = volume.array.transpose(1, 2, 0)
        order = np.array([[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])
        assert difference(self.truth(), Volume(swapped, volume.affine @ order)) == ""
        assert difference(self.truth(), Volume(swapped, volume.affine @ turn)) != ""

    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_flips_and_shifts_are_seen(self, axis: int) -> None:
        volume = self.right()
        assert difference(self.truth(), Volume(np.flip(volume.array, axis), volume.affine))
        shifted = volume.affine.copy()
        shifted[axis, 3] += 0.3
        assert difference(self.truth(), Volume(volume.array, shifted))
        stretched = volume.affine.copy()
        stretched[:3, axis] *= 1.02
        assert difference(self.truth(), Volume(volume.array, stretched))

    def test_values_slices_and_blanks_are_seen(self) -> None:
        volume = self.right()
        assert difference(self.truth(), Volume(volume.array + 1.5, volume.affine))
        assert difference(self.truth(), Volume(volume.array[..., :7], volume.affine))
        assert difference(self.truth(), Volume(np.where(volume.array > 1500, 0, volume.array), volume.affine))
        assert difference(self.truth(), Volume(volume.array[..., [0, 1, 2, 4, 3, 5, 6, 7]], volume.affine))

    def test_silence_is_worse_than_refusal(self) -> None:
        readable, faulty = CASES["axial"], CASES["missing_middle_slice"]
        promise = Expected([[self.truth()]])
        wrong = Volume(self.right().array + 9, self.truth().affine)
        assert judge(readable, promise, Reading([wrong])).outcome == "silent"
        assert judge(readable, promise, Reading()).outcome == "silent"
        assert judge(readable, promise, Reading(refused={Path("a"): "NO_GEOMETRY"})).outcome == "refused"
        nothing = Expected()
        assert judge(faulty, nothing, Reading([wrong])).outcome == "silent"
        assert judge(faulty, nothing, Reading(refused={Path("a"): "MISSING_SLICE"})).outcome == "flagged"
        assert judge(faulty, nothing, Reading(refused={Path("a"): "NO_GEOMETRY"})).outcome == "refused"
