"""One run from recipe to result: data, model, training, test metrics, diagnosis, artefact."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from fullrank.batch import Batch
from fullrank.config import require, to_dict
from fullrank.data.loader import Loader
from fullrank.data.prepare import Prepared, Progress
from fullrank.data.pretrain import Pretrained
from fullrank.disk import written_whole
from fullrank.errors import MetricUndefinedError
from fullrank.evaluate.bootstrap import bootstrap
from fullrank.evaluate.calibrate import Calibrator
from fullrank.evaluate.metric import Metric
from fullrank.evaluate.run import Scores, compute, default_metrics, evaluate, predict_scores
from fullrank.model import NO_ASSETS, Assets, create
from fullrank.ops.blocks import score_in_blocks
from fullrank.schema import Schema
from fullrank.serve.artifact import Artifact, versions
from fullrank.train.loop import train
from fullrank.train.state import has_state, load_state
from fullrank.workflow.assets import make_assets, read_assets, unused_rows, write_assets
from fullrank.workflow.calibration import Calibrate, Fitted, calibrators, effects, uncorrected
from fullrank.workflow.data import DataOptions, open_data
from fullrank.workflow.diagnosis import diagnose_model, training_monitor
from fullrank.workflow.folder import RunFolder, write_json
from fullrank.workflow.popularity import popularity_alone
from fullrank.workflow.recipe import Recipe

_VALID_ROWS = 8192  # rows per batch of validation


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run is carried out; nothing here changes its result.

    Args:
        data: where data is.
        resume: go on from the saved state, if there is one.
        overwrite: empty a folder that holds another run.
        diagnose: measure collapse, during training and after it.
        progress: True draws bars, False is silent, None looks at the terminal.
        preparing: opened while data is prepared, such as `console.preparing`: a bar of its own,
            closed before training draws one. None is silent.
    """

    data: DataOptions = field(default_factory=DataOptions)
    resume: bool = False
    overwrite: bool = False
    diagnose: bool = True
    progress: bool | None = None
    preparing: Callable[[], AbstractContextManager[Progress]] | None = None


def train_run(recipe: Recipe, folder: Path, options: RunOptions | None = None) -> dict[str, Any]:
    """Trains a recipe, measures it on the held-out split and exports it.

    Args:
        recipe: the choices.
        folder: of the run; see `workflow.folder`.
        options: how to carry it out.

    Returns:
        What result.json holds; `interrupted` is True when somebody asked for the end, and the
        folder then holds a state to resume from.

    Raises:
        ConfigError: both `resume` and `overwrite` are asked for.
        RunFolderError: the folder is in use.
        MetricUndefinedError: all main labels of a held-out split are equal.
        StateError: the state in the folder belongs to other data or choices.
        DivergedError: training diverged; the last good state is kept.
    """
    options = options or RunOptions()
    require(
        not (options.resume and options.overwrite),
        where="--resume and --overwrite",
        found="both",
        expected="one of them: to go on, or to begin anew",
        fix="leave one out",
    )
    run = RunFolder(folder)
    with run.claimed(resume=options.resume, overwrite=options.overwrite):
        data, assets = _opened(recipe, run, options)
        model = build(recipe, data, assets.lookups)
        if options.overwrite:  # only now, when the new run can begin
            run.clear()
        asked = recipe.to_dict() | {"data": str(data.folder)}
        state = load_state(run.state) if options.resume and has_state(run.state) else None
        if state is None:
            write_json(run.recipe, asked)
            if recipe.assets:
                write_assets(run.assets, assets)
        began = time.perf_counter()
        state = train(
            model,
            Loader(data.splits["train"], recipe.train.batch_size, seed=recipe.seed),
            recipe.train,
            folder=folder,
            validate=lambda m: validation(m, data),
            monitor=training_monitor(recipe, run) if options.diagnose else None,
            state=state,
            identity=_identity(recipe, data),
            progress=options.progress,
        )
        write_json(run.recipe, asked)  # a state of another run was refused before this
        if state.interrupted:
            return {"interrupted": True, "epoch": state.epoch, "batch": state.batch}
        cost = {
            "epochs": state.epoch,
            "steps": state.step,
            "train_seconds": round(time.perf_counter() - began, 2),
        }
        result = measured(recipe, data, model, run, assets.lookups) | cost
        if options.diagnose:
            result["verdicts"] = diagnose_model(run, data, model, result)
        write_json(run.result, result)
    return result


