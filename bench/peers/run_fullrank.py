"""fullrank through its Python interface: prepare, train, evaluate, from the gzipped libfm files.

Everything that its loop always does stays in: the checks for NaN and explosion, the log, the saved
states, validation after each epoch.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator

from stopwatch import Stopwatch, arguments

options = arguments(__doc__)
watch = Stopwatch()
with watch.phase("import"):
    from dataclasses import replace
    from importlib.metadata import version

    import torch
    import torch._dynamo  # whoever builds an optimiser loads it, in every library here

    from fullrank.batch import Batch
    from fullrank.data.datasets import frappe
    from fullrank.data.loader import Loader
    from fullrank.data.prepare import prepare
    from fullrank.data.text import BadRows
    from fullrank.evaluate.ranking import ExactAUC
    from fullrank.evaluate.run import evaluate
    from fullrank.model import create
    from fullrank.train.config import TrainConfig
    from fullrank.train.loop import train

for name in ("prepared", "run"):
    shutil.rmtree(options.work / name, ignore_errors=True)
with watch.phase("prepare"):
    splits = frappe.load(options.raw, BadRows())
    prepared = prepare(splits, frappe.SPEC, options.work / "prepared")
tables = tuple(
    replace(t, size=t.size + options.extra_rows * (t.name == "item"))
    for t in prepared.schema.tables
)
schema = replace(prepared.schema, tables=tables)
torch.manual_seed(options.seed)
model = create(
    "dcnv2",
    schema,
    {
        "dim": 10,
        "embedding_std": 0.01,
        "num_cross": 3,
        "hidden": [400, 400, 400],
        "batch_norm": options.batch_norm,
        "dropout": 0.0,
    },
)
config = TrainConfig(
    epochs=options.epochs,
    batch_size=4096,
    optimizer="adam",
    learning_rate=1e-3,
    weight_decay=0.0,
    table_optimizer="adam" if options.dense else "auto",
)


def auc(split: str) -> float:
    """Scores a split of the prepared data."""
    batches = Loader(prepared.splits[split], 40960, shuffle=False)
    return evaluate(model, batches, {"auc": ExactAUC("label")})["auc"]


class TimedLoader(Loader):
    """Takes the time from the first batch of an epoch to its end: loading and every step."""

    def __iter__(self) -> Iterator[Batch]:
        """One epoch; validation and saving come after it."""
        with watch.phase("train"):
            yield from super().__iter__()
        watch.samples += self.num_rows


loader = TimedLoader(prepared.splits["train"], config.batch_size, seed=options.seed)
train(
    model,
    loader,
    config,
    folder=options.work / "run",
    validate=lambda _: {"auc": auc("valid")},
    progress=False,
)
with watch.phase("evaluate"):
    test = auc("test")
watch.finish(
    options.out,
    f"fullrank {version('fullrank')}" + (" dense Adam" if options.dense else ""),
    test,
    {"batch_norm": options.batch_norm, "embedding_std": 0.01, "torch": torch.__version__},
)
