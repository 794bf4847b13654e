"""The second network of VSD (Wang et al. 2023): a low-rank adapter of the prior that learns the renders."""

from __future__ import annotations

import copy
from functools import partial

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from ...utils.errors import InputError
from ..priors.base import Prior
from ..priors.diffusers import DiffusersPrior, StableDiffusionPrior
from ..priors.embedded import MultiViewPrior
from ..priors.multiview import MultiViewUNet
from ..priors.rows import Condition
from ..sampling.denoiser import Denoiser
from ..training.loss import LossOut
from ..training.objectives.base import fixed_init
from ..training.players import Moves, Player
from .kinds import Lora
from .rules.vsd import VSD
from .student import Student


class Twin:
    """phi: asked like the prior, without guidance, and trained on the renders that it was told of last.

    A U-Net is told the camera of each view, by an embedding that begins as zero, which it learns, or by the prior's
    own; a network of another kind sees the text alone. At first it answers what the prior does.
    """

    def __init__(self, prior: Prior, config: VSD, seed: int = 0) -> None:
        """`seed` of the adapter's initial weights. Raises InputError for priors whose network takes no adapter."""
        if not isinstance(prior, DiffusersPrior):
            raise InputError(f"the rule vsd needs a prior with a network; {prior.name} has none, use another rule")
        self.config, self.cameras = config, isinstance(prior, StableDiffusionPrior)
        self.prior, self.parts = _copied(prior, Lora(config.rank, config.rank), seed)
        self._denoiser: Denoiser | None = None
        self._latents = torch.empty(0)

    @property
    def nfe(self) -> int:
        """Network rows asked, lessons among them."""
        return self.prior.nfe

    def told(self, x: Tensor, condition: Condition) -> Denoiser:
        """It, told the rows of renders x (B, C, h, w), which the next lesson is about.

        A condition may have a row "cameras" (B, 16) also where the prior reads none.
        """
        self._latents = x.detach()
        self._denoiser = Denoiser(self.prior, condition)
        return self._denoiser

    def loss(self, generator: torch.Generator) -> LossOut:
        """E |phi(x_t; t, text, camera) - target|^2 at t ~ U{0 .. N - 1}, one for each group of views (eq. 8); the
        target is the noise, or what a network of this prior's kind predicts."""
        assert self._denoiser is not None
        condition, x = self._denoiser.condition, self._latents
        schedule, frames = self._denoiser.schedule, condition.frames
        index = torch.randint(schedule.steps, (len(x) // frames,), generator=generator)
        level = schedule.at_index(index.repeat_interleave(frames))
        noised, noise = schedule.noised(x, level, generator)
        answer = self._denoiser.with_condition(self._some_without_camera(condition, generator))(noised, level)
        target = schedule.target(self.prior.prediction_type, x, noise, level)
        loss = (answer.raw - target).square().mean()
        return LossOut(loss, {"twin": loss.detach()})

    def player(self, name: str = "twin", after: str = "shape") -> Player:
        """It moves once after each look of the player `after`."""
        adam = partial(torch.optim.AdamW, lr=self.config.lr)
        return Player(name, {name: self.parts}, adam, moves=Moves(after=after))

    def _some_without_camera(self, condition: Condition, generator: torch.Generator) -> Condition:
        cameras = condition["cond"].get("cameras")
        if cameras is None:
            return condition
        groups = torch.rand(condition.rows // condition.frames, generator=generator) >= self.config.no_camera
        kept = groups.repeat_interleave(condition.frames)[:, None]
        return condition.with_rows(cameras=cameras * kept.to(cameras))


def _copied(prior: DiffusersPrior, lora: Lora, seed: int) -> tuple[DiffusersPrior, nn.Module]:
    """(a prior on a copy of the network with an adapter, the modules that learn)."""
    if not isinstance(prior, StableDiffusionPrior):
        student = Student(prior, lora, seed)
        return student.prior, student.network
    student = Student(StableDiffusionPrior(prior.pipe, prior.name), lora, seed)
    known = copy.deepcopy(prior.views.camera_embedding) if isinstance(prior, MultiViewPrior) else None
    assert isinstance(student.network, UNet2DConditionModel)
    with fixed_init(seed):  # of the embedding, where the prior has none
        views = MultiViewUNet(student.network, known)
    trained = [p for p in views.unet.parameters() if p.requires_grad]
    other = MultiViewPrior(copy.copy(prior.pipe), views, prior.name, frames=prior.frames)  # freezes everything
    for parameter in [*trained, *([] if known else views.camera_embedding.parameters())]:
        parameter.requires_grad_(True)
    return other, views
