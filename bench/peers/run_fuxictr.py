"""FuxiCTR: DCN-V2 from its public layers, since its package leaves the model zoo out.

Its CSV preparation runs on Ray. For training its npz loader is used, the fastest of its loaders,
in one process. Gradient clipping, which its loop always does, stays in.
"""

from __future__ import annotations

import os
import sys
import time

from stopwatch import Stopwatch, arguments, cpu_seconds

options = arguments(__doc__)
os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]
os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
watch = Stopwatch()
with watch.phase("import"):
    import numpy as np
    import pandas as pd
    import ray
    import torch
    from fuxictr.features import FeatureMap
    from fuxictr.preprocess import FeatureProcessor, build_dataset
    from fuxictr.pytorch.dataloaders import RankDataLoader
    from fuxictr.pytorch.layers import CrossNetV2, FeatureEmbedding, MLP_Block
    from fuxictr.pytorch.models import BaseModel
    from fuxictr.pytorch.torch_utils import seed_everything
    from fuxictr.version import __version__
    from torch import nn

EMBEDDING = "partial(nn.init.normal_, std=1e-2)"


class CrossNetwork(BaseModel):
    """The model under test, composed of its layers."""

    def __init__(self, feature_map, **kwargs):
        super().__init__(feature_map, **kwargs)
        self.embedding_layer = FeatureEmbedding(feature_map, 10, embedding_initializer=EMBEDDING)
        width = feature_map.sum_emb_out_dim()
        self.cross = CrossNetV2(width, 3)
        self.deep = MLP_Block(
            input_dim=width,
            hidden_units=[400, 400, 400],
            hidden_activations="ReLU",
            output_dim=None,
            batch_norm=options.batch_norm,
        )
        self.head = nn.Linear(width + 400, 1)
        self.compile(kwargs["optimizer"], kwargs["loss"], 1e-3)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs):
        """Scores a batch to probabilities [B, 1]."""
        first = self.embedding_layer(self.get_inputs(inputs), flatten_emb=True)
        both = torch.cat([self.cross(first), self.deep(first)], -1)
        return {"y_pred": self.output_activation(self.head(both))}


class TimedNetwork(CrossNetwork):
    """Takes the time of the training epochs, without the validation at the end of each."""

    def train_epoch(self, data_generator):
        """One epoch with validation in it."""
        with watch.phase("train"):
            super().train_epoch(data_generator)
        watch.samples += data_generator.num_samples

    def eval_step(self):
        """The validation, moved from one phase to another."""
        wall, cpu = time.perf_counter(), cpu_seconds()
        super().eval_step()
        wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
        watch.add("validate", wall, cpu)
        watch.add("train", -wall, -cpu)


def prepared(parameters: dict) -> dict:
    """Runs its preparation, or takes what an earlier run in the same folder left."""
    names = {p: str(folder / f"{p}.npz") for p in ("train", "valid", "test")}
    if not all(os.path.exists(name) for name in names.values()):
        tables = build_dataset(FeatureProcessor(**parameters), **parameters)
        for (_, target), table in zip(names.items(), tables, strict=True):
            frame = pd.read_parquet(table)
            np.savez(target, **{c: frame[c].values for c in frame.columns})
        ray.shutdown()
    return {**{f"{p}_data": name for p, name in names.items()}, "data_format": "npz"}


folder = options.work / "frappe"
(options.work / "models" / "frappe").mkdir(parents=True, exist_ok=True)
csv = options.data / "csv"
fields = [c for c in pd.read_csv(csv / "train.csv", nrows=1).columns if c != "label"]
parameters = {
    "dataset_id": "frappe",
    "data_root": str(options.work),
    "data_format": "csv",
    "model_root": str(options.work / "models"),
    **{f"{p}_data": str(csv / f"{p}.csv") for p in ("train", "valid", "test")},
    "min_categr_count": 1,
    "embedding_dim": 10,
    "feature_cols": [{"name": fields, "active": True, "dtype": "str", "type": "categorical"}],
    "label_col": {"name": "label", "dtype": "float"},
    "optimizer": "adam",
    "loss": "binary_crossentropy",
    "task": "binary_classification",
    "metrics": ["logloss", "AUC"],
    "monitor": "AUC",
    "monitor_mode": "max",
    "verbose": 0,
    "gpu": -1,
    "batch_size": 4096,
    "epochs": options.epochs,
    "shuffle": True,
    "num_workers": 0,
    "early_stop_patience": 99,
}
seed_everything(options.seed)
with watch.phase("prepare"):
    parameters |= prepared(parameters)
    feature_map = FeatureMap("frappe", str(folder))
    feature_map.load(str(folder / "feature_map.json"), parameters)
    feature_map.features["item"]["vocab_size"] += options.extra_rows
    train, valid = RankDataLoader(feature_map, stage="train", **parameters)
net = TimedNetwork(feature_map, **parameters)
net.fit(train, validation_data=valid, epochs=options.epochs)
with watch.phase("evaluate"):
    result = net.evaluate(RankDataLoader(feature_map, stage="test", **parameters))
watch.finish(
    options.out,
    f"FuxiCTR {__version__}",
    result["AUC"],
    {"batch_norm": options.batch_norm, "embedding_std": 0.01, "torch": torch.__version__},
)
