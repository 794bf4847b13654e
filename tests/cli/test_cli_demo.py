"""The demo's parts, and the priors and packages that commands find or miss."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from unproject.cli import demo, info
from unproject.cli.image import ImageCommand
from unproject.cli.priors import PriorCommand, head_of
from unproject.cli.shapes import TextToMesh
from unproject.cli.text import TextToImage
from unproject.utils.pictures import save_image

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    """Parts of the demo that write nothing; (command, prior, file) of each that ran."""
    done: list[tuple[str, str, str]] = []

    def note(self: PriorCommand, record: Any, target: Any) -> None:
        done.append((self.name, self.prior, str(target.file(target.suffix))))

    for command in (TextToImage, TextToMesh, ImageCommand):
        monkeypatch.setattr(command, "run", note)
    monkeypatch.setattr(demo, "room_photo", lambda path: save_image(path, np.zeros((4, 4, 3))))
    return done


def test_a_prior_without_heads_gets_the_embedded_ones(run: Run, ran: list[tuple[str, str, str]]) -> None:
    code, _, err = run("demo", "--prior", "sd15", "-o", "d")
    assert (code, err) == (0, "")
    assert ran == [
        ("text-to-image", "sd15", "d/images.png"),
        ("text-to-mesh", "sd15", "d/chair.glb"),
        ("depth", "toybox", "d/depth.png"),
        ("normals", "toybox", "d/normals.png"),
        ("pointcloud", "toybox", "d/points.ply"),
    ]


def test_heads_lie_in_a_prior_or_beside_it(in_tmp: Path) -> None:
    for folder in ("alone", "both", "both-geometry", "head"):
        Path(folder).mkdir()
    for folder in ("both-geometry", "head"):
        Path(folder, "head.json").write_text("{}")
    assert [head_of(name) for name in ("alone", "both", "head", "sd15")] == ["toybox", "both", "head", "toybox"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--photo", "missing.jpg"), "--photo missing.jpg does not exist"),
        (("--photo", "."), "--photo . is a folder"),
        (("--photo", "broken.jpg"), "broken.jpg is not an image"),
        (("--photo", "d/depth.png"), "would overwrite d/depth.png"),
        (("--photo", "d/images.png"), "would overwrite d/images.png"),
        (("--prompt", ""), "the prompt is empty"),
        (("--prior", "marigold-depth"), "--prior 'marigold-depth' is unknown"),
    ],
)
def test_no_part_runs_when_one_cannot(
    run: Run, ran: list[tuple[str, str, str]], words: tuple[str, ...], message: str
) -> None:
    Path("broken.jpg").write_text("no picture")
    for name in ("depth", "images"):
        save_image(f"d/{name}.png", np.zeros((4, 4, 3)))
    code, _, err = run("demo", "-o", "d", *words)
    assert (code, message in err, ran) == (2, True, [])


def test_the_mesh_stays_in_the_folder_of_the_demo(run: Run, ran: list[tuple[str, str, str]]) -> None:
    assert run("demo", "--prompt", "a red ../and/or", "-o", "d")[0] == 0
    assert ran[1][2] == "d/and-or.glb"


def test_a_checkpoint_file_is_a_prior_and_has_a_base(run: Run, fake_images: list[dict[str, object]]) -> None:
    Path("mv.safetensors").write_bytes(b"")
    assert run("text-to-mesh", "a cup", "--prior", "mv.safetensors", "--base", "sd15", "--dry-run")[0] == 0
    assert run("text-to-image", "a cup", "--prior", "mv.safetensors", "--base", "sd15", "-o", "1")[0] == 0
    assert run("text-to-image", "a cup", "--prior", "mv.safetensors", "-o", "2")[0] == 0
    assert [(asked["prior"], asked.get("base")) for asked in fake_images if "prior" in asked] == [
        ("mv.safetensors", "sd15"),
        ("mv.safetensors", None),
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("text-to-mesh", "a cup", "--prior", "no.safetensors"), "--prior 'no.safetensors' does not exist"),
        (("text-to-mesh", "a cup", "--prior", "no/no.safetensors"), "--prior 'no/no.safetensors' does not exist"),
        (("text-to-mesh", "a cup", "--base", "sd15"), "--base sd15 serves a checkpoint file, not --prior toybox"),
        (("text-to-mesh", "a cup", "--prior", "mv.safetensors", "--base", "sd51"), "--base 'sd51' is unknown"),
        (("depth", "photo.png", "--prior", "mv.safetensors"), "'mv.safetensors' is a file, which this cannot use"),
    ],
)
def test_files_that_are_no_prior(run: Run, words: tuple[str, ...], message: str) -> None:
    Path("mv.safetensors").write_bytes(b"")
    save_image("photo.png", np.zeros((4, 4, 3)))
    code, _, err = run(*words)
    assert (code, message in err) == (2, True)


def test_the_base_of_a_checkpoint_is_not_that_of_a_second_model(in_tmp: Path) -> None:
    Path("mv.safetensors").write_bytes(b"")
    command = TextToImage(prompt="a cup", prior="mv.safetensors", base="sd15", model_schedule="toybox:0.5")
    command.check()
    assert (command.at("toybox").base, command.at("mv.safetensors").base) == (None, "sd15")
    assert "base" not in command.at("toybox").placement()


def test_files_of_a_prior_go_along_to_it_alone(run: Run, fake_images: list[dict[str, object]]) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        Path(name).write_bytes(b"")
    words = ("--prior", "sd15", "--variant", "fp16", "--revision", "v2", "--lora", "a.safetensors:0.5", "b.safetensors")
    assert run("text-to-image", "a cup", *words)[0] == 0
    asked = fake_images[0]
    assert (asked["variant"], asked["revision"]) == ("fp16", "v2")
    assert asked["lora"] == ("a.safetensors:0.5", "b.safetensors")
    Path("sd15").mkdir()  # shadows nothing
    assert run("text-to-image", "a cup", "--prior", "sd15", "--revision", "v2", "-o", "again.png")[0] == 0
    code, _, err = run("text-to-image", "a cup", "--prior", "./sd15", "--revision", "v2", "-o", "other.png")
    assert (code, "serves priors on the hub, not --prior ./sd15" in " ".join(err.split())) == (2, True)
    command = TextToImage(prompt="a cup", prior="sd15", variant="fp16", lora=("a.safetensors",))
    assert command.at("toybox").placement().keys() == {"device", "dtype", "quality"}
    assert command.at("sd15").placement()["lora"] == ("a.safetensors",)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--lora", "a.safetensors:x"), "--lora a.safetensors:x: the scale 'x' is no number"),
        (("--lora", "b.safetensors:1"), "b.safetensors does not exist"),
        (("--lora", "a.pt"), "is not a safetensors file"),
        (("--revision", "v2"), "--revision v2 serves priors on the hub, not --prior toybox"),
        (("--prior", "sd51"), "owner/name; did you mean sd21 or sd15"),
        (("--prior", "no.pt"), "--prior 'no.pt' does not exist"),
    ],
)
def test_options_that_a_prior_cannot_take(run: Run, words: tuple[str, ...], message: str) -> None:
    for name in ("a.safetensors", "a.pt"):
        Path(name).write_bytes(b"")
    code, _, err = run("text-to-image", "a cup", *words)
    assert (code, message in " ".join(err.split())) == (2, True)


def test_heads_take_no_adapters(run: Run) -> None:
    save_image("photo.png", np.zeros((4, 4, 3)))
    Path("a.safetensors").write_bytes(b"")
    code, _, err = run("depth", "photo.png", "--lora", "a.safetensors")
    assert (code, "--lora" in " ".join(err.split())) == (2, True)


@pytest.fixture
def few_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """A doctor who looks at two packages."""
    monkeypatch.setattr(info, "PACKAGES", ("torch", "numpy"))
    original = importlib.import_module
    found = ("torch", "numpy")
    stand_in = SimpleNamespace(import_module=lambda name: original(name) if name in found else SimpleNamespace())
    monkeypatch.setattr(info, "importlib", stand_in)


def test_a_broken_package_hides_no_other_check(run: Run, few_packages: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("torch", "unproject.core.priors.registry", "unproject.geometry.validate"):
        monkeypatch.setitem(sys.modules, module, None)
    code, out, _ = run("doctor")
    assert code == 1
    assert "required but broken: torch" in out
    rows = [line.split("\t") for line in out.splitlines()]
    assert {"numpy", "torch", "priors", "ffmpeg"} <= {row[1] for row in rows if len(row) > 1}
    assert [row[:3] for row in rows if row[0] == "prior"] == [["prior", "priors", "no"]]
    code, out, _ = run("doctor", "--json")
    assert (code, json.loads(out)["ok"]) == (1, False)


def test_a_machine_in_order_is_exit_code_0(run: Run, few_packages: None) -> None:
    code, out, _ = run("doctor")
    assert (code, "everything required works" in out) == (0, True)


@pytest.mark.parametrize("prior", ["sd21-base", "mvdream", "sdxl", "sd35-medium", "flux-dev"])
@pytest.mark.parametrize("verb", ["text-to-mesh", "text-to-image"])
def test_the_doctor_tells_what_fits_which_card(run: Run, prior: str, verb: str) -> None:
    code, out, _ = run("doctor", "--prior", prior, "--verb", verb, "--json")
    told = json.loads(out)
    assert code == 0 and [row["card_gib"] for row in told["cards"]] == [8, 12, 16, 24, 48]
    fitting = [row["needs_gb"]["total"] for row in told["cards"] if row["settings"]]
    assert told["cards"][-1]["settings"] is not None and len(fitting) >= 1
    for row in told["cards"]:
        assert row["settings"] is None or row["needs_gb"]["total"] <= 1.0737 * row["card_gib"]
