"""Wrong options in a YAML file: LightningCLI ends with a message that names the option and what is allowed."""

import re

import pytest
import yaml

from tests.helpers.lightning_cli import callbacks_from


def from_yaml(text, name="BatchSizeScaler"):
    options = yaml.safe_load(text)
    return callbacks_from([{"class_path": f"lightning_bsscale.{name}", "init_args": options}])


# What LightningCLI finds by itself, before anything is made: text of the file, what stands on stderr.
REFUSED_BY_TYPE = [
    ("measure_every: often", r'Parser key "measure_every":\s+Expected a <class \'int\'>. Got value: often'),
    ("measure_every: 2.5", r'Parser key "measure_every":\s+Expected a <class \'int\'>. Got value: 2.5'),
    ("memory: much", r'Parser key "memory":\s+Expected a <class \'float\'>'),
    ("warmup: true", r'Parser key "warmup"'),
    ("total_examples: 1000000.0", r'Parser key "total_examples"'),
    ("max_batch_size: .inf", r'Parser key "max_batch_size"'),
    ("dry_run: maybe", r'Parser key "dry_run":\s+Expected a <class \'bool\'>. Got value: maybe'),
    ("record: 3", r'Parser key "record"'),
    ("measure_evry: 4", r"Option 'measure_evry' is not accepted"),
    ("batch_size_fn: no.such.module", r'Parser key "batch_size_fn"[\s\S]*No module named \'no\''),
    ("batch_size_fn: builtins.nothing", r'Parser key "batch_size_fn"[\s\S]*has no attribute \'nothing\''),
    (
        "policy: {class_path: lightning_bsscale.Sqrt}",
        r'Parser key "policy"[\s\S]*lightning_bsscale.Sqrt does not correspond to a subclass of Policy',
    ),
    (
        "lr_rule: {class_path: lightning_bsscale.NoiseScalePolicy}",
        r'Parser key "lr_rule"[\s\S]*does not correspond to a subclass of LearningRateRule',
    ),
    (
        "schedule: {class_path: torch.optim.lr_scheduler.StepLR}",
        r'Parser key "schedule"[\s\S]*does not correspond to a subclass of Schedule',
    ),
    (
        "policy: {class_path: lightning_bsscale.NoiseScalePolice}",
        r'Parser key "policy"[\s\S]*has no attribute \'NoiseScalePolice\'',
    ),
    (
        "policy: {class_path: lightning_bsscale.NoiseScalePolicy, init_args: {target: 0.5}}",
        r"Option 'target' is not accepted",
    ),
    (
        "policy: {class_path: lightning_bsscale.NoiseScalePolicy, init_args: {target_ratio: half}}",
        r'Parser key "target_ratio":\s+Expected a <class \'float\'>. Got value: half',
    ),
]


@pytest.mark.parametrize(("text", "match"), REFUSED_BY_TYPE, ids=[text for text, _ in REFUSED_BY_TYPE])
def test_lightning_cli_names_the_option(text, match, capsys):
    with pytest.raises(SystemExit) as end:
        from_yaml(text)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert re.search(match, said), said.split("error:")[-1]


# What only the callback can know, in its own words.
REFUSED_BY_VALUE = [
    ("measure_every: 0", "measure_every must be an integer of at least 1, got 0"),
    ("memory: .nan", "memory (a share of the budget; 1.0 averages over everything) must be a finite number above 0"),
    ("memory: null", "memory (a share of the budget; 1.0 averages over everything) must be a finite number above 0"),
    ("{lr_rule: none, lr_cap: 8}", "lr_cap=8 is a ceiling on the factor on the rate"),
    ("{warmup: 100, total_examples: 100}", "warmup=100 takes all of total_examples=100"),
    ("warmup: 1.5", "warmup (a float is a share of the budget, an int a number of examples) must be"),
    ("lr_cap: 0.5", "lr_cap must be a finite number at least 1, got 0.5"),
    ("policy: grow", "policy must be one of 'noise_scale', or an object"),
    ("policy: ''", "policy must be one of 'noise_scale', or an object"),
    ("lr_rule: quadratic", "lr_rule must be one of 'linear', 'sqrt', 'power', 'saturating', 'surge', 'none', 'auto'"),
    ("lr_rule: null", "lr_rule must be one of 'linear', 'sqrt', 'power', 'saturating', 'surge', 'none', 'auto'"),
    ("schedule: triangle", "schedule must be one of 'cosine', 'linear', 'step', 'exponential', 'constant'"),
    ("log_prefix: null", "log_prefix must be a string, got None"),
    ("record: ''", "record must be True, False or the path of a file, got ''"),
    (
        "policy: {class_path: lightning_bsscale.NoiseScalePolicy, init_args: {target_ratio: -1}}",
        "target_ratio must be a finite number above 0, got -1.0",
    ),
    (
        "lr_rule: {class_path: lightning_bsscale.Power, init_args: {exponent: 2}}",
        "exponent must be a finite number at least 0 and at most 1, got 2.0",
    ),
    (
        "schedule: {class_path: lightning_bsscale.WarmupCosine, init_args: {final: 2}}",
        "final must be a finite number at least 0 and at most 1, got 2.0",
    ),
]


@pytest.mark.parametrize(("text", "sentence"), REFUSED_BY_VALUE, ids=[text for text, _ in REFUSED_BY_VALUE])
def test_the_callbacks_own_sentence_stands_in_the_error(text, sentence):
    with pytest.raises(ValueError, match=rf"- {re.escape(sentence)}"):
        from_yaml(text)


@pytest.mark.parametrize(
    ("text", "match"), [("measure_every: x", '"measure_every"'), ("policy: noise_scale", "'policy' is not accepted")]
)
def test_the_monitor(text, match, capsys):
    with pytest.raises(SystemExit):
        from_yaml(text, "GradientNoiseScaleMonitor")
    assert match in capsys.readouterr().err


def test_numbers_that_yaml_reads_as_words():
    """YAML takes 5e-2 for a word; the option's own type decides."""
    (scaler,) = from_yaml("{memory: 5e-2, max_batch_size: 1_000, warmup: 1_000}")
    assert scaler._options.memory == 0.05
    assert scaler._options.max_batch_size == scaler._options.warmup == 1000
    assert type(scaler._options.warmup) is int
