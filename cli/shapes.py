"""`unproject text-to-mesh`, and what it shares with `unproject text-to-splats`."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..utils.configs import config_path
from ..utils.errors import InputError
from ..utils.files import views_come_with
from ..utils.locks import alone_in, gone_if_failed
from ..utils.runs import RunRecord, earlier
from .common import check_range
from .estimates import Estimate, of_meshes
from .folders import MESH_KINDS
from .jobs import Job
from .mesh_methods import check_weights, loaded
from .outputs import Target, check_new, need_format
from .prompts import chosen_prompts
from .showing import Shown
from .steering import ImagePromptCommand
from .students import NO_STUDENT, check_student, warn_of_settings
from .text import TextCommand

if TYPE_CHECKING:
    from ..generate.diagnostics import Diagnostics


TEXTURE = (256, 4096)  # texels along an edge
USUAL_MESH_STEPS = 45  # of the embedded recipe
USUAL_DRAWN_STEPS = 30  # of a drawing of the embedded prior of several views


@dataclass(frozen=True, kw_only=True)
class ShapeCommand(TextCommand, ImagePromptCommand):
    """Options of the commands that optimise a shape until the prior likes it."""

    makes: ClassVar[str]
    """what comes out, for people"""

    negative: str = ""
    """What to avoid."""
    recipe: str = "default"
    """Packaged recipe in configs/text-to-mesh or text-to-splats, or a YAML file; default is what suits the prior."""
    rule: str | None = None
    """Rule of score distillation: sds, sjc, vsd, csd, csd-late, nfsd, ism, sdi, asd, hifa, perp-neg, recon, or a YAML
    file (default: the recipe's)."""
    steps: int | None = None
    """Optimisation steps; all schedules keep their shares of the run (default: the recipe's). With --method direct25
    those of each drawing (default: the prior's own)."""
    guidance: float | None = None
    """Classifier-free guidance (default: that of the rule or recipe; with --method direct25 2 for maps, and the prior's
    own for colours)."""
    work: Path | None = None
    """Folder of the work, which stays (default: .NAME.work beside the result, removed at the end). Optimisations keep
    checkpoints and preview.png there, and the same command typed again goes on from them; --method direct25 puts its
    drawings there, normals.png and views.png."""
    step_memory: float = 2.0
    """Gigabytes that the activations of a step may take; what needs more is computed in parts, with the same
    gradients."""
    diagnostics: Path | None = None
    """Folder for strips of render, noised render, target and their difference, targets by view, gradient norms."""
    view_size: int = 256
    """Pixels of the views in the film; those on the sheet are half as large."""
    frames: int = 72
    """Frames of the turntable film (0 = no film)."""

    @property
    def several(self) -> str:
        """See Command.several."""
        return super().several or f"it writes pictures beside the {self.makes}"

    def check(self) -> None:
        """Ranges, the recipe and the rule."""
        check_range("--frames", self.frames, 0, 1000)
        check_range("--view-size", self.view_size, 16, 2048)
        check_range("--step-memory", self.step_memory, 0.01, 1000)
        if self.steps is not None:
            check_range("--steps", self.steps, 1, 100_000)
        if self.recipe != "default" and not Path(self.recipe).is_file():
            config_path(f"{self.name}/{self.recipe}")
        if self.rule is not None and not Path(self.rule).is_file():
            config_path(f"rules/{self.rule}")
        for option, folder in (("--work", self.work), ("--diagnostics", self.diagnostics)):
            if folder is not None and folder.exists() and not folder.is_dir():
                raise InputError(f"{option} {folder} is a file; give a folder")
            if folder is not None and self.many:
                raise InputError(
                    f"{option} {folder} is the folder of one {self.makes} and --prompts makes several; leave it out"
                )
        super().check()

    def plan(self) -> list[str]:
        """What a dry run says."""
        listed = chosen_prompts(self.prompt, self.prompts)
        return [*super().plan(), *(f"would make a {self.makes} of {words!r} with {self.how}" for words in listed)]

    def backbones(self) -> str:
        """See TextCommand.backbones: those that make shapes."""
        from ..pipelines.text_to_shape import REAL_BACKBONES

        return REAL_BACKBONES

    @property
    def how(self) -> str:
        """What makes it, in words."""
        return f"recipe {self.recipe}" + (f" and rule {self.rule}" if self.rule else "")

    def ending(self, target: Target) -> str:
        """Of the result."""
        raise TypeError(f"{type(self).__name__} defines no ending")

    def files(self, target: Target) -> list[Path]:
        """The result, its report and its pictures."""
        films = ("-turntable.gif", "-turntable.mp4") if self.frames else ()
        own = self.ending(target)
        return [target.file(own), target.report(own), *(target.beside(ending) for ending in (*films, "-sheet.png"))]

    def size_bytes(self) -> int:
        """Of a result and films; twice, for the checkpoints."""
        return 100_000_000

    def settings(self, prior: str) -> dict[str, Any]:
        """Arguments of a call of the pipeline, of a prior of this name, beyond those that all methods know."""
        watched = self._watched(prior)
        return {"num_inference_steps": self.steps, "guidance_scale": self.guidance, "diagnostics": watched}

    def one(self, pipe: Any, job: Job, record: RunRecord, shown: Shown) -> None:
        """Makes the result and its pictures; checkpoints are removed when all of them are written."""
        work = self.work or job.target.work
        pipe.step_memory_gb = self.step_memory
        with alone_in(work), gone_if_failed(None if self.work or self.goes_on else work):
            made = pipe(
                job.source,
                self.negative or None,
                seed=self.seed,
                out=work,
                resume=not self.overwrite,
                **self.settings(pipe.prior.name),
                **self.prompt_pictures(),
            )
            made = self.finished(pipe, made)
            with record.stage("write"):
                self.write(made, job, record)
        if self.work is None and not record.rescued:
            shutil.rmtree(work, ignore_errors=True)
        record.count("denoiser", made.nfe)
        record.stages.update(made.seconds)
        record.notes.update(prior=pipe.prior.name, recipe=made.config, history=made.history)
        self.tell(made, job, shown)

    @property
    def goes_on(self) -> bool:
        """Whether a work that was stopped is gone on with."""
        return True

    def _watched(self, prior: str) -> Diagnostics | None:
        """Diagnostics; views of targets are told apart by the toybox's judge, which knows its objects alone."""
        if self.diagnostics is None:
            return None
        from ..generate.diagnostics import Diagnostics

        if not prior.startswith("toybox"):
            return Diagnostics(self.diagnostics)
        from ..toybox.judge import Judge

        judge = Judge.from_pretrained()
        return Diagnostics(self.diagnostics, view_of=lambda images: judge(images).views)

    def finished(self, pipe: Any, made: Any) -> Any:
        """What the pipeline made, with what options ask for after it."""
        return made

    def write(self, made: Any, job: Job, record: RunRecord) -> None:
        """Writes all files of a job."""
        raise TypeError(f"{type(self).__name__} defines no write")

    def tell(self, made: Any, job: Job, shown: Shown) -> None:
        """Says what came out."""
        raise TypeError(f"{type(self).__name__} defines no tell")


@dataclass(frozen=True, kw_only=True)
class TextToMesh(ShapeCommand):
    """Make a textured mesh from a prompt, with a sheet of views and a turntable film."""

    name: ClassVar[str] = "text-to-mesh"
    kinds: ClassVar[tuple[str, ...]] = MESH_KINDS
    makes: ClassVar[str] = "mesh"

    faces: int | None = None
    """Triangles of the mesh at most (default: the recipe's)."""
    texture: int | None = None
    """Texels of a side of the texture, 256 to 4096 (default: the recipe's; 512 with --method direct25)."""
    albedo: bool = False
    """A base colour without light, by a prior that was taught albedo: direct25 paints it so, for other methods the
    painted light is taken out; the pictures are then lit."""
    quality: Literal["fast", "balanced", "best"] = "balanced"
    """What a mesh costs: steps of drawing and of fusion, and a second ring; with --method optimise looks by the prior
    and denoising steps of a look. balanced is as packaged."""
    method: Literal["auto", "direct25", "optimise", "turbo", "amortised"] = "auto"
    """auto: direct25 where the prior comes with what paints, as the embedded one does, and no option asks for another
    method, else optimise; direct25: normal maps from all around, fused and painted, by priors that draw such maps;
    optimise: score distillation of every prompt; turbo: planes in a few network calls, by trained weights; amortised: a
    field in one pass of a small network, by trained weights."""
    turbo: Path | None = None
    """Weights of --method turbo: export/ of `unproject train triplane-turbo`, or the published checkpoint (.pth)."""
    amortised: Path | None = None
    """Weights of --method amortised: export/ of `unproject train amortised`."""
    refine: int = 0
    """Steps of score distillation that go on from the shape of --method turbo or amortised."""
    direct25: Path | None = None
    """What paints with --method direct25: export/ of `unproject train direct25-texture`, or a folder with the published
    networks (default: what comes with the prior, else renders of the bare mesh are redrawn)."""
    student: str | None = None
    """A distilled student in the place of the network of the prior of several views: a folder that `unproject distill`
    wrote, or the name of an embedded one. With --method direct25 it draws the normal maps, with the steps, solver and
    guidance of its distill.json; with optimise it is what is asked, for quick previews. Adapters and smaller U-Nets
    fit; others are told why not. Default: with direct25 the one that comes with the prior, where there is one and no
    --steps, --guidance or --lora say otherwise; none is the prior itself."""
    second_ring: float | None = None
    """Degrees above the object of a second ring of views of --method direct25, which paints what the first does not
    show."""

    @property
    def chosen(self) -> str:
        """The method, which for auto depends on the prior and on what is given."""
        if self.method != "auto":
            return self.method
        paints = self.direct25 is not None or views_come_with(self.prior, "direct25")
        knows = all("direct25" in methods for given, methods in self.of_methods.values() if given)
        return "direct25" if paints and knows else "optimise"

    @property
    def goes_on(self) -> bool:
        """See ShapeCommand.goes_on: checkpoints are those of optimisations."""
        return self.chosen == "optimise" or self.refine > 0

    @property
    def usual_student(self) -> str | None:
        """The student that draws normal maps though nobody named one."""
        told = self.student is not None or self.steps is not None or self.guidance is not None or self.lora
        if told or self.chosen != "direct25":
            return None
        from ..pipelines.mesh_quality import usual_student

        return usual_student(self.prior)

    @property
    def of_methods(self) -> dict[str, tuple[bool, tuple[str, ...]]]:
        """Whether options that only some methods know were given, and which do."""
        return {
            "--steps": (self.steps is not None, ("optimise", "direct25")),
            "--guidance": (self.guidance is not None, ("optimise", "direct25")),
            "--rule": (self.rule is not None, ("optimise",)),
            "--diagnostics": (self.diagnostics is not None, ("optimise",)),
            "--ip-adapter": (bool(self.ip_adapter), ("optimise",)),
            "--recipe": (self.recipe != "default", ("optimise",)),
            "--quality": (self.quality != "balanced", ("optimise", "direct25")),
            "--student": (self.student is not None, ("optimise", "direct25")),
            "--turbo": (self.turbo is not None, ("turbo",)),
            "--amortised": (self.amortised is not None, ("amortised",)),
            "--refine": (bool(self.refine), ("turbo", "amortised")),
            "--direct25": (self.direct25 is not None, ("direct25",)),
            "--second-ring": (self.second_ring is not None, ("direct25",)),
        }

    def check(self) -> None:
        """Ranges, and what only some of the methods know."""
        check_range("--refine", self.refine, 0, 100_000)
        for option, (given, methods) in self.of_methods.items():
            if given and self.chosen not in methods:
                told = " or ".join(methods)
                raise InputError(f"{option} belongs to --method {told}; add that, or leave {option} out")
        if self.student not in (None, NO_STUDENT):
            check_student(self.student, self.steps if self.chosen == "direct25" else None, self.dtype)
            if self.lora:
                raise InputError(f"a student ({self.student}) and --lora change the network both; give one")
        if self.second_ring is not None:
            check_range("--second-ring", self.second_ring, -89, 89)
        if self.faces is not None:
            check_range("--faces", self.faces, 4, 10_000_000)
        if self.texture is not None:
            check_range("--texture", self.texture, *TEXTURE)
        check_weights(self)
        if self.out is not None:
            need_format(self.out)
        super().check()

    def forewarn(self) -> None:
        """See Command.forewarn; and of what a student does not heed."""
        super().forewarn()
        self._warn_of_student()

    def _warn_of_student(self) -> None:
        if self.student not in (None, NO_STUDENT):
            quality = self.quality if self.chosen == "direct25" else "balanced"  # else it has other things to say
            warn_of_settings(self.student, self.guidance, quality=quality)

    def check_places(self, target: Target) -> None:
        """See Command.check_places; pictures of what was drawn do not replace others in --work unasked."""
        if self.work is not None and self.chosen == "direct25" and not (self.overwrite or earlier(target.record)):
            check_new((self.work / "normals.png", self.work / "views.png"), name="--work")
        super().check_places(target)

    @property
    def how(self) -> str:
        """See ShapeCommand.how."""
        if self.chosen == "optimise":
            return super().how
        if self.chosen == "direct25":
            return f"normal maps{f' by {self.usual_student}' if self.usual_student else ''}, fused and painted"
        drawn = "planes" if self.chosen == "turbo" else "one pass of a network"
        return drawn + (f" and {self.refine} steps of score distillation" if self.refine else "")

    def ending(self, target: Target) -> str:
        """See ShapeCommand.ending."""
        return target.suffix or ".glb"

    def settings(self, prior: str) -> dict[str, Any]:
        """See ShapeCommand.settings."""
        mesh = {"faces": self.faces, "texture": self.texture}
        if self.chosen == "optimise":
            return {**super().settings(prior), **mesh}
        if self.chosen != "direct25":
            return {"refine": self.refine, **mesh}
        drawn = {"num_inference_steps": self.steps, "guidance_scale": self.guidance}
        return {**drawn, "second_ring": self.second_ring, **mesh}

    def estimate(self) -> Estimate | None:
        """See Command.estimate."""
        if not self.known_cost or self.recipe != "default" or self.rule is not None or self.quality != "balanced":
            return None
        if self.student is not None:  # of a network of another size and other steps
            return None
        usual = {"optimise": USUAL_MESH_STEPS, "direct25": USUAL_DRAWN_STEPS}.get(self.chosen)
        if usual is None:
            return None
        share = 1.0 if self.steps is None else self.steps / usual
        made = len(chosen_prompts(self.prompt, self.prompts))
        return of_meshes(made, share, self.frames, self.view_size, self.chosen == "direct25", self.texture)

    def load(self) -> Any:
        """The pipeline."""
        self._warn_of_student()
        pipe = loaded(self)
        if self.albedo:
            from ..pipelines.mesh_albedo import check_knows_albedo, paint_albedo

            check_knows_albedo(pipe.prior)
            return paint_albedo(pipe) if self.chosen == "direct25" else pipe
        return pipe

    def finished(self, pipe: Any, made: Any) -> Any:
        """See ShapeCommand.finished."""
        if not self.albedo:
            return made
        from ..pipelines.mesh_albedo import take_out_shading

        return take_out_shading(made, pipe.prior)

    def write(self, made: Any, job: Job, record: RunRecord) -> None:
        """See ShapeCommand.write."""
        from ..generate.finish import write_pictures
        from ..geometry.budget import check_written
        from ..geometry.inspection import write_report

        def pictures(mesh: Path) -> list[Path]:
            stem = job.target.own_stem
            return write_pictures(made.mesh, lambda n: mesh.with_name(f"{stem}-{n}"), self.frames, self.view_size)

        record.notes.update(method=self.chosen, **made.notes)
        record.keep(made.mesh.save, job.files[0])
        record.keep(lambda mesh: write_report(made.mesh, mesh, made.scale_from), job.files[0])
        record.keep(pictures, job.files[0])
        if not record.rescued:
            check_written(job.files[0], made.config.mesh.faces)

    def tell(self, made: Any, job: Job, shown: Shown) -> None:
        """See ShapeCommand.tell."""
        report = made.report.to_dict()
        closed = "watertight" if report["watertight"] else f"{report['boundary_edges']} open edges"
        shown.lines.append(f"{report['faces']} triangles, {closed}")
        if self.many:
            shown.data.setdefault("meshes", {})[job.source] = report
        else:
            shown.data["mesh"] = report
