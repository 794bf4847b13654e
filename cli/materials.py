"""`unproject materials`: tileable surface materials from words or a photograph."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro

from ..tasks.formats import MATERIAL_FORMATS, MATERIAL_MAPS, MATERIAL_USUAL, material_formats
from ..utils.errors import InputError
from ..utils.runs import RunRecord
from .common import Seeded, Writer, check_range
from .outputs import Target, check_apart, distinct_slug, need_format
from .priors import OwnWeightsCommand
from .prompts import check_prompt
from .showing import Shown

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")


@dataclass(frozen=True, kw_only=True)
class Materials(OwnWeightsCommand, Seeded, Writer):
    """Make a tileable material, albedo to height, from words or from a photograph of a surface."""

    name: ClassVar[str] = "materials"
    kinds: ClassVar[tuple[str, ...]] = (".glb", ".mtlx", ".npz", ".usda", ".usdz", ".png")

    prior: str = "toybox"
    """toybox, or the folder of a trained material prior."""
    wanted: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="TEXT|PICTURE")] = ""
    """What the surface is made of, for example "red bricks", or a photograph of it."""
    prompt: str = ""
    """Words beside a photograph."""
    steps: int | None = None
    """Solver steps (default: the prior's, 4 of a distilled one)."""
    guidance: float | None = None
    """Classifier-free guidance, 1 is none (default: the prior's)."""
    size: int | None = None
    """Pixels of a side (default: the prior's own)."""
    seams: bool = False
    """Do not make the edges continue on the other side."""
    format: str | None = None
    """Files to write, of png (the maps), npz, glb and usda or usdz (a ball), mtlx (default: what --out names, else
    png,glb,mtlx)."""

    @property
    def picture(self) -> Path | None:
        """The photograph; None where there are words."""
        path = Path(self.wanted)
        return path if path.suffix.lower() in PICTURES else None

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats in force."""
        if self.format is not None:
            return material_formats(self.format.split(","))
        named = "" if self.out is None or self.out.is_dir() else self.out.suffix.lower().removeprefix(".")
        return material_formats((named,)) if named else MATERIAL_USUAL

    @property
    def several(self) -> str:
        """See Command.several."""
        one = len(self.formats) == 1 and len(MATERIAL_FORMATS[self.formats[0]]) == 1 and self.formats != ("mtlx",)
        return super().several if one else "it writes several files; --format glb or npz is one"

    @property
    def streamed(self) -> str:
        """See Command.streamed."""
        return f".{self.formats[0]}"

    def slug(self) -> str:
        """The base name of the outputs."""
        return f"{self.picture.stem}-{self.name}" if self.picture else f"{distinct_slug(self.wanted)}-seed{self.seed}"

    def check(self) -> None:
        """Words or a picture, and ranges."""
        if self.picture is None:
            check_prompt(self.wanted)
            if self.prompt:
                raise InputError(f"--prompt {self.prompt!r} goes with a photograph; give all words as one text")
        elif not self.picture.is_file():
            raise InputError(f"picture {self.picture} does not exist; give a photograph, or words")
        if self.steps is not None:
            check_range("--steps", self.steps, 1, 1000)
        if self.guidance is not None:
            check_range("--guidance", self.guidance, 0, 100)
        if self.size is not None:
            check_range("--size", self.size, 16, 8192)
        for kind in self.formats:
            need_format(Path(f"material.{kind}"))
        target = self.target()
        if self.picture is not None:
            check_apart(self.out or target.folder, self.written(target), [self.picture])
        super().check()

    def written(self, target: Target) -> list[Path]:
        """See Command.written."""
        kinds = dict.fromkeys([*(("png",) if "mtlx" in self.formats else ()), *self.formats])
        return [target.file(end) for kind in kinds for end in MATERIAL_FORMATS[kind]]

    def plan(self) -> list[str]:
        """What a dry run says."""
        given = f"from {self.picture}" if self.picture else f"of {self.wanted!r}"
        return [*super().plan(), f"would make {', '.join(MATERIAL_MAPS)} {given}"]

    def run(self, record: RunRecord, target: Target) -> Shown:
        """Draws and writes the material; tells how visible the seam is."""
        from ..core.sampling.tileable import seam_energy
        from ..tasks.material_files import save_material
        from ..tasks.materials import load_materials
        from ..utils.pictures import load_image

        image = None if self.picture is None else load_image(self.picture)
        with record.stage("load"):
            pipe: Any = load_materials(self.prior, **self.placement())
        with record.stage("draw"):
            made = pipe(
                self.prompt if self.picture else self.wanted,
                image,
                num_inference_steps=self.steps,
                guidance_scale=self.guidance,
                size=self.size,
                tileable=not self.seams,
                seed=self.seed,
            )
        record.count("denoiser", made.nfe)
        with record.stage("write"):
            record.keep(lambda base: save_material(made.maps.arrays(0), base, self.formats), target.file(""))
        seam = float(seam_energy(made.maps.albedo)[0])
        return Shown([f"differences across the edges are {seam:.2f} of those inside"], data={"seam_energy": seam})
