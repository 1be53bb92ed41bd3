import copy

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from lightning_bsscale.gradients import tensor_hooks
from lightning_bsscale.gradients.parameter_hooks import ParameterHooks, mean_squared_norm
from tests.helpers.gradient_models import WIDTH, ZOO, Frozen, Mlp, Tied, loss_of, micro_batches, watched
from tests.helpers.oracles import own_sq_norms, sq_norm
from tests.helpers.processes import run
from tests.helpers.sharded_models import hooked


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def check_norms(hooks, model):
    batches = micro_batches()
    expected = own_sq_norms(model, batches, loss_of)
    assert watched(hooks, model, batches).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("grad_is_own", [False, True])
@pytest.mark.parametrize("limit", [0, 10, 10**9], ids=["at_once", "few", "at_the_end"])
@pytest.mark.parametrize("name", [name for name in ZOO if name != "reentrant_shared"])
def test_norms_are_those_of_the_oracle(name, limit, grad_is_own, monkeypatch):
    monkeypatch.setattr(tensor_hooks, "MAX_WAITING_ELEMENTS_CPU", limit)
    model, batches = ZOO[name](), micro_batches()
    expected = own_sq_norms(model, batches, loss_of)
    found = watched(ParameterHooks(model.parameters(), grad_is_own=grad_is_own), model, batches)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(expected, rel=1e-5)
    assert hooked(model) == 0


def test_a_hook_of_the_users_made_within_a_window_stays():
    model = Mlp()
    hooks, seen = ParameterHooks(model.parameters()), []
    hooks.start_window()
    model.first.weight.register_hook(lambda gradient: seen.append(1))
    hooks.stop_window()
    loss_of(model, micro_batches()[0]).backward()
    assert seen == [1]
    assert model.first.bias._backward_hooks is None


def test_the_first_norm_of_a_window_comes_from_grad_only_where_it_is_its_own():
    """Whatever is in `.grad` before, the norm is the micro-batch's; and on one device the first needs no copy."""
    model = Mlp()
    hooks = ParameterHooks(model.parameters(), grad_is_own=True)
    check_norms(hooks, model)
    check_norms(hooks, model)  # .grad was left there
    model.zero_grad(set_to_none=False)
    check_norms(hooks, model)
    # Where autograd may hand its gradient over, what it handed over is `.grad` itself; a kept reference forces a copy.
    for grad_is_own in (False, True):
        model.zero_grad()
        handed = []
        handle = model.get_parameter("first.weight").register_hook(lambda g, handed=handed: handed.append(g.data_ptr()))
        watched(ParameterHooks(model.parameters(), grad_is_own=grad_is_own), model, micro_batches(1))
        handle.remove()
        assert (model.get_parameter("first.weight").grad.data_ptr() == handed[0]) == grad_is_own


