"""Spectrum measures against a slow twin, known cases and the ordering identity."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fullrank.errors import EmptyInputError
from fullrank.ops import spectrum


def slow_measures(s: list[float]) -> dict[str, float]:
    """The definitions of section 3, with loops."""
    total, top = sum(s), max(s)
    energy = sum(v * v for v in s)

    def entropy(shares: list[float]) -> float:
        return math.exp(-sum(p * math.log(p) for p in shares if p > 0))

    return {
        "erank": entropy([v / total for v in s]),
        "erank2": entropy([v * v / energy for v in s]),
        "rankme": math.exp(-sum((v / total + 1e-7) * math.log(v / total + 1e-7) for v in s)),
        "ia": total / top,
        "stable_rank": energy / top**2,
        "pr": energy**2 / sum(v**4 for v in s),
        "svs": total,
        "top_energy@1": top * top / energy,
        "top_energy@10": sum(v * v for v in sorted(s)[-10:]) / energy,
        "dead_fraction@1e-2": sum(v < 1e-2 * top for v in s) / len(s),
        "dead_fraction@1e-3": sum(v < 1e-3 * top for v in s) / len(s),
        "dead_fraction@1e-5": sum(v < 1e-5 * top for v in s) / len(s),
    }


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20), st.integers(0, 4))
def test_every_scalar_equals_its_definition(values: list[float], zeros: int) -> None:
    s = values + [0.0] * zeros
    expected = slow_measures(s)
    assert set(expected) == set(spectrum.SCALARS)
    for name, measure in spectrum.SCALARS.items():
        got = float(measure(torch.tensor(s, dtype=torch.float64)))
        assert got == pytest.approx(expected[name], rel=1e-9), name


def matrices() -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    out = []
    for i in range(240):
        n, d = (int(v) for v in torch.randint(1, 24, (2,), generator=g))
        x = torch.randn(n, d, generator=g, dtype=torch.float64)
        if i % 4 == 1:
            x = x * torch.logspace(0, -6, d, dtype=torch.float64)
        elif i % 4 == 2:
            k = max(1, min(n, d) // 2)
            x = x[:, :k] @ torch.randn(k, d, generator=g, dtype=torch.float64)
        elif i % 4 == 3:
            x = x + 5
        out.append(x)
    return out


def test_acceptance_1_ordering_identity() -> None:
    for x in matrices():
        s = spectrum.singular_values(x, center=False)
        rank = int((s > 1e-12 * s[0]).sum())
        stable, ia, erank = (float(spectrum.SCALARS[m](s)) for m in ("stable_rank", "ia", "erank"))
        pr, erank2 = float(spectrum.participation_ratio(s)), float(spectrum.erank2(s))
        for low, high in [
            (1, stable), (stable, ia), (ia, erank), (erank, rank),
            (stable, pr), (pr, erank2), (erank2, erank),
        ]:  # fmt: skip
            assert low <= high + 1e-9, (x.shape, low, high)


def test_acceptance_2_known_cases() -> None:
    measures = ("erank", "erank2", "ia", "stable_rank", "pr")
    eye = spectrum.singular_values(torch.eye(7), center=False)
    line = spectrum.singular_values(torch.outer(torch.rand(9) + 1, torch.rand(5) + 1), center=False)
    for name in measures:
        assert float(spectrum.SCALARS[name](eye)) == pytest.approx(7, abs=1e-9)
        assert float(spectrum.SCALARS[name](line)) == pytest.approx(1, abs=1e-4)
    s = 0.5 ** torch.arange(10, dtype=torch.float64)
    assert float(spectrum.information_abundance(s)) == 2 - 2**-9
    assert float(spectrum.stable_rank(s)) == pytest.approx((1 - 4**-10) / (1 - 0.25), rel=1e-14)


def test_scale_and_rotation_change_nothing() -> None:
    g = torch.Generator().manual_seed(2)
    x = torch.randn(30, 6, generator=g, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=g, dtype=torch.float64)).Q
    base = spectrum.effective_rank(x)
    assert float(spectrum.effective_rank(-1e-30 * x)) == pytest.approx(float(base), rel=1e-12)
    assert float(spectrum.effective_rank(x @ turn)) == pytest.approx(float(base), rel=1e-12)


def test_acceptance_9_centring_removes_a_mean_shift() -> None:
    g = torch.Generator().manual_seed(3)
    x = torch.randn(500, 32, generator=g, dtype=torch.float64)
    before, after = (spectrum.singular_values(v, center=False) for v in (x, x + 5))
    centred = spectrum.singular_values(x + 5, center=True)
    published = {"erank": (31.7, 11.9), "ia": (25.3, 2.1), "stable_rank": (20.3, 1.04)}
    for name, (plain, shifted) in published.items():
        measure = spectrum.SCALARS[name]
        assert float(measure(before)) == pytest.approx(plain, rel=0.05)
        assert float(measure(after)) == pytest.approx(shifted, rel=0.05)
        assert float(measure(centred)) == pytest.approx(plain, rel=0.05)


def test_zero_matrix_has_no_direction() -> None:
    zero = torch.zeros(3, 4)
    assert float(spectrum.effective_rank(zero)) == 0
    for name, measure in spectrum.SCALARS.items():
        expected = 1.0 if name.startswith("dead") else 0.0
        assert float(measure(torch.zeros(4))) == expected, name


def test_covariance_log_spectrum_is_the_log_of_eigenvalues() -> None:
    g = torch.Generator().manual_seed(4)
    x = torch.randn(400, 5, generator=g, dtype=torch.float64) * torch.tensor(
        [1, 0.5, 0.1, 0.02, 0.01]
    )
    c = torch.cov(x.T, correction=0)
    direct = torch.linalg.svdvals(c)
    got = spectrum.covariance_log_spectrum(spectrum.singular_values(x, center=True))
    assert torch.allclose(got, (direct / direct[0]).log(), atol=1e-9)


def test_log_spectrum_stops_at_the_floor() -> None:
    got = spectrum.log_spectrum(torch.tensor([1.0, 1e-3, 1e-15, 0.0]), floor=1e-10)
    assert got.tolist() == pytest.approx(
        [0, math.log(1e-3), math.log(1e-10), math.log(1e-10)], rel=1e-6
    )


def test_leading_axes_are_independent_spectra() -> None:
    s = torch.rand(3, 2, 6, dtype=torch.float64)
    for measure in spectrum.SCALARS.values():
        assert float(measure(s)[2, 1]) == pytest.approx(float(measure(s[2, 1])), rel=1e-12)


def test_no_rows_is_an_error_with_five_parts() -> None:
    with pytest.raises(EmptyInputError, match="nothing") as caught:
        spectrum.effective_rank(torch.zeros(0, 4))
    assert "probe" in caught.value.fix
