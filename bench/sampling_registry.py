"""The experiments of sampling, by name, and those on the transformer."""

from __future__ import annotations

from .experiment import CACHES, DIT, JUDGE, PAIRS, SOLVERS, Experiment

SAMPLING: dict[str, Experiment] = {
    "dpm-solver-v3": Experiment(
        "DPM-Solver-v3 against DDIM, DPM-Solver++ and UniPC at few calls",
        "dpm_solver_v3",
        ("solver", "ddim"),
        weights=(),
        method=(SOLVERS,),
    ),
    "usf-s3": Experiment(
        "Searched solver schedules against fixed solvers, on held-out noise and prompts",
        "usf_s3",
        ("schedule", "ddim 1"),
        weights=(),
        method=(SOLVERS,),
    ),
    "ghvb-momentum": Experiment(
        "Momentum at high guidance and few steps: divergence, toy-FID", "ghvb_momentum", ("solver", "plms 4")
    ),
    "painters-gaussian": Experiment(
        "First steps in closed form: what skipping them costs", "painters_gaussian", ("fit", "none")
    ),
    "optimal-boundary": Experiment(
        "A starting noise chosen on references, on other images", "optimal_boundary", ("noise", "random")
    ),
    "noiseshift": Experiment(
        "Recalibrated times at sizes the prior was not trained at", "noiseshift", ("table", "plain")
    ),
    "edict": Experiment(
        "Exact inversion against DDIM: round trips, edits of one word", "edict", ("method", "ddim"), method=(SOLVERS,)
    ),
    "deepcache": Experiment(
        "DeepCache: quality and cost against interval, branch and fewer steps",
        "deepcache",
        ("setting", "plain"),
        method=(CACHES,),
    ),
    "feature-inheritance": Experiment(
        "Inherited features and switched networks at equal cost",
        "feature_inheritance",
        ("setting", "plain"),
        method=(CACHES,),
    ),
    "regions": Experiment(
        "Region-adaptive sampling of a transformer", "regions", ("setting", "plain"), DIT, method=(CACHES,)
    ),
    "q-sched": Experiment("Two factors per step for a quantised few-step run", "q_sched", ("factors", "plain")),
    "focus": Experiment(
        "Sentences with two objects under control of the attention", "focus", ("cost", "none"), weights=(JUDGE, PAIRS)
    ),
    "flair": Experiment(
        "Inpainting, super-resolution and deblurring with a frozen prior", "flair", ("method", "start")
    ),
    "embedded-dit": Experiment(
        "What the embedded transformer draws: accuracy, toy-FID, sweeps",
        "embedded_prior",
        ("setting", "test prompts"),
        DIT,
        method=(SOLVERS,),
    ),
    "noiseshift-dit": Experiment(
        "Recalibrated times of the transformer at its three sizes", "noiseshift", ("table", "plain"), DIT
    ),
    "sampling-dit": Experiment(
        "Every solver on the transformer: quality against calls and seconds",
        "sampling",
        ("solver", "euler"),
        DIT,
        method=(SOLVERS,),
    ),
    "sampling-judged": Experiment(
        "What solvers draw in 3 to 20 calls: accuracy, toy-FID",
        "sampling_judged",
        ("solver", "ddim"),
        method=(SOLVERS,),
    ),
    "sampling-judged-dit": Experiment(
        "The same of the transformer", "sampling_judged", ("solver", "euler"), DIT, method=(SOLVERS,)
    ),
    "sampling-judged-50": Experiment(
        "The same in 50 calls", "sampling_judged", ("solver", "ddim"), entry="run_long", method=(SOLVERS,)
    ),
    "sampling-judged-50-dit": Experiment(
        "In 50 calls of the transformer", "sampling_judged", ("solver", "euler"), DIT, "run_long", method=(SOLVERS,)
    ),
}
