"""Files of splats beside other programs: the comparison itself, on readings that are right, and broken on purpose."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unproject.geometry.splats import GaussianCloud, load_splats, save_splats
from unproject.geometry.splats.files import SUFFIXES
from unproject.geometry.splats.gltf import gltf_axes
from unproject.geometry.splats.ply import names_of
from unproject.scripts import splat_oracles
from unproject.scripts.splat_fields import (
    FIELDS,
    apart,
    axes_of,
    held,
    in_its_axes,
    in_order_of,
    last_bits,
    turned_to,
    turns,
)
from unproject.scripts.splat_tools import Gsply, SplatTransform, from_csv
from unproject.utils.errors import InputError, UnprojectError

RDF = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))  # x right, y down: half a turn around x


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every format of the cloud with harmonics; SPZ only where zstandard is."""
    pytest.importorskip("zstandard")
    folder = tmp_path_factory.mktemp("splats")
    return {suffix: save_splats(splat_oracles.cloud(3), folder / f"a{suffix}") for suffix in SUFFIXES}


def judged(path: Path, reading: GaussianCloud) -> dict[str, Any]:
    """What is said of a reading of a file of ours."""
    return splat_oracles.case("tool", path, splat_oracles.cloud(3), reading, True)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_our_own_reading_agrees_in_any_order_and_other_axes(suffix: str, files: dict[str, Path]) -> None:
    read = in_its_axes(load_splats(files[suffix]), files[suffix])
    order = torch.randperm(len(read), generator=torch.Generator().manual_seed(1))
    row = judged(files[suffix], read[order].transformed(RDF))
    assert row["faults"] == [] and row["axes"] == "x, -y, -z"
    assert max(row["readings"].values()) < 0.01  # turned in float64 and back
    exact = suffix in (".ply", ".glb")
    assert max(row["off"].values()) < 2.0 and row["off"]["colours"] == (0 if exact else pytest.approx(0.5, abs=0.01))


BROKEN: dict[str, Callable[[GaussianCloud], GaussianCloud]] = {
    "positions": lambda c: replace(c, means=c.means + torch.tensor([0.0, 0.0, 1e-2])),
    "sizes": lambda c: replace(c, log_scales=c.log_scales[:, [1, 0, 2]]),
    "rotations": lambda c: replace(c, quaternions=c.quaternions.roll(1, dims=1)),
    "opacities": lambda c: replace(c, logits=1.1 * c.logits),
    "colours": lambda c: replace(c, sh=torch.cat([c.sh[:, :1] + 0.05, c.sh[:, 1:]], dim=1)),
    "harmonics": lambda c: replace(c, sh=torch.cat([c.sh[:, :1], c.sh[:, 1:].flip(1)], dim=1)),
}


@pytest.mark.parametrize("suffix", [".ply", ".compressed.ply", ".spz"])
@pytest.mark.parametrize("field", FIELDS)
def test_a_broken_field_is_told_alone(field: str, suffix: str, files: dict[str, Path]) -> None:
    read = in_its_axes(load_splats(files[suffix]), files[suffix])
    row = judged(files[suffix], BROKEN[field](read))
    assert [fault.split()[0] for fault in row["faults"]] == [field]


def test_a_file_that_is_not_what_was_to_be_written_is_told(files: dict[str, Path]) -> None:
    """Both readings agree; it is the file that is wrong."""
    made = replace(splat_oracles.cloud(3), log_scales=splat_oracles.cloud(3).log_scales + 0.1)
    for suffix in (".spz", ".glb"):
        read = in_its_axes(load_splats(files[suffix]), files[suffix])
        row = splat_oracles.case("tool", files[suffix], made, read if suffix == ".spz" else None, True)
        assert [fault.split()[0] for fault in row["faults"]] == ["sizes"]


def test_a_lost_splat_and_a_lost_degree_are_told(files: dict[str, Path]) -> None:
    read = in_its_axes(load_splats(files[".ply"]), files[".ply"])
    with pytest.raises(UnprojectError, match="699 splats instead of 700"):
        judged(files[".ply"], read[1:])
    with pytest.raises(UnprojectError, match="missing, or far"):
        judged(files[".ply"], read[torch.tensor([0, *range(699)])])
    with pytest.raises(UnprojectError, match="harmonics have the shapes"):
        judged(files[".ply"], read.with_degree(1))


