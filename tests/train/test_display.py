from __future__ import annotations

import pytest

from fullrank.train.display import Display


def run(show: bool | None) -> None:
    with Display(show, 2, 3) as display:
        for epoch in range(2):
            display.start_epoch(epoch, 0)
            for batch in range(3):
                display.advance(batch + 1, 100)
            display.show_loss(0.25)
            display.end_epoch(epoch, {"auc": 0.75, "logloss": 0.5}, "auc")


def test_one_line_per_epoch_when_not_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    run(None)
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 2
    for n, line in enumerate(err.splitlines(), start=1):
        assert f"epoch {n}/2  loss 0.2500  auc 0.7500" in line
        assert "rows/s" in line


def test_silent_when_asked(capfd: pytest.CaptureFixture[str]) -> None:
    run(False)
    assert capfd.readouterr() == ("", "")


def test_a_bar_shows_rate_loss_and_place(capfd: pytest.CaptureFixture[str]) -> None:
    with Display(True, 2, 3) as display:
        display.start_epoch(1, 0)
        display.show_loss(0.125)
        display.advance(2, 100)
        (task,) = display.bar.tasks
        assert (task.description, task.completed, task.total) == ("epoch 2/2", 2, 3)
        assert task.fields["rate"].endswith("rows/s")
        assert task.fields["loss"] == "0.1250"
        display.end_epoch(1, {}, "auc")
    assert "epoch 2/2" in capfd.readouterr().err
