"""Muon in fp32 against PyTorch's in bf16, and both against what they stand for."""

import pytest
import torch

from cogvideox.training import muon

SHAPES = [(96, 64), (64, 96), (64, 64), (3, 50)]


def steps(make, dtype=torch.float32, count=3):
    """Matrices after some steps with the same gradients."""
    rng = torch.Generator().manual_seed(0)
    matrices = [torch.randn(shape, generator=rng).to(dtype) for shape in SHAPES]
    optimizer = make(matrices)
    optimizer.state.update({m: {"momentum_buffer": torch.zeros_like(m)} for m in matrices})
    for _ in range(count):
        for matrix in matrices:
            matrix.grad = torch.randn(matrix.shape, generator=rng).to(dtype)  # the same in each precision
        optimizer.step()
    return matrices


@pytest.mark.parametrize("settings", [{}, {"nesterov": False, "weight_decay": 0.5, "momentum": 0.8}])
def test_without_native_bf16_it_steps_as_the_library_does_but_exactly(monkeypatch, settings):
    start = steps(lambda m: muon.Muon(m), count=0)
    theirs = steps(lambda m: torch.optim.Muon(m, lr=0.1, **settings))
    monkeypatch.setattr(muon, "native_bfloat16", lambda device: False)
    ours = steps(lambda m: muon.Muon(m, lr=0.1, **settings))
    exact = steps(lambda m: muon.Muon(m, lr=0.1, **settings), torch.float64)
    for before, mine, other, truth in zip(start, ours, theirs, exact, strict=True):
        moved = (truth - before).norm()
        assert (mine - truth).norm() < 1e-5 * moved
        assert 1e-4 * moved < (other - truth).norm() < 0.03 * moved  # bf16's rounding, not another update


def test_where_bf16_is_native_the_library_steps(monkeypatch):
    monkeypatch.setattr(muon, "native_bfloat16", lambda device: True)
    for mine, other in zip(steps(lambda m: muon.Muon(m)), steps(torch.optim.Muon), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_come_near_one_and_vectors_stay(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    coefficients = torch.optim.Muon([x]).param_groups[0]["ns_coefficients"]
    out = muon.orthogonal(x, coefficients, 5, 1e-7)
    values = torch.linalg.svdvals(out)
    assert values.min() > 0.4
    assert values.max() < 1.3
    left, _, right = torch.linalg.svd(x, full_matrices=False)
    turned = left.T @ out @ right.T
    assert (turned - turned.diag().diag()).abs().max() < 1e-4