def _opened(recipe: Recipe, run: RunFolder, options: RunOptions) -> tuple[Prepared, Pretrained]:
    """Returns the rows of a run and its lookups: those that it began with where it goes on."""
    with options.preparing() if options.preparing else nullcontext() as advance:
        data = open_data(recipe.dataset, options.data, advance)
    _require_both_labels(data)
    recipe.calibrate.require_unweighted(data.featurizer)
    if recipe.assets and options.resume and has_state(run.state):
        assets = read_assets(run.assets)
    else:
        assets = make_assets(recipe.assets, data)
    return unused_rows(data, assets), assets


def _identity(recipe: Recipe, data: Prepared) -> dict[str, Any]:
    """Returns what a saved state must agree with, beside the settings of training."""
    made = recipe.to_dict().get("assets")
    return {
        "model": recipe.model,
        "config": to_dict(recipe.config),
        "seed": recipe.seed,
        "schema": data.schema.fingerprint(),
        "featurizer": data.featurizer.fingerprint(),
        **({"assets": made} if made else {}),
    }


def _require_both_labels(data: Prepared) -> None:
    """Refuses, before hours of training, splits on which no AUC can be measured."""
    label = data.schema.labels[0].name
    for name in ("valid", "test"):
        seen: set[float] = set()
        for batch in data.splits[name].batches():
            seen.update(batch.labels[label][batch.observed[label]].tolist())
            if len(seen) == 2:
                break
        else:
            raise MetricUndefinedError(
                "the AUC of a held-out split is undefined: all labels are equal",
                where=f"label '{label}' of split '{name}'",
                found=", ".join(f"only {value:.0f}" for value in seen) or "no known label",
                expected="both labels among the rows where it is known",
                fix="split elsewhere, or give more rows",
            )


def build(recipe: Recipe, data: Prepared, assets: Assets = NO_ASSETS) -> nn.Module:
    """Returns the freshly initialised model of a recipe; seeds torch for all that follows.

    Raises:
        ConfigError: the model does not hold a lookup that was made for it.
    """
    torch.manual_seed(recipe.seed)
    model = create(recipe.model, data.schema, recipe.config, assets)
    held = set(model.modules())
    idle = sorted(name for name, lookup in assets.items() if lookup not in held)
    require(
        not idle,
        where="Recipe.assets",
        found=f"{', '.join(idle)}, which model '{recipe.model}' does not read",
        expected="lookups that the model keeps as modules",
        fix="leave the source out, or choose a config of the model that reads them",
    )
    return model


def validation(model: nn.Module, data: Prepared) -> dict[str, float]:
    """Returns the metrics of the validation split; those of the first label have plain names."""
    found = evaluate(model, data.splits["valid"].batches(_VALID_ROWS), undefined="omit")
    return with_plain_names(found, [label.name for label in data.schema.labels])


def with_plain_names(values: Mapping[str, float], labels: list[str]) -> dict[str, float]:
    """Returns metrics with the main label's also under their plain names, such as "auc"."""
    prefix = f"{labels[0]}/"
    plain = {n.removeprefix(prefix): v for n, v in values.items() if n.startswith(prefix)}
    return {**plain, **values}


