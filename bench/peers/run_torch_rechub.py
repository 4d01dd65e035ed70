"""torch-rechub: DCNv2 in parallel form through its CTRTrainer; batch norm is always on."""

from __future__ import annotations

from stopwatch import Stopwatch, arguments

options = arguments(__doc__)
watch = Stopwatch()
with watch.phase("import"):
    from importlib.metadata import version

    import numpy as np
    import pandas as pd
    import torch
    from sklearn.preprocessing import LabelEncoder
    from torch_rechub.basic.features import SparseFeature
    from torch_rechub.basic.initializers import RandomNormal
    from torch_rechub.models.ranking import DCNv2
    from torch_rechub.trainers import CTRTrainer
    from torch_rechub.utils.data import DataGenerator

torch.manual_seed(options.seed)
np.random.seed(options.seed)
with watch.phase("prepare"):
    parts = {p: pd.read_csv(options.data / "csv" / f"{p}.csv") for p in ("train", "valid", "test")}
    whole = pd.concat(parts, names=["part"])
    fields = [c for c in whole.columns if c != "label"]
    sizes = {}
    for field in fields:
        whole[field] = LabelEncoder().fit_transform(whole[field])
        sizes[field] = int(whole[field].max()) + 1
    sizes["item"] += options.extra_rows
    x = {p: {f: whole.loc[p][f].values for f in fields} for p in parts}
    y = {p: d["label"].values for p, d in parts.items()}
    loaders = DataGenerator(x["train"], y["train"]).generate_dataloader(
        x_val=x["valid"],
        y_val=y["valid"],
        x_test=x["test"],
        y_test=y["test"],
        batch_size=4096,
        num_workers=0,
    )

net = DCNv2(
    [
        SparseFeature(f, vocab_size=sizes[f], embed_dim=10, initializer=RandomNormal(0, 0.01))
        for f in fields
    ],
    n_cross_layers=3,
    mlp_params={"dims": [400, 400, 400], "dropout": 0.0, "activation": "relu"},
    model_structure="parallel",
    use_low_rank_mixture=False,
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
)
trainer.fit(loaders[0], loaders[1])
with watch.phase("evaluate"):
    auc = trainer.evaluate(trainer.model, loaders[2])
watch.finish(
    options.out,
    f"torch-rechub {version('torch-rechub')}",
    auc,
    {"batch_norm": True, "embedding_std": 0.01, "torch": torch.__version__},
)
