"""The best heads of a probe, against a definition in plain Python."""

import pytest
from made_up_heads import head, made_up_heads

from pqm_fast.probe.best import best_by_layer, best_by_loss, settings


@pytest.mark.parametrize("select", ["auroc", "pair_accuracy"])
@pytest.mark.parametrize("seed", range(3))
def test_against_the_definition(seed, select):
    heads = made_up_heads(seed)
    found = best_by_layer(heads, select)
    assert list(found) == ["rank", "bce", "bce+sibling"]
    for loss, layers in found.items():
        assert list(layers) == [4, 8, 12, 16]
        for layer, setting in layers.items():
            means = {}
            for one in heads:
                if (one["loss"], one["layer"]) == (loss, layer):
                    key = (one["zeta"], one["compare_weight"], one["learning_rate"])
                    means.setdefault(key, []).append(one["held_out"][select])
            best = max(means, key=lambda key: sum(means[key]) / 3)
            assert (setting.zeta, setting.compare_weight, setting.learning_rate) == best
            assert setting.values(select) == means[best]
            assert setting.seeds == [0, 1, 2]
        best = max(layers.values(), key=lambda setting: sum(setting.values(select)))
        assert best_by_loss(heads, select)[loss] == best
    assert len(settings(heads)) == len(heads) // 3


def test_means_count_and_not_the_best_seed_and_fewer_seeds_are_enough():
    heads = [head("rank", 4, auroc, seed, zeta=2.0) for seed, auroc in enumerate((0.9, 0.5))]
    heads += [head("rank", 4, auroc, seed, zeta=4.0) for seed, auroc in enumerate((0.72, 0.74))]
    heads += [head("bce", 4, 0.6, seed=7)]
    found = best_by_loss(heads)
    assert (found["rank"].zeta, found["rank"].mean("auroc")) == (4.0, pytest.approx(0.73))
    assert found["rank"].spread("auroc") == pytest.approx(0.02 / 2**0.5)
    assert (found["bce"].seeds, found["bce"].spread("auroc"), found["bce"].mean("auroc")) == ([7], None, 0.6)


def test_ties_go_to_the_first_setting_and_the_lower_layer():
    heads = [head("rank", layer, 0.7, zeta=zeta) for layer in (8, 4) for zeta in (4.0, 2.0)]
    found = best_by_loss(heads)["rank"]
    assert (found.layer, found.zeta) == (4, 4.0)


@pytest.mark.parametrize("missing", [None, float("nan"), float("inf")])
def test_a_setting_of_which_a_head_has_no_figure_is_never_the_best(missing):
    heads = [head("rank", 4, 0.9, 0, zeta=2.0), head("rank", 4, missing, 1, zeta=2.0), head("rank", 4, 0.6, zeta=4.0)]
    heads += [head("rank", 8, missing), head("mse", 4, missing)]
    found = best_by_layer(heads)
    assert list(found) == ["rank"]
    assert {layer: setting.zeta for layer, setting in found["rank"].items()} == {4: 4.0}
    assert best_by_layer([]) == best_by_loss([]) == {}
