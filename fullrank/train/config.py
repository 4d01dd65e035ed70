"""TrainConfig: every setting of a training run. Each default is printed on the model card."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fullrank.config import require, require_between, require_positive

# Settings that leave every weight as it is, so that a resumed run may change them.
HARMLESS = ("log_every", "save_every", "monitor_every", "tensorboard", "mlflow", "keep_memory")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is trained.

    Args:
        epochs: passes over the training rows.
        batch_size: rows per batch, read by whoever builds the loader.
        optimizer: for dense parameters. "adamw" decouples weight decay, "adam" adds it to the
            gradient.
        learning_rate: the peak, at the end of warm-up.
        weight_decay: of dense parameters with two or more dimensions; biases, norms and other
            vectors are never decayed.
        table_optimizer: for embedding tables. "auto" takes "adam" for small tables and
            "lazy_adam" for large ones, by the rule in `optim.choose_table_optimizer`.
        table_learning_rate: of tables; None means `learning_rate`.
        table_l2: lambda; lambda * w is added to the gradient of tables (coupled, as FuxiCTR's
            `embedding_regularizer`). Sparse optimisers apply it to the rows of the batch alone.
        schedule: of the learning rate. "plateau" multiplies it by `plateau_factor` after each
            validation that brought no new best.
        warmup_steps: the learning rate rises linearly to its peak over so many steps.
        final_factor: the learning rate ends at this share of its peak ("linear", "cosine").
        plateau_factor: see `schedule`; the learning rate never falls below 1e-6 this way.
        metric: of `validate` that decides which weights are best; "auc" means that of the first
            label where there are several.
        higher_is_better: direction of `metric`.
        patience: stop after so many validations in a row without a new best; None never stops.
        restore_best: end with the weights of the best validation rather than the last.
        accumulate: batches whose gradients are averaged into one step, each counting the same.
        clip_norm: the global norm of the gradient is cut to this; None cuts nothing.
        precision: "auto" is bfloat16 autocast on a CUDA device that has it, else float32. On a
            CPU without bf16 units autocast is 7 to 8 times slower.
        compile: run the model through `torch.compile`. Measured on a CPU, compiled
            steps of DCN-V2 and RankMixer are slower than eager ones (bench/compile.py), hence off.
        keep_memory: see `memory.keep_freed_memory`; False leaves the C library as it is.
        threads: of torch; None leaves the process as it is.
        explode_factor: see `guard.Guard`.
        explode_steps: see `guard.Guard`.
        log_every: steps between two lines of metrics.jsonl.
        save_every: steps between two saved states; None saves at the end of each epoch alone.
        monitor_every: steps between two calls of the monitor; None calls it once per epoch.
        tensorboard: write the metrics for TensorBoard as well.
        mlflow: send the metrics to MLflow as well.

    Raises:
        ConfigError: a value is impossible.
    """

    epochs: int = 10
    batch_size: int = 4096
    optimizer: Literal["adamw", "adam"] = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    table_optimizer: Literal["auto", "adam", "lazy_adam", "rowwise_adagrad"] = "auto"
    table_learning_rate: float | None = None
    table_l2: float = 0.0
    schedule: Literal["none", "linear", "cosine", "plateau"] = "none"
    warmup_steps: int = 0
    final_factor: float = 0.0
    plateau_factor: float = 0.1
    metric: str = "auc"
    higher_is_better: bool = True
    patience: int | None = 2
    restore_best: bool = True
    accumulate: int = 1
    clip_norm: float | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool = False
    keep_memory: bool = True
    threads: int | None = None
    explode_factor: float = 20.0
    explode_steps: int = 20
    log_every: int = 100
    save_every: int | None = None
    monitor_every: int | None = None
    tensorboard: bool = False
    mlflow: bool = False

    def __post_init__(self) -> None:
        require_positive(self, "epochs", "batch_size", "learning_rate", "accumulate")
        require_positive(self, "explode_factor", "explode_steps", "log_every", "plateau_factor")
        optional = ("table_learning_rate", "patience", "clip_norm", "threads", "save_every")
        require_positive(
            self, *(n for n in (*optional, "monitor_every") if getattr(self, n) is not None)
        )
        require_between(self, 0.0, 1.0, "final_factor", "plateau_factor")
        for name in ("weight_decay", "table_l2", "warmup_steps"):
            require(
                getattr(self, name) >= 0,
                where=f"TrainConfig.{name}",
                found=getattr(self, name),
                expected="zero or more",
                fix="raise it",
            )
