"""The callback from a YAML file and from flags, through LightningCLI."""

import pytest
import yaml

from lightning_bsscale import BatchSizeScaler, GradientNoiseScaleMonitor, NoiseScalePolicy, Power
from lightning_bsscale.theory.rules import Capped, Sqrt
from lightning_bsscale.theory.schedules import WarmupCosine
from tests.helpers.lightning_cli import callbacks_from


def test_without_options():
    (scaler,) = callbacks_from([{"class_path": "lightning_bsscale.BatchSizeScaler"}])
    assert type(scaler) is BatchSizeScaler


def test_every_kind_of_option():
    text = """
    - class_path: lightning_bsscale.BatchSizeScaler
      init_args:
        policy:
          class_path: lightning_bsscale.NoiseScalePolicy
          init_args:
            target_ratio: 0.25
        lr_rule:
          class_path: lightning_bsscale.Capped
          init_args:
            rule:
              class_path: lightning_bsscale.Sqrt
            cap: 8
        schedule:
          class_path: lightning_bsscale.WarmupCosine
          init_args:
            final: 0.05
        warmup: 1000
        max_batch_size: 512
        batch_size_fn: builtins.len
        record: runs/journal.jsonl
        dry_run: true
    """
    (scaler,) = callbacks_from(yaml.safe_load(text))
    assert scaler._options.policy == NoiseScalePolicy(target_ratio=0.25)
    assert scaler._options.rule_for.args[0] == Capped(Sqrt(), 8)
    assert scaler._options.schedule == WarmupCosine(final=0.05)
    assert scaler._options.warmup == 1000
    assert type(scaler._options.warmup) is int
    assert scaler._options.max_batch_size == 512
    assert scaler._options.batch_size_fn is len
    assert scaler._options.record == "runs/journal.jsonl"
    assert scaler._options.dry_run is True


def test_by_name_and_by_flags():
    (scaler,) = callbacks_from(
        None,
        "--trainer.callbacks+=lightning_bsscale.BatchSizeScaler",
        "--trainer.callbacks.lr_rule=sqrt",
        "--trainer.callbacks.warmup=0.1",
        "--trainer.callbacks.record=true",
        "--trainer.logger=false",
        "--trainer.accelerator=cpu",
    )
    assert scaler._options.rule_for.args[0] == "sqrt"
    assert scaler._options.warmup == 0.1
    assert scaler._options.record is True


def test_a_rule_with_an_option():
    config = {
        "class_path": "lightning_bsscale.BatchSizeScaler",
        "init_args": {"lr_rule": {"class_path": "lightning_bsscale.Power", "init_args": {"exponent": 0.6}}},
    }
    (scaler,) = callbacks_from([config])
    assert scaler._options.rule_for.args[0] == Power(exponent=0.6)


def test_the_monitor():
    config = {"class_path": "lightning_bsscale.GradientNoiseScaleMonitor", "init_args": {"measure_every": 4}}
    (monitor,) = callbacks_from([config])
    assert type(monitor) is GradientNoiseScaleMonitor


@pytest.mark.parametrize("options", [{"lr_rule": "quadratic"}, {"measure_every": 0}, {"warmup": -1}, {"nonsense": 1}])
def test_a_wrong_option_is_refused_with_its_name(options, capsys):
    config = {"class_path": "lightning_bsscale.BatchSizeScaler", "init_args": options}
    with pytest.raises((SystemExit, ValueError)) as caught:
        callbacks_from([config])
    assert next(iter(options)) in capsys.readouterr().err + str(caught.value)


def test_help_prints_the_options(capsys):
    with pytest.raises(SystemExit):
        callbacks_from(None, "--trainer.callbacks.help=lightning_bsscale.BatchSizeScaler")
    text = " ".join(capsys.readouterr().out.split())
    assert "--trainer.callbacks.warmup" in text
    assert "share of the budget" in text
