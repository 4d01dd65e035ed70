"""Streaming estimators against one direct decomposition of all rows."""

from __future__ import annotations

import pytest
import torch

from fullrank.diagnose import recorder
from fullrank.diagnose.accumulate import (
    CrossMoments,
    Gram,
    JointCounts,
    Moments,
    StreamingQR,
    TokenSpectra,
)
from fullrank.diagnose.recorder import Projection, Spectrum
from fullrank.errors import EmptyInputError
from fullrank.ops import spectrum


def gauss(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("chunk", [10_000, 4096, 333])
@pytest.mark.parametrize("kind", [Gram, Moments, StreamingQR])
def test_acceptance_3_streaming_equals_batch(kind: type, chunk: int) -> None:
    x = gauss(10_000, 64) + 0.3
    seen = kind(64)
    for part in x.split(chunk):
        seen.update(part)
    for center in (False, True):
        direct = spectrum.singular_values(x, center=center)
        assert torch.allclose(seen.singular_values(center=center), direct, rtol=1e-8, atol=0)


@pytest.mark.parametrize("kind", [Gram, Moments, StreamingQR])
@pytest.mark.parametrize("cut", [0, 3, 700, 1000])
def test_acceptance_3_merging_equals_the_concatenation(kind: type, cut: int) -> None:
    x = gauss(1000, 12) + torch.linspace(0, 9, 12)
    left, right, whole = kind(12), kind(12), kind(12)
    left.update(x[:cut])
    right.update(x[cut:])
    whole.update(x)
    left.merge(right)
    assert left.n == whole.n == 1000
    for center in (False, True):
        got, expected = (a.singular_values(center=center) for a in (left, whole))
        assert torch.allclose(got, expected, rtol=1e-8, atol=0)


def steep() -> tuple[torch.Tensor, torch.Tensor]:
    """20,000 x 64 with singular values from 1e2 down to 1e-8."""
    s = torch.logspace(2, -8, 64, dtype=torch.float64)
    u, v = torch.linalg.qr(gauss(20_000, 64)).Q, torch.linalg.qr(gauss(64, 64, 1)).Q
    return (u * s) @ v.T, s


def test_acceptance_4_precision_floor() -> None:
    x, truth = steep()

    def right(accumulator: Gram | StreamingQR) -> int:
        for part in x.split(5000):
            accumulator.update(part)
        got = accumulator.singular_values(center=False)
        return int(((got / truth - 1).abs() < 0.01).sum())

    assert right(StreamingQR(64)) == 64
    assert right(Gram(64, torch.float32)) <= 25
    assert 40 <= right(Gram(64)) < 64


def test_a_large_common_mean_does_not_blur_the_centred_spectrum() -> None:
    x = gauss(2000, 8) * torch.logspace(0, -6, 8, dtype=torch.float64) + 1e7
    qr, gram, moments = StreamingQR(8), Gram(8), Moments(8)
    for part in x.split(45):
        for accumulator in (qr, gram, moments):
            accumulator.update(part)
    direct = spectrum.singular_values(x, center=True)
    assert torch.allclose(qr.singular_values(center=True), direct, rtol=1e-6, atol=0)
    assert float(moments.singular_values(center=True)[0]) == pytest.approx(
        float(direct[0]), rel=1e-6
    )
    assert not torch.allclose(gram.singular_values(center=True)[0], direct[0], rtol=1e-3)  # control


@pytest.mark.parametrize("tokens", [4, 16])
@pytest.mark.parametrize("d", [8, 64])
def test_acceptance_5_token_batches_equal_a_loop_of_svdvals(tokens: int, d: int) -> None:
    x = gauss(20, tokens * d).reshape(20, tokens, d)
    seen = TokenSpectra(tokens, d)
    for part in x.split(7):
        seen.update(part)
    for name in ("erank", "stable_rank", "ia"):
        loop = [float(spectrum.SCALARS[name](torch.linalg.svdvals(sample))) for sample in x]
        assert seen.mean(name) == pytest.approx(sum(loop) / 20, rel=1e-9)
        assert seen.std(name) == pytest.approx(
            torch.tensor(loop).std(correction=0).item(), abs=1e-6
        )
        assert max(loop) <= min(tokens, d)
        width = (min(tokens, d) - 1) / 256
        assert seen.quantile(name, 0.5) == pytest.approx(sorted(loop)[9], abs=width)


@pytest.mark.parametrize(("tokens", "d"), [(4, 8), (16, 8), (2, 3)])
def test_tokens_without_their_mean_equal_a_loop_of_svdvals(tokens: int, d: int) -> None:
    x = gauss(20, tokens * d).reshape(20, tokens, d) + 5
    seen = TokenSpectra(tokens, d, center=True)
    for part in x.split(7):
        seen.update(part)
    assert seen.bound == min(tokens - 1, d)
    for name in ("erank", "stable_rank", "ia"):
        loop = [
            float(spectrum.SCALARS[name](spectrum.singular_values(sample, center=True)))
            for sample in x
        ]
        assert seen.mean(name) == pytest.approx(sum(loop) / 20, rel=1e-6)
        assert max(loop) <= seen.bound + 1e-6


def test_tokens_that_are_alike_have_no_rank_without_their_mean() -> None:
    """What float32 leaves of equal tokens is rounding, which would count as full rank."""
    alike = gauss(30, 8)[:, None] + 1000
    noise = gauss(30, 6 * 8, 1).reshape(30, 6, 8)
    for spread, low, high in ((3e-5, 0.0, 0.0), (0.1, 4.0, 5.0)):  # of 1000: 3e-8, and 1e-4
        seen = TokenSpectra(6, 8, center=True)
        seen.update(alike + spread * noise)
        assert low <= seen.mean("erank") <= high


def test_token_spectra_merge_and_count_every_sample() -> None:
    x = gauss(30, 24).reshape(30, 4, 6)
    left, right, whole = TokenSpectra(4, 6), TokenSpectra(4, 6), TokenSpectra(4, 6)
    left.update(x[:11])
    right.update(x[11:])
    whole.update(x)
    left.merge(right)
    assert torch.equal(left.histogram, whole.histogram)
    assert left.histogram.sum(1).tolist() == [30, 30, 30]
    assert left.mean("erank") == pytest.approx(whole.mean("erank"), rel=1e-12)


def test_groups_of_moments_are_independent_matrices() -> None:
    x = gauss(50, 12).reshape(50, 3, 4)
    seen = Moments(4, groups=3)
    for part in x.split(17):
        seen.update(part.transpose(0, 1))
    for t in range(3):
        direct = spectrum.singular_values(x[:, t], center=True)
        assert torch.allclose(seen.singular_values(center=True)[t], direct, rtol=1e-8)
        assert torch.allclose(seen.correlation()[t], torch.corrcoef(x[:, t].T), atol=1e-10)


@pytest.mark.parametrize("chunk", [100, 37, 1])
def test_cross_moments_equal_corrcoef_for_any_cut(chunk: int) -> None:
    a, b = gauss(100, 3) + 7, gauss(100, 4, 1)
    b[:, 0] += a[:, 1]
    parts = [CrossMoments(3, 4) for _ in range(2)]
    for i, (x, y) in enumerate(zip(a.split(chunk), b.split(chunk), strict=True)):
        parts[i % 2].update(x, y)
    parts[0].merge(parts[1])
    direct = torch.corrcoef(torch.cat([a, b], 1).T)[:3, 3:]
    assert torch.allclose(parts[0].correlation(), direct, atol=1e-10)


def test_a_constant_column_correlates_with_nothing() -> None:
    a, b = gauss(64, 2), gauss(64, 2, 1)
    a[:, 1] = 3.7
    seen = CrossMoments(2, 2)
    for x, y in zip(a.split(10), b.split(10), strict=True):
        seen.update(x.float(), y)
    assert seen.correlation()[1].isnan().all()
    assert seen.correlation()[0].isfinite().all()


def test_joint_counts_equal_a_loop() -> None:
    g = torch.Generator().manual_seed(0)
    a, b = torch.randint(0, 3, (90,), generator=g), torch.randint(0, 5, (90,), generator=g)
    seen, other = JointCounts(3, 5), JointCounts(3, 5)
    seen.update(a[:50], b[:50])
    other.update(a[50:], b[50:])
    seen.merge(other)
    table = [[0] * 5 for _ in range(3)]
    for i, j in zip(a.tolist(), b.tolist(), strict=True):
        table[i][j] += 1
    assert seen.counts.tolist() == table


def test_projection_is_orthonormal_fixed_and_keeps_effective_rank() -> None:
    basis = Projection(300, 64, 0).basis
    assert torch.allclose(basis.T @ basis, torch.eye(64, dtype=torch.float64), atol=1e-12)
    assert torch.equal(basis, Projection(300, 64, 0).basis)
    x = gauss(200, 5) @ gauss(5, 300, 1)
    before, after = (float(spectrum.effective_rank(v)) for v in (x, Projection(300, 64, 0)(x)))
    assert after == pytest.approx(before, rel=0.1)


def test_default_choice_follows_width_and_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "WIDEST", 40)
    monkeypatch.setattr(recorder, "PROJECTED", 20)
    assert Spectrum(16, tail=True).rows.name == "A3"
    assert Spectrum(16, tail=False).rows.name == "A2"
    wide = Spectrum(41, tail=True)
    assert (wide.approx, wide.rows.name) == ("projected", "A2")
    wide.update(gauss(4, 41))
    assert wide.singular_values(center=False).shape == (20,)


@pytest.mark.parametrize("make", [lambda: Gram(2), lambda: Moments(2), lambda: StreamingQR(2)])
def test_no_rows_is_an_error(make: type) -> None:
    with pytest.raises(EmptyInputError):
        make().singular_values(center=True)


def test_fewer_rows_than_columns() -> None:
    x = gauss(3, 10)
    for center in (False, True):
        qr = StreamingQR(10)
        for row in x.split(1):
            qr.update(row)
        direct = torch.zeros(10, dtype=torch.float64)
        direct[:3] = spectrum.singular_values(x, center=center)
        assert torch.allclose(qr.singular_values(center=center), direct, atol=1e-12)
