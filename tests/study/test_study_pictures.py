"""The pictures of a study show every figure, whichever are missing."""

import warnings
from dataclasses import asdict, replace

import pytest
from handmade import CONFIG, every, pool, result
from pqm_kernels.losses import LOSSES

from pqm_fast.study.analyse import analyse
from pqm_fast.study.grid import cells
from pqm_fast.study.pictures import draw


def drawn(config, folder, trials=None):
    grid = cells(config)
    found = analyse(config, grid, trials or every(grid, config), pool(folder))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib's, of a legend without entries, say
        paths = draw({"config": asdict(config), **found}, folder)
    for path in paths:
        assert path.read_bytes()[:4] == b"\x89PNG"
        assert path.stat().st_size > 5000
    return [path.name for path in paths], found


def points(axes):
    """(x, y) of every single point."""
    return sorted((line.get_xdata()[0], line.get_ydata()[0]) for line in axes.get_lines() if len(line.get_xdata()) == 1)


def test_every_cell_has_its_point(tmp_path, figures):
    names, found = drawn(CONFIG, tmp_path)
    assert names == ["losses.png", "zeta.png"]
    losses, curves = figures[0].axes
    expected = sum(1 for cell in found["cells"] if cell["zeta"] != 0.0)
    assert len(points(losses)) == expected == 9
    assert [text.get_text() for text in losses.get_xticklabels()] == [
        "labels\ngiven",
        "labels\nflip:0.2",
        "model\nqwen2",
    ]
    assert {text.get_text() for text in losses.get_legend().get_texts()} == {"rank", "bce", "orm"}
    own = [line for line in curves.get_lines() if list(line.get_xdata()) == [1, 2]]
    assert len(own) >= 3
    zeta = figures[1].axes[0]
    assert [text.get_text() for text in zeta.get_xticklabels()] == ["0", "4"]
    assert [y for _, y in points(zeta)] == pytest.approx([0.5, 0.5])


def test_more_losses_than_colours(tmp_path, figures):
    """None is left out, and no two look alike. A combination is named with its weights."""
    config = replace(CONFIG, losses=(*LOSSES, "bce+sibling"), seeds=(0,), compare_weights=(0.5,))
    drawn(config, tmp_path)
    axes = figures[0].axes[0]
    handles, names = axes.get_legend_handles_labels()
    assert names == [*LOSSES, "bce+sibling (weight 0.5)"]
    assert len({(line.get_color(), line.get_marker()) for line in handles}) == len(names) > 8


def test_a_loss_that_diverged_in_the_first_group_is_named_by_another(tmp_path, figures):
    results = every(cells(CONFIG))
    for trial in results:
        if trial.cell.loss == "orm" and trial.cell.labels == "given" and trial.cell.model == "llama":
            results[trial] = result(diverged="step 1: loss nan")
    drawn(CONFIG, tmp_path, results)
    losses = figures[0].axes[0]
    assert len(points(losses)) == 8
    assert {text.get_text() for text in losses.get_legend().get_texts()} == {"rank", "bce", "orm"}


def test_everything_diverged(tmp_path, figures):
    results = dict.fromkeys(every(cells(CONFIG)), result(diverged="step 1: loss nan"))
    assert drawn(CONFIG, tmp_path, results)[0] == ["losses.png"]
