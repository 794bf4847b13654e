"""Depth and normals as blocks of modular diffusers: maps of the pictures that a pipeline has drawn, or is given."""

from __future__ import annotations

from typing import Any

from diffusers.modular_pipelines import ModularPipelineBlocks, PipelineState
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam, OutputParam

from ..tasks.heads import load_head
from ..tasks.map_head import MapHead
from .image_to_geometry import ImageToMap


class MapBlock(ModularPipelineBlocks):
    """Reads the pictures "images" of a pipeline's state and adds a map under the name of its target.

    >>> blocks.sub_blocks.insert("depth", MapBlock("depth"), len(blocks.sub_blocks))
    >>> maps = blocks.init_pipeline()(..., output="depth")  # an array (N, H, W, C)
    """

    def __init__(self, target: str = "depth", head: MapHead | str = "toybox") -> None:
        """`target` is what is predicted ("depth", "normals"), `head` what predicts it, or its name."""
        super().__init__()
        self.target = target
        self.pipe = ImageToMap(load_head(head, (target,)) if isinstance(head, str) else head, target)

    def __deepcopy__(self, memory: dict[int, Any]) -> MapBlock:
        """A pipeline copies its blocks; the networks of the head stay one."""
        return MapBlock(self.target, self.pipe.head)

    @property
    def description(self) -> str:
        """For the documentation that diffusers makes of blocks."""
        return f"Step that predicts {self.target} maps of pictures"

    @property
    def inputs(self) -> list[InputParam]:
        """Pictures, and how they are looked at (`ImageToMap`)."""
        told = "pictures of one size: PIL images, arrays or tensors in [0, 1]"
        return [
            InputParam("images", required=True, description=told),
            InputParam(f"{self.target}_options", default=None, description="arguments of the prediction"),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        """The maps."""
        return [OutputParam(self.target, description=f"{self.target} (N, H, W, C)")]

    def __call__(self, components: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        """Adds the maps to the state."""
        block = self.get_block_state(state)
        options = getattr(block, f"{self.target}_options") or {}
        setattr(block, self.target, self.pipe(block.images, **options).prediction)
        self.set_block_state(state, block)
        return components, state
