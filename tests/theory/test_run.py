"""Random trainings by the pure functions alone: what is counted, what is the same on all ranks, what resumes."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_bsscale.theory import run
from lightning_bsscale.theory.stored import as_plain
from tests.helpers.simulated_run import SIZE, Host, Program, stored_again

lengths = st.integers(1, 11)


@st.composite
def programs(draw, most_ranks):
    announced = draw(lengths)
    is_sized = draw(st.booleans())
    length = lengths if not is_sized else st.one_of(st.just(announced), st.integers(1, announced))
    decides = draw(st.integers(0, 5)) > 0
    return Program(
        epochs=tuple(draw(st.lists(length, min_size=1, max_size=4))),
        announced=announced if is_sized else None,
        last_size=draw(st.integers(1, SIZE)),
        ranks=draw(st.integers(1, most_ranks)),
        accumulate=draw(st.integers(1, 3)),
        max_steps=draw(st.none() | st.integers(1, 25)),
        batches=tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))),
        splits=draw(st.booleans()),
        measure_every=draw(st.integers(1, 3)),
        warmup=draw(st.sampled_from([0.0, 30.0])),
        acts=draw(st.booleans()),
        decides=decides,
        explained=tuple(draw(st.lists(st.sampled_from([None, True, True, False]), min_size=1, max_size=3))),
        finite=tuple(draw(st.lists(st.sampled_from([True, True, False]), min_size=1, max_size=3))),
    )


def check_walk(program, step=Host.loader_batch):
    """Train it, and check every state on the way."""
    host = Host.begin(program)
    for place in program.places():
        if host.is_over:
            break
        step(host, *place)
        states = [as_plain(replace(state, window=None)) for state in host.states]  # plain, as NaN is not NaN
        assert states == states[:1] * program.ranks, "ranks differ"
        assert as_plain(stored_again(host.state)) == as_plain(host.state), "not stored as it is"
    check_counts(host)
    return host


def check_counts(host):
    """Every loader batch entered one step or was dropped, once; examples are exact as far as messages have arrived."""
    state, places = host.state, host.program.places()
    trained = state.loader_batches_in_epoch + sum(host.program.epochs[: state.epoch])
    in_steps = [(epoch, index) for epoch, start, begun, *_ in host.steps for index in range(start, start + begun)]
    is_open = 0 if state.window is None else state.window.ended
    assert in_steps == [place for place in places[:trained] if place in set(in_steps)], "twice, or out of order"
    assert len(in_steps) + state.lost_loader_batches + is_open == trained
    assert state.windows == len(host.steps)
    for made in state.measured.history:
        assert made.examples_seen == host.truth[made.optimizer_steps], "examples after a message"
    if host.program.ranks == 1:
        assert state.examples.total == host.truth[-1]


@given(program=programs(most_ranks=3))
def test_every_loader_batch_is_counted_once_and_alike_on_all_ranks(program):
    check_walk(program)


def sends_twice(host, epoch, index):
    unsent = list(host.unsent)
    host.loader_batch(epoch, index)
    host.unsent = [now or before for now, before in zip(host.unsent, unsent, strict=True)]


def with_own_message(host, epoch, index):
    host.loader_batch(epoch, index)
    pending = host.states[1].pending
    if pending is not None:
        own = replace(host.in_flight, examples=host.in_flight.examples + 1)
        host.states[1] = replace(host.states[1], pending=replace(pending, arrived=own))


def skips_a_loader_batch(host, epoch, index):
    if index != 1:
        host.loader_batch(epoch, index)


@pytest.mark.parametrize("wrong", [sends_twice, with_own_message, skips_a_loader_batch])
def test_a_host_that_does_it_wrong_is_found(wrong):
    program = Program(epochs=(10, 10), ranks=2, batches=(2, 3), last_size=2, measure_every=7)
    check_walk(program)
    with pytest.raises(AssertionError):
        check_walk(program, wrong)


def resumed_at(program, place, **forgets):
    """Train up to a place, store, resume, and train to the end; with what was stored."""
    places = program.places()
    host = Host.begin(program).train(places[:place])
    stored = stored_again(host.snapshot())
    stored = replace(stored, **forgets)
    again = Host.resume(program, stored, epoch=places[min(place, len(places) - 1)][0])
    again.is_over = host.is_over
    return stored, host, again.train(places[place:])


def future(host):
    """What a run without a break and one that was resumed must have in common at their end."""
    return as_plain(replace(host.state, is_resumed=False))


def assert_same_future(program, place, **forgets):
    whole = Host.begin(program).train(program.places())
    _, first, again = resumed_at(program, place, **forgets)
    assert [*map(str, first.steps + again.steps)] == [*map(str, whole.steps)]
    assert future(again) == future(whole)


@given(program=programs(most_ranks=2).filter(lambda p: p.ranks == 1 or p.announced is not None))
def test_resumed_at_any_windows_end_it_has_the_future_of_a_run_without_a_break(program):
    # Examples that no message has brought are taken as usual ones: a loader of several ranks ends as it announced.
    if program.ranks > 1:
        program = replace(program, epochs=(program.announced,) * len(program.epochs))
    host, places = Host.begin(program), program.places()
    for place, now in enumerate(places):
        if place > 0 and host.state.window is None and not host.is_over:
            assert_same_future(program, place)
        host.train([now])


@pytest.mark.parametrize(
    "forgets",
    [
        {"windows": 0},
        {"pending": None},
        {"decisions": run.RunState.__dataclass_fields__["decisions"].default_factory()},
        {"measured": run.RunState.__dataclass_fields__["measured"].default_factory()},
        {"loader_batches_in_epoch": 0},
    ],
    ids=lambda forgets: next(iter(forgets)),
)
def test_a_checkpoint_that_forgets_something_is_found(forgets):
    program, place = Program(epochs=(8, 8), announced=9, batches=(2, 2, 4), accumulate=2), 8
    assert_same_future(program, place)
    with pytest.raises(AssertionError):
        assert_same_future(program, place, **forgets)


@given(program=programs(most_ranks=1))
def test_resumed_within_a_window_what_is_left_of_it_makes_a_window(program):
    host, places = Host.begin(program), program.places()
    for place in range(1, len(places)):
        host.train(places[place - 1 : place])
        window = host.state.window
        if host.is_over or window is None or places[place][0] != places[place - 1][0]:
            continue
        stored, _, again = resumed_at(program, place)
        assert stored.window == window
        assert again.state.lost_loader_batches >= window.ended
        lost = stored.lost_loader_batches + window.ended
        if program.settings.acts and again.steps:
            rest = window.planned - window.ended
            assert again.steps[0][:2] == places[place]
            assert again.steps[0][2] <= rest
            assert again.steps[0][2] == rest or again.state.lost_examples or again.is_over or program.announced is None
        in_steps = sum(step[2] for step in [*host.steps, *again.steps])
        open_now = 0 if again.state.window is None else again.state.window.ended
        trained = again.state.loader_batches_in_epoch + sum(program.epochs[: again.state.epoch])
        assert in_steps + again.state.lost_loader_batches + open_now == trained
        assert again.state.lost_loader_batches >= lost


def test_resumed_again_before_anything_is_trained_nothing_is_lost_twice():
    program = Program(batches=(5,), accumulate=5)
    stored, _, again = resumed_at(program, 2)
    once = Host.resume(program, stored, epoch=0).state
    twice = Host.resume(program, stored_again(once), epoch=0)
    assert (once.cut.lost, once.cut.rest, once.lost_loader_batches) == (2, 3, 2)
    assert twice.state == once
    assert twice.train(program.places()[2:]).steps == again.steps
    assert again.steps[0][1:3] == (2, 3)


@pytest.mark.parametrize(("ranks", "loader_batches"), [(1, 6), (2, 3), (3, 2)])
def test_resumed_on_other_ranks_batch_and_examples_stay(ranks, loader_batches):
    stored = stored_again(Host.begin(Program(ranks=3, batches=(2,))).train([(0, 0), (0, 1), (0, 2)]).snapshot())
    again = Host.resume(Program(ranks=ranks), stored, epoch=0).state
    assert (again.batch.batch_size, again.examples.total) == (24, 36)
    assert again.batch.batch_size // again.now.granularity == loader_batches
    assert (again.pending is None) == (ranks != 3)


@pytest.mark.parametrize(("granularity", "rest"), [(4, 3), (2, 6), (1, 12), (6, 2), (100, 1)])
def test_with_another_loader_batch_the_rest_of_a_window_keeps_its_examples(granularity, rest):
    program = Program(batches=(5,), accumulate=5)
    stored = stored_again(Host.begin(program).train(program.places()[:2]).snapshot())
    now = replace(program.settings.now, granularity=granularity)
    assert Host.resume(program, stored, epoch=0, now=now).state.cut.rest == rest


def test_examples_of_a_message_of_other_ranks_count():
    program = Program(ranks=3, epochs=(4,), announced=4, last_size=2)  # the last window has 2 + 2 + 1
    stored = stored_again(Host.begin(program).train(program.places()).snapshot())
    assert stored.examples.total == 4 * 12
    for ranks, examples in ((2, 41), (1, 41), (3, 48)):
        assert Host.resume(Program(ranks=ranks), stored, epoch=0).state.examples.total == examples


def steps_of(program):
    return Host.begin(program).train(program.places()).steps


@pytest.mark.parametrize(
    ("changes", "lengths"),
    [
        ({}, [1] * 10),
        ({"batches": (3,)}, [1, 3, 3, 3]),
        ({"accumulate": 2, "batches": (4, 3)}, [2, 3, 4, 1]),
        ({"accumulate": 2, "batches": (5,), "max_steps": 4}, [2, 5, 1]),
        ({"accumulate": 4, "acts": False, "batches": (1,)}, [4, 4, 2]),
    ],
)
def test_lengths_of_windows(changes, lengths):
    assert [step[2] for step in steps_of(replace(Program(), **changes))] == lengths


@pytest.mark.parametrize(
    ("changes", "measured"),
    [
        ({}, []),  # no pair
        ({"splits": True}, [0, 4, 8]),
        ({"splits": True, "rows": 1}, []),  # a loader batch of one example has no halves
        ({"splits": True, "warmup": 40.0}, [0, 4, 8]),  # what must be split is not measured more often in the warmup
        ({"accumulate": 2, "batches": (2,), "warmup": 20.0}, [0, 1, 2, 4]),
        ({"ranks": 2}, [0, 4, 8, 9]),  # on several ranks an epoch's last too: the count is exact there
        ({"accumulate": 2, "batches": (2,)}, [0, 2, 4]),  # every fourth loader batch is in a measured window
        ({"accumulate": 3, "batches": (3,)}, [0, 1, 2]),
        ({"accumulate": 4, "batches": (4,)}, [0, 1, 2]),
        ({"ranks": 2, "warmup": 40.0}, [0, 1, 2, 3, 4, 8, 9]),
        ({"ranks": 2, "max_steps": 7, "announced": None}, [0, 4, 6]),
    ],
)
def test_which_windows_are_measured(changes, measured):
    steps = steps_of(replace(Program(measure_every=4), **changes))
    assert [number for number, step in enumerate(steps) if step[3]] == measured


def test_the_rest_of_a_window_has_the_factor_of_its_own_size():
    program = Program(batches=(4,), accumulate=1)
    _, host, again = resumed_at(program, 3)  # of the second window, two of four
    assert [step[4] for step in again.steps] == [(2.0, 1.0), (4.0, 1.0), (1.0, 1.0)]
    assert [step[2] for step in host.steps + again.steps] == [1, 2, 4, 1]


def test_what_was_seen_with_gradients_that_were_found_changed_is_discarded():
    host = Host.begin(Program(accumulate=2, batches=(2,), explained=(True, False))).train([(0, 0), (0, 1)])
    assert host.state.pending is not None
    host.in_flight = replace(host.in_flight, explained=False)
    host.train([(0, 2), (0, 3)])
    state = host.state
    assert (state.pending, state.measured.history, state.measured.agreement.is_good) == (None, (), False)


def test_no_function_changes_the_record_that_it_takes(monkeypatch):
    taken = []

    def watched(name, function):
        def called(settings, state, *args, **kwargs):
            before = as_plain(state)
            result = function(settings, state, *args, **kwargs)
            assert as_plain(state) == before, name
            taken.append(name)
            return result

        return called

    names = ["start_epoch", "drop_window", "open_window", "learning_rate_factors", "close_window", "ask_policy"]
    for name in names:
        monkeypatch.setattr(run, name, watched(name, getattr(run, name)))
    program = Program(epochs=(7, 3, 9), announced=9, batches=(4, 2, 1), splits=True, acts=False, accumulate=2)
    for changed in (program, replace(program, acts=True, ranks=2)):
        check_walk(changed)
    assert set(taken) == set(names)

    def moves(settings, state, *args, **kwargs):
        object.__setattr__(state, "windows", state.windows + 1)
        return state

    with pytest.raises(AssertionError, match="moves"):
        watched("moves", moves)(program.settings, Host.begin(program).state)
