"""DeepCTR-Torch: DCN with the matrix cross (= DCN-V2), driven as in its quick start.

The first-order part is left out, since no other contestant has one.
"""

from __future__ import annotations

from stopwatch import Stopwatch, arguments

options = arguments(__doc__)
watch = Stopwatch()
with watch.phase("import"):
    from importlib.metadata import version

    import numpy as np
    import pandas as pd
    import torch
    from deepctr_torch.inputs import SparseFeat
    from deepctr_torch.models import DCN
    from sklearn.metrics import roc_auc_score
    from sklearn.preprocessing import LabelEncoder

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
    inputs = {p: {f: whole.loc[p][f].values for f in fields} for p in ("train", "test")}
    columns = [SparseFeat(f, sizes[f], embedding_dim=10) for f in fields]

net = DCN(
    [],
    columns,
    cross_num=3,
    cross_parameterization="matrix",
    dnn_hidden_units=(400, 400, 400),
    dnn_use_bn=options.batch_norm,
    l2_reg_linear=0,
    l2_reg_embedding=0,
    l2_reg_cross=0,
    l2_reg_dnn=0,
    init_std=0.01,
    seed=options.seed,
    device="cpu",
)
net.compile(torch.optim.Adam(net.parameters(), 1e-3), "binary_crossentropy", metrics=[])
labels = parts["train"]["label"].values
with watch.phase("train"):
    net.fit(inputs["train"], labels, batch_size=4096, epochs=options.epochs, verbose=0)
watch.samples = len(labels) * options.epochs

with watch.phase("evaluate"):
    scores = net.predict(inputs["test"], batch_size=40960).ravel()
    auc = roc_auc_score(parts["test"]["label"].values, scores)
watch.finish(
    options.out,
    f"DeepCTR-Torch {version('deepctr-torch')}",
    auc,
    {"batch_norm": options.batch_norm, "embedding_std": 0.01, "torch": torch.__version__},
)
