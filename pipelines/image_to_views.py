"""One picture to views all around its object, with their cameras."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..core.priors import Prior, StableDiffusionPrior, load_prior
from ..core.priors.orbits import MANIFEST, load_orbits
from ..core.sampling.calibration import fingerprint
from ..geometry.camera_files import save_nerfstudio
from ..geometry.cameras import Camera
from ..utils.digests import digest
from ..utils.errors import InputError
from ..utils.files import atomic_path, beside_weights, read_json, weights_root, write_json
from ..utils.pictures import grid, save_image
from ..utils.progress import Progress
from ..utils.seeds import generator as seeded
from .base import PriorPipeline
from .cutout import cut_out, plain_background
from .picture_inputs import PictureLike
from .picture_views import Reader, ViewSettings, drawer_of, drawn_views
from .sampling_parts import whole_number

FOV_DEG = 33.5  # of the cameras: the middle of what the toybox's orbits have, near SV3D's 33.8
DISTANCE = 1 / math.sin(math.radians(0.5 * FOV_DEG))  # at which the unit ball fills the view
WORK, VIEWS = "views.safetensors", "mv.json"
HOW_TO_TRAIN = (
    "give a prior of several views (toybox-mv, mvdream), or train weights of orbits with\n"
    "  unproject train orbits --out runs/orbits\nand give --orbit runs/orbits/export (docs/training.md)"
)


@dataclass
class ImageToViewsOutput(BaseOutput):
    """Views around an object; view `picture_view` is the picture itself."""

    views: NDArray[np.float32]  # (F, H, W, 3) in [0, 1], sRGB, over the grey of the settings
    alpha: NDArray[np.float32]  # (F, H, W, 1) coverage
    cameras: Camera  # (F,), of a unit ball around the origin, from the settings' azimuth on
    picture_view: int
    cut_by: str  # what told the object from its background
    settings: ViewSettings
    prior: str
    nfe: int

    def rgba(self) -> NDArray[np.float32]:
        """(F, H, W, 4); colours are not divided by the coverage, which is 0 or 1 but at the picture's edges."""
        return np.concatenate([self.views, self.alpha], axis=-1)

    def save(self, folder: str | Path, stem: str = "view") -> list[Path]:
        """Writes STEM-00.png ..., STEM-sheet.png and transforms.json (nerfstudio's, which `unproject fit` reads)."""
        folder = Path(folder)
        names = [f"{stem}-{k:02d}.png" for k in range(len(self.views))]
        written = [save_image(folder / name, view) for name, view in zip(names, self.rgba(), strict=True)]
        sheet = grid(list(self.views), columns=math.ceil(math.sqrt(len(self.views))))
        return [
            *written,
            save_image(folder / f"{stem}-sheet.png", sheet),
            save_nerfstudio(folder / "transforms.json", self.cameras, names),
        ]