def measured(
    recipe: Recipe, data: Prepared, model: nn.Module, run: RunFolder, assets: Assets = NO_ASSETS
) -> dict[str, Any]:
    """Measures a trained model on the test split and writes its artefact."""
    metrics, scores = measure(model, data.splits["test"].batches(_VALID_ROWS), data.schema)
    with written_whole(run.path / "scores" / "test.safetensors") as draft:
        save_file(scores.logits, draft)
    result: dict[str, Any] = {
        "recipe": recipe.name,
        "dataset": recipe.to_dict()["dataset"],
        "model": recipe.model,
        "seed": recipe.seed,
        "interrupted": False,
        "test": metrics,
        "interval": intervals(scores),
        "valid": validation(model, data),
        "popularity": popularity_alone(data),
        "rows": {name: part.rows for name, part in data.splits.items()},
        "parameters": sum(p.numel() for p in model.parameters()),
        "prepare_seconds": data.seconds,
        "notes": list(data.notes),
        "claim": to_dict(recipe.claim),
    }
    found = fitted(model, data, recipe.calibrate)
    result["calibration"] = effects(scores, found)
    if found.curves:
        batches = data.splits["test"].batches(_VALID_ROWS)
        metrics, _ = measure(model, batches, data.schema, uncorrected(found.curves))
    artifact = Artifact(
        model=recipe.model,
        config=recipe.config,
        featurizer=data.featurizer,
        weights=model.state_dict(),
        assets=assets,
        metrics=metrics,
        calibration=found.curves,
        provenance={
            "recipe": recipe.to_dict(),
            "notes": list(data.notes),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            **versions(),
        },
    )
    artifact.save(run.artifact)
    return result


def fitted(model: nn.Module, data: Prepared, how: Calibrate) -> Fitted:
    """Returns the calibration of a model, fitted on the validation split."""
    if how == Calibrate():
        return Fitted()
    _, scores = measure(model, data.splits["valid"].batches(_VALID_ROWS), data.schema)
    return calibrators(scores, how, data.schema)


def measure(
    model: nn.Module,
    batches: Iterable[Batch],
    schema: Schema,
    calibration: Mapping[str, Calibrator] | None = None,
) -> tuple[dict[str, float], Scores]:
    """Scores rows in blocks of fixed size, as the predictor does, and measures the scores.

    With calibration, what is measured is what is served, but for the last bits. Metrics that are
    undefined on these rows, such as the AUC of a label that never happens, are left out, unless
    they are the main label's.

    Raises:
        EmptyInputError: there are no rows.
        MetricUndefinedError: all main labels are equal.
    """
    labels = [label.name for label in schema.labels]
    metrics = default_metrics(labels, grouped=schema.group is not None)
    scorer = _InBlocks(model, schema, metrics, calibration or {})
    scores = predict_scores(scorer, batches)
    values = with_plain_names(compute(metrics, undefined="omit"), labels)
    if "auc" not in values:
        metrics[f"{labels[0]}/auc"].compute()  # raises, and says why
    return values, scores


class _InBlocks(nn.Module):
    """Scores in blocks, so that a row's score is the same bits in any company; measures too."""

    def __init__(
        self,
        model: nn.Module,
        schema: Schema,
        metrics: dict[str, Metric],
        calibration: Mapping[str, Calibrator],
    ) -> None:
        super().__init__()
        self.model, self.schema, self.metrics = model, schema, metrics
        self.calibration = calibration

    def score(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Returns label -> logits [B]."""
        scores = score_in_blocks(self.model.score, batch)  # type: ignore[arg-type]
        for label, curve in self.calibration.items():
            scores[label] = torch.from_numpy(curve.logits(scores[label].cpu().numpy())).float()
        for metric in self.metrics.values():
            metric.update(scores, batch)
        return scores


def intervals(scores: Scores, replicates: int = 200) -> dict[str, list[float]]:
    """Returns metric -> [low, high] of the main label: 95 % by bootstrap over groups."""
    label = next(iter(scores.logits))
    found = {}
    for metric in ("auc", "logloss", *(("gauc",) if scores.group is not None else ())):
        try:
            interval = bootstrap(scores.rows(label), metric, replicates=replicates)
        except MetricUndefinedError:
            continue
        found[metric] = [interval.low, interval.high]
    return found
