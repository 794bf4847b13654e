"""The experiments by name: where they live, what they rest on, and which rows the others are compared with."""

from __future__ import annotations

from ..utils.errors import InputError
from .experiment import CACHES, DRAWN, FAMILY, HEAD, JUDGE, PAIRS, SOLVERS, Experiment
from .sampling_registry import SAMPLING

EXPERIMENTS: dict[str, Experiment] = {
    "embedded-prior": Experiment(
        "What the embedded prior draws: accuracy, toy-FID, sweeps",
        "embedded_prior",
        ("setting", "test prompts"),
        method=(SOLVERS,),
    ),
    "prompts": Experiment(
        "Sentences with strange words, qualities and two subjects, beside what the judge reads in true renders",
        "prompts",
        ("sentences", "plain"),
        weights=(JUDGE, PAIRS),
        method=(SOLVERS,),
    ),
    "text-to-mesh": Experiment(
        "Text to mesh as the command makes them: judged views, mesh health, cost",
        "text_to_mesh",
        ("prompts", "the toybox's own"),
        weights=(JUDGE, "toybox-mv", *DRAWN),
        method=("generate", "core/priors/view_adapter.py", "pipelines/direct25_mesh.py"),
    ),
    "score-distillation": Experiment(
        "Rules of score distillation at the same prompts, seeds and network rows",
        "score_distillation",
        ("rule", "sds"),
        weights=(JUDGE, "toybox-mv"),
        method=FAMILY,
    ),
    "asd": Experiment(
        "Asynchronous score distillation: the error of the noise estimate over time, and the variance of the pull",
        "asd",
        ("quantity", "sds"),
        weights=(),
        method=FAMILY,
    ),
    "stabledreamer": Experiment(
        "StableDreamer: annealed levels, spaces and representations",
        "stabledreamer",
        ("setting", "fixed window"),
        weights=(JUDGE,),
        method=FAMILY,
    ),
    "mvdream": Experiment(
        "Four views that see each other against view words: two fronts",
        "mvdream",
        ("prior", "single images, view words"),
        weights=(JUDGE, "toybox-mv"),
        method=FAMILY,
    ),
    "richdreamer": Experiment(
        "A prior of normals beside that of colours at equal network rows",
        "richdreamer",
        ("guides", "colours"),
        "toybox-mv",
        method=FAMILY,
    ),
    "geometry-heads": Experiment(
        "Depth and normals against simple baselines",
        "geometry_heads",
        ("method", "constant"),
        weights=(HEAD,),
        method=("tasks",),
    ),
    "heads": Experiment(
        "Every head from three beginnings, at one budget", "heads", ("source", "RGB only"), method=("tasks", "toybox")
    ),
    "match": Experiment(
        "Points of two pictures that belong together: the prior's features, a second encoder, both",
        "match",
        ("method", "colours"),
        method=("tasks/correspondence.py", "tasks/encoders.py", "core/sampling/features.py"),
    ),
    "refined-normals": Experiment(
        "A second look at one-step normals against a sampler and its ensemble: variance, edges, calls",
        "refined_normals",
        ("method", "one step"),
        weights=(),
        method=("tasks",),
    ),
    "preimage-depth": Experiment(
        "Depth out of a frozen prior's preimage against a random network's and the latents",
        "preimage_depth",
        ("method", "latents alone"),
        weights=(HEAD,),
        method=("tasks",),
    ),
    "sim2real": Experiment(
        "A simulated depth sensor: residuals, holes, and a net that learns from it, against hand-made noise",
        "sim2real",
        ("method", "gaussian"),
        weights=("toybox-sim2real",),
        method=("tasks", "toybox"),
    ),
    "materials": Experiment(
        "Materials: pictures without maps, four steps, edges that continue",
        "materials",
        ("method", "supervised"),
        method=("tasks", "toybox", "core/distillation"),
    ),
    "materialfusion": Experiment(
        "Inverse rendering with and without a material prior: albedo and other light",
        "materialfusion",
        ("method", "pictures alone"),
        weights=(),
        method=("tasks", "toybox", "generate", "geometry"),
    ),
    "calibrate": Experiment(
        "Cameras from pictures: solver, heads, metres, calibrated confidence",
        "calibrate",
        ("method", "constant field of view"),
        weights=(HEAD,),
        method=("tasks", "geometry/pinhole_fit.py", "geometry/camera_image.py", "geometry/metric.py"),
    ),
    "sampling": Experiment(
        "Every solver on the U-Net: quality, calls and seconds", "sampling", ("solver", "ddim"), method=(SOLVERS,)
    ),
    "overhead": Experiment(
        "What the sampling loop costs beyond its network calls",
        "overhead",
        ("what", "bare network calls"),
        weights=None,
        method=(SOLVERS, "pipelines/text_to_image.py"),
    ),
    "backbones": Experiment(
        "Which backbone can do what, on random weights: tiny, on a pretended accelerator, on a GPU",
        "backbones",
        ("", None),
        prior="",
        weights=None,
        method=("core/priors", "scripts/random_backbones.py"),
    ),
    "full-size": Experiment(
        "Stable Diffusion 1.5 in full size on random weights: agreement with stock diffusers, memory of distillation",
        "full_size",
        ("", None),
        prior="",
        weights=None,
        method=("generate/step_memory.py", "scripts/random_backbones.py"),
    ),
    "faults": Experiment(
        "What is lost when a command is killed, stopped, or its disk refuses",
        "faults",
        ("", None),
        prior="",
        weights=None,
        method=("cli",),
    ),
    "splats": Experiment(
        "What drawing splats and their gradients costs a processor",
        "splats",
        ("way", "every Gaussian at every pixel"),
        prior="",
        weights=None,
        method=("geometry/splats",),
    ),
    "memory": Experiment(
        "Memory of text-to-mesh and text-to-image with the published backbones, and what fits which card",
        "memory",
        ("way", "all at once, float32"),
        prior="",
        weights=None,
        method=("core/priors/footprint.py", "geometry/volume.py", "generate/step_memory.py"),
    ),
    "fit": Experiment(
        "Splats fitted to posed pictures: held-out views, cost, meshes, wrong poses",
        "fit",
        ("fit", "default"),
        prior="",
        weights=None,
        method=("geometry/splats", "toybox"),
    ),
    "shading": Experiment(
        "Base colours without their light, beside the true albedo",
        "shading",
        ("base_colour", "as painted"),
        weights=(JUDGE, "toybox-mv"),
        method=("generate/view_paint.py", "generate/view_albedo.py", "toybox"),
    ),
    "direct25": Experiment(
        "Meshes from multi-view normals: hulls, Poisson's surface and fusion of exact maps",
        "direct25",
        ("way", "visual hull"),
        prior="",
        weights=None,
        method=("generate/fuse.py", "toybox"),
    ),
    "direct25-text": Experiment(
        "Meshes from text by normal maps beside score distillation: shapes, diversity, cost",
        "direct25_text",
        ("way", "score distillation"),
        weights=(JUDGE, "toybox-mv", *DRAWN),
        method=("generate", "core/priors/view_adapter.py", "core/distillation", "geometry/fields", "geometry/shapes"),
    ),
    "triplane-turbo": Experiment(
        "Meshes in four calls: progressive rendering distillation against one step and against the network's own noise",
        "triplane_turbo",
        ("setting", "K = 4"),
        weights=(JUDGE, "toybox-mv", *DRAWN, "toybox-turbo"),
        method=("generate", "core/priors/planes.py", "core/distillation", "geometry/fields", "geometry/shapes"),
    ),
    "amortised": Experiment(
        "One network for a library of prompts: rules of score distillation at equal network rows",
        "amortised",
        ("rule", "sds"),
        weights=(JUDGE, "toybox-mv"),
        method=("generate", "core/distillation", "core/distillation/rules", "geometry/fields", "geometry/shapes"),
    ),
    "text-to-3d": Experiment(
        "Every way from words to a mesh, with real instances as the ceiling",
        "text_to_3d",
        ("generator", "real instances"),
        weights=(JUDGE, "toybox-mv", *DRAWN, HEAD, "toybox-turbo"),
        method=("generate", "core/distillation", "core/priors/planes.py", "geometry/fields", "geometry/shapes"),
    ),
    "mesh-quality": Experiment(
        "What may be saved in score distillation of a mesh without losing its shape",
        "mesh_quality",
        ("setting", "the recipe"),
        weights=(JUDGE, "toybox-mv", DRAWN[0]),
        method=("generate", "core/distillation", CACHES),
    ),
    "orbits": Experiment(
        "Views from one picture: a prior of several views, orbits learnt from the image prior and from random weights",
        "orbits",
        ("setting", "from scratch"),
        weights=(JUDGE, "toybox-mv"),
        method=("core/priors", "core/training", "toybox"),
    ),
    "solids": Experiment(
        "Meshes of fresh prompts and real ones as solids, by every measure",
        "solids",
        ("surface", "lattice"),
        weights=(JUDGE, "toybox-mv"),
        method=("geometry", "generate", "core/distillation"),
    ),
    "real-meshes": Experiment(
        "Meshes of others: repair, decimation, charts, baking, splats of their pictures, files",
        "real_meshes",
        ("", None),
        prior="",
        weights=None,
        method=("geometry", "geometry/splats", "geometry/formats"),
    ),
    "codec": Experiment(
        "What the codec loses of pictures and maps, and what limits drawings",
        "codec",
        ("kind", "picture"),
        method=("toybox",),
    ),
    "judge": Experiment(
        "The judge's own accuracy on test renders", "judge", ("", None), "", weights=(JUDGE, PAIRS), method=("toybox",)
    ),
    "toy-fid-floor": Experiment(
        "What the toy-FID and the toy-KID say of true renders", "toy_fid_floor", ("views", 1), "", method=("toybox",)
    ),
    "students": Experiment(
        "Distilled students at 1 to 20 calls: equal pairs, updates and batch",
        "students",
        ("student", "none"),
        weights=(JUDGE, "toybox-lcm", "toybox-1step", "toybox-small", "toybox-w4"),
        method=("core/distillation", SOLVERS),
    ),
    "rectified-pairs": Experiment(
        "What retraining on pairs straightens: coupled, shuffled, by path and parameterisation",
        "rectified_pairs",
        ("student", "none"),
        weights=(),
        method=("core/distillation",),
    ),
    "mesh-words": Experiment(
        "Meshes from sentences with patterns, finishes and shapes, beside true instances",
        "mesh_words",
        ("of", "true renders"),
        weights=(JUDGE, "toybox-mv", *DRAWN),
        method=("generate", "core/priors/view_adapter.py", "pipelines/direct25_mesh.py"),
    ),
    **SAMPLING,
}


def experiment(name: str) -> Experiment:
    """The experiment of this name. Raises InputError for unknown names."""
    if name not in EXPERIMENTS:
        raise InputError(f"unknown experiment {name!r}; have {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]
