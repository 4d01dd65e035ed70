"""RecBole: DCNV2 in parallel form on three given splits. Batch norm cannot be switched off."""

from __future__ import annotations

import os
import sys

from stopwatch import Stopwatch, arguments

options = arguments(__doc__)
os.chdir(options.work)  # it writes logs and saved models into the working directory
sys.argv = sys.argv[:1]  # it reads the command line on its own
watch = Stopwatch()
with watch.phase("import"):
    import recbole
    import torch
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.trainer import Trainer
    from recbole.utils import get_model, init_seed

# Its checkpoints hold a Config object, which torch refuses to load since weights_only is True.
_load = torch.load
torch.load = lambda *args, **kwargs: _load(*args, **{**kwargs, "weights_only": False})

FIELDS = [
    "user", "item", "daytime", "weekday", "isweekend",
    "homework", "cost", "weather", "country", "city",
]  # fmt: skip
SETTINGS = {
    "data_path": str(options.data / "recbole"),
    "benchmark_filename": ["train", "valid", "test"],
    "USER_ID_FIELD": "user",
    "ITEM_ID_FIELD": "item",
    "LABEL_FIELD": "label",
    "load_col": {"inter": [*FIELDS, "label"]},
    "threshold": None,
    "embedding_size": 10,
    "mlp_hidden_size": [400, 400, 400],
    "cross_layer_num": 3,
    "mixed": False,
    "structure": "parallel",
    "reg_weight": 0,
    "dropout_prob": 0.0,
    "weight_decay": 0.0,
    "epochs": options.epochs,
    "train_batch_size": 4096,
    "eval_batch_size": 40960,
    "learning_rate": 1e-3,
    "train_neg_sample_args": None,
    "eval_args": {
        "split": {"RS": [0.7, 0.2, 0.1]},
        "group_by": None,
        "mode": "labeled",
        "order": "RO",
    },
    "metrics": ["AUC", "LogLoss"],
    "valid_metric": "AUC",
    "metric_decimal_place": 6,
    "stopping_step": 99,
    "use_gpu": False,
    "show_progress": False,
    "state": "ERROR",
    "worker": 0,
    "seed": options.seed,
    "checkpoint_dir": str(options.work / "saved"),
}
with watch.phase("prepare"):
    config = Config(model="DCNV2", dataset="frappe", config_dict=SETTINGS)
    init_seed(options.seed, True)
    dataset = create_dataset(config)
    train, valid, test = data_preparation(config, dataset)
    if options.extra_rows:  # the model asks its data set how many rows a field needs
        counted = train.dataset.num
        train.dataset.num = lambda field: counted(field) + options.extra_rows * (field == "item")
net = get_model("DCNV2")(config, train.dataset).to(config["device"])
torch.nn.init.normal_(net.token_embedding_table.embedding.weight, std=0.01)


class TimedTrainer(Trainer):
    """Its trainer, with the time of its training epochs taken."""

    def _train_epoch(self, *args, **kwargs):
        with watch.phase("train"):
            done = super()._train_epoch(*args, **kwargs)
        watch.samples += len(train.dataset)
        return done


trainer = TimedTrainer(config, net)
trainer.fit(train, valid, verbose=False, saved=True, show_progress=False)
with watch.phase("evaluate"):
    result = trainer.evaluate(test, load_best_model=True, show_progress=False)
watch.finish(
    options.out,
    f"RecBole {recbole.__version__}",
    result["auc"],
    {"batch_norm": True, "embedding_std": 0.01, "torch": torch.__version__},
)
