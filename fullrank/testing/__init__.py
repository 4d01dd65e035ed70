"""Laws that every ranker must keep, and random schemas and batches to try them on.

    from fullrank.testing import check_model
    check_model(MyRanker)

A broken law raises AssertionError. The caller's random state is left alone.
"""

from fullrank.testing.cases import (
    area_under_curve,
    fit,
    periodic,
    planted,
    random_batch,
    random_schema,
    tiny_schema,
)
from fullrank.testing.laws import LAWS, check_law, check_model

__all__ = [
    "LAWS",
    "area_under_curve",
    "check_law",
    "check_model",
    "fit",
    "periodic",
    "planted",
    "random_batch",
    "random_schema",
    "tiny_schema",
]
