"""Examples over all ranks, against a count that knows everything."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_bsscale.theory.example_count import ExampleCount


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["window", "send", "receive"]))))
def test_what_messages_have_brought_is_exact_and_the_rest_is_assumed(events):
    count, sent, windows, waiting = ExampleCount(), 0, [], None
    known = 0
    for size, event in events:
        if event == "window":
            count = count.assuming(5)
            windows.append(size)
        elif event == "send" and waiting is None:
            count, waiting, sent = count.sent(), sum(windows[sent:]), len(windows)
        elif event == "receive" and waiting is not None:
            count, known, waiting = count.arrived(waiting), known + waiting, None
            assert count.known == known
        on_the_way = 0 if waiting is None else count.in_flight
        assert (count.known, count.in_flight) == (known, on_the_way)
        assert count.assumed == 5 * (len(windows) - sent)
        assert count.total == known + on_the_way + count.assumed


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("counted", [7], (17, 4, 2)),
        ("settled", [], (14, 0, 2)),
        ("sent", [], (10, 6, 0)),
        ("arrived", [3], (13, 0, 2)),
        ("resumed", [1], (12, 4, 0)),
        ("resumed", [2], (10, 4, 2)),
    ],
)
def test_each_step_makes_a_new_record(name, arguments, expected):
    count = ExampleCount(known=10, in_flight=4, assumed=2)
    assert getattr(count, name)(*arguments) == ExampleCount(
        **dict(zip(["known", "in_flight", "assumed"], expected, strict=True))
    )
    assert count == ExampleCount(known=10, in_flight=4, assumed=2)
