"""fullrank through its Python interface, DIN or DIEN: prepare, train, evaluate, from CSV.

With --bare, the same model and optimisers step on batches that lie in memory, and nothing else is
done while training: what the data path and the loop cost is the difference.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator

from stopwatch import Stopwatch, history_arguments

options = history_arguments(__doc__)
watch = Stopwatch()
with watch.phase("import"):
    from importlib.metadata import version

    import polars as pl
    import torch
    import torch._dynamo  # whoever builds an optimiser loads it, in every library here

    from fullrank.batch import Batch
    from fullrank.data.loader import Loader
    from fullrank.data.prepare import prepare
    from fullrank.data.spec import Category, Event, History, Spec, Target
    from fullrank.evaluate.ranking import ExactAUC
    from fullrank.evaluate.run import evaluate
    from fullrank.model import create
    from fullrank.train.config import TrainConfig
    from fullrank.train.loop import train
    from fullrank.train.memory import keep_freed_memory
    from fullrank.train.optim import build_optimizers

LENGTH = 200
MODELS = {
    "din": {"attention": [64]},
    "dien": {"state_dim": 16, "aux_hidden": [100, 50]},
    "dien_product": {"state_dim": 16, "aux_hidden": []},
}
SPEC = Spec(
    columns=(
        Category(name="user", side="user"),
        Category(name="item", side="item"),
        History(
            name="history",
            events=(Event(name="item", column="history", table="item"),),
            max_length=LENGTH,
        ),
        Target(name="click"),
    ),
    item="item",
)
CONFIG = TrainConfig(
    epochs=options.epochs,
    batch_size=1024,
    optimizer="adam",
    learning_rate=1e-3,
    weight_decay=0.0,
)

torch.set_num_threads(1)
for name in ("prepared", "run"):
    shutil.rmtree(options.work / name, ignore_errors=True)
with watch.phase("prepare"):
    past = pl.col("history").str.split("^").cast(pl.List(pl.Int32))
    splits = {
        part: pl.scan_csv(options.data / "csv" / f"{part}.csv").with_columns(past)
        for part in ("train", "valid", "test")
    }
    prepared = prepare(splits, SPEC, options.work / "prepared")
torch.manual_seed(options.seed)
model = create(
    options.model.removesuffix("_product"),
    prepared.schema,
    {"dim": 16, "hidden": [512, 256, 128], "dropout": 0.0, **MODELS[options.model]},
)


def auc(split: str) -> float:
    """Scores a split of the prepared data."""
    batches = Loader(prepared.splits[split], 4096, shuffle=False)
    return evaluate(model, batches, {"auc": ExactAUC("click")})["auc"]


class TimedLoader(Loader):
    """Takes the time from the first batch of an epoch to its end: loading and every step."""

    def __iter__(self) -> Iterator[Batch]:
        """One epoch; validation and saving come after it."""
        with watch.phase("train"):
            yield from super().__iter__()


def bare(batches: list[Batch]) -> None:
    """Trains on batches in memory."""
    keep_freed_memory()  # as train() does
    optimizers = build_optimizers(model, CONFIG)
    model.train()
    with watch.phase("train"):
        for _ in range(options.epochs):
            for batch in batches:
                torch.stack(tuple(model(batch).values())).sum().backward()
                optimizers.step(1.0)
                optimizers.zero_grad()


loader = TimedLoader(prepared.splits["train"], CONFIG.batch_size, seed=options.seed)
watch.samples = loader.num_rows * options.epochs
if options.bare:
    bare(list(Loader(prepared.splits["train"], CONFIG.batch_size, seed=options.seed)))
else:
    train(
        model,
        loader,
        CONFIG,
        folder=options.work / "run",
        validate=lambda _: {"auc": auc("valid")},
        progress=False,
    )
with watch.phase("evaluate"):
    test = auc("test")
watch.finish(
    options.out,
    "fullrank's bare steps" if options.bare else f"fullrank {version('fullrank')}",
    test,
    {"torch": torch.__version__},
)
