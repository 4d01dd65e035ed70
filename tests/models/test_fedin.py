"""FEDIN against loops with transforms of their own, its padding, and the phase it must find."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fullrank.batch import Jagged
from fullrank.config import from_dict, to_dict
from fullrank.errors import ConfigError, SchemaError
from fullrank.models.fedin import FEDIN, FEDINConfig
from fullrank.schema import Categorical, Label, Schema, Sequence, Table
from fullrank.testing import (
    area_under_curve,
    check_law,
    fit,
    periodic,
    planted,
    random_batch,
    tiny_schema,
)

ROWS, PARTS, WIDTH = 5, 2, 4
D = PARTS * WIDTH
SMALL: dict[str, Any] = {
    "dim": WIDTH, "embedding_std": 0.5, "future": 2, "patch_sizes": (3,), "patch_hidden": (5,),
    "complex_hidden": (4, 4), "hidden": (8,), "top_k": 2, "attention_dropout": 0.0, "dropout": 0.0,
}  # fmt: skip
LEAKING: dict[str, Any] = {
    "revin_stats": "all", "zero_pad_after_norm": False, "mask_scores": False,
    "fft_axes_filter": "channel_time", "fft_axes_mlp": "channel_time",
}  # fmt: skip
PAPER: dict[str, Any] = {"freq_form": "paper", "alpha_scale": 1.0, "merge": "gate_S"}
FORMS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": PAPER,
    "code": LEAKING,
    "mlp over channels": {"fft_axes_mlp": "channel_time"},
    "without freq": {"use_freq": False},
    "without time": {"use_time": False},
    "gate without time": {**PAPER, "use_time": False},
    "without RevIN": {"revin": False},
    "without target in RevIN": {"revin_target": False},
    "without top-k": {"top_k": None},
    "plain spectrum": {"alpha_scale": 0.0, "merge": "sum"},
    "sum": {"merge": "sum"},
    "filter without target": {"target_aware": False},
    "two patch sizes": {"patch_sizes": (2, 3), "top_k": 3},
    "two encoders": {"patch_sizes": (3, 2), "share_time_attention": False, "top_k": 4},
    "sigmoid": {"alpha_norm": "sigmoid_mag"},
    "share of the sum": {"alpha_norm": "mag_over_sum", "alpha_scale": 1.0},
    "linear convolution": {"zero_pad_fft": True},
    "scores of padding": {"mask_scores": False},
    "padding normalised": {"zero_pad_after_norm": False},
}


def world(length: int = 7) -> Schema:
    """Two target fields that share tables with a history, one field beside them, feedback."""
    return Schema(
        tables=(Table("items", 9), Table("kinds", 5), Table("users", 4), Table("liked", 3)),
        fields=(
            Categorical("kind", "kinds"),
            Categorical("user", "users"),
            Categorical("item", "items"),
        ),
        sequences=(
            Sequence(
                "past", (("item", "items"), ("liked", "liked"), ("kind", "kinds")), length
            ),
        ),
        labels=(Label("click"),),
    )  # fmt: skip


def small(**settings: Any) -> FEDINConfig:
    """Returns a small config; what a missing branch would read is left out."""
    chosen = {**SMALL, **settings}
    for switch, read in (("use_time", ("patch_sizes", "patch_hidden")),
                         ("use_freq", ("complex_hidden",))):  # fmt: skip
        if not chosen.get(switch, True):
            chosen = {name: value for name, value in chosen.items() if name not in read}
    return FEDINConfig(**chosen)


def built(window: int = 7, **settings: Any) -> FEDIN:
    torch.manual_seed(0)
    model = FEDIN(world(window), small(**settings)).eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def drawn(length: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """Returns past [B, T, D], what of it is real, none of the first row, and targets [B, D]."""
    g = torch.Generator().manual_seed(1)
    real = torch.arange(length) >= torch.tensor([length, 0, length - 1, length // 2, 1])[:, None]
    x = torch.randn(ROWS, length, D, generator=g)
    return x, real, torch.randn(ROWS, D, generator=g)


def complex_layers(layers: nn.ModuleList, z: Tensor) -> Tensor:
    for i, layer in enumerate(layers):
        bias = torch.complex(*layer.bias.chunk(2))
        z = z @ torch.complex(layer.real, layer.imaginary).T + bias
        if i + 1 < len(layers):
            z = torch.complex(z.real.relu(), z.imag.relu())
    return z


@torch.no_grad()
def twin(model: FEDIN, x: Tensor, real: Tensor, t: Tensor) -> Tensor:
    """Interest of one row, [D], from [T, D], [T], [D]: float64, torch.fft, events one by one."""
    c, T = model.config, len(x)
    events = [j for j in range(T) if real[j]]
    if not events:
        return torch.zeros(D, dtype=torch.float64)
    mean = x[events].mean(0)
    if c.revin:
        counted = range(T) if c.revin_stats == "all" else events
        steps = [x[j] for j in counted] + ([t] if c.revin_target else [])
        measured = torch.stack(steps)
        mu, sigma = measured.mean(0), torch.sqrt(measured.var(0, correction=0) + 1e-5)
        w, b = model.norm.weight, model.norm.bias
        xn = (x - mu) / sigma * w + b
        tn = (t - mu) / sigma * w + b if c.revin_target else t
    else:
        xn, tn = x, t
    if c.zero_pad_after_norm:
        xn = torch.stack([xn[j] if real[j] else torch.zeros_like(t) for j in range(T)])
    parts = []
    if c.use_time:
        scores = xn @ tn / math.sqrt(D)
        among = events if c.mask_scores else list(range(T))
        total = torch.stack([scores[j].exp() for j in among]).sum()
        weighted = torch.zeros_like(xn)
        for j in among:
            weighted[j] = scores[j].exp() / total * xn[j]
        for i, forecast in enumerate(model.forecasts):
            encoder = model.encoders[i if len(model.encoders) > 1 else 0]
            parts.append(forecast(weighted[None], real[None], encoder)[0])  # tested by itself
    if c.use_freq:
        parts = frequency(model, xn, real, tn if c.target_aware else mean, parts)
    z = torch.cat(parts, dim=1).T  # [S, D]
    if c.revin:
        z = (z - b) / (w + 1e-10) * sigma + mu
    products = z @ t / math.sqrt(D)
    chosen = sorted(range(len(z)), key=lambda s: -float(products[s]))[: c.top_k]
    weights = torch.softmax(torch.stack([products[s] for s in chosen]), 0)
    return sum(weight * z[s] for weight, s in zip(weights, chosen, strict=True))


def frequency(
    model: FEDIN, x: Tensor, real: Tensor, guide: Tensor, parts: list[Tensor]
) -> list[Tensor]:
    """Returns what the frequency branch makes of the parts [D, L'] of the time branch."""
    c, T = model.config, len(x)
    H = c.heads if c.freq_form == "code" else 1
    d, n = D // H, 2 * T if c.zero_pad_fft else T
    filtered, alphas, gates = [], [], []
    for h in range(H):
        head = slice(h * d, (h + 1) * d)
        scores = x[:, head] @ guide[head] / (math.sqrt(d) if c.freq_form == "code" else 1)
        if c.mask_scores:
            scores = scores * real
        m = torch.fft.rfft(scores, n).abs()
        alpha = {
            "softmax_mag": m.softmax(0),
            "sigmoid_mag": m.sigmoid(),
            "mag_over_sum": m / m.sum(),
        }[c.alpha_norm] * c.alpha_scale
        gain = alpha if c.freq_form == "paper" else 1 + alpha
        v = torch.fft.rfft(x[:, head].T, n)  # [d, F]
        filtered.append(torch.fft.irfft(v * gain, n)[:, :T])
        alphas += [alpha] * d
        if c.merge == "gate_S":
            gates.append(model.gate(m).sigmoid())
    longer = torch.cat([torch.cat(filtered), torch.zeros(D, c.future, dtype=x.dtype)], dim=1)
    z = torch.fft.rfft(longer)
    z = torch.fft.fft(z, dim=0) if c.fft_axes_mlp == "channel_time" else z
    z = complex_layers(model.extrapolate.layers, z)
    z = torch.fft.ifft(z, dim=0) if c.fft_axes_mlp == "channel_time" else z
    q = torch.fft.irfft(z, n=T + c.future)[:, -c.future :]  # [D, L']
    if c.merge == "gate_S":
        q = q * torch.cat(gates)[:, None]
    if not parts:
        return [q]
    if c.merge != "softmax_weights":
        return [part + q for part in parts]
    weights = torch.stack([model.weigh(alpha).softmax(0) for alpha in alphas])  # [D, 2]
    return [weights[:, :1] * part + weights[:, 1:] * q for part in parts]


@pytest.mark.parametrize("form", FORMS)
def test_interest_is_that_of_the_loops_and_zero_without_a_past(form: str) -> None:
    model = built(**FORMS[form]).double()
    x, real, t = drawn()
    x, t = x.double(), t.double()
    found = model.read(x, real, t)
    expected = torch.stack([twin(model, x[b], real[b], t[b]) for b in range(ROWS)])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(found[0], torch.zeros(D, dtype=torch.float64))
    assert bool((found[1:].abs().sum(1) > 0).all())


@pytest.mark.parametrize("form", FORMS)
def test_every_form_trains_where_some_rows_have_no_past(form: str) -> None:
    model, batch = built(**FORMS[form]).train(), random_batch(world(), 64, generator())
    model(batch)["click"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert bool(parameter.grad.abs().sum() > 0), name


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moved_by_padding(model: FEDIN) -> bool:
    """Whether what lies under padding changes the bits of any output."""
    x, real, t = drawn()
    empty = x.masked_fill(~real[..., None], 0.0)
    outputs = [model.read(empty, real, t)]
    for seed in range(3):
        noise = 10 * torch.randn(x.shape, generator=generator(seed))
        outputs.append(model.read(torch.where(real[..., None], x, noise), real, t))
    return not all(torch.equal(outputs[0], other) for other in outputs)


@pytest.mark.parametrize("form", ["default", "paper", "without RevIN", "filter without target"])
def test_padding_moves_no_bit(form: str) -> None:
    assert not moved_by_padding(built(**FORMS[form]))
    assert not moved_by_padding(built(**{**FORMS[form], "fft_axes_mlp": "channel_time"}))


def test_in_the_release_padding_leaks() -> None:
    code = {k: v for k, v in to_dict(FEDINConfig.code()).items() if k not in SMALL}
    assert code.items() >= LEAKING.items()
    assert moved_by_padding(built(**code))
    for cure in ("revin_stats", "zero_pad_after_norm"):  # one alone is not enough
        default = getattr(FEDINConfig(), cure)
        assert moved_by_padding(built(**{**LEAKING, cure: default}))


def test_in_the_release_the_number_of_pads_is_written_into_them() -> None:
    model, (_, real, t) = built(**LEAKING), drawn()
    same = t[:1].expand(ROWS, D)
    x = same[:, None] * real[..., None]  # every event is the target: only lengths differ
    moments = model.norm.moments(x, None, same)
    pads = model.norm.normalise(x, moments)[3:, 0]  # of rows with two lengths
    assert not torch.allclose(pads[0], pads[1])


@pytest.mark.parametrize("length", [1, 2, 3, 5, 7, 12, 13])
@pytest.mark.parametrize("form", ["default", "code", "linear convolution"])
def test_any_window_is_read_odd_prime_and_of_one_event(length: int, form: str) -> None:
    model, batch = built(length, **FORMS[form]), random_batch(world(length), 16, generator())
    model(batch)["click"].backward()
    x, real, t = (part.double() if part.is_floating_point() else part for part in drawn(length))
    found = model.double().read(x, real, t)
    expected = torch.stack([twin(model, x[b], real[b], t[b]) for b in range(ROWS)])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_logit_is_the_head_on_interest_product_target_and_other_fields() -> None:
    model, batch = built(), random_batch(world(), 6, generator())
    fields = model.embeddings.fields(batch)
    t = torch.cat([fields[:, 0], fields[:, 2]], 1)  # kind, item
    past = batch.sequences["past"]
    for row in range(6):
        start, end = past.offsets[row : row + 2].tolist()
        kept = range(max(start, end - 7), end)
        x, real = torch.zeros(7, D), torch.zeros(7, dtype=torch.bool)
        for place, event in enumerate(kept, start=7 - len(kept)):
            kind, item = (int(past.values[name][event]) for name in ("kind", "item"))
            pair = (model.embeddings.weight("kinds")[kind], model.embeddings.weight("items")[item])
            x[place], real[place] = torch.cat(pair), True
        u = model.read(x[None], real[None], t[row : row + 1])[0]
        joined = torch.cat([u, u * t[row], t[row], fields[row, 1]])
        expected = model.head(joined[None])[0, 0]
        torch.testing.assert_close(model.score(batch)["click"][row], expected)


def test_feedback_is_not_read_and_has_no_table() -> None:
    model, batch = built(), random_batch(world(), 8, generator())
    assert "liked" not in {table.name for table in model.embeddings.schema.tables}
    past = batch.sequences["past"]
    other = {**past.values, "liked": 2 - past.values["liked"]}
    turned = replace(batch, sequences={"past": Jagged(other, past.offsets)})
    assert torch.equal(model.score(turned)["click"], model.score(batch)["click"])
    c, valid = model.history.match(model.embeddings, batch)  # what the spectral analysis reads
    assert c.shape == valid.shape == (8, 7)


def test_a_shorter_window_reads_the_newest_events() -> None:
    model, batch = built(7, length=3), random_batch(world(), 16, generator())
    assert model.history.length == 3
    newest = replace(batch, sequences={"past": batch.sequences["past"].newest(3)})
    assert torch.equal(model.score(newest)["click"], model.score(batch)["click"])


@pytest.mark.parametrize(("form", "laws"), [("paper", ["untouched"]), ("code", ["rows", "export"])])
def test_other_forms_keep_the_laws_that_they_could_break(form: str, laws: list[str]) -> None:
    class Config(FEDINConfig):
        @classmethod
        def tiny(cls) -> FEDINConfig:
            return small(attention_dropout=0.1, **FORMS[form])

    other = type("Other", (FEDIN,), {"Config": Config})
    for law in laws:
        check_law(other, law)


@pytest.mark.parametrize("preset", [FEDINConfig, FEDINConfig.paper, FEDINConfig.code])
def test_presets_build_and_can_be_stored(preset: Any) -> None:
    config = preset()
    assert from_dict(FEDINConfig, to_dict(config)) == config
    FEDIN(tiny_schema(), config)


@pytest.mark.parametrize(("phase", "low", "high"), [("on", 0.8, 1.0), ("off", 0.45, 0.55)])
def test_the_phase_of_a_habit_is_found_and_nothing_without_it(
    phase: Any, low: float, high: float
) -> None:
    dials: dict[str, Any] = {"length": 15, "period": 5, "noise": 0.0, "num_categories": 6}
    schema, seen, _ = periodic(512, generator(1), phase=phase, **dials)
    _, unseen, _ = periodic(2048, generator(2), phase=phase, **dials)
    torch.manual_seed(1)
    config = FEDINConfig(
        dim=8, patch_hidden=(16,), complex_hidden=(16, 16), hidden=(32,), attention_dropout=0.0,
        dropout=0.0,
    )  # fmt: skip
    model = FEDIN(schema, config)
    fit(model, seen, steps=60, learning_rate=0.02)
    scores = model.score(unseen)["click"].detach()
    assert low < area_under_curve(scores, unseen.labels["click"]) <= high


@pytest.mark.parametrize(
    "settings",
    [
        {"use_time": False, "use_freq": False},
        {"use_freq": False, "merge": "sum"},
        {"use_freq": False, "freq_form": "paper"},
        {"use_freq": False, "target_aware": False},
        {"use_freq": False, "alpha_scale": 0.0},
        {"use_time": False, "patch_sizes": (2,)},
        {"use_time": False, "merge": "sum"},
        {"use_time": False, "mask_scores": False},
        {"revin": False, "revin_stats": "all"},
        {"revin": False, "revin_target": False},
        {"revin": False, "zero_pad_after_norm": False},
        {"share_time_attention": False},
        {"alpha_scale": 0.0},
        {"alpha_scale": 0.0, "merge": "sum", "freq_form": "paper"},
        {"alpha_scale": 0.0, "merge": "sum", "target_aware": False},
        {"alpha_scale": 0.0, "merge": "gate_S", "alpha_norm": "sigmoid_mag"},
        {"alpha_scale": -0.1},
        {"top_k": 0},
        {"top_k": 6},
        {"top_k": 6, "use_time": False},
        {"patch_sizes": ()},
        {"patch_sizes": (5, 5)},
        {"patch_sizes": (0,)},
        {"complex_hidden": ()},
        {"future": 0},
        {"dropout": 1.0},
    ],
)
def test_impossible_and_idle_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="impossible"):
        FEDINConfig(**settings)


def test_what_does_not_fit_the_data_is_refused() -> None:
    with pytest.raises(ConfigError, match="impossible") as caught:
        built(heads=3)
    assert "use 2" in caught.value.fix
    with pytest.raises(ConfigError, match="impossible"):
        built(length=8)
    with pytest.raises(SchemaError):
        FEDIN(planted(1, 8, generator())[0].select(("a",)), FEDINConfig())
