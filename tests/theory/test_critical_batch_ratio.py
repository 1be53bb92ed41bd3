import json

import pytest

from lightning_bsscale.theory.critical_batch_ratio import read_critical_batch_ratio
from lightning_bsscale.theory.policies import NoiseScalePolicy


def test_a_number_or_a_probes_value(tmp_path):
    path = tmp_path / "probe.json"
    path.write_text(json.dumps({"critical_batch_ratio": {"value": 2.5, "low": 1.0, "high": 4.0}, "noise_scale": {}}))
    for given, ratio in ((path, 2.5), (str(path), 2.5), (0.5, 0.5), (3, 3.0)):
        assert read_critical_batch_ratio("target_ratio", given) == ratio
        assert NoiseScalePolicy(target_ratio=given) == NoiseScalePolicy(target_ratio=ratio)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"target_ratio must be a number above 0 or the path of a file .* cannot be read: .*No such file"),
        ("{", "cannot be read"),
        ("[" * 10**5, "cannot be read"),
        ("[]", "has no critical_batch_ratio with a value"),
        ('{"critical_batch_ratio": 2}', "has no critical_batch_ratio with a value"),
        ('{"critical_batch_ratio": {"low": 2}}', "has no critical_batch_ratio with a value"),
        ('{"critical_batch_ratio": {"value": null}}', "not resolved, its value is None. Probe with a larger budget"),
        ('{"critical_batch_ratio": {"value": -1}}', "not resolved, its value is -1"),
        ('{"critical_batch_ratio": {"value": Infinity}}', "not resolved, its value is inf"),
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
