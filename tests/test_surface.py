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
    "BatchSizeScaler",
    "Capped",
    "Constant",
    "Decision",
    "GradientNoiseScale",
    "GradientNoiseScaleMonitor",
    "LearningRateRule",
    "Limits",
    "Linear",
    "NoiseScale",
    "NoiseScalePolicy",
    "Policy",
    "Power",
    "Reason",
    "Saturating",
    "Situation",
    "Sqrt",
    "Surge",
    "WarmupCosine",
    "__version__",
    "functional",
}
# Those of BatchSizeScaler and NoiseScalePolicy are in the README's table, which test_docs.py compares.
CONSTRUCTORS = {
    "GradientNoiseScaleMonitor": {
        "measure_every": 8,
        "memory": 0.05,
        "batch_size_fn": None,
        "log_prefix": "bsscale/",
        "record": False,
    },
    "WarmupCosine": {"final": 0.0},
    "Power": {"exponent": 0.75},
}
PROPERTIES = {
    "BatchSizeScaler": {
        "batch_size",
        "decisions",
        "examples_seen",
        "history",
        "journal_path",
        "lr_scale",
        "noise_scale",
        "planned_steps",
        "state_key",
    },
    "GradientNoiseScaleMonitor": {"history", "journal_path", "noise_scale", "state_key"},
}
FUNCTIONS = {"critical_batch_size", "noise_scale", "scale_learning_rate", "steps_and_examples"}
LOGGED_KEYS = {
    "accumulate_grad_batches",
    "batch_size",
    "dropped_windows",
    "examples_seen",
    "grad_sq_norm",
    "grad_trace_cov",
    "limited_windows",
    "lr",
    "lr_scale",
    "noise_scale",
    "noise_scale_high",
    "noise_scale_low",
}
STATE_KEYS = {"schema", "run", "policy", "journal"}
RUN_KEYS = {
    "batch",
    "cut",
    "decisions",
    "epoch",
    "examples",
    "first",
    "is_resumed",
    "lost_examples",
    "lost_micro_batches",
    "measured",
    "micro_batches_in_epoch",
    "now",
    "pending",
    "position",
    "window",
    "windows",
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


@pytest.mark.parametrize("name", sorted(PUBLIC_NAMES))
def test_every_public_name_is_there(name):
    value = getattr(lightning_bsscale, name)
    assert name in {"__version__", "functional"} or value.__name__ == name


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
    "statement", ["import lightning_bsscale", "import lightning_bsscale.theory", "import lightning_bsscale.cli"]
)
def test_the_door_loads_no_torch(statement):
    code = f"import sys; {statement}; print([m for m in ('torch', 'lightning', 'numpy') if m in sys.modules])"
    assert run_python(code).strip() == "[]"


def test_theory_loads_no_torch():
    code = (
        "import sys; from lightning_bsscale import NoiseScale, NoiseScalePolicy, Sqrt, WarmupCosine; "
        "print([m for m in ('torch', 'lightning', 'numpy') if m in sys.modules])"
    )
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
def fitted(tmp_path_factory):
    """Trainer and scaler after a few steps of a linear model: the smallest run in which every key appears."""
    import torch
    from lightning.pytorch import Trainer
    from lightning.pytorch.demos.boring_classes import BoringModel

    from lightning_bsscale import BatchSizeScaler

    class Model(BoringModel):
        def configure_optimizers(self):
            return torch.optim.SGD(self.layer.parameters(), lr=0.01)

    scaler = BatchSizeScaler(warmup=0)
    trainer = Trainer(
        max_epochs=1,
        limit_val_batches=0,
        callbacks=[scaler],
        accumulate_grad_batches=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path_factory.mktemp("surface"),
    )
    trainer.fit(Model())
    return trainer, scaler


def test_logged_keys_are_deliberate(fitted):
    trainer, _ = fitted
    logged = {key for key in trainer.callback_metrics if key.startswith("bsscale/")}
    assert logged == {f"bsscale/{key}" for key in LOGGED_KEYS}


def test_the_readmes_table_of_logged_keys():
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## Logged keys")[1].split("\n## ")[0]
    assert set(re.findall(r"`bsscale/(\w+)`", section)) == LOGGED_KEYS


def test_state_keys_are_deliberate(fitted):
    _, scaler = fitted
    state = scaler.state_dict()
    assert set(state) == STATE_KEYS
    assert set(state["run"]) == RUN_KEYS
