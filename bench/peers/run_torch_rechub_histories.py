"""torch-rechub: DIEN, whose auxiliary loss is an inner product, through its trainer.

Its deep network always has batch norm, and a Dice without alpha. The events that did not follow
are drawn here, in its preparation.
"""

from __future__ import annotations

from stopwatch import Stopwatch, history_arguments

options = history_arguments(__doc__)
assert options.model == "dien_product", "its DIN attends to padding, its DIEN has one form"
watch = Stopwatch()
with watch.phase("import"):
    from importlib.metadata import version

    import numpy as np
    import pandas as pd
    import torch
    from torch_rechub.basic.features import SequenceFeature, SparseFeature
    from torch_rechub.basic.initializers import RandomNormal
    from torch_rechub.models.ranking import DIEN
    from torch_rechub.trainers import CTRTrainer
    from torch_rechub.utils.data import DataGenerator, pad_sequences

LENGTH, DIM = 200, 16
PARTS = ("train", "valid", "test")

torch.manual_seed(options.seed)
np.random.seed(options.seed)
torch.set_num_threads(1)
with watch.phase("prepare"):
    given = {p: pd.read_csv(options.data / "csv" / f"{p}.csv") for p in PARTS}
    whole = pd.concat(given.values())
    past = {p: [np.array(h.split("^"), np.int64) for h in f["history"]] for p, f in given.items()}
    raw = [whole["item"].to_numpy(), *(row for rows in past.values() for row in rows)]
    items, users = np.unique(np.concatenate(raw)), np.unique(whole["user"])

    def encoded(part: str) -> dict[str, np.ndarray]:
        """Returns the columns of a part; row 0 of a table is padding."""
        drawn = [np.random.randint(1, len(items) + 1, len(row)) for row in past[part]]
        known = [np.searchsorted(items, row) + 1 for row in past[part]]
        return {
            "user": np.searchsorted(users, given[part]["user"]) + 1,
            "item": np.searchsorted(items, given[part]["item"]) + 1,
            "history": pad_sequences(known, LENGTH, padding="post", truncating="pre"),
            "strangers": pad_sequences(drawn, LENGTH, padding="post", truncating="pre"),
        }

    x = {p: encoded(p) for p in PARTS}
    y = {p: f["click"].to_numpy() for p, f in given.items()}
    loaders = DataGenerator(x["train"], y["train"]).generate_dataloader(
        x_val=x["valid"],
        y_val=y["valid"],
        x_test=x["test"],
        y_test=y["test"],
        batch_size=1024,
        num_workers=0,
    )


def table(kind: type, name: str, size: int, **more: str) -> SparseFeature | SequenceFeature:
    """Returns a feature of the common width."""
    start = RandomNormal(0, 0.01)
    return kind(name, size, embed_dim=DIM, padding_idx=0, initializer=start, **more)


shared = {"pooling": "concat", "shared_with": "item"}
rows = len(items) + 1
net = DIEN(
    features=[table(SparseFeature, "user", len(users) + 1)],
    history_features=[table(SequenceFeature, "history", rows, **shared)],
    neg_history_features=[table(SequenceFeature, "strangers", rows, **shared)],
    target_features=[table(SparseFeature, "item", rows)],
    mlp_params={"dims": [512, 256, 128], "dropout": 0.0},
    alpha=1.0,
)


class TimedTrainer(CTRTrainer):
    """Its trainer, with the time of its training epochs taken."""

    def train_one_epoch(self, *args, **kwargs):
        """One epoch, validation not in it."""
        with watch.phase("train"):
            done = super().train_one_epoch(*args, **kwargs)
        watch.samples += len(y["train"])
        return done


trainer = TimedTrainer(
    net,
    optimizer_params={"lr": 1e-3, "weight_decay": 0.0},
    n_epoch=options.epochs,
    earlystop_patience=99,
    model_path=str(options.work),
    loss_mode=False,
)
trainer.fit(loaders[0], loaders[1])
with watch.phase("evaluate"):
    auc = trainer.evaluate(trainer.model, loaders[2])
watch.finish(
    options.out,
    f"torch-rechub {version('torch-rechub')}",
    auc,
    {"torch": torch.__version__},
)
