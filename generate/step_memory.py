"""How much of a step of optimisation is in memory at once: by size, by option, and less after it did not fit.

Renders are encoded, rays rendered and the network asked in parts that fit a budget each; where a single render does
not, the encoder's blocks are computed in turn.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from ..core.distillation.score import ScoreDistillation
from ..geometry.representation import Representation
from ..utils.device_memory import release_device_memory
from ..utils.errors import InputError, UnprojectError, out_of_memory

BUDGET_GB = 2.0  # of activations; what needs more is computed in parts, and those again in the backward pass
LEAST_RAYS = 256


class StepMemory:
    """Renders that are encoded at once and rays that are rendered at once, the same gradients with any number.

    Both follow from what autograd keeps of one of them, so that a run takes the same parts on every machine, until one
    of them fails: then the parts are halved and the step is made again.
    """

    def __init__(
        self, shape: Representation, scores: Sequence[ScoreDistillation], budget_gb: float = BUDGET_GB
    ) -> None:
        """`scores` distil one prior."""
        if not budget_gb > 0:
            raise InputError(f"step_memory_gb={budget_gb} must be above 0; the default is {BUDGET_GB:g}")
        self.shape, self.scores, self.prior = shape, scores, scores[0].prior
        self.budget = budget_gb * 1e9  # bytes
        self._least = self._largest = 0  # bytes of the largest part as small as they get, and of all in one part

    def fit(self, views: int, size: int, seen_px: int, channels: Sequence[str]) -> None:
        """Chooses the parts of a step with so many renders of `size` px, shown to the prior at `seen_px`."""
        prior = self.prior
        by_block = prior.encode_bytes(seen_px, seen_px) > self.budget
        prior.encode_by_block(by_block)
        image, row = prior.encode_bytes(seen_px, seen_px, by_block), prior.row_bytes(seen_px, seen_px)
        ray = self.shape.ray_bytes(channels)
        self._least = max(image, row * prior.frames, ray * LEAST_RAYS)
        self._largest = max(image * views, ray * views * size**2, 2 * row * views)
        for score in self.scores:
            score.images_at_once = max(1, int(self.budget // image)) if image else None
        self.shape.rays_at_once = max(LEAST_RAYS, int(self.budget // ray)) if ray else None
        prior.rows_at_once = max(1, int(self.budget // row)) if row else None

    def release(self) -> None:
        """Everything in one part again: others ask the same prior."""
        for score in self.scores:
            score.images_at_once = None
        self.shape.rays_at_once = self.prior.rows_at_once = None
        self.prior.encode_by_block(False)

    def recover(self, error: Exception, step: int) -> bool:
        """Halves the parts after memory ran out; False for other errors.

        Raises UnprojectError naming the next smaller setting when the parts are as small as they get.
        """
        if not out_of_memory(error):
            return False
        release_device_memory()
        if not self._largest or self.budget <= self._least:
            raise UnprojectError(
                f"step {step}: out of memory with one render and {LEAST_RAYS} rays at a time; "
                f"{self.prior.smaller_setting()}"
            ) from error
        self.budget = min(self.budget, self._largest) / 2
        warnings.warn(
            f"step {step}: out of memory; it is made again with at most {self.budget / 1e9:.2g} GB of activations "
            f"(--step-memory {self.budget / 1e9:.2g} from the start saves the failed try)",
            stacklevel=2,
        )
        return True
