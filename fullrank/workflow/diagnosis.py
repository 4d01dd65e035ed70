"""Diagnosing runs: while they train, when they end, and again from what they left behind."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from fullrank.data.prepare import Prepared
from fullrank.diagnose.collapse import diagnose
from fullrank.diagnose.monitor import RankMonitor
from fullrank.diagnose.readings import rhythm_words
from fullrank.diagnose.records import RECORDS, Findings, RunContext, read_records
from fullrank.diagnose.report import RunFindings, write_report
from fullrank.diagnose.verdict import judge
from fullrank.evaluate.popularity import popularity_line
from fullrank.serve.artifact import Artifact
from fullrank.workflow.calibration import reliability_section
from fullrank.workflow.console import console
from fullrank.workflow.folder import RunFolder
from fullrank.workflow.recipe import Recipe

_TRAINING = "training.jsonl"  # records of the monitor, one set per epoch
_SHOWN = ("auc", "gauc", "logloss", "ece")


def training_monitor(recipe: Recipe, run: RunFolder) -> RankMonitor:
    """Returns the monitor of a run; its records lie beside those of the final diagnosis."""
    run.diagnostics.mkdir(exist_ok=True)
    return RankMonitor(_context(recipe.to_dict(), run), path=run.diagnostics / _TRAINING)


def diagnose_model(
    run: RunFolder, data: Prepared, model: nn.Module, result: dict[str, Any]
) -> list[str]:
    """Measures a trained model, saves the records and writes the report of the run.

    Returns:
        The verdicts, as sentences.
    """
    findings = _measured(run, data, model, result["epochs"])
    write_report(
        run.report,
        [_shown(findings, result)],
        title=run.path.name,
        subtitle=run_line(result),
        closing=[reliability_section({run.path.name: result})],
    )
    return [str(verdict) for verdict in judge(findings)]


def diagnose_command(runs: Sequence[Path], out: Path | None) -> dict[str, Any]:
    """Measures finished runs again and draws them side by side."""
    shown, verdicts, readings, results = [], {}, {}, {}
    for folder in runs:
        run = RunFolder(folder)
        result = results[folder.name] = run.read_result()
        data = Prepared.open(run.prepared())
        model = Artifact.load(run.artifact).build()
        findings = _measured(run, data, model, result["epochs"])
        shown.append(_shown(findings, result))
        verdicts[str(folder)] = [str(v) for v in judge(findings)]
        readings[str(folder)] = rhythm_words(findings)
    report = out or RunFolder(runs[0]).report
    write_report(
        report,
        shown,
        subtitle=run_line(RunFolder(runs[0]).read_result()),
        closing=[reliability_section(results)],
    )
    for name, sentences in verdicts.items():
        for sentence in (*sentences, *readings[name]):
            console.print(f"{name}: {sentence}", markup=False)
    console.print(f"wrote {report}", markup=False)
    return {"report": str(report), "verdicts": verdicts, "readings": readings}


def diagnosed(folder: Path, data: Prepared) -> Findings:
    """Returns the findings of a finished run, measured now unless they are there already.

    Args:
        folder: of the run.
        data: what it was trained on, wherever that lies by now.
    """
    run = RunFolder(folder)
    if not (run.diagnostics / RECORDS).exists():
        model = Artifact.load(run.artifact).build()
        return _measured(run, data, model, run.read_result()["epochs"])
    return _stored(run)


def joint_report(path: Path, runs: Sequence[Path], title: str) -> None:
    """Draws finished and diagnosed runs side by side, from their records."""
    shown = []
    for folder in runs:
        run = RunFolder(folder)
        shown.append(_shown(_stored(run), run.read_result()))
    write_report(path, shown, title=title, subtitle=run_line(RunFolder(runs[0]).read_result()))


def _measured(run: RunFolder, data: Prepared, model: nn.Module, epoch: int) -> Findings:
    """Measures on validation rows and saves the records."""
    context = _context(json.loads(run.recipe.read_text()), run, epoch)
    findings = diagnose(
        model,
        data.splits["valid"].batches(),
        context=context,
        counts={table.name: data.counts(table.name) for table in data.schema.tables},
    )
    findings.save(run.diagnostics)
    return _with_training(run, findings)


def _stored(run: RunFolder) -> Findings:
    return _with_training(run, Findings.load(run.diagnostics))


def _with_training(run: RunFolder, findings: Findings) -> Findings:
    path = run.diagnostics / _TRAINING
    if not path.exists():
        return findings
    # A run that was killed and resumed measured some epochs twice: the last one counts.
    newest = {(r.epoch, r.hook, r.metric): r for r in read_records(path)}
    whole = Findings(list(newest.values()))
    whole.extend(findings)
    return whole


def _context(recipe: dict[str, Any], run: RunFolder, epoch: int = 0) -> RunContext:
    return RunContext(
        run_id=run.path.name, variant=recipe["name"], seed=recipe["seed"], epoch=float(epoch)
    )


def _shown(findings: Findings, result: dict[str, Any]) -> RunFindings:
    metrics = {name: result["test"].get(name) for name in _SHOWN}
    step = 1e3 * result["train_seconds"] / max(result["steps"], 1)
    sizes = {"parameters": result["parameters"], "step_ms": round(step, 1)}
    return RunFindings(name=result["recipe"], findings=findings, metrics={**metrics, **sizes})


def run_line(result: dict[str, Any]) -> str:
    """Returns what a run was trained and diagnosed on."""
    rows = ", ".join(f"{name} {count:,}" for name, count in result["rows"].items())
    alone = popularity_line(result.get("popularity", {}).get("test", {}))
    notes = "".join(f"; {note}" for note in [*([alone] if alone else []), *result["notes"]])
    return f"{result['dataset']}: {rows} rows. Diagnosed on validation rows{notes}"
