"""Metrics from their definitions, with loops over rows and pairs in float64. Slow on purpose."""

from __future__ import annotations

import math


def probability(logit: float) -> float:
    if logit >= 0:
        return 1.0 / (1.0 + math.exp(-logit))
    return math.exp(logit) / (1.0 + math.exp(logit))


def auc(scores, labels, weights):
    """Mann-Whitney over all pairs; None where there is no pair."""
    won = pairs = 0.0
    for s, y, w in zip(scores, labels, weights, strict=True):
        if y != 1:
            continue
        for t, z, v in zip(scores, labels, weights, strict=True):
            if z != 0:
                continue
            pairs += w * v
            won += w * v * (1.0 if s > t else 0.5 if s == t else 0.0)
    return won / pairs if pairs > 0 else None


def logloss(scores, labels, weights):
    total = mass = 0.0
    for s, y, w in zip(scores, labels, weights, strict=True):
        p = min(max(probability(s), 1e-7), 1.0 - 1e-7)
        total += -w * math.log(p if y == 1 else 1.0 - p)
        mass += w
    return total / mass


def normalized_entropy(scores, labels, weights):
    mass = sum(weights)
    rate = sum(w for y, w in zip(labels, weights, strict=True) if y == 1) / mass
    entropy = -rate * math.log(rate) - (1.0 - rate) * math.log(1.0 - rate)
    return logloss(scores, labels, weights) / entropy


def gauc(scores, labels, weights, groups):
    """Weighted mean, plain mean and number of dropped groups."""
    top = bottom = plain = 0.0
    kept = dropped = 0
    for group in sorted(set(groups)):
        mine = [i for i, g in enumerate(groups) if g == group]
        pick = lambda values, mine=mine: [values[i] for i in mine]  # noqa: E731
        value = auc(pick(scores), pick(labels), pick(weights))
        if value is None:
            dropped += 1
            continue
        size = sum(pick(weights))
        top, bottom, plain, kept = top + size * value, bottom + size, plain + value, kept + 1
    return (top / bottom, plain / kept, dropped) if kept else (None, None, dropped)


def ece(scores, labels, weights, buckets):
    gap, mass = 0.0, sum(weights)
    for k in range(buckets):
        p_sum = y_sum = 0.0
        for s, y, w in zip(scores, labels, weights, strict=True):
            p = probability(s)
            if k / buckets <= p < (k + 1) / buckets or (k == buckets - 1 and p == 1.0):
                p_sum, y_sum = p_sum + w * p, y_sum + w * y
        gap += abs(p_sum - y_sum)
    return gap / mass


def ece_mass(scores, labels, weights, buckets):
    """A row's bucket is the weight below it plus half of the weight level with it."""
    mass = sum(weights)
    p_sum, y_sum = [0.0] * buckets, [0.0] * buckets
    for s, y, w in zip(scores, labels, weights, strict=True):
        below = sum(v for t, v in zip(scores, weights, strict=True) if t < s)
        level = sum(v for t, v in zip(scores, weights, strict=True) if t == s)
        k = min(int((below + level / 2) / mass * buckets), buckets - 1)
        p_sum[k] += w * probability(s)
        y_sum[k] += w * y
    return sum(abs(p - y) for p, y in zip(p_sum, y_sum, strict=True)) / mass


def calibration(scores, labels, weights):
    predicted = sum(w * probability(s) for s, w in zip(scores, weights, strict=True))
    return predicted / sum(w * y for y, w in zip(labels, weights, strict=True))


def spread(scores):
    """Mean, population standard deviation and share of distinct scores."""
    n = len(scores)
    mean = math.fsum(scores) / n
    variance = math.fsum((s - mean) ** 2 for s in scores) / n
    return mean, math.sqrt(variance), len(set(scores)) / n
