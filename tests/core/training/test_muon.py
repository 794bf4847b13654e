"""Muon: singular vectors stay, singular values become one, and what is no matrix gets AdamW."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn
from torch.multiprocessing import start_processes

from unproject.core.training.checkpoints import load_optimizer_state, optimizer_state
from unproject.core.training.muon import RMS, Muon, matrix_groups, orthogonalise, orthogonalised


def gradients(parameters: list[nn.Parameter], steps: int, scale: float = 1.0) -> list[list[torch.Tensor]]:
    rng = torch.Generator().manual_seed(3)
    return [[scale * torch.randn(p.shape, generator=rng) for p in parameters] for _ in range(steps)]


def run(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], grads: list[list[torch.Tensor]]) -> None:
    for step in grads:
        for p, g in zip(parameters, step, strict=True):
            p.grad = g.clone()
        optimizer.step()


def muon(matrices: list[nn.Parameter], plain: list[nn.Parameter], **options: Any) -> Muon:
    return Muon([{"params": matrices, "matrix": True}, {"params": plain}], **options)


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (8, 8)])
def test_only_the_singular_values_change(shape: tuple[int, int]) -> None:
    matrix = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = matrix * torch.linspace(0.3, 3, shape[0], dtype=torch.float64)[:, None]
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    values = u.mT @ orthogonalise(matrix) @ vh.mT
    assert float(s.max() / s.min()) > 3
    diagonal = values.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(values, torch.diag_embed(diagonal), atol=1e-12, rtol=0)
    assert float(diagonal.min()) > 0.6 and float(diagonal.max()) < 1.3


def test_the_iteration_is_the_quintic_on_each_singular_value() -> None:
    s = torch.tensor([0.9, 0.3, 0.05], dtype=torch.float64)
    expected = s / s.norm()
    for _ in range(5):
        expected = 3.4445 * expected - 4.7750 * expected**3 + 2.0315 * expected**5
    torch.testing.assert_close(orthogonalise(torch.diag(s)[None])[0].diagonal(), expected, atol=1e-13, rtol=0)


def test_in_half_the_iteration_is_the_same_to_half() -> None:
    matrix = torch.randn(3, 24, 40, generator=torch.Generator().manual_seed(1))
    half, whole = orthogonalise(matrix, dtype=torch.bfloat16), orthogonalise(matrix)
    assert half.dtype == torch.float32
    assert 0 < float((half - whole).norm() / whole.norm()) < 0.03


def test_the_first_step_is_the_orthogonalised_gradient_at_adamws_size() -> None:
    p = nn.Parameter(torch.zeros(32, 48))
    (grad,) = gradients([p], 1)[0]
    run(muon([p], [], lr=0.1, weight_decay=0.0), [p], [[grad]])
    torch.testing.assert_close(p.data, -0.1 * RMS * 48**0.5 * orthogonalise(grad[None])[0], atol=1e-6, rtol=1e-5)
    assert float(p.data.square().mean().sqrt()) == pytest.approx(0.1 * RMS, rel=0.2)


def test_the_scale_of_the_gradient_does_not_matter_to_matrices() -> None:
    a, b = nn.Parameter(torch.ones(6, 9)), nn.Parameter(torch.ones(6, 9))
    run(muon([a], []), [a], gradients([a], 4))
    run(muon([b], []), [b], gradients([b], 4, scale=100.0))
    torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_a_convolution_is_the_matrix_of_its_patches() -> None:
    start = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    kernel = nn.Parameter(start.clone().to(memory_format=torch.channels_last))
    flat = nn.Parameter(start.flatten(1).clone())
    grads = gradients([flat], 3)
    run(muon([flat], []), [flat], grads)
    run(muon([kernel], []), [kernel], [[g.view(8, 4, 3, 3)] for (g,) in grads])
    torch.testing.assert_close(kernel.flatten(1), flat, atol=1e-6, rtol=0)


def test_everything_else_gets_adamw() -> None:
    ours, theirs = nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(5))
    options = {"lr": 0.03, "betas": (0.8, 0.95), "weight_decay": 0.1}
    run(muon([], [ours], **options), [ours], gradients([ours], 6))
    run(torch.optim.AdamW([theirs], **options), [theirs], gradients([theirs], 6))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_a_resumed_run_equals_an_uninterrupted_one() -> None:
    def fresh() -> tuple[dict[str, nn.Parameter], Muon]:
        named = {"m": nn.Parameter(torch.ones(6, 9)), "v": nn.Parameter(torch.ones(5))}
        return named, muon([named["m"]], [named["v"]])

    (whole, optimizer), (half, first), (rest, second) = fresh(), fresh(), fresh()
    grads = gradients(list(whole.values()), 6)
    run(optimizer, list(whole.values()), grads)
    run(first, list(half.values()), grads[:3])
    for name, p in rest.items():
        p.data.copy_(half[name])
    load_optimizer_state(second, rest, *optimizer_state(first, half))
    run(second, list(rest.values()), grads[3:])
    assert all(torch.equal(whole[name], rest[name]) for name in whole)


def test_tables_vectors_and_thin_matrices_are_plain() -> None:
    net = nn.Sequential(nn.Embedding(64, 32), nn.Conv2d(4, 32, 3), nn.LayerNorm(32), nn.Conv2d(32, 4, 3))
    matrices, plain = (group["params"] for group in matrix_groups(net))
    assert [(name, tuple(p.shape)) for name, p in matrices.items()] == [("1.weight", (32, 4, 3, 3))]
    assert len(matrices) + len(plain) == len(list(net.parameters()))


def test_torchs_own_takes_the_same_step_on_a_matrix() -> None:
    ours, theirs = (nn.Parameter(torch.ones(24, 40)) for _ in range(2))
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    run(muon([ours], [], dtype=torch.bfloat16, **options), [ours], gradients([ours], 3))
    library = torch.optim.Muon([theirs], adjust_lr_fn="match_rms_adamw", **options)
    run(library, [theirs], gradients([theirs], 3))
    assert float((ours.detach() - 1).norm()) > 0.5
    torch.testing.assert_close(ours, theirs, atol=5e-3, rtol=0)


def _matrices() -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(2)
    return [torch.randn(shape, generator=rng) for shape in [(6, 9), (6, 9), (4, 7), (6, 9), (9, 4)]]


def _share(rank: int, store: str, out: str) -> None:
    torch.set_num_threads(1)  # a fork has none of its parent's threads
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    save_file({str(i): m.contiguous() for i, m in enumerate(orthogonalised(_matrices()))}, f"{out}-{rank}")
    dist.destroy_process_group()


def test_processes_share_the_work_and_get_the_same(tmp_path: Path) -> None:
    arguments = (str(tmp_path / "store"), str(tmp_path / "out"))
    start_processes(_share, arguments, nprocs=2, start_method="fork")  # spawned ones import for seconds
    alone = orthogonalised(_matrices())
    for rank in (0, 1):
        together = load_file(tmp_path / f"out-{rank}")
        for i, matrix in enumerate(alone):
            torch.testing.assert_close(matrix, together[str(i)], atol=1e-6, rtol=0)
