"""Train the toybox codec or priors on a GPU that sees no renders: pack here, train there, unpack here.

    python -m unproject.scripts.train_prior_gpu pack --recipe multiview --out runs/pack
    python -m unproject.scripts.train_prior_gpu train --pack runs/pack --out OUT [--minutes 8.5]
    python -m unproject.scripts.train_prior_gpu unpack --pack runs/pack --weights OUT --out runs/gpu/export

`pack` writes what the recipe (vae or multiview) trains on, pictures or latents and texts of at most 40 MB, and what it
begins with. `train` needs torch, diffusers, transformers and accelerate, runs in bfloat16 on whatever device there is,
and leaves OUT/weights-N.safetensors of at most 15 MB each and OUT/validation.json. `unpack` writes the folders that the
CPU's training would have: a codec, or toybox and toybox-mv.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..core.training.config import TrainerConfig
from ..core.training.latents import ViewGroups
from ..core.training.objectives.multiview import MultiViewConfig, MultiViewObjective
from ..core.training.objectives.vae import VAEConfig, VAEObjective
from ..core.training.objectives.vae_weights import save_vae
from ..core.training.packed import PackedLatents, PackedPictures, pack, pack_pictures
from ..core.training.trainer import Trainer
from ..utils.configs import load_config, to_dict
from ..utils.errors import InputError, UnprojectError
from ..utils.files import atomic_path, read_json, write_json

PART_BYTES = 15_000_000


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="train_prior_gpu", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack")
    packing.add_argument(
        "--recipe", default="multiview", help="of a codec or a multi-view prior: a YAML file or a packaged name"
    )
    packing.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    packing.add_argument("--megabytes", type=float, default=40.0, help="of what is trained on")
    training = commands.add_parser("train")
    training.add_argument("--steps", type=int, default=6000, help="updates; the rate falls to nothing over them")
    training.add_argument("--batch", type=int, help="pictures, or groups of four views (default 256)")
    training.add_argument("--lr", type=float, help="highest rate (default 3e-3)")
    training.add_argument("--minutes", type=float, default=8.5, help="stop cleanly after this time")
    training.add_argument("--precision", default="bf16", choices=("bf16", "no"))
    training.add_argument("--device", default="auto", choices=("auto", "cpu"))
    unpacking = commands.add_parser("unpack")
    unpacking.add_argument("--weights", type=Path, required=True)
    for command in (training, unpacking):
        command.add_argument("--pack", type=Path, required=True)
    for command in (packing, training, unpacking):
        command.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    try:
        {"pack": pack_recipe, "train": train_packed, "unpack": unpack}[options.command](options)
    except UnprojectError as error:
        print(f"train_prior_gpu: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def pack_recipe(options: argparse.Namespace) -> None:
    """Writes train.npz, val.npz, base/ and pack.json into --out."""
    from .train import read_recipe

    _, values = read_recipe(options.recipe, options.set)
    kind = "multiview" if "base" in values else "vae"
    settings = {"vae": _pack_codec, "multiview": _pack_prior}[kind](values, options.out, options.megabytes)
    write_json(options.out / "pack.json", {"kind": kind, **settings})


def _pack_codec(values: dict[str, Any], out: Path, megabytes: float) -> dict[str, Any]:
    from ..toybox.maps import MapPictures
    from .recipes import vae_job

    job = vae_job(values)
    assert isinstance(job.objective, VAEObjective) and isinstance(job.data, MapPictures)
    if job.objective.config.features or job.objective.held_out is None:
        raise InputError("model.features needs a judge, which does not travel; set it to 0")
    for name, pictures, room in (("train", job.data, megabytes), ("val", job.objective.held_out, 2.0)):
        print(name, pack_pictures(pictures, out / f"{name}.npz", room, job.trainer.seed))
    job.objective.vae.save_pretrained(out / "base")
    return {"model": to_dict(job.objective.config)}


def _pack_prior(values: dict[str, Any], out: Path, megabytes: float) -> dict[str, Any]:
    from .drawn import ObjectPhrases, drawn
    from .recipes import MultiViewRecipe

    recipe = load_config(MultiViewRecipe, values)
    if not (Path(recipe.base) / "model_index.json").is_file():
        raise InputError(f"base={recipe.base} is not a pipeline folder; train and export the 2-D prior first")
    for name, parts, strange, room in (
        ("train", recipe.train, recipe.strange, megabytes), ("val", recipe.val, 0.0, 2.0),
    ):  # fmt: skip
        latents, pictures = drawn(parts, strange)
        print(name, pack(latents, ObjectPhrases(pictures), out / f"{name}.npz", room, seed=recipe.trainer.seed))
    shutil.copytree(recipe.base, out / "base", dirs_exist_ok=True)
    settings = {key: getattr(recipe, key) for key in ("single_share", "base_name")}
    return {**settings, "model": to_dict(recipe.model)}


def train_packed(options: argparse.Namespace) -> None:
    """Trains on what was packed and writes the averaged weights and their validation."""
    cargo = CARGOES[read_json(options.pack / "pack.json")["kind"]](options.pack)
    half = options.precision == "bf16"
    config = TrainerConfig(
        steps=options.steps, batch=options.batch or cargo.batch, lr=options.lr or cargo.lr, optimizer="muon",
        schedule="cosine", warmup=min(100, options.steps // 2), ema=0.999, channels_last=not half,
        precision=options.precision, max_minutes=options.minutes, log_every=50, save_every=10**9, keep=1,
    )  # fmt: skip
    trainer = Trainer(config, cargo.objective, cargo.data, options.out / "run", options.device)
    trainer.run()
    with trainer.averaged():
        found = cargo.objective.validate()
        for number, part in enumerate(_parts(_halved(cargo.objective.modules))):
            with atomic_path(options.out / f"weights-{number}.safetensors") as temporary:
                save_file(part, temporary)
    write_json(options.out / "validation.json", {"step": trainer.step, **found})


def unpack(options: argparse.Namespace) -> None:
    """Writes what the base that was packed becomes with the weights that came back."""
    cargo = CARGOES[read_json(options.pack / "pack.json")["kind"]](options.pack)
    found: dict[str, Tensor] = {}
    for path in sorted(options.weights.glob("weights-*.safetensors")):
        found |= load_file(path)
    for name, net in cargo.objective.modules.items():
        own = {key.removeprefix(f"{name}."): v.float() for key, v in found.items() if key.startswith(f"{name}.")}
        try:
            net.load_state_dict(own)
        except RuntimeError as error:
            raise InputError(f"--weights {options.weights} does not fit {options.pack}: {error}") from error
    cargo.save(options.out)


class CodecCargo:
    """A codec's training as it was packed."""

    batch, lr = 256, 3e-3

    def __init__(self, folder: Path) -> None:
        settings = read_json(folder / "pack.json")
        self.data = PackedPictures(folder / "train.npz")
        self.objective = VAEObjective(load_config(VAEConfig, settings["model"]), PackedPictures(folder / "val.npz"))
        self.objective.vae.load_state_dict(AutoencoderKL.from_pretrained(folder / "base").float().state_dict())

    def save(self, out: Path) -> None:
        """The diffusers folder, standardised on the pictures that were packed."""
        save_vae(self.objective.vae, self.data, out)


