"""Slow twins of token mixing, per-token networks and routing: loops in float64, from the paper."""

from __future__ import annotations

import math

import numpy as np


def mix(x: np.ndarray) -> np.ndarray:
    """Output token h holds head h of every token, in the order of the tokens. [B, T, D]."""
    rows, tokens, dim = x.shape
    width = dim // tokens
    out = np.empty((rows, tokens, dim))
    for b in range(rows):
        for h in range(tokens):
            joined = []
            for t in range(tokens):
                joined.extend(x[b, t, h * width : (h + 1) * width])
            out[b, h] = joined
    return out


def mix_padded(x: np.ndarray) -> np.ndarray:
    """Pads every token with NaN, mixes, drops the NaN, and cuts what is left into tokens."""
    rows, tokens, dim = x.shape
    missing = -dim % tokens
    padded = np.concatenate([x, np.full((rows, tokens, missing), np.nan)], axis=2)
    out = np.empty((rows, tokens, dim))
    for b, row in enumerate(mix(padded)):
        kept = [value for value in row.ravel() if not math.isnan(value)]
        out[b] = np.reshape(kept, (tokens, dim))
    return out


def gelu(x: float) -> float:
    """The exact one: x times the normal distribution function."""
    return x * 0.5 * (1.0 + math.erf(x / math.sqrt(2.0)))


def relu(x: float) -> float:
    """The positive part."""
    return x if x > 0 else 0.0


def network(x, w1, b1, w2, b2, act=gelu) -> np.ndarray:
    """One two-layer network on one vector."""
    hidden = [act(sum(x[i] * w1[i, j] for i in range(len(x))) + b1[j]) for j in range(len(b1))]
    out = [sum(hidden[j] * w2[j, i] for j in range(len(hidden))) + b2[i] for i in range(len(b2))]
    return np.array(out)


def per_token_ffn(x, w1, b1, w2, b2, act=gelu) -> np.ndarray:
    """Token t of every row goes through network t."""
    return np.array(
        [[network(x[b, t], w1[t], b1[t], w2[t], b2[t], act) for t in range(x.shape[1])]
         for b in range(x.shape[0])]
    )  # fmt: skip


def experts(x, gates, weights) -> np.ndarray:
    """Sum over experts of gate times network. weights[t][j] = (w1, b1, w2, b2)."""
    out = np.zeros(x.shape)
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            for j, weight in enumerate(weights[t]):
                out[b, t] += gates[b, t, j] * network(x[b, t], *weight)
    return out
