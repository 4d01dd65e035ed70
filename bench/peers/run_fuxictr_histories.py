"""FuxiCTR: DIN from its public layers, since its package leaves the model zoo out.

The model is put together as its zoo does: every embedding side by side, the history replaced by its
attention. Its layers have Dice for the attention but no recurrence, hence no DIEN. As in
run_fuxictr.py the npz loader is used, the fastest of its loaders, in one process.
"""

from __future__ import annotations

import os
import sys
import time

from stopwatch import Stopwatch, cpu_seconds, history_arguments

options = history_arguments(__doc__)
assert options.model == "din", "its package has no layer for an interest that evolves"
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
    from fuxictr.pytorch.layers import DIN_Attention, FeatureEmbeddingDict, MLP_Block
    from fuxictr.pytorch.models import BaseModel
    from fuxictr.pytorch.torch_utils import seed_everything
    from fuxictr.version import __version__

EMBEDDING = "partial(nn.init.normal_, std=1e-2)"
LENGTH, DIM = 200, 16


class InterestNetwork(BaseModel):
    """The model under test, composed of its layers."""

    def __init__(self, feature_map, **kwargs):
        super().__init__(feature_map, **kwargs)
        self.embedding_layer = FeatureEmbeddingDict(
            feature_map, DIM, embedding_initializer=EMBEDDING
        )
        self.attention = DIN_Attention(DIM, attention_units=[64], hidden_activations="Dice")
        self.deep = MLP_Block(
            input_dim=feature_map.sum_emb_out_dim(),
            hidden_units=[512, 256, 128],
            hidden_activations="ReLU",
            output_dim=1,
        )
        self.compile(kwargs["optimizer"], kwargs["loss"], 1e-3)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs):
        """Scores a batch to probabilities [B, 1]."""
        given = self.get_inputs(inputs)
        embedded = self.embedding_layer(given)
        valid = given["history"].long() != 0
        embedded["history"] = self.attention(embedded["item"], embedded["history"], valid)
        first = self.embedding_layer.dict2tensor(embedded, flatten_emb=True)
        return {"y_pred": self.output_activation(self.deep(first))}


class TimedNetwork(InterestNetwork):
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
    if not is_prepared:
        tables = build_dataset(FeatureProcessor(**parameters), **parameters)
        for (_, target), table in zip(names.items(), tables, strict=True):
            frame = pd.read_parquet(table)
            arrays = {c: frame[c].values for c in frame.columns}
            np.savez(target, **{**arrays, "history": np.stack(arrays["history"])})
        ray.shutdown()
    return {**{f"{p}_data": name for p, name in names.items()}, "data_format": "npz"}


folder = options.work / "histories"
is_prepared = (folder / "test.npz").exists()  # the last file that a preparation writes
(options.work / "models" / "histories").mkdir(parents=True, exist_ok=True)
csv = options.data / "csv"
plain = {"active": True, "dtype": "str", "type": "categorical"}
past = {"active": True, "dtype": "str", "type": "sequence", "splitter": "^", "max_len": LENGTH}
parameters = {
    "dataset_id": "histories",
    "data_root": str(options.work),
    "data_format": "csv",
    "model_root": str(options.work / "models"),
    **{f"{p}_data": str(csv / f"{p}.csv") for p in ("train", "valid", "test")},
    "min_categr_count": 1,
    "embedding_dim": DIM,
    "feature_cols": [
        {"name": ["user", "item"], **plain},
        {"name": "history", **past, "share_embedding": "item", "feature_encoder": None},
    ],
    "label_col": {"name": "click", "dtype": "float"},
    "optimizer": "adam",
    "loss": "binary_crossentropy",
    "task": "binary_classification",
    "metrics": ["logloss", "AUC"],
    "monitor": "AUC",
    "monitor_mode": "max",
    "verbose": 0,
    "gpu": -1,
    "batch_size": 1024,
    "epochs": options.epochs,
    "shuffle": True,
    "num_workers": 0,
    "early_stop_patience": 99,
}
seed_everything(options.seed)
with watch.phase("prepare"):
    parameters |= prepared(parameters)
    feature_map = FeatureMap("histories", str(folder))
    feature_map.load(str(folder / "feature_map.json"), parameters)
    train, valid = RankDataLoader(feature_map, stage="train", **parameters)
net = TimedNetwork(feature_map, **parameters)
net.fit(train, validation_data=valid, epochs=options.epochs)
with watch.phase("evaluate"):
    result = net.evaluate(RankDataLoader(feature_map, stage="test", **parameters))
watch.finish(
    options.out,
    f"FuxiCTR {__version__}",
    result["AUC"],
    {"torch": torch.__version__, "was_prepared": is_prepared},
)
