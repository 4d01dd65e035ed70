"""Not a peer: the loop that any library sits on. Ids in one matrix, indexed by a permutation.

DCN-V2 in parallel form, three full-matrix cross layers, MLP 400-400-400, embedding 10.
"""

from __future__ import annotations

from stopwatch import Stopwatch, arguments

options = arguments(__doc__)
watch = Stopwatch()
with watch.phase("import"):
    import numpy as np
    import polars as pl
    import torch
    from torch import nn

torch.manual_seed(options.seed)


class CrossNetwork(nn.Module):
    """The model under test in as few lines as it takes."""

    def __init__(self, rows: int, fields: int, dim: int = 10) -> None:
        super().__init__()
        self.rows = nn.Embedding(rows, dim, sparse=options.sparse)
        nn.init.normal_(self.rows.weight, std=0.01)
        width = fields * dim
        self.cross = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        layers: list[nn.Module] = []
        for size in (width, 400, 400):
            layers.append(nn.Linear(size, 400))
            if options.batch_norm:
                layers.append(nn.BatchNorm1d(400))
            layers.append(nn.ReLU())
        self.deep = nn.Sequential(*layers)
        self.head = nn.Linear(width + 400, 1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Scores ids [B, F] to logits [B]."""
        first = self.rows(ids).flatten(1)  # [B, F*D]
        crossed = first
        for layer in self.cross:
            crossed = crossed + first * layer(crossed)
        return self.head(torch.cat([crossed, self.deep(first)], 1)).squeeze(1)


with watch.phase("prepare"):
    parts = {p: pl.read_csv(options.data / "csv" / f"{p}.csv") for p in ("train", "test")}
    fields = [c for c in parts["train"].columns if c != "label"]
    # The published ids already count through all fields, so one table needs no offsets.
    size = max(int(p.select(pl.max_horizontal(pl.all().max())).item()) for p in parts.values()) + 1
    ids = {p: torch.tensor(d.select(fields).to_numpy()) for p, d in parts.items()}
    labels = torch.tensor(parts["train"]["label"].to_numpy(), dtype=torch.float32)
    truth = parts["test"]["label"].to_numpy()

net = CrossNetwork(size + options.extra_rows, len(fields))
if options.sparse:
    rest = [p for name, p in net.named_parameters() if name != "rows.weight"]
    optimizers = [torch.optim.SparseAdam([net.rows.weight], 1e-3), torch.optim.Adam(rest, 1e-3)]
else:
    optimizers = [torch.optim.Adam(net.parameters(), 1e-3)]
for _ in range(options.epochs):
    with watch.phase("train"):
        for index in torch.randperm(len(labels)).split(4096):
            logits = net(ids["train"][index])
            loss = nn.functional.binary_cross_entropy_with_logits(logits, labels[index])
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
    watch.samples += len(labels)

with watch.phase("evaluate"):
    net.eval()
    with torch.no_grad():
        scores = torch.cat([net(x) for x in ids["test"].split(40960)]).numpy()
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # ties share their mean rank
    positives, negatives = truth.sum(), (1 - truth).sum()
    auc = (ranks[truth == 1].sum() - positives * (positives + 1) / 2) / (positives * negatives)
watch.finish(
    options.out,
    "plain PyTorch loop" + (", SparseAdam" if options.sparse else ""),
    auc,
    {"batch_norm": options.batch_norm, "embedding_std": 0.01, "torch": torch.__version__},
)
