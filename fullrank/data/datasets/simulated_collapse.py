"""A simulated ad log that makes the embeddings of users collapse, and those of ads not.

Every user has a liking of its own for either value of `partner`, which outweighs all other
effects. What a table can learn from a field of P values has rank P - 1 at most, so the rows of
`user` fall into few directions: interaction collapse (Guo et al., arXiv:2310.04400). `ad` has no
part in it, and is the control within the same model. The log is simulated on first use.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from fullrank.data.datasets.simulated import SimulatedLog
from fullrank.data.world import World

NAME = "simulated_collapse"
WORLD = World(
    num_rows=100_000,
    num_users=200,
    num_ads=100,
    partner=16.0,
    partner_size=2,
    low_rank_fields=("user",),
)
_HOME = "fullrank train collapse_dcnv2"


def at(
    *,
    partner: float = WORLD.partner,
    partner_size: int = WORLD.partner_size,
    low_rank_fields: tuple[
        Literal["user", "ad", "campaign", "advertiser"], ...
    ] = WORLD.low_rank_fields,
    num_rows: int = WORLD.num_rows,
    seed: int = WORLD.seed,
) -> SimulatedLog:
    """Returns the log at another setting of its dials; see `World`. A recipe may name it.

    Args:
        partner: strength of what makes the tables collapse; 0 is the control.
        partner_size: values of the dominating field.
        low_rank_fields: the fields that interact with it.
        num_rows: impressions.
        seed: of everything that is drawn.

    Example:
        >>> at(partner=0.0).NAME
        'simulated_collapse-partner=0.0'
    """
    world = replace(
        WORLD,
        partner=partner,
        partner_size=partner_size,
        low_rank_fields=low_rank_fields,
        num_rows=num_rows,
        seed=seed,
    )
    changed = [n for n in vars(world) if getattr(world, n) != getattr(WORLD, n)]
    values = (getattr(world, n) for n in changed)
    texts = ("+".join(v) if isinstance(v, tuple) else v for v in values)
    name = "".join(f"-{n}={v}" for n, v in zip(changed, texts, strict=True))
    return SimulatedLog(NAME + name, world, _HOME)


_LOG = at()
FOLDERS, TITLE, LICENCE, HOME = _LOG.FOLDERS, "Simulated ad log that collapses", _LOG.LICENCE, _HOME
NOTE, FILES, SPEC = _LOG.NOTE, _LOG.FILES, _LOG.SPEC
spec_at, note, load, ready = _LOG.spec_at, _LOG.note, _LOG.load, _LOG.ready
sample, write_sample = _LOG.sample, _LOG.write_sample