class ImageToViews(PriorPipeline):
    """Views around the object of one picture, by a prior of several views, one of which is the picture, or by a prior
    that is told a picture: SV3D in diffusers' layout, weights of `unproject train orbits`.

    >>> from unproject.toybox.reading import read_picture
    >>> pipe = ImageToViews.from_pretrained("toybox", reader=read_picture)
    >>> pipe("cup.png", seed=0).save("views")  # or without a reader: pipe("cup.png", prompt="a red cup")
    """

    def __init__(self, prior: Prior, reader: Reader | None = None) -> None:
        """`reader`: tells words and azimuth of pictures that the embedded prior of several views is shown without.

        Raises InputError for a prior that draws no views of a picture.
        """
        super().__init__(prior)
        self.drawer = drawer_of(prior, HOW_TO_TRAIN, reader)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = "toybox",
        weights: str | Path | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        reader: Reader | None = None,
        **options: Any,
    ) -> ImageToViews:
        """Loads a prior of orbits or of several views, or an image prior and what was trained on it.

        weights: export/ of `unproject train orbits`; None: those that come with the prior, else the prior of several
        views that does. Raises InputError, with the command that trains, where there is neither.
        """
        name, weights = drawing_files(name, weights)
        prior: Prior = load_prior(name, device, dtype, **options)
        if weights is not None:
            if not isinstance(prior, StableDiffusionPrior):
                raise InputError(f"--orbit {weights} goes on an image prior, which {prior.name!r} is not")
            prior = load_orbits(weights, prior)
        return cls(prior, reader)

    @torch.no_grad()
    def __call__(
        self,
        image: PictureLike,
        mask: PictureLike | None = None,
        *,
        plain: bool = False,
        subject: str | None = None,
        prompt: str | None = None,
        azimuth_deg: float | None = None,
        elevation_deg: float = 15.0,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        min_guidance_scale: float | None = None,
        max_guidance_scale: float | None = None,
        noise_aug_strength: float | None = None,
        size: int | None = None,
        fill: float = 0.75,
        background: float | None = None,
        seed: int = 0,
        out: str | Path | None = None,
        resume: bool = True,
    ) -> ImageToViewsOutput:
        """Draws views around the object of one picture.

        Args:
            image: a path, PIL image, array or tensor of one picture.
            mask: of the object, white; None: what is not transparent.
            plain: the background of a picture without either is of one colour.
            subject: a word or a few for the object of a picture without any of these: the prior's attention finds it.
            prompt: what is shown, for a prior of several views; None: as `reader` says, unless it contradicts
                `subject`, else `subject`.
            azimuth_deg: from which side of the object the picture looks, 0 the front, 90 its left (+y); for a prior of
                several views; None: as `reader` says, else the front.
            elevation_deg: degrees above the horizon from which the picture was taken, which the prior is told.
            num_frames: views of a full turn; None: as many as the prior learnt.
            num_inference_steps: Euler steps, of orbits on Karras' grid; None: what suits the prior.
            min_guidance_scale: at the picture, for weights of orbits; None: the prior's.
            max_guidance_scale: on the other side, of a prior of several views for all of them; None: the prior's.
            noise_aug_strength: noise on the picture, for weights of orbits; None: as it learnt.
            size: px of the views; None: the prior's own.
            fill: the object's larger side in the picture that the prior is shown, as a share of it.
            background: sRGB grey behind the object; None: what suits the prior.
            seed: of everything random.
            out: folder in which finished views are kept, for a run that goes on from them.
            resume: take what is there.
        """
        whole_number("seed", seed, 0)
        given = {"azimuth_deg": azimuth_deg, "min_guidance_scale": min_guidance_scale,
                 "max_guidance_scale": max_guidance_scale}  # fmt: skip
        for name, value in given.items():
            if value is not None and (not isinstance(value, Real) or not math.isfinite(value)):
                raise InputError(f"{name}={value!r} must be a finite number")
        prior, drawer = self.prior, self.drawer
        low, high = drawer.scales
        scale = high if max_guidance_scale is None else float(max_guidance_scale)
        least = scale if low == high else low  # one scale for all views, or one that grows away from the picture
        settings = ViewSettings(
            seed,
            drawer.frames if num_frames is None else num_frames,
            prior.recommended.steps if num_inference_steps is None else num_inference_steps,
            (least if min_guidance_scale is None else float(min_guidance_scale), scale),
            float(elevation_deg),
            azimuth_deg or 0.0,
            prompt or "",
            prior.image_size if size is None else size,
            float(fill),
            drawer.background if background is None else float(background),
            drawer.cond_aug if noise_aug_strength is None else float(noise_aug_strength),
        )
        _check(settings, prior)
        cut = cut_out(image, mask, plain, subject, getattr(prior, "base", prior))
        shown = cut.framed(settings.size, settings.fill, settings.background)
        told = drawer.read(shown[:3], subject if prompt is None and drawer.asks_words else prompt, azimuth_deg)
        if prompt is None and subject and told.prompt and not set(subject.lower().split()) <= set(told.prompt.split()):
            told = drawer.read(shown[:3], subject, told.azimuth_deg)  # who names the object knows it best
        settings = replace(settings, prompt=told.prompt, azimuth_deg=told.azimuth_deg)
        kept = None if out is None else _Kept(Path(out), settings, shown, prior)
        views, nfe = (kept.read() if kept is not None and resume else None) or self._drawn(shown[None, :3], settings)
        if kept is not None:
            kept.write(views, nfe)
        return self._finished(views, shown, settings, cut.how, nfe)

    def _drawn(self, picture: Tensor, settings: ViewSettings) -> tuple[Tensor, int]:
        """(views (F, 3, H, W) in [0, 1], network rows)."""
        before = self.prior.nfe
        with Progress(settings.steps, "views") as bar:
            rng = seeded(settings.seed)
            views = drawn_views(self.drawer, picture, settings, rng, lambda *_: bar.advance())
        return views, self.prior.nfe - before

    def _finished(
        self, views: Tensor, shown: Tensor, settings: ViewSettings, cut_by: str, nfe: int
    ) -> ImageToViewsOutput:
        """Views with coverage and cameras; the picture's own view is the picture."""
        prior, place = self.prior, self.drawer.picture_frame % settings.frames
        pixels = views.permute(0, 2, 3, 1).float().numpy().copy()
        alpha = plain_background(pixels)[..., None].astype(np.float32)
        own = shown.permute(1, 2, 0).cpu().numpy()
        pixels[place], alpha[place] = own[..., :3].clip(0, 1), own[..., 3:].clip(0, 1)
        turns = self.drawer.azimuths(settings)
        camera = Camera.orbit(turns, settings.elevation_deg, DISTANCE, FOV_DEG, settings.size)
        return ImageToViewsOutput(
            views=pixels,
            alpha=alpha,
            cameras=camera,
            picture_view=place,
            cut_by=cut_by,
            settings=settings,
            prior=prior.name,
            nfe=nfe,
        )


