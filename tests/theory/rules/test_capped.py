from lightning_bsscale.theory.rules import Capped, Linear


def test_the_ceiling_is_on_the_whole_factor():
    capped = Capped(Linear(), 3)
    assert capped.ratio(1, 8, None) == 8
    assert [capped.applied(path) for path in (0.5, 2.0, 8.0)] == [0.5, 2.0, 3.0]
    assert Capped(Capped(Linear(), 5), 3).applied(8.0) == Capped(Capped(Linear(), 3), 5).applied(8.0) == 3.0
    assert capped.name == "linear, at most 3"
