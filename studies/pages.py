"""Pages of results: which studies and which logs each holds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Page:
    """A page of docs/results.

    Args:
        name: of the file, of its `make` target, and what names of comparisons begin with.
        head: its first lines, in Markdown.
        studies: name of a file of this folder -> title.
        logs: prefix of the recipes on a log -> title.
        floor: recipe without which nothing can be said, such as a plain network -> its heading.
    """

    name: str
    head: str
    studies: dict[str, str]
    logs: dict[str, str]
    floor: dict[str, str]


_VERDICT = """A claim *holds* when the whole interval of its gain lies above zero, *does
not hold* when none of it does, and is *undecided* otherwise. Intervals on logs are Student's over
seeds, and all gains of one log hold together with 95 % confidence. Settings were chosen on
validation rows alone.
"""
PAGES = {
    page.name: page
    for page in (
        Page(
            name="rankers",
            head=f"""# Rankers that keep their rank

Made by `make rankers`. What five papers promise, held against a baseline and against a control of
about as many parameters. {_VERDICT}""",
            studies={
                "ipa": "IPA and PFL (arXiv:2411.12441)",
                "dmoe": "D-MoE (arXiv:2505.17925)",
                "sfg": "SFG (arXiv:2512.14041)",
                "rankup": "RankUp (arXiv:2604.17878)",
                "rankelastor": "RankElastor (arXiv:2605.23191)",
                "dial": "The dial: where directions appear that small rows do not show",
            },
            logs={
                "frappe": "Frappe",
                "ml_100k": "MovieLens 100K",
                "collm_ml1m": "MovieLens 1M, CoLLM cut",
                "census": "Census-Income",
                "collapse": "simulated, planted collapse",
                "healthy": "simulated, nothing planted",
            },
            floor={"lr": "floor, logistic regression", "mlp": "plain network"},
        ),
        Page(
            name="sequence",
            head=f"""# Sequence and fields together

Made by `make sequence`. Models that read a user's past, held against a plain network that does
not, and against each other; TokenFormer and FEDIN against their own ablations. {_VERDICT}
![Sequence tokens of TokenFormer's variants on the CoLLM cut](sequence_collapse.svg)

Sequence tokens on the CoLLM cut, seed 1, by `fullrank diagnose`: a plain Transformer over fields
and events (A0), the same with gates (A1), and TokenFormer. What attention costs by the length of
the history: [benchmarks](benchmarks.md#attention-of-four-layers-by-length-of-the-history).
""",
            studies={
                "fedin": "FEDIN (arXiv:2605.01726)",
                "tokenformer": "TokenFormer (arXiv:2604.13737)",
            },
            logs={
                "collm_past": "MovieLens 1M, CoLLM cut",
                "ml_100k_past": "MovieLens 100K",
                "beauty": "Amazon Beauty, matched negatives, by place",
                "games": "Amazon Games, matched negatives, by place",
                "habits": "simulated, weekly habits",
                "habits_off": "simulated, no habits",
            },
            floor={"mlp": "plain network without the past"},
        ),
    )
}