class PriorCargo:
    """A prior's training as it was packed."""

    batch, lr = 256, 3e-3

    def __init__(self, folder: Path) -> None:
        settings = read_json(folder / "pack.json")
        config = load_config(MultiViewConfig, settings["model"])
        base = StableDiffusionPipeline.from_pretrained(folder / "base")
        self.data, self.base_name = self._views(folder / "train.npz", settings["single_share"]), settings["base_name"]
        self.objective = MultiViewObjective(config, base, self._views(folder / "val.npz", 0.0))

    def save(self, out: Path) -> None:
        """The 2-D prior, if the text learnt too, and the multi-view one."""
        from .recipes import with_vocabulary

        if self.objective.config.train_text:
            with_vocabulary(self.objective.save_base(out / self.base_name))
        self.objective.save(out / f"{self.base_name}-mv", self.base_name)

    @staticmethod
    def _views(path: Path, single_share: float) -> ViewGroups:
        latents = PackedLatents(path)
        return ViewGroups(latents, latents.phrases, single_share)


CARGOES: dict[str, type[CodecCargo] | type[PriorCargo]] = {"vae": CodecCargo, "multiview": PriorCargo}


def _halved(modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    named = {f"{name}.{key}": value for name, net in modules.items() for key, value in net.state_dict().items()}
    return {name: value.detach().to("cpu", torch.float16).contiguous() for name, value in named.items()}


def _parts(named: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The tensors in their order, in parts of at most PART_BYTES (or one tensor)."""
    parts: list[dict[str, Tensor]] = [{}]
    for name, value in named.items():
        if parts[-1] and sum(map(_bytes, parts[-1].values())) + _bytes(value) > PART_BYTES:
            parts.append({})
        parts[-1][name] = value
    return parts


def _bytes(value: Tensor) -> int:
    return value.numel() * value.element_size()


if __name__ == "__main__":
    sys.exit(main())