@pytest.mark.parametrize("grad_is_own", [False, True])
@pytest.mark.parametrize("name", sorted(ZOO))
def test_gradients_are_bit_identical(name, grad_is_own):
    model, batches = ZOO[name](), micro_batches()
    bare = copy.deepcopy(model)
    for x in batches:
        loss_of(bare, x).backward()
    watched(ParameterHooks(model.parameters(), grad_is_own=grad_is_own), model, batches)
    for p, q in zip(model.parameters(), bare.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            assert p.grad.layout == q.grad.layout
            assert torch.equal(p.grad.to_dense(), q.grad.to_dense())


@pytest.mark.parametrize("name", sorted(ZOO))
def test_mean_squared_norm_is_that_of_the_step(name):
    model = ZOO[name]()
    for x in micro_batches():
        loss_of(model, x).backward()
    expected = sum(sq_norm(p.grad) for p in model.parameters() if p.grad is not None)
    assert mean_squared_norm(model.parameters()).item() == pytest.approx(expected, rel=1e-5)


def test_parts_that_wait_together_are_added_before_they_are_squared(monkeypatch):
    monkeypatch.setattr(tensor_hooks, "MAX_WAITING_ELEMENTS_CPU", 10**9)
    model, batches = ZOO["reentrant_shared"](), micro_batches()
    calls = []
    for p in model.parameters():
        p.register_hook(lambda _, p=p: calls.append(id(p)))
    found = watched(ParameterHooks(model.parameters()), model, batches)
    assert len(calls) > len(set(calls)) * len(batches), "torch gives no parts any more: this test tests nothing"
    fresh = copy.deepcopy(model)
    assert found.tolist() == pytest.approx(own_sq_norms(fresh, batches, loss_of), rel=1e-5)


def test_parts_too_far_apart_cost_one_sample(monkeypatch):
    monkeypatch.setattr(tensor_hooks, "MAX_WAITING_ELEMENTS_CPU", 0)
    model, batches = ZOO["reentrant_shared"](), micro_batches()
    expected = own_sq_norms(model, batches, loss_of)
    hooks = ParameterHooks(model.parameters())
    found = watched(hooks, model, batches).tolist()
    assert found[0] != found[0]  # NaN: unknown, and said so
    assert found[1:] == pytest.approx(expected[1:], rel=1e-5)
    assert watched(hooks, model, batches).tolist() == pytest.approx(expected, rel=1e-5)


def test_parts_squared_apart_would_be_wrong():
    # The twin: what a plain hook that squares whatever it is given would say of the same model.
    model, batches = ZOO["reentrant_shared"](), micro_batches(1)
    squares = []
    for p in model.parameters():
        p.register_hook(lambda g: squares.append(sq_norm(g)))
    loss_of(model, batches[0]).backward()
    assert sum(squares) != pytest.approx(own_sq_norms(copy.deepcopy(model), batches, loss_of)[0], rel=1e-2)


def test_a_parameter_counts_from_the_window_after_it_is_unfrozen():
    model = Frozen()
    hooks = ParameterHooks(model.parameters())
    check_norms(hooks, model)
    model.first.requires_grad_(True)
    check_norms(hooks, model)
    model.second.requires_grad_(False)
    check_norms(hooks, model)


def test_a_parameter_given_twice_counts_once():
    model = Mlp()
    check_norms(ParameterHooks([*model.parameters(), *model.parameters()]), model)


def test_gradients_outside_the_backward_pass_do_not_count():
    def penalised(model, x):
        x = x.clone().requires_grad_()
        value = model(x).square().sum()
        parameters = [x, *model.parameters()]
        gradients = torch.autograd.grad(value, parameters, create_graph=True)
        return (value + gradients[0].square().sum()) / len(x)

    model, batches = Mlp(), micro_batches()
    expected = own_sq_norms(model, batches, penalised)
    found = watched(ParameterHooks(model.parameters()), model, batches, penalised)
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.filterwarnings("ignore:.*create_graph=True.*")  # of a reference cycle, which zero_grad undoes
def test_a_gradient_with_a_graph_of_its_own():
    model, batches = Mlp(), micro_batches(2)
    expected = own_sq_norms(model, batches, loss_of)
    found = watched(ParameterHooks(model.parameters()), model, batches, create_graph=True)
    model.zero_grad()
    assert not found.requires_grad
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_without_gradients_the_mean_is_zero():
    assert mean_squared_norm(Mlp().parameters()).item() == 0.0
    assert mean_squared_norm([]).item() == 0.0


@pytest.mark.parametrize("name", ["mlp", "tied", "used_twice", "frozen", "checkpoint_shared"])
def test_compiled_models_are_not_compiled_again(name):
    check_compiled(ZOO[name](), "aot_eager")


@pytest.mark.nightly
@pytest.mark.timeout(300)
def test_compiled_by_inductor():
    try:
        torch.compile(lambda x: x.sin().sum() + 1, backend="inductor")(torch.ones(8))
    except Exception as error:
        if "compiler" not in str(error).lower():
            raise
        pytest.skip(f"inductor finds no C++ compiler here: {error!r:.200}")
    check_compiled(Tied(), "inductor")


def check_compiled(model, backend):
    """Hooks come and go between windows, and the graphs of the first call serve them all."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(model, backend=counter)
    batches = [torch.randn(4, WIDTH) for _ in range(3)]
    expected = own_sq_norms(model, batches, loss_of)
    hooks = ParameterHooks(model.parameters())
    loss_of(compiled, batches[0]).backward()  # compiled without hooks, watched with them
    graphs = counter.frame_count
    assert graphs >= 1
    for _ in range(3):
        found = watched(hooks, compiled, batches)
        assert found.tolist() == pytest.approx(expected, rel=1e-4)
        model.zero_grad()
        loss_of(compiled, batches[0]).backward()
    assert counter.frame_count == graphs

    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(model, backend=counter)
    hooks.start_window()
    loss_of(compiled, batches[0]).backward()  # compiled with hooks in place
    hooks.stop_window()
    assert watched(hooks, compiled, batches).tolist() == pytest.approx(expected, rel=1e-4)
    loss_of(compiled, batches[0]).backward()
    assert counter.frame_count == graphs
    torch._dynamo.reset()


def test_with_ddp_the_norms_are_those_of_the_own_process():
    first, second = run(under_ddp, 2)
    for found, expected in (first, second):
        assert found == pytest.approx(expected, rel=1e-5)
    assert first[1] != second[1]


def under_ddp(rank):
    torch.manual_seed(0)
    model = Tied()
    torch.manual_seed(1 + rank)
    batches = micro_batches(3)
    expected = own_sq_norms(model, batches, loss_of)
    return watched(ParameterHooks(model.parameters()), DistributedDataParallel(model), batches).tolist(), expected
