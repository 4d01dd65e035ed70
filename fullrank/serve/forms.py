"""Forms: a ranker as other engines run it, made from its weights and held to its scores.

    eager          the model itself
    torch-export   one graph of tensor operations, run by torch
    onnx           the same graph, run by onnxruntime

A server makes the form that it runs from the weights of an artefact, and opens no program that an
artefact brings along: those under `exported/` are for other engines. `torch.export.load` unpickles
what the archive says is pickled and evaluates the sizes in it as Python, and onnxruntime runs what
the graph says, loops included; from a stranger, each would be code. Weights are numbers.

Which form is fastest depends on the model (`bench/forms.py`, one CPU thread): ONNX took 0.4 to 0.9
times as long as eager for DCN-V2 and RankMixer up to 64 rows, and 2 to 4 times as long for models
that read a past in requests of 500 rows; torch-export gained nothing. Eager is also the only form
whose scores equal offline ones to the bit. Hence the default is eager.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from fullrank.batch import Batch
from fullrank.errors import ArtifactError, ExtraMissingError
from fullrank.ops.export import export_program, flatten
from fullrank.schema import Schema
from fullrank.testing import random_batch

Form = Literal["eager", "torch-export", "onnx"]
Score = Callable[[Batch], dict[str, Tensor]]

FILES: Mapping[str, str] = {"torch-export": "model.pt2", "onnx": "model.onnx"}
DEFAULT: Form = "eager"
TOLERANCE = 1e-6  # see `_require_equal`
_SAMPLE_ROWS = 64
_MOST_BYTES = 2_000_000_000  # of weights in one ONNX file, whose format counts in 31 bits


def make_form(model: nn.Module, schema: Schema, form: Form) -> Score:
    """Returns a function from batches to label -> logits [B], seen to equal the model's own.

    Args:
        model: a ranker in eval mode, on the CPU.
        schema: of its batches.
        form: what runs it. onnxruntime gets as many threads as torch has now.

    Raises:
        ArtifactError: the form scores otherwise, or the model is too large for it.
        ExtraMissingError: the form needs a library that is not installed.
    """
    eager: Score = model.score  # type: ignore[assignment]
    if form == "eager":
        return eager
    program = _program(model, schema)
    score = _of_torch(program) if form == "torch-export" else _of_onnx(_onnx(program), schema)
    _require_equal(eager, score, schema, form)
    return score


def program_bytes(model: nn.Module, schema: Schema, form: Form) -> bytes:
    """Returns the file of a form, for engines outside of fullrank, seen to equal the model.

    Inputs are named as `ops.export.flatten` names features, outputs as the labels.

    Raises:
        ArtifactError: the form scores otherwise, or the model is too large for it.
        ExtraMissingError: the form needs a library that is not installed.
    """
    program = _program(model, schema)
    content = _onnx(program) if form == "onnx" else b""
    score = _of_onnx(content, schema) if form == "onnx" else _of_torch(program)
    _require_equal(model.score, score, schema, form)  # type: ignore[arg-type]
    if form == "torch-export":
        file = io.BytesIO()
        torch.export.save(program, file)
        content = file.getvalue()
    return content


def _program(model: nn.Module, schema: Schema) -> ExportedProgram:
    return export_program(model, schema, _rows(schema, _SAMPLE_ROWS))


def _rows(schema: Schema, rows: int, *, empty: bool = False) -> Batch:
    return random_batch(schema, rows, torch.Generator().manual_seed(rows), empty=empty)


def _of_torch(program: ExportedProgram) -> Score:
    run = program.module()

    def score(batch: Batch) -> dict[str, Tensor]:
        scores: dict[str, Tensor] = run(flatten(batch))
        return scores

    return score


def _onnx(program: ExportedProgram) -> bytes:
    """Returns the program as one ONNX file."""
    _require_extra()
    size = sum(t.numel() * t.element_size() for t in program.state_dict.values())
    if size > _MOST_BYTES:
        raise ArtifactError(
            "a model is too large for one ONNX file",
            where="weights",
            found=f"{size:,} bytes",
            expected=f"at most {_MOST_BYTES:,}",
            fix="serve it as torch-export or eager, or with smaller tables",
        )
    features, labels = _names(program)
    with _quiet():
        converted: Any = torch.onnx.export(
            program,
            verbose=False,
            external_data=False,
            input_names=features,
            output_names=labels,
            custom_translation_table={torch.ops.aten.repeat_interleave.Tensor: _repeat_interleave},
        )
        file = io.BytesIO()
        converted.save(file)
    return file.getvalue()


def _repeat_interleave(repeats: Any, output_size: Any = None) -> Any:
    """Translates an operation whose hint `output_size`, for torch alone, is not known there."""
    from onnxscript.function_libs.torch_lib.ops.core import aten_repeat_interleave_Tensor

    return aten_repeat_interleave_Tensor(repeats)


def _names(program: ExportedProgram) -> tuple[list[str], list[str]]:
    """Returns the names of features and labels, in the order in which the program has them."""
    (given,), _ = program.example_inputs
    out = program.call_spec.out_spec
    assert out is not None
    return list(given), list(out.context)


def _of_onnx(content: bytes, schema: Schema) -> Score:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    read = {given.name for given in session.get_inputs()}
    labels = [label.name for label in schema.labels]

    def score(batch: Batch) -> dict[str, Tensor]:
        features = {n: x.numpy() for n, x in flatten(batch).items() if n in read}
        found = session.run(labels, features)
        return {n: torch.from_numpy(x) for n, x in zip(labels, found, strict=True)}

    return score


def _require_extra() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as cause:
        raise ExtraMissingError(
            "a library for ONNX is not installed",
            where="form 'onnx'",
            found=str(cause),
            expected="onnx, onnxscript and onnxruntime",
            fix="pip install 'fullrank[export]'",
        ) from cause


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps back what the converter says about its own insides."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _require_equal(eager: Score, score: Score, schema: Schema, form: Form) -> None:
    """Compares scores of many rows, of one, and of rows without histories.

    torch-export runs the operations of the model, and is held to its logits. onnxruntime has its
    own, and is held to the probabilities: rounding of float32 alone puts the logits of both as far
    as 2e-6 from those of float64 (measured on RankElastor), which moves no probability by 1e-6.
    """
    for rows, empty in ((_SAMPLE_ROWS, False), (1, False), (7, True)):
        batch = _rows(schema, rows, empty=empty)
        with torch.inference_mode():
            expected, found = eager(batch), score(batch)
        for label, x in expected.items():
            a, b = x.double(), found[label].double()
            gap = (a - b).abs() / (1 + a.abs())
            if form == "onnx":
                gap = (torch.sigmoid(a) - torch.sigmoid(b)).abs()
            if not bool((gap <= TOLERANCE).all()):  # NaN is no equal either
                raise ArtifactError(
                    "exported scores differ from eager ones",
                    where=f"form '{form}', label '{label}', {rows} rows",
                    found=f"a difference of {float(gap.max()):.2g}",
                    expected=f"at most {TOLERANCE:g} of a "
                    + ("probability" if form == "onnx" else "logit"),
                    fix="serve the eager form, or export the artefact folder instead",
                )
