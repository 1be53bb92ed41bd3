import json

import pytest

from lightning_bsscale.theory.critical_batch_ratio import read_critical_batch_ratio
from lightning_bsscale.theory.policies import NoiseScalePolicy


def test_a_number_or_a_probes_value(tmp_path):
    path = tmp_path / "probe.json"
    path.write_text(json.dumps({"critical_batch_ratio": {"value": 2.5, "low": 1.0, "high": 4.0}, "seconds": 3}))
    for given, ratio in ((path, 2.5), (str(path), 2.5), (0.5, 0.5), (3, 3.0)):
        assert read_critical_batch_ratio("target_ratio", given) == ratio
        assert NoiseScalePolicy(target_ratio=given) == NoiseScalePolicy(target_ratio=ratio)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"target_ratio must be a number above 0 or the path of a file .* cannot be read: .*No such file"),
        ("{", "is no JSON file of a probe"),
        ("[" * 10**5, "is no JSON file of a probe"),
        ("[]", "has neither critical_batch_ratio nor noise_scale"),
        ('{"noise_scale": null}', "did not resolve critical_batch_ratio, got None"),
        ('{"critical_batch_ratio": 2}', "must hold critical_batch_ratio as an object with value, low and high, got 2"),
        ('{"critical_batch_ratio": {"low": 2}}', "must hold critical_batch_ratio as an object .* got {'low': 2}"),
        (
            '{"critical_batch_ratio": {"value": null}}',
            "did not resolve .* got {'value': None}. Probe for longer or with other multiples, or give",
        ),
        (
            '{"critical_batch_ratio": {"value": -1}}',
            "critical_batch_ratio.value must be a finite number above 0, got -1",
        ),
        ('{"critical_batch_ratio": {"value": Infinity}}', "ratio.value must be a finite number above 0, got inf"),
        (
            '{"critical_batch_ratio": {"value": 2, "low": 3}}',
            "the value 2 must lie between low and high, got 3 and None",
        ),
    ],
)
def test_a_wrong_file_is_named(tmp_path, content, message):
    path = tmp_path / "probe.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_critical_batch_ratio("target_ratio", path)


@pytest.mark.parametrize(("given", "error"), [(0, ValueError), (None, TypeError), (True, TypeError)])
def test_a_wrong_number_is_named(given, error):
    with pytest.raises(error, match="target_ratio must be a finite number above 0"):
        read_critical_batch_ratio("target_ratio", given)
