import pytest

from lightning_bsscale.theory.rules import RULES, Capped, LearningRateRule, resolve_rule, rule_for_optimizer


@pytest.mark.parametrize(
    ("optimizers", "expected"),
    [
        (["SGD", "ASGD"], "power"),
        (["Adam", "AdamW", "NAdam", "RAdam", "Adamax", "SparseAdam", "FusedAdam", "AdamW8bit"], "power"),
        (["Lion", "Adafactor", "LAMB", "Lamb", "FusedLAMB", "Adagrad", "RMSprop", "Muon"], "power"),
        (["MuonWithAuxAdam", "SingleDeviceMuonWithAuxAdam"], "power"),
        (["LARS", "Lars"], "linear"),
    ],
)
def test_auto_by_class_name(optimizers, expected):
    for optimizer in optimizers:
        assert rule_for_optimizer(["Mine", optimizer, "Optimizer", "object"]).name == expected


def test_auto_takes_the_first_known_name_along_the_mro():
    assert rule_for_optimizer(["MyLars", "LARS", "SGD", "Optimizer", "object"]).name == "linear"
    assert rule_for_optimizer(["LayerwiseSGD", "SGD", "LARS"]).name == "power"


@pytest.mark.parametrize("names", [["Sophia", "Optimizer", "object"], ["Optimizer", "object"], []])
def test_an_unknown_optimizer_must_be_given_its_rule(names):
    with pytest.raises(ValueError, match="does not know the optimizer") as error:
        rule_for_optimizer(names)
    for part in (*names[:1], "'linear'", "'sqrt'", "'saturating'", "'none'", "AdamW", "LARS"):
        assert part in str(error.value)


@pytest.mark.parametrize("name", RULES)
def test_names_make_rules(name):
    assert resolve_rule(name) == RULES[name]()
    assert resolve_rule(name).name == name
    assert resolve_rule(name, cap=8) == Capped(RULES[name](), 8)


class Foreign:
    needs_noise = True

    def ratio(self, old_batch, new_batch, noise):
        return 3 if noise is None else noise.noise_scale


def test_any_object_with_a_ratio_is_a_rule():
    rule = resolve_rule(Foreign(), cap=2)
    assert isinstance(rule, LearningRateRule)
    assert (rule.ratio(1, 2, None), rule.applied(3.0), rule.needs_noise, rule.has_peak) == (3.0, 2.0, True, False)
    assert resolve_rule(Foreign()).name == "Foreign"


def test_a_users_subclass_needs_a_ratio_only_and_passes_through():
    class Cubic(LearningRateRule):
        name = "cubic"

        def ratio(self, old_batch, new_batch, noise):
            return (new_batch / old_batch) ** 3

    rule = Cubic()
    assert resolve_rule(rule) is rule
    assert (rule.name, rule.ratio(1, 2, None), rule.applied(8.0), rule.needs_noise) == ("cubic", 8.0, 8.0, False)


@pytest.mark.parametrize(
    ("optimizer", "meant_for", "expected"),
    [
        ("Adam", ("sqrt", "surge"), "sqrt"),
        ("Adam", ("surge",), "surge"),
        ("SGD", ("linear", "saturating"), "saturating"),
        ("LARS", ("saturating",), "saturating"),
        ("Adam", ("linear",), "power"),  # none suits both: the training is refused, with the optimizer's rule
    ],
)
def test_auto_by_optimizer_and_policy(optimizer, meant_for, expected):
    assert rule_for_optimizer([optimizer], meant_for).name == expected
