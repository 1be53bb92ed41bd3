"""What users can see and depend on, frozen: a change here is a decision, not an accident."""

import inspect
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_bsscale

ROOT = Path(__file__).parents[1]
PUBLIC_NAMES = {
    *("BatchSizeScaler", "GradientNoiseScale", "GradientNoiseScaleMonitor", "NoiseScale", "functional", "__version__"),
    *("Decision", "Limits", "MetricValue", "NoiseScalePolicy", "Policy", "Reason", "Situation", "WarmupCosine"),
    *("HoldIfWorse", "Largest", "Milestones", "NormTest", "Seesaw", "Sequence", "Smith"),
    *("Capped", "Constant", "LearningRateRule", "Linear", "Power", "Saturating", "Sqrt", "Surge"),
    *("Beta2", "HyperparameterRule", "Momentum", "WeightDecay"),
}
# Those of BatchSizeScaler and NoiseScalePolicy are in docs/options.md, which test_docs.py compares.
CONSTRUCTORS = {
    "GradientNoiseScaleMonitor": {
        "measure_every": 16,
        "split": "auto",
        "loss_is_mean_over": "examples",
        "split_fn": None,
        "memory": 0.05,
        "batch_size_fn": None,
        "unit": "examples",
        "log_prefix": "bsscale/",
        "log_step": "optimizer",
        "log_figure": False,
        "record": False,
    },
    "WarmupCosine": {"final": 0.0},
    "Power": {"exponent": 0.75},
    "WeightDecay": {"exponent": 0.25},
    "Beta2": {"floor": 0.95},
    "Momentum": {},
}
OF_BOTH = {"history", "journal_path", "losses", "noise_scale", "state_key", "unit"}
PROPERTIES = {
    "BatchSizeScaler": {*OF_BOTH, "batch_size", "decisions", "examples_seen", "lr_scale", "planned_steps"},
    "GradientNoiseScaleMonitor": OF_BOTH,
}
FUNCTIONS = {"critical_batch_size", "measure_noise_scale", "noise_scale", "scale_learning_rate", "steps_and_examples"}
LOGGED_KEYS = {
    *("noise_scale", "noise_scale_high", "noise_scale_low", "grad_sq_norm", "grad_trace_cov"),
    *("batch_size", "accumulate_grad_batches", "examples_seen", "dropped_windows", "limited_windows", "lr", "lr_scale"),
    "hold_reason",
}
STATE_KEYS = {"schema", "run", "policy", "journal", "pace", "losses"}
RUN_KEYS = {
    *("first", "now", "is_resumed", "epoch", "loader_batches_in_epoch", "position", "windows", "window", "cut"),
    *("batch", "decisions", "examples", "lost_examples", "lost_loader_batches", "measured", "row_limit", "pending"),
    *("loader_batches", "search", "schedule_peak", "metrics"),
}


@pytest.mark.parametrize("name", sorted(PROPERTIES))
def test_properties_are_deliberate_and_read_only(name):
    named = inspect.getmembers(getattr(lightning_bsscale, name), lambda member: isinstance(member, property))
    found = {key: value for key, value in named if not key.startswith("_")}
    assert set(found) == PROPERTIES[name]
    assert all(value.fset is None for value in found.values())


def run_python(code: str) -> str:
    """Standard output of a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_public_names_are_deliberate():
    assert set(lightning_bsscale.__all__) == PUBLIC_NAMES
    assert not PUBLIC_NAMES - set(dir(lightning_bsscale))
    for name in PUBLIC_NAMES - {"__version__", "functional"}:
        assert getattr(lightning_bsscale, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = lightning_bsscale.nothing


@pytest.mark.parametrize("name", sorted(CONSTRUCTORS))
def test_constructor_parameters_are_deliberate(name):
    parameters = inspect.signature(getattr(lightning_bsscale, name)).parameters
    assert {key: parameter.default for key, parameter in parameters.items()} == CONSTRUCTORS[name]


@pytest.mark.parametrize("name", ["BatchSizeScaler", "GradientNoiseScaleMonitor", "NoiseScalePolicy"])
def test_options_are_keywords(name):
    parameters = inspect.signature(getattr(lightning_bsscale, name)).parameters.values()
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters)


def test_functions_are_deliberate():
    assert set(lightning_bsscale.functional.__all__) == FUNCTIONS


@pytest.mark.parametrize(
    "statement",
    [
        "import lightning_bsscale",
        "import lightning_bsscale.theory",
        "import lightning_bsscale.cli",
        "from lightning_bsscale import NoiseScale, NoiseScalePolicy, Sqrt, WarmupCosine",
    ],
)
def test_the_door_loads_no_torch(statement):
    code = f"import sys; {statement}; print([m for m in ('torch', 'lightning', 'numpy') if m in sys.modules])"
    assert run_python(code).strip() == "[]"


@pytest.mark.parametrize("words", ["['--help']", "['--version']", "['demo', '--help']", "['replay', '--help']"])
def test_help_loads_no_torch(words):
    code = (
        f"import sys, runpy; sys.argv = ['lightning_bsscale', *{words}]\n"
        "try:\n    runpy.run_module('lightning_bsscale', run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules"
    )
    assert run_python(code)


def test_the_callback_pickles_through_the_door():
    from lightning_bsscale import BatchSizeScaler

    assert pickle.loads(pickle.dumps(BatchSizeScaler)) is BatchSizeScaler
    copy = pickle.loads(pickle.dumps(BatchSizeScaler(warmup=0.1)))
    assert type(copy) is BatchSizeScaler


@pytest.fixture(scope="module")
def fitted():
    """Trainer and scaler after the smallest run in which every key appears."""
    from lightning_bsscale import BatchSizeScaler
    from tests.helpers.training import Regression, fit, regression_loader

    scaler = BatchSizeScaler(warmup=0)
    trainer = fit(Regression(), regression_loader(80), [scaler], max_epochs=1, accumulate_grad_batches=2)
    return trainer, scaler


def test_logged_keys_are_deliberate(fitted):
    trainer, _ = fitted
    logged = {key for key in trainer.callback_metrics if key.startswith("bsscale/")}
    assert logged == {f"bsscale/{key}" for key in LOGGED_KEYS}


def test_the_table_of_logged_keys():
    section = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8").split("## Logged keys")[1].split("\n## ")[0]
    first = [line.split("|")[1] for line in section.split("The numbers of")[0].splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`([\w-]+)`", " ".join(first))) - {"lr-SGD"} == LOGGED_KEYS


def test_state_keys_are_deliberate(fitted):
    _, scaler = fitted
    state = scaler.state_dict()
    assert set(state) == STATE_KEYS
    assert set(state["run"]) == RUN_KEYS
