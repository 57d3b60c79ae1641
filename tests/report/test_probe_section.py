"""A probe's folder in the report: AUROC by layer, and the best head of each loss."""

import json
import re

import pytest
from made_up_heads import head, made_up_heads
from report_files import write_lines, write_run
from test_page import data_of, report, sections

from pqm_fast.cli import main
from pqm_fast.probe.best import best_by_layer, best_by_loss


def write_probe(folder, heads, **summary):
    write_run(folder)
    write_lines(folder / "heads.jsonl", heads)
    known = {"model": "org/<b>", "decoder_layers": 30, "chosen": "layer8-rank", "select": "auroc"} | summary
    (folder / "probe.json").write_text(json.dumps(known))
    return folder


def rows(text):
    """The table of the probe: [[text of each cell]], its headings first; a marked cell ends with a star."""
    [section] = re.findall(r'<section id="probe">(.*?)</section>', text, re.DOTALL)
    cells = [re.findall(r"<t[hd]([^>]*)>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", section)]
    return [[re.sub("<.*?>", " ", text).strip() + "*" * ("best" in kind) for kind, text in row] for row in cells]


def test_the_chart_and_the_table(tmp_path):
    heads = made_up_heads()
    text = report(tmp_path, write_probe(tmp_path / "run", heads))
    assert sections(text) == ["runs", "training", "probe"]
    [chart] = data_of(text)["charts"]["probe"]
    assert chart["title"] == "AUROC, held out, by layer"
    assert chart["x"]["ticks"] == [[4, "4"], [8, "8"], [12, "12"], [16, "16"]]
    best = best_by_layer(heads)
    assert [line["label"] for line in chart["series"]] == ["rank", "bce", "bce+sibling"]
    for number, line in enumerate(chart["series"]):
        own = best[line["label"]]
        assert line["points"] == [[layer, pytest.approx(setting.mean("auroc"))] for layer, setting in own.items()]
        assert line["band"] == [[layer, min(v), max(v)] for layer, s in own.items() if (v := s.values("auroc"))]
        assert (line["colour"], line["run"]) == (number, 0)
    setting = best["bce+sibling"][4]
    note = f"zeta 4, weight {setting.compare_weight:g}, rate {setting.learning_rate:g}, 3 seeds"
    assert chart["series"][2]["notes"][0] == note

    names, *table = rows(text)
    figures = ["balanced, calibrated", "AUROC", "pairs in order"]
    assert names == ["loss", "layer", "zeta", "weight", "rate", "seeds", *figures]
    winners = best_by_loss(heads)
    top = max(winners, key=lambda loss: winners[loss].mean("auroc"))
    for (loss, setting), row in zip(winners.items(), table, strict=True):
        options = (setting.zeta, setting.compare_weight, setting.learning_rate)
        assert row[:6] == [loss, str(setting.layer), *("" if o is None else f"{o:g}" for o in options), "0, 1, 2"]
        mark = "*" if loss == top else ""
        assert row[7] == f"{setting.mean('auroc'):.3f} ±{setting.spread('auroc'):.3f}{mark}"
    assert "Heads on org/&lt;b&gt;, which has 30 decoder layers. Chosen: layer8-rank." in text


def test_another_figure_may_choose(tmp_path):
    heads = made_up_heads()
    text = report(tmp_path, write_probe(tmp_path / "run", heads, select="pair_accuracy"))
    [chart] = data_of(text)["charts"]["probe"]
    assert chart["title"] == "Pairs in order, held out, by layer"
    best = best_by_loss(heads, "pair_accuracy")
    assert [row[1] for row in rows(text)[1:]] == [str(setting.layer) for setting in best.values()]


def test_two_probes_and_a_loss_has_one_colour(tmp_path):
    folders = [
        write_probe(tmp_path / "a", [head("rank", 4, 0.7), head("bce", 4, 0.8)]),
        write_probe(tmp_path / "b", [head("bce", 6, 0.6)]),
    ]
    first, second = data_of(report(tmp_path, *folders))["charts"]["probe"]
    assert [chart["title"] for chart in (first, second)] == [f"AUROC, held out, by layer: {name}" for name in "ab"]
    assert [(line["label"], line["colour"], line["run"]) for line in second["series"]] == [("bce", 1, 1)]
    assert "band" not in second["series"][0]


def test_without_heads_or_figures_there_is_no_section(tmp_path):
    assert sections(report(tmp_path, write_run(tmp_path / "run"))) == ["runs", "training"]
    without = write_probe(tmp_path / "probe", [head("rank", 4, None)])
    assert sections(report(tmp_path, without)) == ["runs", "training"]


@pytest.mark.parametrize("line", ["{", "[1]", '{"loss": "rank"}'])
def test_a_damaged_line_is_named(tmp_path, capsys, line):
    folder = write_probe(tmp_path / "run", [head("rank", 4, 0.7)])
    with open(folder / "heads.jsonl", "a") as file:
        file.write(line + "\n")
    assert main(["report", str(folder), "--out", str(tmp_path / "out.html")]) == 1
    assert f"{folder / 'heads.jsonl'}, line 2: damaged, or not a head" in capsys.readouterr().err
