import matplotlib.pyplot as plt
import pytest
from made_up_heads import head, made_up_heads
from PIL import Image

from pqm_fast.probe import picture
from pqm_fast.probe.best import best_by_layer


def test_a_line_for_each_loss_through_the_best_means(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(picture, "save", lambda figure, path: figures.append(figure) or path)
    heads = made_up_heads()
    assert picture.draw_layers(heads, tmp_path / "layers.png") == tmp_path / "layers.png"
    [axes] = figures[0].axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    best = best_by_layer(heads)
    assert list(lines) == list(best)
    for loss, line in lines.items():
        assert list(line.get_xdata()) == [4, 8, 12, 16]
        assert list(line.get_ydata()) == pytest.approx([s.mean("auroc") for s in best[loss].values()])
    ends = [segment[:, 1].tolist() for bars in axes.collections for segment in bars.get_segments()]
    values = [setting.values("auroc") for layers in best.values() for setting in layers.values()]
    assert ends == [[min(own), max(own)] for own in values]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(best)
    plt.close(figures[0])


def test_the_file(tmp_path):
    for heads in (made_up_heads(), [head("rank", 4, 0.7)], [head("rank", 4, None)]):
        Image.open(picture.draw_layers(heads, tmp_path / "layers.png")).verify()
    assert [path.name for path in tmp_path.iterdir()] == ["layers.png"]
