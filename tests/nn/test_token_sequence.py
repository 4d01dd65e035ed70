"""The stream holds the right tokens at the right places, whatever the lengths."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fullrank.nn.token_sequence import TokenSequence, between

D = 2


def laid_out(lengths, *, per_event, decision, length, fields=2, targets=2, end=99):
    """Returns the module, its inputs and the stream."""
    torch.manual_seed(0)
    rows = len(lengths)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    static, chosen = torch.randn(rows, fields, D), torch.randn(rows, targets, D)
    events = torch.randn(int(offsets[-1]), per_event, D)
    tokens = TokenSequence(D, targets, per_event, end, decision).requires_grad_(False)
    return tokens, static, events, offsets, chosen, tokens(static, events, offsets, chosen, length)


@settings(deadline=None, max_examples=30)
@given(
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=3),
    per_event=st.sampled_from([1, 2]),
    decision=st.booleans(),
    length=st.integers(1, 4),
    fields=st.integers(0, 2),
)
def test_rows_hold_fields_sep1_newest_events_sep2_and_targets(
    lengths, per_event, decision, length, fields
):
    tokens, static, events, offsets, targets, stream = laid_out(
        lengths, per_event=per_event, decision=decision, length=length, fields=fields
    )
    assert stream.x.shape[1] == fields + 1 + per_event * length + 3 + decision
    for row in range(len(lengths)):
        kept = min(lengths[row], length)
        newest = events[int(offsets[row + 1]) - kept : int(offsets[row + 1])].flatten(0, 1)
        last = [tokens.constants[1:2], targets[row], tokens.constants[2:]]
        expected = torch.cat([static[row], tokens.constants[:1], newest, *last])
        positions = [0] * fields + [0]
        positions += [t for t in range(1, kept + 1) for _ in range(per_event)]
        positions += [99] * (3 + decision)
        valid = stream.valid[row]
        torch.testing.assert_close(stream.x[row][valid], expected, rtol=0, atol=0)
        assert stream.positions[row][valid].tolist() == positions
        assert not stream.x[row][~valid].any()
        assert int(stream.separator[row].sum()) == 1
        assert stream.separator[row][valid].nonzero().item() == fields
        span = stream.x[row, tokens.span(length)]
        torch.testing.assert_close(span[stream.events[row]], newest, rtol=0, atol=0)
        torch.testing.assert_close(stream.x[row, tokens.target_span], targets[row])


def test_the_newest_event_is_next_to_sep2_and_padding_in_front_of_sep1():
    *_, stream = laid_out([1, 3, 0], per_event=1, decision=False, length=3)
    assert stream.valid.int().tolist() == [
        [1, 1, 0, 0, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 1, 1, 1, 1],
        [1, 1, 0, 0, 0, 1, 1, 1, 1],
    ]


@pytest.mark.parametrize("separator", [False, True])
def test_dropping_the_fields_leaves_the_rest(separator):
    *_, stream = laid_out([1, 3], per_event=2, decision=True, length=3)
    rest = stream.without(2, separator)
    torch.testing.assert_close(rest.x, stream.x[:, 2:], rtol=0, atol=0)
    assert torch.equal(rest.positions, stream.positions[:, 2:])
    expected = stream.valid[:, 2:] & ~(stream.separator[:, 2:] & separator)
    assert torch.equal(rest.valid, expected)


def test_a_rule_is_applied_to_places_with_padding_left_out():
    valid = torch.tensor([[True, False, False, True, True], [True] * 5])
    i, j = torch.arange(5)[:, None], torch.arange(5)[None, :]
    seen = between((j <= i) & (i - j < 2), valid)[:, 0] & valid[:, None, :]
    # Without padding: tokens 0, 3 and 4 are neighbours.
    assert seen[0, [0, 3, 4]].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 0, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]
    assert torch.equal(seen[1], (j <= i) & (i - j < 2))