def test_known_differences_are_named_and_bounded(files: dict[str, Path]) -> None:
    read = in_its_axes(load_splats(files[".compressed.ply"]), files[".compressed.ply"])
    rest = read.sh[:, 1:]
    within = torch.where(rest.abs() == 4, rest - rest.sign() / 64, rest)
    reading = replace(read, sh=torch.cat([read.sh[:, :1], within], dim=1))
    row = splat_oracles.case("gsply", files[".compressed.ply"], splat_oracles.cloud(3), reading, True)
    assert row["readings"]["harmonics"] == pytest.approx(0.5) and row["faults"] == []
    assert "half a step within" in row["known"][0]
    assert judged(files[".compressed.ply"], reading)["faults"] != []


def test_last_bits_are_those_of_the_format(files: dict[str, Path]) -> None:
    path = files[".spz"]
    read = in_its_axes(load_splats(path), path)
    steps = last_bits(path, read)
    assert {name: float(value.min()) for name, value in steps.items()} == pytest.approx(
        {"positions": 2.0**-18, "sizes": 1 / 16, "rotations": 1 / (511 * 2**0.5), "opacities": 1 / 255,
         "colours": 1 / 38.25, "harmonics": 1 / 128}
    )  # fmt: skip
    assert torch.equal(read.means / steps["positions"], (read.means / steps["positions"]).round())
    plain = last_bits(files[".ply"], in_its_axes(load_splats(files[".ply"]), files[".ply"]))
    assert float(plain["positions"][5, 0]) == np.spacing(np.float32(11.0))


def test_rotations_are_those_of_ellipsoids() -> None:
    made = splat_oracles.cloud(0).to(torch.float64)
    fields = held(made, Path("a.ply"))
    q = fields["rotations"]
    w, x, y, z = q.unbind(1)
    steps = {name: torch.ones_like(value) for name, value in fields.items()}
    for alike in (-q, torch.stack([-y, -z, w, x], 1), torch.stack([z, -y, x, -w], 1)):
        assert apart({**fields, "rotations": alike}, fields, steps)["rotations"] < 1e-12
    assert apart({**fields, "rotations": torch.stack([w, y, x, z], 1)}, fields, steps)["rotations"] > 0.1


def test_axes_are_found_among_24() -> None:
    made = splat_oracles.cloud(0).to(torch.float64)
    assert len(turns()) == 24 == len({axes_of(turn) for turn in turns()})
    back, words = turned_to(gltf_axes(made), made)
    torch.testing.assert_close(back.means, made.means)
    assert words == axes_of(torch.linalg.inv(gltf_matrix()))
    order = in_order_of(held(made[torch.arange(699, -1, -1)], Path("a.ply")), held(made, Path("a.ply")))
    assert torch.equal(order["opacities"], made.logits)


def gltf_matrix() -> torch.Tensor:
    """What `gltf_axes` does to three centres on the axes."""
    one = splat_oracles.cloud(0).to(torch.float64)[:3]
    return gltf_axes(replace(one, means=torch.eye(3, dtype=torch.float64))).means.T


class Mirror:
    """A program that reads and writes with our own code, its axes those of a camera; a field may be broken."""

    name, version = "mirror", "1"
    reads = (".ply", ".spz")
    writes = ((".ply", ()), (".spz", (("version", 4),)), (".glb", ()))

    def __init__(self, breaks: str = "") -> None:
        self.breaks = breaks

    def write(self, jobs: Sequence[Any]) -> None:
        for job in jobs:
            save_splats(load_splats(job.source), job.path)

    def read(self, paths: Sequence[Path]) -> list[GaussianCloud]:
        found = [in_its_axes(load_splats(path), path).transformed(RDF) for path in paths]
        return [BROKEN[self.breaks](one) if self.breaks else one for one in found]


