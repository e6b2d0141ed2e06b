"""The smooth start of a chain: against the dense minimiser, from a guess where there is one."""

from __future__ import annotations

import pytest
import torch
from test_plan import mask, measure

from rmp_fast import operators
from rmp_fast.start import smooth_start

STARTS = {
    "mask": (operators.Inpainting(mask((9, 11))), "replicate"),
    "reflected Gaussian": (operators.GaussianBlur(1.2), "replicate"),
    "circular Gaussian": (operators.GaussianBlur(1.2, "circular"), "circular"),
    "circular blur": (operators.Blur(torch.rand(3, 5, generator=torch.Generator().manual_seed(1))), "circular"),
}


@pytest.mark.parametrize("name", STARTS)
def test_the_smooth_start_is_the_minimiser(name: str) -> None:
    """Against the dense normal equations; two hundred conjugate gradient steps solve a problem of 99 pixels."""
    op, edge = STARTS[name]
    y = measure(op).double()[:1, :1]
    basis = torch.eye(99, dtype=torch.float64).reshape(99, 1, 9, 11)
    padded = torch.nn.functional.pad(basis, (1, 1, 1, 1), mode=edge)
    neighbours = padded[..., 2:, 1:-1] + padded[..., :-2, 1:-1] + padded[..., 1:-1, 2:] + padded[..., 1:-1, :-2]
    laplacian = (4 * basis - neighbours).reshape(99, 99)
    normal = op.normal(basis).reshape(99, 99) + 0.02 * laplacian.mT @ laplacian
    expected = torch.linalg.solve(normal, op.adjoint(y).flatten())
    made = smooth_start(y, op, (1, 1, 9, 11), iterations=200).flatten()
    # Float64, condition number about 1e4: rounding leaves 1e-12.
    assert (made - expected).norm() / expected.norm() < 1e-9


@pytest.mark.parametrize("channels", [1, 3])
def test_the_smooth_start_of_a_sparse_mask_is_near_the_minimiser(
    channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, columns = torch.meshgrid(torch.linspace(0, 3, 61), torch.linspace(0, 2, 50), indexing="ij")
    # Of a smooth image the guess leaves 0.06; as many steps from 0 do not cross gaps of six pixels and more.
    image = (0.5 * rows.sin() + 0.4 * columns.cos() * rows).expand(2, 3, 61, 50)
    op = operators.Inpainting(operators.random_mask((channels, 61, 50), 0.97))
    y = op.A(image)
    exact = smooth_start(y, op, (2, 3, 61, 50), iterations=3000)

    def error() -> float:
        return float((smooth_start(y, op, (2, 3, 61, 50)) - exact).norm() / exact.norm())

    assert error() < 0.1
    # What lies behind the mask is no part of the measurement.
    hidden = smooth_start(torch.where(op.mask, y, 7.0), op, (2, 3, 61, 50))
    assert torch.equal(smooth_start(y, op, (2, 3, 61, 50)), hidden)
    monkeypatch.setattr(operators.Inpainting, "start_guess", lambda self, back: None)
    assert error() > 0.3


def test_the_guess_of_a_mask_spreads_what_is_seen() -> None:
    seen, back = torch.zeros(5, 7, dtype=torch.bool), torch.zeros(1, 2, 5, 7)
    assert not operators.Inpainting(seen).start_guess(back).any()
    seen[3, 2], back[..., 3, 2] = True, 0.25
    assert (operators.Inpainting(seen).start_guess(back) == 0.25).all()


def test_the_smooth_start_refuses_what_is_no_measurement() -> None:
    for op, _ in STARTS.values():
        with pytest.raises(ValueError, match=r"`y` must have shape \(1, 1, 9, 11\), got \(1, 1, 9, 10\)"):
            smooth_start(torch.zeros(1, 1, 9, 10), op, (1, 1, 9, 11))
