"""`--quality turbo`: a shipped student draws in the place of its prior."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from unproject.core.distillation.export import About, export, load_student
from unproject.core.distillation.kinds import Lora
from unproject.core.distillation.quest import FILE, Quantised
from unproject.core.distillation.student import Student
from unproject.core.priors import load_prior
from unproject.core.priors.base import Recommended
from unproject.pipelines.quality import presets
from unproject.pipelines.text_to_image import TextToImage
from unproject.scripts.ship_student import main
from unproject.utils.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
FEW = Recommended(1.0, 4, solver="lcm", distilled=True, step_counts=(1, 2, 4))


@pytest.fixture
def weights(tiny_prior_folder: Path, in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of weights that holds a tiny prior by the name of the embedded one."""
    folder = in_tmp / "weights"
    folder.mkdir()
    (folder / "toybox").symlink_to(tiny_prior_folder)
    monkeypatch.setenv("UNPROJECT_WEIGHTS", str(folder))
    return folder


def learnt(kind: Lora) -> Student:
    student = Student(load_prior("toybox"), kind)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in student.network.parameters():
            if value.requires_grad:
                value += 0.05 * torch.randn(value.shape, generator=draw)
    return student


def test_turbo_draws_with_the_shipped_student(run, weights, in_tmp):
    exported = export(learnt(Lora(2, 4)), in_tmp / "made", About("lcm-lora", "toybox", "0" * 16, FEW))
    assert main([str(exported), "toybox-lcm"]) == 0 and (weights / "toybox-lcm/distill.json").is_file()
    for options in (["--quality", "turbo", "-o", "turbo.png"], ["--student", "toybox-lcm", "-o", "student.png"]):
        code, _, err = run("text-to-image", "a dog", *options)
        assert code == 0, err
    record = json.loads(Path("turbo.run.json").read_text())
    plan = record["notes"]["plan"]
    assert (plan["solver"], plan["steps"], plan["guidance"]) == ("lcm", 4, 1.0) and record["nfe"]["denoiser"] == 4
    assert Path("turbo.png").read_bytes() == Path("student.png").read_bytes()
    code, _, err = run("text-to-image", "a dog", "--quality", "turbo", "--steps", "3", "-o", "three.png")
    assert code == 2 and "was distilled to 1, 2, 4" in err
    made = TextToImage.from_pretrained("toybox", quality="turbo")("a dog", seed=0, output_type="latent")
    plain = TextToImage.from_pretrained("toybox")("a dog", seed=0, output_type="latent")
    assert made.nfe == 4 and plain.nfe > 4 and not torch.equal(made.latents, plain.latents)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), "unproject distill toybox-lcm --out runs/toybox-lcm"),
        (("--prior", "sd15"), "has a student of toybox, none of sd15; make one with `unproject distill lcm-lora"),
        (("--student", "other"), "--student other and --quality turbo both say who draws"),
    ],
)
def test_what_turbo_lacks_is_said_with_the_way_out(run, weights, options, told):
    code, _, err = run("text-to-image", "a dog", "--quality", "turbo", *options)
    assert code == 2 and told in err


def test_turbo_is_no_plan_of_other_priors_and_other_verbs(run, weights):
    with pytest.raises(InputError, match="which toybox is not"):
        TextToImage(load_prior("toybox"), "turbo")("a dog")
    code, _, err = run("edit", "a.png", "a dog", "a cat", "--quality", "turbo")
    assert code == 2 and "turbo" in err


def test_what_turbo_names_has_a_recipe(root: Path):
    assert all((root / "configs" / "distill" / f"{name}.yaml").is_file() for name in presets().turbo.values())


def test_a_packed_student_is_shipped_in_half_precision_and_answers_as_before(weights, in_tmp):
    kind = Quantised(times=2, runs=2, prompts=("a dog", ""))
    student = Student(load_prior("toybox"), kind)
    exported = export(student, in_tmp / "made", About("quest", "toybox", "0" * 16, Recommended()))
    assert (exported / "plain").is_dir()
    assert main([str(exported), "toybox-w4"]) == 0
    folder = weights / "toybox-w4"
    assert not (folder / "plain").exists()
    with safe_open(folder / FILE, "pt") as tensors:
        kinds = {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    assert kinds == {"F16", "U8"}
    x = torch.randn(2, *student.prior.latent_shape, generator=torch.Generator().manual_seed(2))
    rows = student.prior.encode_text(["a dog", "a red chair"])["cond"]
    with torch.no_grad():
        wanted = load_student(exported).predict(x, torch.tensor([900.0, 200.0]), rows)
        found = load_student("toybox-w4").predict(x, torch.tensor([900.0, 200.0]), rows)
    change = float((found - wanted).square().mean() / wanted.square().mean())
    assert change < 1e-2  # inputs of 8 bits that lie between two of their steps may fall to the other


@pytest.mark.parametrize(
    ("words", "told"), [(["made", "x"], "holds no distill.json"), (["student", "a/b"], "must be the name of a folder")]
)
def test_what_cannot_be_shipped_is_refused(in_tmp, capsys, words, told):
    Path("student").mkdir()
    Path("student/distill.json").write_text("{}")
    assert main([*words, "--out", "weights"]) == 2
    assert told in capsys.readouterr().err
    Path("weights/judge").mkdir(parents=True)
    assert main(["student", "judge", "--out", "weights"]) == 2
    assert "is no student" in capsys.readouterr().err