@pytest.mark.parametrize("breaks", ["", "opacities"])
def test_the_script_tells_of_every_file(
    breaks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("zstandard")
    monkeypatch.setattr(splat_oracles, "Gsply", lambda where: Mirror(breaks))
    code = splat_oracles.main(["--gsply", "x", "--out", str(tmp_path)])
    out, err = capsys.readouterr()
    assert "npm install --prefix FOLDER @playcanvas/splat-transform" in err
    record = json.loads((tmp_path / "splat-oracles.json").read_text())
    assert len(record["cases"]) == 2 * (2 + 3) and record["versions"]["mirror"] == "1"
    ways = {(row["file"], row["way"]): row for row in record["table"]}
    assert set(ways) == {
        *((suffix, "mirror reads ours") for suffix in (".ply", ".spz")),
        *((suffix, "we read mirror's") for suffix in (".ply", ".spz 4", ".glb")),
    }
    assert ways[".ply", "mirror reads ours"]["axes"] == "x, -y, -z"
    assert ways[".glb", "we read mirror's"]["readings_apart"] is None
    if breaks:
        assert (
            code == 1
            and "ours-0.ply, mirror: opacities" in out
            and "opacities" in ways[".spz 4", "we read mirror's"]["where"]
        )
    else:
        assert code == 0 and "10 files agree" in out and ways[".ply", "we read mirror's"]["positions"] == 0


def test_absent_programs_are_told_with_the_way_to_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert splat_oracles.main(["--gsply", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert f"no gsply in --gsply {tmp_path}; pip install --target FOLDER gsply zstandard" in err
    assert "no splat-transform in --splat-transform None; npm install" in err
    assert not (tmp_path / "out").exists()
    (tmp_path / "node_modules" / "@playcanvas" / "splat-transform").mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        with pytest.raises(InputError, match="runs in node"):
            SplatTransform(tmp_path)


def test_gsply_is_asked_in_a_process_of_its_own(tmp_path: Path) -> None:
    """A small stand-in that holds the names of gsply: all fields go both ways, without harmonics too."""
    package = tmp_path / "gsply"
    package.mkdir()
    (tmp_path / "gsply-9.9.dist-info").mkdir()
    (tmp_path / "gsply-9.9.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: gsply\nVersion: 9.9\n")
    (package / "__init__.py").write_text(
        "import numpy as np, types\n"
        "def plyread(path):\n"
        "    n = np.arange(2.0)[:, None]\n"
        "    rest = np.ones((2, 3, 3)) * n[:, None] if 'three' in path else None\n"
        "    return types.SimpleNamespace(means=n + [1, 2, 3], scales=n - [1, 2, 3], quats=n + [1, 0, 0, 0],\n"
        "                                 opacities=n, sh0=n * [4, 5, 6], shN=rest)\n"
        "def plywrite(path, data, compressed=False):\n"
        "    open(path, 'w').write(f'{compressed} {data.means.tolist()}')\n"
    )
    tool = Gsply(tmp_path)
    plain, three = tool.read([tmp_path / "a.ply", tmp_path / "three.ply"])
    assert tool.version == "9.9" and plain.degree == 0 and three.degree == 1
    assert plain.means.tolist() == [[1, 2, 3], [2, 3, 4]] and plain.logits.tolist() == [0, 1]
    assert plain.sh[1, 0].tolist() == [4, 5, 6] and three.sh[1, 1:].tolist() == [[1, 1, 1]] * 3
    tool.write([splat_oracles.Job(tmp_path / "b.ply", tmp_path / "a.ply", (("compressed", True),))])
    assert (tmp_path / "b.ply").read_text() == "True [[1.0, 2.0, 3.0], [2.0, 3.0, 4.0]]"


def test_a_table_of_columns_is_a_cloud(tmp_path: Path) -> None:
    """Colour by colour, as in 3DGS' PLY, whatever the order of the columns; logits of 1 are infinite."""
    names = [name for name in names_of(9) if name not in ("nx", "ny", "nz")][::-1]
    values = {name: float(index) for index, name in enumerate(names)}
    line = ",".join("Infinity" if name == "opacity" else str(values[name]) for name in names)
    (tmp_path / "a.csv").write_text(",".join(names) + f"\n{line}\n")
    found = from_csv(tmp_path / "a.csv")
    assert found.means[0].tolist() == [values[name] for name in "xyz"] and float(found.logits[0]) == float("inf")
    assert found.sh[0, 2].tolist() == [values[f"f_rest_{k}"] for k in (1, 4, 7)] and found.degree == 1
    assert found.quaternions[0].tolist() == [values[f"rot_{k}"] for k in range(4)]
