"""Whether meshes are solids by every measure: fresh prompts before, while and after finishing, and real meshes.

Optimised shapes are kept under `work`, so that a change of the finish costs no new optimisation. A mesh counts by a
measure as others read its file: trimesh and Open3D open the GLB, merge equal positions and are asked themselves.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import open3d
import trimesh

from ..generate.finish import textured_mesh
from ..generate.views import views_around
from ..geometry.extract import decimate_loosely, keep_largest, mesh_arrays
from ..geometry.meshes import Mesh
from ..geometry.shapes import load_shape
from ..geometry.solid import examine, make_solid
from ..geometry.validate import validate_glb
from ..geometry.winding import shells_of
from ..pipelines.text_to_mesh import TextToMesh, TextToMeshOutput
from ..toybox.catalogue import NOUNS
from ..toybox.materials import COLOURS_SRGB
from ..utils.errors import InputError, UnprojectError
from .embedded_prior import plain_prompt
from .intervals import share, spread
from .real_depth import real_root
from .runner import Context
from .text_to_mesh import MeshBench, fingerprint

LATTICE, THINNED, FINISHED = "lattice", "lattice thinned by quadrics alone", "finished"
REAL, REPAIRED = "real, as they are", "real, repaired"
FIRST_SEED, PROMPT_SEED = 5000, 26
MEASURES = (
    "edge_manifold", "vertex_manifold", "no_self_intersection", "winding", "no_crumbs", "no_hidden_shells",
    "euler_even", "within_faces", "trimesh", "open3d", "validator",
)  # fmt: skip


@dataclass(frozen=True)
class SolidBench:
    """Sizes of the experiment."""

    prompts: int = 16
    steps: int | None = None  # None: the recipe's
    work: str = "runs/bench/solids"
    real_faces: int = 100_000  # of a real mesh at most


QUICK = SolidBench(1, 6, "runs/bench/solids-quick", 1500)


def run(context: Context) -> dict[str, Any]:
    """Makes the shapes that are not there yet, finishes all of them and asks every measure."""
    config = QUICK if context.quick else SolidBench()
    pipe = TextToMesh.from_pretrained(context.prior)
    place = Path(config.work) / fingerprint(pipe, MeshBench(steps=config.steps))
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in (LATTICE, THINNED, FINISHED, REAL, REPAIRED)}
    for index, prompt in enumerate(fresh_prompts(config.prompts)):
        shape = load_shape(made_shape(pipe, prompt, FIRST_SEED + index, config.steps, place / f"{index:03d}"))
        lattice, mesh = shape.to_mesh(pipe.recipe.mesh), pipe.recipe.mesh
        rows[LATTICE].append(measures(lattice, mesh.keep, mesh.faces, prompt))
        thinned = keep_largest(decimate_loosely(lattice, mesh.faces), mesh.keep)
        rows[THINNED].append(measures(thinned, mesh.keep, mesh.faces, prompt))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # what is no solid is counted
            finished = textured_mesh(shape, mesh, views_around(pipe.recipe.optimise.views))
        rows[FINISHED].append(measures(finished, mesh.keep, mesh.faces, prompt))
    for name, mesh_of in real_meshes():
        if len(mesh_of.faces) > config.real_faces:
            continue
        rows[REAL].append(measures(mesh_of, 0.0, len(mesh_of.faces), name))
        try:
            repaired, _ = make_solid(mesh_of)
            rows[REPAIRED].append(measures(repaired, 0.0, max(len(mesh_of.faces), 4000), name))
        except InputError as error:
            rows[REPAIRED].append({"name": name, "faults": [str(error)], **dict.fromkeys(MEASURES, False)})
    return {
        "config": asdict(config),
        "seeds": [FIRST_SEED + index for index in range(config.prompts)],
        "table": [summary(name, records) for name, records in rows.items() if records],
        "meshes": {name: records for name, records in rows.items() if records},
    }


def fresh_prompts(count: int) -> list[str]:
    """Pairs of nouns and colours drawn for this experiment alone, each noun once."""
    draw = np.random.default_rng(PROMPT_SEED)
    nouns, colours = draw.permutation(sorted(NOUNS)), sorted(COLOURS_SRGB)
    return [plain_prompt(str(noun), colours[draw.integers(len(colours))]) for noun in nouns[:count]]


def made_shape(pipe: TextToMesh, prompt: str, seed: int, steps: int | None, folder: Path) -> Path:
    """The folder of an optimised shape, made when it is not there."""
    if not (folder / "representation.json").exists():
        out: TextToMeshOutput = pipe(prompt, seed=seed, num_inference_steps=steps)
        out.shape.save(folder)
    return folder


def measures(mesh: Mesh, keep: float, faces: int, name: str) -> dict[str, Any]:
    """Every measure of one mesh, true where it passes; what was found in words."""
    verdict = examine(mesh)
    report, shells = verdict.report, shells_of(*mesh_arrays(mesh))[1]
    found = {
        "edge_manifold": report.watertight and report.winding_consistent,
        "vertex_manifold": report.nonmanifold_vertices == 0,
        "no_self_intersection": verdict.meeting == 0,
        "winding": verdict.misplaced == 0,
        "no_crumbs": min(shell.area for shell in shells) > keep * report.area,
        "no_hidden_shells": all(shell.inside is None for shell in shells),
        "euler_even": report.euler % 2 == 0,
        "within_faces": len(mesh.faces) <= faces,
        **as_others_read(mesh),
    }
    return {"name": name, **found, "faces": len(mesh.faces), "euler": report.euler, "faults": verdict.faults}


def as_others_read(mesh: Mesh) -> dict[str, bool]:
    """What trimesh, Open3D and the Khronos validator say of the GLB file; the last one only where it is installed."""
    with TemporaryDirectory() as folder:
        path = mesh.save(Path(folder) / "mesh.glb")
        theirs = trimesh.load(path, force="mesh")
        theirs.merge_vertices(merge_tex=True, merge_norm=True)
        other = open3d.io.read_triangle_mesh(str(path))
        other.remove_duplicated_vertices()
        checked = validate_glb(path)
    found = {"trimesh": bool(theirs.is_volume), "open3d": bool(other.is_watertight() and other.is_orientable())}
    return found if checked is None else {**found, "validator": not checked["errors"] + checked["warnings"]}


def real_meshes() -> Iterator[tuple[str, Mesh]]:
    """The meshes of real_root, where it exists."""
    folder = real_root() / "meshes"
    for path in sorted([*folder.rglob("*.obj"), *folder.rglob("*.stl")]):
        try:
            yield path.stem, Mesh.load(path)
        except UnprojectError as error:
            warnings.warn(f"{path.name}: {error}", stacklevel=2)


def summary(name: str, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares by each measure and by all of them."""
    asked = [measure for measure in MEASURES if all(measure in record for record in records)]
    by_measure = {measure: share([bool(record[measure]) for record in records]) for measure in asked}
    whole = share([all(bool(record[measure]) for measure in asked) for record in records])
    faces = spread([record["faces"] for record in records if "faces" in record])
    return {"surface": name, "solid": whole, **by_measure, "faces": faces, "meshes": len(records)}
