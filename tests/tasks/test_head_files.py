"""A saved head is the one that is loaded again: where its prior lies, how it is asked, whole or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import MarigoldDepthPipeline, UNet2DConditionModel

from unproject.pipelines.image_to_geometry import ImageToDepth, ImageToGeometry
from unproject.tasks.geometry_head import MANIFEST, GeometryHead, HeadConfig
from unproject.tasks.heads import known_start, load_head, marigold_head
from unproject.utils.errors import InputError

PICTURE = torch.rand(1, 3, 32, 40, generator=torch.Generator().manual_seed(0))


def depth(pipe: Any) -> torch.Tensor:
    return pipe(PICTURE, seed=1, output_type="pt").prediction


@pytest.mark.parametrize(("start", "steps"), [("noise", 3), ("zeros", 1)])
def test_a_marigold_head_is_saved_as_its_pipeline(marigold: Any, tmp_path: Path, start: Any, steps: int) -> None:
    head = marigold_head(marigold("depth"), start).with_config(steps=steps, processing_resolution=24)
    pipe = ImageToDepth(head)
    again = ImageToDepth.from_pretrained(pipe.save_pretrained(tmp_path / "head"))
    assert again.head.config == head.config
    assert torch.equal(depth(again), depth(pipe))
    assert isinstance(MarigoldDepthPipeline.from_pretrained(tmp_path / "head"), MarigoldDepthPipeline)
    assert known_start(str(tmp_path / "head")) == start
    other = "zeros" if start == "noise" else "noise"
    assert load_head(tmp_path / "head", start=other).config.start == other


def test_what_a_head_begins_with_is_known_before_it_is_loaded(tmp_path: Path) -> None:
    """By the embedded one's manifest, the table, a folder's manifest or that of the head beside a prior; else not."""
    assert known_start("toybox") == "zeros" and known_start("GonzaloMG/marigold-e2e-ft-depth") == "zeros"
    assert known_start("marigold-depth") == "noise" and known_start("someone/unheard-of") is None
    (tmp_path / "mine-geometry").mkdir()
    for text, start in (('{"config": {"start": "zeros"}}', "zeros"), ("[]", None), ('{"config": 3}', None)):
        (tmp_path / "mine-geometry" / MANIFEST).write_text(text)
        assert known_start(str(tmp_path / "mine")) == known_start(str(tmp_path / "mine-geometry")) == start


def test_the_base_is_remembered(head_folder: Path, tmp_path: Path) -> None:
    pipe = ImageToGeometry.from_pretrained(head_folder)
    saved = pipe.save_pretrained(tmp_path / "elsewhere" / "head")
    again = ImageToGeometry.from_pretrained(saved)
    assert again.head.prior.name == "tiny"
    assert torch.equal(
        again(PICTURE, output_type="pt").depth.prediction, pipe(PICTURE, output_type="pt").depth.prediction
    )
    assert again.head.with_config(steps=1).base == again.head.base == str(head_folder.parent / "tiny")


def test_files_of_a_saved_head_are_as_readable_as_any(head_folder: Path, tmp_path: Path) -> None:
    saved = ImageToGeometry.from_pretrained(head_folder).save_pretrained(tmp_path / "head")
    usual = tmp_path / "usual"
    usual.touch()
    files = [path for path in saved.rglob("*") if path.is_file()]
    assert any(path.suffix == ".safetensors" for path in files)
    assert {path.stat().st_mode for path in files} == {usual.stat().st_mode}


def test_an_embedded_head_goes_with_its_prior_by_name(
    head_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever folder the weights of this machine are in."""
    root = tmp_path / "weights"
    shutil.copytree(head_folder.parent / "tiny", root / "toybox")
    shutil.copytree(head_folder, root / "toybox-geometry")
    manifest = root / "toybox-geometry" / "head.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "base": "toybox"}))
    monkeypatch.setenv("UNPROJECT_WEIGHTS", str(root))
    saved = load_head("toybox").save(tmp_path / "mine")
    assert json.loads((saved / "head.json").read_text())["base"] == "toybox"


def test_a_folder_beside_a_head_that_is_no_prior_is_told_with_the_head(head_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(head_folder, tmp_path / "mine")
    (tmp_path / "tiny").mkdir()
    with pytest.raises(InputError, match=r"mine stands on the prior 'tiny', which cannot be loaded: .*tiny holds no"):
        GeometryHead.load(tmp_path / "mine")


def test_a_head_of_unknown_origin_needs_a_base(tiny_prior: Any, tmp_path: Path) -> None:
    head = GeometryHead.from_prior(tiny_prior, HeadConfig())
    with pytest.raises(InputError, match=r'not loaded from files; name its prior, for example base="toybox"'):
        ImageToGeometry(head).save_pretrained(tmp_path / "head")
    assert not (tmp_path / "head").exists()


def test_a_head_is_written_whole_and_over_nothing_else(
    head_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, folder = GeometryHead.load(head_folder), tmp_path / "head"
    head.save(folder, marker=1)

    def full(self: Any, *_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(UNet2DConditionModel, "save_pretrained", full)
        with pytest.raises(Exception, match="No space left"):
            head.save(folder, marker=2)
    assert json.loads((folder / "head.json").read_text())["marker"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["head"]
    GeometryHead.load(head.save(folder, marker=3))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(InputError, match="notes is no folder of a head and would be replaced"):
        head.save(tmp_path / "notes")


def test_another_setting_keeps_the_saved_prompt(head_folder: Path) -> None:
    head = GeometryHead.load(head_folder)
    assert head.with_config(processing_resolution=16).empty_prompt() is head.empty_prompt()
    assert head.with_config(prompt_padding="do_not_pad").empty_prompt().shape[1] == 2


def test_a_head_that_learnt_on_another_codec_brings_it(head_folder: Path, tmp_path: Path) -> None:
    """The one in its folder takes the place of its base's, and is written again with the head."""
    head = GeometryHead.load(head_folder)
    for parameter in head.prior.vae.decoder.parameters():
        parameter.data.mul_(0.9)
    head.brings_codec = True
    folder = head.save(head_folder.parent / "mine")
    again = GeometryHead.load(folder)
    assert torch.allclose(depth_of(again), depth_of(head), atol=1e-3)  # of half precision
    assert not torch.allclose(depth_of(again), depth_of(GeometryHead.load(head_folder)), atol=1e-2)
    shutil.copytree(head_folder.parent / "tiny", tmp_path / "tiny")
    twice = GeometryHead.load(again.with_config().save(tmp_path / "twice", "tiny"))
    assert torch.equal(depth_of(twice), depth_of(again))
    assert not (head_folder / "vae").exists()


def depth_of(head: GeometryHead) -> torch.Tensor:
    return ImageToGeometry(head)(PICTURE, output_type="pt").depth.prediction
