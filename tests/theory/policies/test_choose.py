from lightning_bsscale.theory.policies import POLICIES, Decision, NoiseScalePolicy, Policy, resolve_policy


def test_resolve_by_name_object_and_duck():
    class Never:
        def decide(self, situation, limits):
            return Decision(batch_size=situation.batch_size, reason="never")

    own = Never()
    assert resolve_policy("noise_scale") == NoiseScalePolicy()
    assert resolve_policy(own) is own
    assert isinstance(resolve_policy(NoiseScalePolicy(target_ratio=1)), Policy)
    assert all(resolve_policy(name) == POLICIES[name]() for name in POLICIES)
