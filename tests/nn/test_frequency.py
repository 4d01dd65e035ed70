"""Transforms, complex layers, filters and extrapolation against torch.fft and against sums."""

from __future__ import annotations

import cmath
from itertools import product

import pytest
import torch
from torch import Tensor

from fullrank.nn.frequency import (
    ComplexLinear,
    Extrapolation,
    SpectrumFilter,
    fourier,
    inverse_fourier,
    num_bins,
    over_channels,
    spectrum_shares,
)

LENGTHS = (1, 2, 3, 5, 7, 8, 31, 100, 105)
B, H, D = 3, 2, 4


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def joined(z: Tensor) -> Tensor:
    return torch.cat([z.real, z.imag], dim=-1)


def split(v: Tensor) -> Tensor:
    return torch.complex(*(part.contiguous() for part in v.chunk(2, dim=-1)))


@pytest.mark.parametrize("n", LENGTHS)
def test_the_products_are_the_transforms_of_any_length(n: int) -> None:
    for length in {n, (n + 1) // 2}:
        x = draw(B, length)
        assert num_bins(n) == torch.fft.rfft(x, n).shape[1]
        torch.testing.assert_close(
            x @ fourier(n, length), joined(torch.fft.rfft(x, n)), rtol=1e-4, atol=2e-5
        )
    z = joined(torch.fft.rfft(draw(B, n), n)) + draw(B, 2 * num_bins(n), seed=1)
    for start, stop in ((0, n), (n // 2, n)):  # z has imaginary parts that nobody may read
        expected = torch.fft.irfft(split(z), n)[:, start:stop]
        torch.testing.assert_close(
            z @ inverse_fourier(n, start, stop), expected, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("n", LENGTHS)
def test_there_and_back_gives_the_steps_of_even_and_odd_lengths(n: int) -> None:
    x = draw(B, n)
    back = x @ fourier(n, n) @ inverse_fourier(n, 0, n)
    assert back.shape == x.shape
    torch.testing.assert_close(back, x, rtol=0, atol=1e-5)


def test_the_transform_over_channels_is_the_sum_of_its_definition() -> None:
    z = split(draw(D, 2 * 3)).to(torch.complex128)
    expected = torch.zeros_like(z)
    for k, d in product(range(D), range(D)):
        expected[k] += cmath.exp(-2j * cmath.pi * k * d / D) * z[d]
    found = over_channels(joined(z))
    torch.testing.assert_close(found, joined(expected))
    torch.testing.assert_close(over_channels(found, inverse=True), joined(z))


def test_a_complex_layer_is_complex_arithmetic_and_the_two_by_two_real_block() -> None:
    torch.manual_seed(0)
    layer = ComplexLinear(3, 5)
    layer.bias.data.normal_()
    x = draw(7, 2, 6)
    weight, bias = torch.complex(layer.real, layer.imaginary), split(layer.bias)
    torch.testing.assert_close(layer(x), joined(split(x) @ weight.T + bias))
    torch.testing.assert_close(layer(x), x @ layer.block() + layer.bias)
    real, imaginary = layer.real.T, layer.imaginary.T
    rows = torch.cat([torch.cat([real, imaginary], 1), torch.cat([-imaginary, real], 1)])
    assert torch.equal(layer.block(), rows)


@torch.no_grad()
def test_complex_dropout_drops_both_parts_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    model = Extrapolation(4, 1, (50,), dropout=0.25)
    first, last = model.layers
    first.real.zero_()
    first.imaginary.zero_()
    first.bias.fill_(1.0)  # every hidden number is 1 + i
    last.real.zero_()
    last.imaginary.zero_()
    last.real[0, :] = last.imaginary[0, :] = 1.0  # real: its real part less its imaginary one
    assert float(model(draw(400, D, 4)).abs().max()) < 1e-4  # they are dropped together
    last.imaginary.zero_()
    found, expected = model(draw(400, D, 4)), model.eval()(draw(1, 1, 4))
    assert float(found.mean()) == pytest.approx(float(expected), rel=0.02)
    assert float(found.std()) > 0.01 * float(expected)


def test_what_comes_before_the_window_is_applied_first() -> None:
    torch.manual_seed(0)
    for axes in ("time", "channel_time"):
        model = Extrapolation(7, 2, (5,), axes=axes)  # type: ignore[arg-type]
        x, before = draw(B, D, 4), draw(4, 7, seed=1)
        torch.testing.assert_close(model(x, before), model(x @ before), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axes", ["time", "channel_time"])
@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("length", [1, 2, 5, 8, 100])
def test_a_filter_of_gain_one_is_the_identity(length: int, linear: bool, axes: str) -> None:
    spectrum = SpectrumFilter(length, linear=linear, axes=axes)  # type: ignore[arg-type]
    x = draw(B, H, D, length)
    out = spectrum(x, torch.ones(B, H, spectrum.num_bins))
    torch.testing.assert_close(out, x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("length", [1, 5, 8, 30])
def test_a_filter_along_time_equals_one_over_channels_and_time(length: int) -> None:
    x = draw(B, H, D, length)
    along, both = SpectrumFilter(length), SpectrumFilter(length, axes="channel_time")
    gain = 1 + draw(B, H, along.num_bins).abs()
    torch.testing.assert_close(along(x, gain), both(x, gain), rtol=1e-4, atol=1e-5)
    z = torch.fft.rfft2(x) * gain.unsqueeze(2)  # as released
    expected = torch.fft.irfft2(z, s=(D, length))
    torch.testing.assert_close(both(x, gain), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [1, 4, 7])
def test_a_filter_is_a_circular_convolution_and_a_linear_one_when_padded(length: int) -> None:
    for linear in (False, True):
        spectrum = SpectrumFilter(length, linear=linear)
        n = 2 * length if linear else length
        x, gain = draw(H, D, length), 1 + draw(H, num_bins(n), seed=1).abs()
        kernel = torch.fft.irfft(gain.to(torch.complex64), n)  # [H, n]
        expected = torch.zeros_like(x)
        for t, s in product(range(length), range(length)):
            expected[..., t] += kernel[:, None, (t - s) % n] * x[..., s]
        found = spectrum(x[None], gain[None])[0]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_without_padding_the_end_wraps_onto_the_beginning() -> None:
    x = torch.zeros(1, 1, 1, 10)
    x[..., -1] = 1.0
    reached = {}
    for linear in (False, True):
        spectrum = SpectrumFilter(10, linear=linear)
        n = 20 if linear else 10
        kernel = torch.zeros(n)  # one step later
        kernel[1] = kernel[-1] = 0.5
        gain = torch.fft.rfft(kernel).real[None, None]
        reached[linear] = float(spectrum(x, gain)[..., 0])
    assert reached[False] == pytest.approx(0.5, abs=1e-5)
    assert reached[True] == pytest.approx(0.0, abs=1e-5)


def test_magnitudes_are_those_of_the_transform_and_learn_nothing_at_zero() -> None:
    for linear, n in ((False, 9), (True, 18)):
        c = draw(B, H, 9)
        found = SpectrumFilter(9, linear=linear).magnitudes(c)
        torch.testing.assert_close(found, torch.fft.rfft(c, n).abs(), rtol=1e-4, atol=1e-5)
    zero = torch.zeros(1, 1, 9, requires_grad=True)
    (grad,) = torch.autograd.grad(SpectrumFilter(9).magnitudes(zero).sum(), zero)
    assert torch.equal(grad, torch.zeros_like(grad))


def test_shares() -> None:
    m = draw(B, 6).abs()
    for kind in ("softmax_mag", "mag_over_sum"):
        torch.testing.assert_close(spectrum_shares(m, kind).sum(1), torch.ones(B))
    torch.testing.assert_close(spectrum_shares(m, "softmax_mag"), torch.softmax(m, 1))
    torch.testing.assert_close(spectrum_shares(m, "sigmoid_mag"), 1 / (1 + torch.exp(-m)))
    torch.testing.assert_close(spectrum_shares(3 * m, "mag_over_sum"), m / m.sum(1, keepdim=True))
    assert torch.equal(spectrum_shares(torch.zeros(1, 3), "mag_over_sum"), torch.zeros(1, 3))


def released(model: Extrapolation, x: Tensor, future: int) -> Tensor:
    """The network with transforms of its own, complex numbers, and the whole future spectrum."""
    n = x.shape[2] + future
    z = torch.fft.rfft(torch.cat([x, torch.zeros(*x.shape[:2], future)], 2), dim=2)
    if model.axes == "channel_time":
        z = torch.fft.fft(z, dim=1)
    for i, layer in enumerate(model.layers):
        z = z @ torch.complex(layer.real, layer.imaginary).T + split(layer.bias)
        if i < len(model.layers) - 1:
            z = torch.complex(z.real.relu(), z.imag.relu())
    if model.axes == "channel_time":
        z = torch.fft.ifft(z, dim=1)
    return torch.fft.irfft(z, n=n, dim=2)[..., -future:]


@pytest.mark.parametrize("axes", ["time", "channel_time"])
@pytest.mark.parametrize(
    ("length", "future", "hidden"),
    [(100, 5, (8, 8)), (1, 1, (3,)), (7, 2, (4, 5, 6)), (4, 4, (3,))],
)
def test_the_future_is_that_of_the_transforms(axes, length, future, hidden) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    model = Extrapolation(length, future, hidden, axes=axes)
    for layer in model.layers:
        layer.bias.data.normal_()
    x = draw(B, D, length)
    found = model(x)
    assert found.shape == (B, D, future)
    torch.testing.assert_close(found, released(model, x, future), rtol=1e-4, atol=1e-4)
    for parameter in model.parameters():
        (grad,) = torch.autograd.grad(model(x).square().sum(), parameter)
        expected = torch.autograd.grad(released(model, x, future).square().sum(), parameter)[0]
        torch.testing.assert_close(grad, expected, rtol=1e-3, atol=1e-3)


def test_an_odd_future_needs_its_size() -> None:
    z = torch.fft.rfft(draw(1, 105))
    assert torch.fft.irfft(z).shape[1] == 104  # what a spectrum of 53 bins says by itself
    assert inverse_fourier(105, 100, 105).shape == (2 * 53, 5)


def test_the_order_of_channels_matters_only_where_they_are_transformed() -> None:
    torch.manual_seed(0)
    x, order = draw(B, D, 6), torch.tensor([2, 0, 3, 1])
    for axes, same in (("time", True), ("channel_time", False)):
        model = Extrapolation(6, 2, (5,), axes=axes)  # type: ignore[arg-type]
        assert torch.allclose(model(x[:, order]), model(x)[:, order], atol=1e-6) == same
