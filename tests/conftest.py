"""What every test gets: one thread per worker, a clock, and a check that nothing global is left behind."""

import os
import sys

# Before torch is imported: workers that each start a thread per core only slow each other down.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["MKL_NUM_THREADS"] = "1"
# No display is needed, and none is opened.
os.environ.setdefault("MPLBACKEND", "agg")

import pytest

# Set by Lightning or torch in passing, for good reasons of their own. They are put back, not complained about.
SET_BY_OTHERS = frozenset(
    {
        "CUBLAS_WORKSPACE_CONFIG",
        "KMP_DUPLICATE_LIB_OK",  # this and the next by scikit-learn's import
        "KMP_INIT_AT_FORK",
        "KINETO_LOG_LEVEL",
        "PL_GLOBAL_SEED",
        "PL_SEED_WORKERS",
        "PYTEST_CURRENT_TEST",
        "PYTORCH_NVML_BASED_CUDA_CHECK",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING",
        "TRITON_CACHE_DIR",
        "TRITON_HOME",
        "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR",
    }
)


def pytest_addoption(parser):
    parser.addoption("--nightly", action="store_true", help="more kills, more random programs, long trainings")


def pytest_collection_modifyitems(config, items):
    """Without --nightly the long trainings are deselected, which pytest's closing line says."""
    if not config.getoption("--nightly"):
        nightly = [item for item in items if item.get_closest_marker("nightly")]
        items[:] = [item for item in items if item not in nightly]
        config.hook.pytest_deselected(items=nightly)


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu"):
        import torch

        if torch.cuda.device_count() == 0:
            pytest.skip("needs CUDA devices, found 0")


@pytest.fixture
def kills(request):
    """How often a training is killed."""
    return 50 if request.config.getoption("--nightly") else 6


@pytest.fixture(autouse=True)
def untimed(request, monkeypatch):
    """The search for the fastest micro-batch measures nothing, except in a test marked `clock`.

    Runs are compared bit by bit, and what a clock decides differs from run to run.
    """
    timing = sys.modules.get("lightning_bsscale.callbacks.trainer.timing")
    if timing is not None and not request.node.get_closest_marker("clock"):
        monkeypatch.setattr(timing.RowTimes, "take", lambda self: (0.0, 0))


@pytest.fixture(autouse=True)
def short_runs_may_grow(request, monkeypatch):
    """The noise-scale policy has no `min_steps` by default, except in a test marked `min_steps`.

    A test trains for tens of steps, where the true default would never let the batch grow.
    """
    policies = sys.modules.get("lightning_bsscale.theory.policies.noise_scale")
    if policies is not None and not request.node.get_closest_marker("min_steps"):
        monkeypatch.setitem(policies.NoiseScalePolicy.__init__.__kwdefaults__, "min_steps", 0)


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """Environment, default dtype, determinism, process group and random state are afterwards as they were before.

    torch is looked at only where something has imported it, so that the tests of `theory` stay free of it.
    """
    environment = dict(os.environ)
    torch = sys.modules.get("torch")
    before = torch_settings(torch) if torch else None
    random_state = torch.get_rng_state() if torch else None
    yield
    changed = {
        name
        for name in {*environment, *os.environ} - SET_BY_OTHERS
        if environment.get(name) != os.environ.get(name) and not name.startswith(("TORCHINDUCTOR_", "_TORCHINDUCTOR_"))
    }
    for name in {*environment, *os.environ} - {"PYTEST_CURRENT_TEST"}:
        if name in environment:
            os.environ[name] = environment[name]
        else:
            del os.environ[name]
    left = [f"environment variables {sorted(changed)}"] if changed else []
    torch = sys.modules.get("torch")
    if torch is not None:
        if before is None:
            before = dict(default_dtype=torch.float32, deterministic=False)
        else:
            torch.set_rng_state(random_state)
        left += [
            f"{name}: {before[name]} became {value}"
            for name, value in torch_settings(torch).items()
            if before[name] != value
        ]
        torch.set_default_dtype(before["default_dtype"])
        torch.use_deterministic_algorithms(before["deterministic"])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
            left.append("a process group")
    assert not left, f"left behind: {left}"


def torch_settings(torch):
    return dict(default_dtype=torch.get_default_dtype(), deterministic=torch.are_deterministic_algorithms_enabled())
