from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from unproject.bench.registry import EXPERIMENTS
from unproject.cli.commands import COMMANDS, parse
from unproject.cli.common import Command
from unproject.cli.outputs import slugify
from unproject.utils.errors import InputError, UnprojectError
from unproject.utils.pictures import load_image, save_image

Run = Callable[..., tuple[int, str, str]]


def fails_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Makes `unproject methods` fail."""
    from unproject.cli.info import Methods

    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr(Methods, "run", broken)


def test_help_names_every_command(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert all(command.name in out for command in COMMANDS)
    assert run()[0] == 0


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.name)
def test_every_command_explains_itself(run: Run, command: type[Command]) -> None:
    code, out, _ = run(command.name, "--help")
    assert code == 0
    assert all(option in out for option in ("--out", "-o", "--json", "--print-config", "--dry-run"))


def test_help_is_quick() -> None:
    code = f"import sys; sys.path[:0] = {sys.path!r}; from unproject.cli import main; main(['--help'])"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - before.ru_utime < 1.5  # processor seconds: a busy machine does not count


def test_version(run: Run) -> None:
    from unproject import __version__

    assert run("--version") == (0, f"unproject {__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nonsense",), "nonsense"),
        (("text-to-image",), "give a prompt, or --prompts FILE"),
        (("text-to-image", "a cup", "--grid", "many"), "grid"),
        (("text-to-image", "a cup", "--grid", "4", "--count", "2"), "--grid 4 or --count 2"),
        (("text-to-image", "a cup", "--steps", "0"), "--steps must lie between 1 and 1000, got 0"),
        (("text-to-image", "a cup", "--seed", "-1"), "--seed must be 0 or more, got -1"),
        (("text-to-image", "a cup", "--prior", "toyboks"), "--prior 'toyboks' is unknown; have toybox"),
        (("text-to-image", "a cup", "-o", "cup.glb"), "text-to-image writes a folder or .png"),
        (("text-to-image", "a cup", "--device", "tpu9"), "--device 'tpu9' is not a device"),
        (("text-to-image", "a cup", "--device", "cuda:77"), "--device cuda:77 is not available"),
        (("text-to-mesh", "  "), "the prompt is empty"),
        (("text-to-mesh", "a cup", "--recipe", "toybo"), "did you mean 'text-to-mesh/toybox'"),
        (("text-to-mesh", "a cup", "-o", "cup.png"), "text-to-mesh writes a folder or .glb"),
        (("depth", "picture.png", "--prior", "sdxl"), "--prior 'sdxl' is unknown; have toybox, marigold-depth"),
        (("depth", "missing.png"), "image missing.png does not exist"),
        (
            ("depth", "picture.png", "-o", "picture.png"),
            "--out picture.png would overwrite picture.png, the picture itself",
        ),
        (("depth", ".", "-o", "depth.png"), "is one file but . is a folder"),
        (("pointcloud", ".", "--near", "3", "--far", "2"), "need 0 < near < far"),
        (("pointcloud", ".", "--fov", "180"), "--fov must lie between 1 and 170"),
        (("depth", "picture.png", "--steps", "4", "--dry-run"), "--steps 4: the head toybox is a one-step regressor"),
        (("pointcloud", "picture.png", "--steps", "2", "--prior", "e2e-ft-depth"), "head e2e-ft-depth is a one-step"),
        (("toybox", "--count", "0"), "--count must lie between 1 and 256, got 0"),
        (("toybox", "--count", "1" + "0" * 400), f"--count must lie between 1 and 256, got 1{'0' * 39}..."),
        (("toybox", "--sheet", "--nouns"), "--render, --sheet and --nouns are three different things"),
        (("inspect", "missing.glb"), "missing.glb does not exist"),
        (("convert", "missing.glb", "a.obj"), "missing.glb does not exist"),
        (("train", "missing"), "missing"),
        (("bench", "missing"), "unknown experiment 'missing'"),
    ],
)
def test_bad_input_is_exit_code_2_and_one_message(run: Run, words: tuple[str, ...], message: str) -> None:
    save_image("picture.png", np.zeros((4, 4, 3)))
    code, out, err = run(*words)
    assert code == 2
    assert re.sub(r"[\s│]+", " ", out + err).count("Traceback") == 0
    assert message in re.sub(r"[\s│]+", " ", out + err)


def test_names_of_any_bytes_make_the_name_of_a_record(run: Run) -> None:
    first, second = (parse(["depth", name, "b.png"]).slug() for name in ("\ud800.png", "\udcff.png"))
    assert first.startswith("\ud800-and-1-more-") and first != second


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("bad value"), 2, "error: bad value\n"),
        (UnprojectError("did not\nwork"), 1, "error: did not work\n"),
        (RuntimeError("surprise"), 1, "error: RuntimeError: surprise (UNPROJECT_DEBUG=1 shows where)\n"),
        (MemoryError(), 1, "error: out of memory\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_failures_are_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    monkeypatch.delenv("UNPROJECT_DEBUG", raising=False)
    fails_with(monkeypatch, error)
    assert run("methods") == (code, "", message)


def test_debug_shows_the_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fails_with(monkeypatch, RuntimeError("surprise"))
    monkeypatch.setenv("UNPROJECT_DEBUG", "1")
    code, _, err = run("methods")
    assert code == 1
    assert "Traceback" in err and err.endswith("(UNPROJECT_DEBUG=1 shows where)\n")


def test_failures_are_json_when_asked(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fails_with(monkeypatch, InputError("bad value"))
    code, out, _ = run("methods", "--json")
    assert code == 2
    assert json.loads(out) == {"status": "failed", "error": "bad value", "exit_code": 2}


def test_print_config_is_yaml_of_all_options(run: Run) -> None:
    code, out, _ = run("text-to-image", "a cup", "--seed", "3", "--print-config")
    options = yaml.safe_load(out)
    assert code == 0
    assert (options["command"], options["prompt"], options["seed"], options["prior"]) == (
        "text-to-image",
        "a cup",
        3,
        "toybox",
    )


def test_dry_run_writes_nothing(run: Run, in_tmp: Path) -> None:
    code, out, _ = run("text-to-image", "a red cup", "--grid", "9", "--dry-run")
    assert code == 0
    assert "would draw 9 images of 'a red cup'" in out
    assert str(Path("outputs/text-to-image/a-red-cup")) in out
    code, out, _ = run("text-to-image", "a red cup", "--dry-run", "--json")
    assert json.loads(out)["dry_run"] is True
    assert not list(in_tmp.iterdir())


def test_images_go_to_a_folder_with_their_record(run: Run, fake_images: list[dict[str, object]]) -> None:
    code, out, _ = run("text-to-image", "two red cubes!", "--count", "2", "--seed", "5")
    folder, stem = Path("outputs/text-to-image/two-red-cubes-86acf8"), "two-red-cubes-86acf8-seed5"
    assert code == 0
    assert sorted(p.name for p in folder.iterdir()) == [f"{stem}-0.png", f"{stem}-1.png", f"{stem}.run.json"]
    record = json.loads((folder / f"{stem}.run.json").read_text())
    assert record["nfe"] == {"denoiser": 80} and record["seed"] == 5 and record["notes"]["seeds"] == [5, 6]
    assert record["config"]["prompt"] == "two red cubes!"
    assert f"{stem}-0.png" in out and "80 denoiser calls" in out
    assert fake_images[0]["prior"] == "toybox" and fake_images[0]["device"] in ("cpu", "cuda", "mps")


def test_grid_is_one_file_with_its_record_beside(run: Run, fake_images: list[dict[str, object]]) -> None:
    code, out, _ = run("text-to-image", "two red cubes", "--grid", "16", "-o", "sheet.png", "--json")
    assert code == 0
    assert json.loads(out)["outputs"] == ["sheet.png"]
    assert load_image("sheet.png").shape == (4 * 10 + 2, 4 * 10 + 2, 3)
    assert Path("sheet.run.json").is_file()
    assert fake_images[1]["num_images_per_prompt"] == 16


def test_warnings_are_one_plain_line_and_recorded(
    run: Run, fake_images: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import warnings

    from unproject.pipelines import text_to_image

    original = text_to_image.TextToImage.__call__

    def noisy(self: object, *a: object, **k: object) -> object:
        for _ in range(2):
            warnings.warn("the prior has never seen\n'zeppelin'", stacklevel=1)
            warnings.warn("for developers", DeprecationWarning, stacklevel=1)
        return original(self, *a, **k)

    monkeypatch.setattr(text_to_image.TextToImage, "__call__", noisy)
    code, _, err = run("text-to-image", "a zeppelin", "-o", "out")
    assert (code, err) == (0, "warning: the prior has never seen 'zeppelin'\n")
    assert json.loads(Path("out/a-zeppelin-seed0.run.json").read_text())["warnings"] == [
        "the prior has never seen 'zeppelin'"
    ]


def test_methods_name_their_module(run: Run, root: Path) -> None:
    code, out, _ = run("methods", "--json")
    methods = json.loads(out)["methods"]
    assert code == 0
    assert {"mvdream", "score-distillation-family", "stabledreamer", "marigold", "e2e-ft"} <= set(methods)
    assert all((root / method["where"]).is_file() for method in methods.values())
    assert {name for method in methods.values() for name in method["bench"]} <= set(EXPERIMENTS)
    assert all((root / "docs" / "methods" / f"{method['page']}.md").is_file() for method in methods.values())
    recipes = {path.stem for path in (root / "configs" / "distill").glob("*.yaml")}
    named = {name for name, method in methods.items() if method["page"] == "distillation"}
    assert named <= recipes  # what `unproject distill` takes


def test_priors_say_their_state(run: Run, monkeypatch: pytest.MonkeyPatch, in_tmp: Path) -> None:
    monkeypatch.setenv("UNPROJECT_WEIGHTS", str(in_tmp / "nowhere"))
    code, out, _ = run("priors", "--json")
    rows = {row["name"]: row for row in json.loads(out)["priors"]}
    assert code == 0
    assert rows["toybox"]["state"].startswith("missing: no weights in")
    assert {"toybox", "toybox-mv", "sd15", "sdxl"} <= set(rows)


def test_priors_look_where_the_hubs_client_keeps_them(run: Run, monkeypatch: pytest.MonkeyPatch, in_tmp: Path) -> None:
    def state() -> str:
        return {r["name"]: r["state"] for r in json.loads(run("priors", "--json")[1])["priors"]}["sd15"]

    for variable in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(in_tmp / "xdg"))
    assert state() == "downloaded on first use"
    repo = "models--stable-diffusion-v1-5--stable-diffusion-v1-5"
    folder = in_tmp / "xdg" / "huggingface" / "hub" / repo / "snapshots" / "a"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "config.json").write_text("{}")
    (folder / "model_index.json").write_text(json.dumps({"unet": ["diffusers", "UNet2DConditionModel"]}))
    assert state() == "partly downloaded, the rest on first use"
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_text("")
    assert state() == "ready"


def test_told_things_are_written_when_asked(run: Run) -> None:
    assert run("methods", "-o", "m.json")[0] == 0
    assert "mvdream" in json.loads(Path("m.json").read_text())["methods"]


def test_output_that_cannot_be_written_is_bad_input(run: Run, fake_images: list[dict[str, object]]) -> None:
    Path("file").write_text("")
    code, _, err = run("text-to-image", "a cup", "-o", "file/cup.png")
    assert code == 2
    assert err.startswith("error: cannot write file/cup.png") and "choose another --out" in err


def test_folder_of_pictures_skips_what_cannot_be_read(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from unproject.cli.maps import MAP_COMMANDS

    done: list[str] = []
    monkeypatch.setattr(MAP_COMMANDS["depth"], "load", lambda self: None)
    monkeypatch.setattr(
        MAP_COMMANDS["depth"], "one", lambda self, pipe, path, picture, record, target: done.append(target.stem)
    )
    save_image("photos/b.png", np.zeros((4, 4, 3)))
    save_image("photos/a.png", np.zeros((4, 4, 3)))
    Path("photos/c.jpg").write_text("no picture")
    code, out, _ = run("depth", "photos", "-o", "out")
    assert (code, done) == (3, ["a-depth", "b-depth"])
    assert "skipped: photos/c.jpg is not an image" in out
    assert run("depth", "photos/c.jpg")[0] == 2


@pytest.mark.parametrize(
    ("text", "slug"),
    [
        ("Two red cubes!", "two-red-cubes"),
        ("../../etc", "etc"),
        ("日本", "日本"),
        ("!?", "result"),
        ("a" * 99, "a" * 48),
    ],
)
def test_slugs_are_safe_file_names(text: str, slug: str) -> None:
    assert slugify(text) == slug


def test_parse_gives_the_dataclass() -> None:
    command = parse(["text-to-mesh", "a red chair", "-o", "chair.glb", "--seed", "4"])
    assert (command.name, command.out, command.seed) == ("text-to-mesh", Path("chair.glb"), 4)
