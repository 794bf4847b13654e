"""`unproject sim2real`: files in and out, folders, variants, seeds by name, and what is refused."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unproject.cli.sim2real import Sim2real
from unproject.tasks.codecs.residual import ResidualDepthCodec, SensorOutput
from unproject.tasks.depth_files import read_depth
from unproject.utils.errors import InputError

K = np.array([[50.0, 0, 12], [0, 60, 9], [0, 0, 1]])


def depth(height: int = 9, width: int = 12) -> np.ndarray:
    return np.linspace(1, 3, height * width).reshape(height, width).astype(np.float32)


class Noise:
    """Adds noise of the seed and loses a pixel."""

    def __call__(self, depth_m, seed, num_inference_steps, ensemble_size) -> SensorOutput:
        noisy = depth_m + 0.01 * np.random.default_rng(seed).normal(size=depth_m.shape).astype(np.float32)
        noisy[0, 0] = 0
        made = noisy[None, ..., None]
        return SensorOutput(prediction=made, valid=made > 0, nfe=3, coded_by=ResidualDepthCodec())


@pytest.fixture
def rooms(tmp_path: Path, monkeypatch) -> Path:
    """A folder of two maps; the network is noise."""
    monkeypatch.setattr(Sim2real, "load", lambda self: Noise())
    (tmp_path / "rooms" / "more").mkdir(parents=True)
    np.savez(tmp_path / "rooms" / "a.npz", depth_m=depth(), K=K)
    np.savez(tmp_path / "rooms" / "more" / "b.npz", depth=2 * depth(7, 5))
    return tmp_path / "rooms"


def test_a_map_becomes_a_measurement_with_its_camera(run, rooms: Path, tmp_path: Path) -> None:
    code, _, err = run("sim2real", str(rooms / "a.npz"), "-o", str(tmp_path / "m.npz"), "--seed", "4")
    assert code == 0, err
    with np.load(tmp_path / "m.npz") as made:
        assert made["depth"].shape == (9, 12)
        np.testing.assert_array_equal(made["K"], K)
        assert (str(made["unit"]), made["valid"][0, 0]) == ("m", False)
        np.testing.assert_allclose(made["depth"], np.where(made["valid"], depth(), 0), atol=0.06)
    levels = np.asarray(Image.open(tmp_path / "m-16bit.png"))
    assert abs(int(levels[-1, -1]) - 3000) < 60  # millimetres
    record = json.loads((tmp_path / "m.run.json").read_text())
    assert record["nfe"] == {"denoiser": 3}


def test_a_folder_is_its_maps_one_by_one(run, rooms: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, _, err = run("sim2real", str(rooms), "--recursive", "-o", str(out), "--format", "npz")
    assert code == 0, err
    assert {p.relative_to(out).as_posix() for p in out.rglob("*.npz")} == {"a-sim2real.npz", "more/b-sim2real.npz"}
    run("sim2real", str(rooms / "a.npz"), "-o", str(tmp_path / "alone.npz"), "--format", "npz")
    with np.load(out / "a-sim2real.npz") as one, np.load(tmp_path / "alone.npz") as other:
        np.testing.assert_array_equal(one["depth"], other["depth"])
    code, out_text, _ = run("sim2real", str(rooms), "--recursive", "-o", str(out), "--format", "npz")
    assert code == 0
    assert "already there" in out_text


def test_pictures_beside_depth_are_told(run, rooms: Path, tmp_path: Path) -> None:
    Image.fromarray((1000 * depth()).astype(np.uint16)).save(rooms / "c.png")
    for name in ("a.png", "photo.png"):
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(rooms / name)
    code, out, err = run("sim2real", str(rooms), "-o", str(tmp_path / "o"), "--format", "npz")
    assert code == 0, err
    assert {p.name for p in (tmp_path / "o").glob("*.npz")} == {"a-sim2real.npz", "c-sim2real.npz"}
    assert "shows a.npz" in out
    assert "is a picture of RGB" in out


def test_variants_differ(run, rooms: Path, tmp_path: Path) -> None:
    code, _, err = run(
        "sim2real", str(rooms / "a.npz"), "-o", str(tmp_path / "v"), "--variants", "2", "--format", "npz"
    )
    assert code == 0, err
    made = [np.load(tmp_path / "v" / f"a-sim2real-{i}.npz")["depth"] for i in range(2)]
    assert not np.array_equal(*made)


def test_what_is_refused(run, rooms: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "affine.npz", depth=depth(), invariance=np.array("affine"))
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "photo.png")
    (tmp_path / "empty").mkdir()
    cases = {
        (str(tmp_path / "affine.npz"),): "not metres",
        (str(tmp_path / "photo.png"),): "one channel of 16 bits",
        (str(tmp_path / "empty"),): "holds no depth maps",
        (str(rooms), "-o", str(tmp_path / "x.npz")): "give a folder",
        (str(rooms / "a.npz"), "--unit", "-1"): "--unit must be above 0",
        (): "needs depth maps",
    }
    for words, message in cases.items():
        code, _, err = run("sim2real", *words, *(() if "-o" in words else ("-o", str(tmp_path / "new"))))
        assert code == 2, err
        assert message in err


def test_without_weights_it_names_the_training(run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("UNPROJECT_WEIGHTS", str(tmp_path))
    np.save(tmp_path / "a.npy", depth())
    code, _, err = run("sim2real", str(tmp_path / "a.npy"), "-o", str(tmp_path / "b.npz"))
    assert code == 2
    assert "unproject train sim2real" in err


def test_units_masks_and_odd_files(tmp_path: Path) -> None:
    Image.fromarray((1000 * depth()).astype(np.uint16)).save(tmp_path / "mm.png")
    np.testing.assert_allclose(read_depth(tmp_path / "mm.png").depth_m, depth(), atol=1e-3)
    np.testing.assert_allclose(read_depth(tmp_path / "mm.png", 0.01).depth_m, 10 * depth(), atol=1e-2)
    valid = depth() > 1.5
    holes = depth()
    holes[3, 3] = np.nan
    np.savez(tmp_path / "valid.npz", depth=holes[..., None], other=np.zeros(3), valid=valid[..., None])
    found = read_depth(tmp_path / "valid.npz").depth_m
    assert found.shape == (9, 12)
    assert found[3, 3] == 0
    assert not found[~valid].any()
    np.savez(tmp_path / "two.npz", a=depth(), b=depth())
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04nothing")
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY")
    np.save(tmp_path / "flat.npy", np.zeros(7))
    np.savez(tmp_path / "k.npz", depth=depth(), K=np.eye(4))
    np.savez(tmp_path / "holes.npz", depth=depth(), K=np.array([[9.0, 0, 6], [0, np.nan, 4], [0, 0, 1]]))
    np.savez(tmp_path / "behind.npz", depth=depth(), K=np.diag([-9.0, 9, 1]))
    np.savez(tmp_path / "turned.npz", depth=depth(), K=np.array([[9.0, 0, 6], [1, 9, 4], [0, 0, 1]]))
    np.savez(tmp_path / "complex.npz", depth=depth(), K=np.diag([9 + 1j, 9, 1]))
    for name, message in {
        "two.npz": "name the depth map",
        "broken.npz": "cannot be read",
        "broken.npy": "cannot be read",
        "flat.npy": "expected one depth map",
        "k.npz": "K has shape",
        "holes.npz": r"holes.npz: K must be a 3 x 3 matrix .* nan",
        "behind.npz": "with positive focal lengths",
        "turned.npz": r"turned.npz: K has the rows \[1.0, 9.0, 4.0\]",
        "complex.npz": "complex.npz is no matrix of numbers",
    }.items():
        with pytest.raises(InputError, match=message):
            read_depth(tmp_path / name)


def claims(shape: tuple[int, ...]) -> bytes:
    """An NPY whose header says this shape, with four values."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"shape": shape, "fortran_order": False, "descr": "<f4"})
    return stream.getvalue() + bytes(16)


def test_memory_is_the_machines_and_what_is_not_there_is_the_files(tmp_path: Path, monkeypatch) -> None:
    np.save(tmp_path / "good.npy", depth())

    def full(*_, **__):
        raise MemoryError("Unable to allocate 9 GiB")

    monkeypatch.setattr(np, "load", full)
    for shape, message in (((9000, 9000), "it is damaged"), ((90_000, 90_000), "8100000000 values, more than")):
        (tmp_path / "claims.npy").write_bytes(claims(shape))
        with zipfile.ZipFile(tmp_path / "claims.npz", "w") as parts:
            parts.writestr("depth.npy", claims(shape))
        for name in ("claims.npy", "claims.npz"):
            with pytest.raises(InputError, match=message):  # before any memory is asked for
                read_depth(tmp_path / name)
    with pytest.raises(MemoryError, match="Unable to allocate"):
        read_depth(tmp_path / "good.npy")
