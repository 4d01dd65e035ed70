"""RecBole: its DIN or DIEN on given rows with given histories.

Its attention and the auxiliary network of its DIEN have the widths of the deep network, 512-256-128
here, with no option of their own. They are rebuilt from its own layers with the widths that the
others have, which makes it several times faster. Its other choices stay: sigmoid in the attention,
batch norm and a sigmoid-gated unit in the deep network; DIN reads no user.
"""

from __future__ import annotations

import os
import sys

from stopwatch import Stopwatch, history_arguments

options = history_arguments(__doc__)
os.chdir(options.work)  # it writes logs and saved models into the working directory
sys.argv = sys.argv[:1]  # it reads the command line on its own
watch = Stopwatch()
with watch.phase("import"):
    import numpy as np
    import recbole
    import torch
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.model.layers import MLPLayers
    from recbole.trainer import Trainer
    from recbole.utils import get_model, init_seed

# Its checkpoints hold a Config object, which torch refuses to load since weights_only is True.
_load = torch.load
torch.load = lambda *args, **kwargs: _load(*args, **{**kwargs, "weights_only": False})
if not hasattr(np, "long"):  # absent from numpy 1.24 to 1.26, which its other parts need
    np.long = np.int64

NAME = options.model.upper()
LENGTH, DIM, HIDDEN = 200, 16, [512, 256, 128]
ATTENTION, AUXILIARY = [64], [100, 50]
LISTS = ["item_id_list"] + (["neg_item_id_list"] if NAME == "DIEN" else [])
SETTINGS = {
    "data_path": str(options.data / "recbole"),
    "benchmark_filename": ["train", "valid", "test"],
    "USER_ID_FIELD": "user_id",
    "ITEM_ID_FIELD": "item_id",
    "LABEL_FIELD": "label",
    "load_col": {"inter": ["user_id", "item_id", *LISTS, "label"]},
    "alias_of_item_id": LISTS,
    "MAX_ITEM_LIST_LENGTH": LENGTH,
    "threshold": None,
    "embedding_size": DIM,
    "mlp_hidden_size": HIDDEN,
    "dropout_prob": 0.0,
    "alpha": 1.0,
    "gru_type": "AUGRU",
    "weight_decay": 0.0,
    "epochs": options.epochs,
    "train_batch_size": 1024,
    "eval_batch_size": 4096,
    "learning_rate": 1e-3,
    "train_neg_sample_args": None,
    "eval_args": {
        "split": {"RS": [0.7, 0.2, 0.1]},
        "group_by": None,
        "mode": "labeled",
        "order": "TO",
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


def narrow(net: torch.nn.Module) -> None:
    """Gives attention and auxiliary network the widths of the other contestants."""
    attention = net.attention if NAME == "DIN" else net.interest_evolution.attention_layer
    attention.att_mlp_layers = MLPLayers([4 * DIM, *ATTENTION], activation=attention.activation)
    attention.dense = torch.nn.Linear(ATTENTION[-1], 1)
    attention.apply(net._init_weights)
    if NAME == "DIEN":
        widths = [2 * DIM, *AUXILIARY, 1]
        net.interset_extractor.auxiliary_net = MLPLayers(widths, activation="none")
        net.interset_extractor.auxiliary_net.apply(net._init_weights)


with watch.phase("prepare"):
    config = Config(model=NAME, dataset="histories", config_dict=SETTINGS)
    init_seed(options.seed, True)
    dataset = create_dataset(config)
    train, valid, test = data_preparation(config, dataset)
net = get_model(NAME)(config, train.dataset).to(config["device"])
narrow(net)


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
    {"torch": torch.__version__},
)