class _Kept:
    """Finished views in a folder, for the same picture, prior and settings."""

    def __init__(self, folder: Path, settings: ViewSettings, shown: Tensor, prior: Prior) -> None:
        self.folder = folder
        told = {**asdict(settings), "picture": digest({"picture": shown}), "prior": asdict(fingerprint(prior))}
        self.made_from = json.loads(json.dumps(told))

    def read(self) -> tuple[Tensor, int] | None:
        """(views, network rows), None where there are none of these."""
        about = self.folder / "views.json"
        if not about.is_file() or not (self.folder / WORK).is_file():
            return None
        told = read_json(about)
        if not isinstance(told, dict) or told.get("made_from") != self.made_from:
            return None
        return load_file(self.folder / WORK)["views"], int(told["nfe"])

    def write(self, views: Tensor, nfe: int) -> None:
        """Whole or not at all; views.json is the last."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.folder / WORK) as temporary:
            save_file({"views": views.contiguous()}, temporary)
        write_json(self.folder / "views.json", {"made_from": self.made_from, "nfe": nfe})


def drawing_files(name: str | Path, weights: str | Path | None) -> tuple[str | Path, str | Path | None]:
    """(prior, weights of orbits on it or None) of what draws views of a picture, as far as files tell it.

    Raises InputError as `find_weights` does.
    """
    if weights is not None or _draws_views(name):
        return name, weights
    found = find_weights(name)
    return (name, found) if (found / MANIFEST).is_file() else (found, None)


def find_weights(name: str | Path) -> Path:
    """The folder of weights of orbits that comes with a prior, else that of the prior of several views which does.

    Raises InputError, with the command that trains, without either.
    """
    for kind, manifest in (("orbit", MANIFEST), ("mv", VIEWS)):
        path = beside_weights(name, kind)
        if (path / manifest).is_file():
            return path
    raise InputError(f"nothing that draws views of a picture comes with the prior {str(name)!r}; {HOW_TO_TRAIN}")


def _draws_views(name: str | Path) -> bool:
    """Whether a prior draws views of a picture as it is, by its files; one that has none here is asked when loaded."""
    embedded = Path(name).name == str(name) and (weights_root() / name).is_dir()
    folder = weights_root() / name if embedded else Path(name)
    if not folder.is_dir() or (folder / MANIFEST).is_file() or (folder / VIEWS).is_file():
        return True
    index = folder / "model_index.json"
    values = read_json(index) if index.is_file() else None
    return isinstance(values, dict) and "StableVideoDiffusionPipeline" in str(values.get("_class_name"))


def _check(settings: ViewSettings, prior: Prior) -> None:
    for name, value, least in (("num_frames", settings.frames, 2), ("num_inference_steps", settings.steps, 1)):
        whole_number(name, value, least)
    whole_number("size", settings.size)
    if settings.size % prior.vae_factor or settings.size < prior.vae_factor:
        raise InputError(f"size={settings.size} must be a positive multiple of {prior.vae_factor} px for {prior.name}")
    if not -90 <= settings.elevation_deg <= 90:
        raise InputError(f"elevation_deg={settings.elevation_deg:g} must lie between -90 and 90")
    if not 0.1 <= settings.fill <= 1 or not 0 <= settings.background <= 1:
        raise InputError(f"fill={settings.fill:g} in [0.1, 1] and background={settings.background:g} in [0, 1] needed")
    if settings.cond_aug < 0:
        raise InputError(f"noise_aug_strength={settings.cond_aug:g} must not be negative")
