"""Diagnosing runs: when they end, and again from their artefacts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from fullrank.data.prepare import Prepared
from fullrank.diagnose.collapse import diagnose
from fullrank.diagnose.records import Findings, RunContext
from fullrank.diagnose.report import RunFindings, write_report
from fullrank.diagnose.verdict import judge
from fullrank.errors import RunFolderError
from fullrank.serve.artifact import Artifact
from fullrank.workflow.console import console
from fullrank.workflow.data import DataOptions
from fullrank.workflow.folder import RunFolder


def diagnose_model(
    run: RunFolder, data: Prepared, model: nn.Module, result: dict[str, Any]
) -> list[str]:
    """Measures a trained model, saves the records and writes the report of the run.

    Returns:
        The verdicts, as sentences.
    """
    findings = _findings(run, data, model, result)
    findings.save(run.diagnostics)
    write_report(run.report, [_shown(run, findings, result)])
    return [str(verdict) for verdict in judge(findings)]


def diagnose_command(
    runs: Sequence[Path], out: Path | None, options: DataOptions
) -> dict[str, Any]:
    """Measures finished runs again and draws them side by side."""
    shown, verdicts = [], {}
    for folder in runs:
        run = RunFolder(folder)
        result = run.read_result()
        data = Prepared.open(Path(json.loads(run.recipe.read_text())["data"]))
        model = Artifact.load(run.artifact).build()
        findings = _findings(run, data, model, result)
        findings.save(run.diagnostics)
        shown.append(_shown(run, findings, result))
        verdicts[str(folder)] = [str(v) for v in judge(findings)]
    report = out or RunFolder(runs[0]).report
    write_report(report, shown)
    for folder_name, sentences in verdicts.items():
        for sentence in sentences:
            console.print(f"{folder_name}: {sentence}", markup=False)
    console.print(f"wrote {report}", markup=False)
    return {"report": str(report), "verdicts": verdicts}
