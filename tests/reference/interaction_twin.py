"""Slow twins of the models that multiply fields: row by row, loops, float64, from the papers.

`e` is a row's fields [F, K]. Weights come as plain arrays in the papers' shapes; a list over pairs
is in the order (0, 1), (0, 2), ..., (1, 2), ...
"""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np


def dot(a, b) -> float:
    total = 0.0
    for x, y in zip(a, b, strict=True):
        total += x * y
    return total


def pairs(e):
    return list(combinations(range(len(e)), 2))


def fm(e) -> float:
    """Rendle 2010, eq. 1, without the linear terms, as in all of the following."""
    return sum(dot(e[i], e[j]) for i, j in pairs(e))


def fwfm(e, r) -> float:
    """One weight per pair."""
    return sum(r[p] * dot(e[i], e[j]) for p, (i, j) in enumerate(pairs(e)))


def fvfm(e, w) -> float:
    """One vector per pair."""
    total = 0.0
    for p, (i, j) in enumerate(pairs(e)):
        for k in range(len(e[0])):
            total += e[i][k] * w[p][k] * e[j][k]
    return total


def fmfm(e, w) -> float:
    """One matrix per pair."""
    total = 0.0
    for p, (i, j) in enumerate(pairs(e)):
        for k in range(len(e[0])):
            for m in range(len(e[0])):
                total += e[i][k] * w[p][k][m] * e[j][m]
    return total


def ffm(e) -> float:
    """Field i holds F vectors behind one another; number j is for the partner j."""
    width = len(e[0]) // len(e)
    cut = lambda i, j: e[i][j * width : (j + 1) * width]  # noqa: E731
    return sum(dot(cut(i, j), cut(j, i)) for i, j in pairs(e))


def bi_interaction(e) -> list[float]:
    """NFM, eq. 3."""
    return [sum(e[i][k] * e[j][k] for i, j in pairs(e)) for k in range(len(e[0]))]


def attention(e, a, b, h) -> list[float]:
    """AFM, eq. 5 and 6: softmax of h relu(a p + b) over the pairs."""
    products = [[x * y for x, y in zip(e[i], e[j], strict=True)] for i, j in pairs(e)]
    votes = [dot(h, [max(0.0, dot(row, p) + c) for row, c in zip(a, b, strict=True)])
             for p in products]  # fmt: skip
    mass = sum(math.exp(v) for v in votes)
    share = [math.exp(v) / mass for v in votes]
    return [sum(s * p[k] for s, p in zip(share, products, strict=True)) for k in range(len(e[0]))]


def inner_products(e) -> list[float]:
    """IPNN: the fields, and the inner product of every pair."""
    return [x for row in e for x in row] + [dot(e[i], e[j]) for i, j in pairs(e)]


def fibinet(e, w, down, up) -> list[float]:
    """Bilinear pairs of the fields, then of the fields scaled by SENet."""
    means = [sum(row) / len(row) for row in e]
    hidden = [max(0.0, dot(row, means)) for row in down]
    scale = [max(0.0, dot(row, hidden)) for row in up]
    scaled = [[s * x for x in row] for s, row in zip(scale, e, strict=True)]
    out = []
    for fields in (e, scaled):
        for p, (i, j) in enumerate(pairs(fields)):
            for k in range(len(fields[0])):
                out.append(fields[i][k] * dot(w[p][k], fields[j]))
    return out


def dcn(x0, layers) -> list[float]:
    """Wang et al. 2017, eq. 3: x_{l+1} = x_0 x_l^T w_l + b_l + x_l."""
    x = list(x0)
    for w, b in layers:
        number = dot(x, w)
        x = [x0[n] * number + b[n] + x[n] for n in range(len(x0))]
    return x


def dcn_v2(x0, layers) -> list[float]:
    """Wang et al. 2021, eq. 1: x_{l+1} = x_0 * (W_l x_l + b_l) + x_l."""
    x = list(x0)
    for w, b in layers:
        x = [x0[n] * (dot(w[n], x) + b[n]) + x[n] for n in range(len(x0))]
    return x


def cin(e, layers) -> list[float]:
    """xDeepFM, eq. 6 and 8; a layer is [H, H_before, F]."""
    x, out = e, []
    for w in layers:
        after = []
        for h in range(len(w)):
            row = [0.0] * len(e[0])
            for i in range(len(x)):
                for j in range(len(e)):
                    for k in range(len(row)):
                        row[k] += w[h][i][j] * x[i][k] * e[j][k]
            after.append(row)
        x = after
        out += [sum(row) for row in x]
    return out


def autoint(e, layers, heads) -> list[float]:
    """AutoInt, eq. 5 to 8; a layer is (query, key, value, residual), each [K, K], heads stacked."""
    x = e
    for query, key, value, residual in layers:
        width, after = len(query) // heads, []
        for i in range(len(x)):
            row = []
            for h in range(heads):
                own = range(h * width, (h + 1) * width)
                q = [dot(query[n], x[i]) for n in own]
                near = [dot(q, [dot(key[n], x[j]) for n in own]) for j in range(len(x))]
                mass = sum(math.exp(v) for v in near)
                for n in own:
                    row.append(sum(math.exp(near[j]) / mass * dot(value[n], x[j])
                                   for j in range(len(x))))  # fmt: skip
            after.append([max(0.0, a + dot(residual[n], x[i])) for n, a in enumerate(row)])
        x = after
    return [value for row in x for value in row]


def pfl(e, layers, alpha) -> list[float]:
    """A layer is [F, F, K, K]: e_i * sum_j W_ij t_j; the layers are added with weights alpha."""
    t = e
    v = [[alpha[0] * x for x in row] for row in e]
    for w, a in zip(layers, alpha[1:], strict=True):
        after = []
        for i in range(len(e)):
            mixed = [0.0] * len(e[0])
            for j in range(len(e)):
                for k in range(len(mixed)):
                    mixed[k] += dot(w[i][j][k], t[j])
            after.append([x * y for x, y in zip(e[i], mixed, strict=True)])
        t = after
        v = [[x + a * y for x, y in zip(*rows, strict=True)] for rows in zip(v, t, strict=True)]
    return [x for row in v for x in row]


def network(x, layers) -> list[float]:
    """relu(W x + b), layer after layer."""
    for w, b in layers:
        x = [max(0.0, dot(row, x) + c) for row, c in zip(w, b, strict=True)]
    return x


def affine(x, w, b) -> float:
    return dot(w, x) + b


def flat(e) -> np.ndarray:
    return np.asarray(e).reshape(-1)
