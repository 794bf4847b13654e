"""An object without its background: by transparency, a mask, one colour, or where a prior looks for a word.

The last one is cross-attention (Hertz et al. 2022): the picture is noised, the prior asked with "a WORD", and the
attention of image to word averaged over levels. That is coarse; a random walk (Grady 2006) from its surest pixels
finds the edges in the picture itself.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from ..core.priors import Prior
from ..core.sampling import Denoiser
from ..core.sampling.attention import AttentionTap, subject_tokens
from ..core.sampling.features import noise_map
from ..utils.decoding import Layers
from ..utils.errors import InputError
from .picture_inputs import PictureLike, hidden_pixels, layers_given, pictures

Mask = NDArray[np.bool_]
LOOKS = (300.0, 450.0, 600.0)  # train indices of the noise through which a prior looks for a word
WALK_PX = 96  # longest side at which edges are found
SURE = (0.2, 0.5)  # shares of the object's, and of the other pixels that the random walk begins at
RIM = 0.03  # of the shorter side: what is background along the border
LEAST = 0.004  # of the pixels that an object has
PLAIN = 0.05  # least colour distance, in sRGB, of what stands before a plain background
WAYS = (
    "give a picture with transparency, --mask FILE (white is the object), --plain (what stands before a background of "
    "one colour), or --subject WORDS (the prior's own attention)"
)
UNTOLD = f"nothing says what the object is: the picture has no transparency; {WAYS}"


@dataclass(frozen=True)
class Cutout:
    """A picture and what of it is the object."""

    rgb: Tensor  # (3, H, W) in [0, 1]
    alpha: Tensor  # (1, H, W) in [0, 1]
    how: str  # transparency, mask, a plain background, or attention to a word

    def framed(self, size: int, fill: float, background: float) -> Tensor:
        """(4, size, size): the object in the middle of a square over a grey, its larger side `fill` of it.

        Colours are over the grey (sRGB), the fourth channel is the coverage.
        """
        solid = self.alpha[0] >= 0.5
        rows, columns = (solid.any(dim=axis).nonzero()[:, 0] for axis in (1, 0))
        spans = [(float(where[0]), float(where[-1]) + 1) for where in (rows, columns)]
        side = max(high - low for low, high in spans) / fill
        over = torch.cat([self.rgb * self.alpha + background * (1 - self.alpha), self.alpha])
        places = []
        for (low, high), length in zip(spans, over.shape[1:], strict=True):
            middle = 0.5 * (low + high)
            pixels = middle + side * ((torch.arange(size) + 0.5) / size - 0.5)  # in pixels of the picture
            places.append(2 * pixels / length - 1)
        grid = torch.stack(torch.meshgrid(*places, indexing="ij")[::-1], dim=-1)[None]
        blurred = _shrunk(over, max(side / size, 1.0))
        base = torch.tensor([background] * 3 + [0.0]).view(4, 1, 1)
        return F.grid_sample((blurred - base)[None], grid, mode="bilinear", align_corners=False)[0] + base


def _shrunk(layers: Tensor, factor: float) -> Tensor:
    """Layers without the detail that pixels `factor` times as large cannot hold."""
    if factor == 1.0:
        return layers
    size = [max(round(side / factor), 1) for side in layers.shape[1:]]
    return F.interpolate(layers[None], size, mode="bilinear", antialias=True)[0]


def cut_out(
    image: PictureLike,
    mask: PictureLike | None = None,
    plain: bool = False,
    subject: str | None = None,
    prior: Prior | None = None,
) -> Cutout:
    """The object of one picture: what a mask marks, what is not transparent, what stands before a `plain` background,
    or what `subject` names to a prior; the first of these that there is.

    Raises InputError where none of them says what the object is, or nothing is.
    """
    images, cut = _told_apart(image, mask, plain)
    if cut is not None:
        return cut
    if subject is None or prior is None:
        raise InputError(UNTOLD)
    found = attended(images, subject, prior)
    return _checked(Cutout(images[0], torch.from_numpy(found)[None].float(), f"attention to {subject!r}"))


def check_object(image: PictureLike, mask: PictureLike | None, plain: bool, subject: str | None) -> None:
    """Raises InputError where `cut_out` would, as far as it can be said without a prior."""
    _, cut = _told_apart(image, mask, plain)
    if cut is None and subject is None:
        raise InputError(UNTOLD)


def _told_apart(image: PictureLike, mask: PictureLike | None, plain: bool) -> tuple[Tensor, Cutout | None]:
    """(the picture (1, 3, H, W), its object by what needs no prior), None where nothing of that says it."""
    layers = layers_given(image)
    images = pictures(image) if layers is None else _straight(layers)
    if len(images) != 1:
        raise InputError(f"got {len(images)} pictures; give one at a time")
    if mask is not None:
        marked = hidden_pixels(mask, images, means="the object")
        return images, _checked(Cutout(images[0], marked[0], "mask"))
    if layers is not None and layers.alpha is not None and bool((layers.alpha < 0.5).any()):
        alpha = torch.from_numpy(np.ascontiguousarray(layers.alpha))[None]
        return images, _checked(Cutout(images[0], alpha, "transparency"))
    if plain:
        found = plain_background(images.permute(0, 2, 3, 1).cpu().numpy())[0]
        return images, _checked(Cutout(images[0], torch.from_numpy(found)[None].float(), "a plain background"))
    return images, None


def _straight(layers: Layers) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(layers.rgb)).permute(2, 0, 1)[None].float()


def _checked(cut: Cutout) -> Cutout:
    share = float((cut.alpha >= 0.5).float().mean())
    if share < LEAST:
        raise InputError(f"the object ({cut.how}) is {share:.2%} of the picture; give one that shows more of it")
    return cut


@torch.no_grad()
def attended(images: Tensor, subject: str, prior: Prior) -> Mask:
    """(H, W) of a picture (1, 3, H, W): the object that a prior sees for a word or a few.

    Raises InputError where its attention does not tell the word's place from the rest.
    """
    from skimage.segmentation import random_walker

    if unknown := [word for word, _ in prior.unknown_words(subject)]:
        listed = ", ".join(repr(word) for word in unknown)
        warnings.warn(
            f"the prior {prior.name!r} has never seen {listed} of the subject, so its attention to that may lie "
            "anywhere: look at what is cut out, or give a mask",
            stacklevel=3,
        )
    side = prior.latent_shape[-1] * prior.vae_factor
    square = F.interpolate(images.to(prior.device), (side, side), mode="bilinear", antialias=True)
    latents, prompt = prior.encode(square), f"a {subject}"
    condition = prior.encode_text(prompt)
    denoiser, words = Denoiser(prior, condition), subject_tokens(prior, prompt, [subject])[0]
    total = torch.zeros(side // prior.vae_factor, side // prior.vae_factor)
    for seed, index in enumerate(LOOKS):
        level = denoiser.schedule.at_index(index)
        state = denoiser.schedule.add_noise(latents, noise_map(prior, latents.shape[-2:], seed), level)
        with AttentionTap(prior.network) as tap:  # type: ignore[arg-type]
            denoiser.ask(state, level, ("cond",))
        heat = tap.maps(latents.shape[-2:])[0, words].mean(0)
        total += F.interpolate(heat[None, None].float().cpu(), total.shape, mode="bilinear")[0, 0]
    height, width = images.shape[2:]
    scale = min(WALK_PX / max(height, width), 1.0)
    small = F.interpolate(images, (max(round(height * scale), 8), max(round(width * scale), 8)), mode="bilinear",
                          antialias=True)[0].permute(1, 2, 0).cpu().numpy()  # fmt: skip
    labels = _seeds(F.interpolate(total[None, None], small.shape[:2], mode="bicubic")[0, 0].numpy())
    walked = random_walker(small, labels, beta=90, mode="bf", channel_axis=-1) == 1
    whole = _pieces(ndimage.binary_fill_holes(walked), 0.2)
    resized = F.interpolate(torch.from_numpy(whole)[None, None].float(), (height, width), mode="bilinear")[0, 0]
    found: Mask = resized.numpy() >= 0.5
    return found


def _seeds(heat: NDArray[Any]) -> NDArray[np.int64]:
    """Where the walk begins: 1 at the surest pixels of the object, 2 at those of the background, else 0.

    The border is background, and what it looks like in the attention is too: small priors look for some words around
    the object rather than at it.
    """
    from skimage.filters import threshold_otsu

    if float(np.ptp(heat)) < 1e-6:
        raise InputError(f"the prior's attention is the same everywhere; {WAYS}")
    ring = np.ones(heat.shape, bool)
    rim = max(round(RIM * min(heat.shape)), 1)
    ring[rim:-rim, rim:-rim] = False
    apart = np.abs(heat - np.median(heat[ring]))
    limit = threshold_otsu(apart)
    inside, outside = apart[(apart > limit) & ~ring], apart[apart <= limit]
    if not inside.size:
        raise InputError(f"the prior's attention lies on the border of the picture; {WAYS}")
    labels = np.zeros(heat.shape, np.int64)
    labels[apart >= np.quantile(inside, 1 - SURE[0])] = 1
    labels[(apart <= np.quantile(outside, SURE[1])) | ring] = 2
    return labels


def plain_background(views: NDArray[Any]) -> Mask:
    """(B, H, W) of what stands before the plain background of views (B, H, W, 3) in [0, 1].

    The background is the median of the border; what differs from it (Otsu's threshold over the view, `PLAIN` at
    least) and hangs together is the object, holes that the border does not reach belong to it.
    """
    from skimage.filters import threshold_otsu

    found = []
    for view in views:
        border = np.concatenate([view[0], view[-1], view[:, 0], view[:, -1]])
        apart = np.linalg.norm(view - np.median(border, axis=0), axis=-1) / math.sqrt(3)
        limit = max(PLAIN, 0.5 * threshold_otsu(apart)) if np.ptp(apart) > 0 else PLAIN
        found.append(_pieces(ndimage.binary_fill_holes(apart > limit), 0.1))
    return np.stack(found)


def _pieces(mask: NDArray[Any], least: float) -> Mask:
    """The largest piece of a mask, and those of at least a share of it."""
    labels, count = ndimage.label(mask)
    if count == 0:
        return np.zeros(mask.shape, bool)
    sizes = np.bincount(labels.ravel())[1:]
    kept: Mask = np.isin(labels, 1 + np.flatnonzero(sizes >= least * sizes.max()))
    return kept
