"""The page as a file: its contents, and that it loads nothing and no text in it becomes HTML."""

import json
import re
from html.parser import HTMLParser

import pytest
from report_files import HOSTILE, pool, solution, write_lines, write_results, write_run

from pqm_fast.cli import main
from pqm_fast.report.charts import POINTS, training_charts
from pqm_fast.report.page import page
from pqm_fast.report.runs import Run, find_runs


class Elements(HTMLParser):
    """Every element with its attributes, and the text of scripts."""

    def __init__(self, text):
        super().__init__()
        self.found, self.scripts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.found and self.found[-1][0] == "script":
            self.scripts[-1] += data


def report(tmp_path, *paths, options=()):
    out = tmp_path / "out.html"
    assert main(["report", *map(str, paths), "--out", str(out), *options]) == 0
    return out.read_text(encoding="utf-8")


def data_of(text):
    return json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[0])


def sections(text):
    return re.findall(r'<section id="([^"]+)">', text)


def test_a_whole_report(tmp_path, capsys):
    for name, good in (("rank", 1.0), ("bce", 2.0)):
        write_run(tmp_path / "runs" / name, loss=name)
        write_results(tmp_path / "runs" / name / "test.json", pool(good))
        write_lines(tmp_path / "runs" / name / "test.jsonl", pool(good))
    text = report(tmp_path, tmp_path / "runs", options=["--title", "My report"])
    assert capsys.readouterr().out == f"report: {tmp_path / 'out.html'}\n"
    assert "<title>My report</title>" in text
    assert sections(text) == ["runs", "training", "best-of-n", "steps", "solutions"]
    data = data_of(text)
    assert data["runs"] == ["bce", "rank"]
    assert len(data["solutions"]["items"]) == 64
    loss = data["charts"]["training"][0]
    assert [(s["run"], s["label"]) for s in loss["series"]] == [
        (0, "training"),
        (1, "training"),
        (0, "held out"),
        (1, "held out"),
        (1, "floor: correct steps all scored alike"),
    ]  # fmt: skip  (the floor is one of `rank` alone)
    panels = data["charts"]["pool-0"]
    titles = ["all candidates (4 questions)", "strong (4 questions)", "weak (4 questions)"]
    assert [chart["title"] for chart in panels] == titles
    by_min = [s for s in panels[0]["series"] if s["label"] == "best by min"]
    assert [s["run"] for s in by_min] == [0, 1]
    assert by_min[0]["points"][-1] == [8, 1.0]
    assert [s["run"] for s in panels[0]["series"] if s["label"] == "pass@N"] == [None]  # the same for both


@pytest.mark.parametrize(
    ("parts", "shown"),
    [
        ("train", ["runs", "training"]),
        ("results", ["runs", "best-of-n", "steps"]),
        ("scores", ["solutions"]),
        ("unlabelled", ["solutions"]),
    ],
)
def test_what_is_missing_is_left_out(tmp_path, parts, shown):
    path = {
        "train": lambda: write_run(tmp_path / "run"),
        "results": lambda: write_results(tmp_path / "r.json", pool(1.0)),
        "scores": lambda: write_lines(tmp_path / "s.jsonl", pool(1.0)),
        "unlabelled": lambda: write_lines(tmp_path / "s.jsonl", [solution("a", [None, 1.0]), solution("b", [None])]),
    }[parts]()
    assert sections(report(tmp_path, path)) == shown


def test_a_run_without_held_out_data_that_has_just_begun(tmp_path):
    folder = write_run(tmp_path / "run")
    first = (folder / "metrics.jsonl").read_text().split("\n")[0]
    (folder / "metrics.jsonl").write_text(first + "\n" + first[:20])  # the last line is being written
    data = data_of(report(tmp_path, folder))
    charts = {chart["title"]: chart["series"] for chart in data["charts"]["training"]}
    assert list(charts)[:2] == ["Loss", "Step accuracy"]
    assert {s["label"] for s in charts["Step accuracy"]} == {"training"}


def test_nothing_is_loaded_and_only_the_own_script_runs(tmp_path):
    write_run(tmp_path / "run")
    elements = Elements(report(tmp_path, tmp_path / "run")).found
    assert not {"link", "img", "iframe", "object", "embed", "base"} & {tag for tag, _ in elements}
    assert not any(key in ("src", "srcset", "action") or key.startswith("on") for _, own in elements for key in own)
    assert all(own["href"].startswith("#") for tag, own in elements if tag == "a")
    [policy] = [own["content"] for _, own in elements if own.get("http-equiv") == "Content-Security-Policy"]
    own_script = r"'sha256-[A-Za-z0-9+/]{43}='"
    expected = rf"default-src 'none'; style-src 'unsafe-inline'; script-src {own_script}; form-action 'none'"
    assert re.fullmatch(expected, policy)


def hostile_run(tmp_path):
    """HTML in every text that a user's files can hold."""
    folder = write_run(tmp_path / HOSTILE.replace("/", "∕"), loss="rank")
    rows = [row | {"policy": HOSTILE, "error_type": HOSTILE, "prompt": HOSTILE, "answer": HOSTILE} for row in pool(1.0)]
    rows[0] |= {"id": HOSTILE, "completions": [HOSTILE, HOSTILE]}
    result = write_results(folder / f"{HOSTILE.replace('/', '∕')}.json", rows)
    stored = json.loads(result.read_text())
    stored["by_type"] = {"field": HOSTILE, "types": {HOSTILE: {"prm_score": 0.5}}}
    result.write_text(json.dumps(stored))
    write_lines(folder / "s.jsonl", rows)
    other = write_run(tmp_path / "other", loss="rank")
    config = other / "config.yaml"
    config.write_text(
        config.read_text().replace("loss: rank", f"loss: {json.dumps(HOSTILE)}\n{json.dumps(HOSTILE)}: 1")
    )
    return folder, other


def test_texts_are_never_html(tmp_path):
    text = report(tmp_path, *hostile_run(tmp_path), options=["--title", HOSTILE])
    elements = Elements(text)
    assert "img" not in [tag for tag, _ in elements.found]
    assert len(elements.scripts) == 2
    assert json.loads(elements.scripts[0])["solutions"]["items"][0]["id"] == HOSTILE
    assert data_of(text)["solutions"]["prompts"] == [HOSTILE]


def test_any_unicode(tmp_path):
    texts = ["∑ π 日本語 𝔸 \u2028 \x00 \\frac{1}{2} $x$ &amp;", "שלום"]
    write_lines(tmp_path / "s.jsonl", [solution("a", [0.0, 0.0]) | {"completions": texts}])
    assert data_of(report(tmp_path, tmp_path / "s.jsonl"))["solutions"]["items"][0]["steps"] == texts
    # no reader lets a lone surrogate through in a text, but a policy's name may be one
    items = {"prompts": ["\ud800"], "items": [{"run": 0, "q": {}}], "total": 1, "distinct": 1, "worst": None}
    made = page([Run(tmp_path, "\ud800", scored=[tmp_path])], items, "title").decode("utf-8")
    assert data_of(made)["solutions"]["prompts"] == ["\ud800"]


def test_a_long_log_is_averaged(tmp_path):
    folder = write_run(tmp_path / "run")
    rows = [{"kind": "train", "step": step, "loss": float(step % 2)} for step in range(1, 3001)]
    rows[10]["loss"] = float("nan")
    write_lines(folder / "metrics.jsonl", rows)
    [chart] = training_charts(find_runs([str(folder)]))
    raw, smoothed = chart["series"]
    assert (raw["label"], raw["raw"], smoothed.get("raw")) == ("training", True, None)
    points = raw["points"]
    assert len(points) == POINTS
    assert points[0] == [6, 0.5]
    assert all(0.3 < y < 0.7 for _, y in points)


def test_curves_of_training_are_smoothed_and_the_raw_line_stays(tmp_path):
    folder = write_run(tmp_path / "run")
    names = ("loss", "pair_accuracy", "step_accuracy", "grad_norm", "tokens_per_second")
    noise = lambda step: 0.3 if step % 2 else -0.3  # noqa: E731
    rows = [
        {"kind": "train", "step": step, "learning_rate": 1.0} | {name: step + noise(step) for name in names}
        for step in range(1, 101)
    ]
    write_lines(folder / "metrics.jsonl", rows)
    charts = {chart["title"]: chart["series"] for chart in training_charts(find_runs([str(folder)]))}
    assert len(charts.pop("Learning rate")) == 1  # nothing in it is noise
    assert set(charts) == {"Loss", "Pairs in order", "Step accuracy", "Gradient norm", "Tokens a second"}
    for raw, smoothed in charts.values():
        assert raw["points"] == [[step, step + noise(step)] for step in range(1, 101)]
        assert [x for x, _ in smoothed["points"]] == list(range(1, 101))
        # the mean of eleven neighbours: the slope stays, of the noise an eleventh
        for x, y in smoothed["points"][5:-5]:
            assert y == pytest.approx(x - noise(x) / 11)
        assert smoothed["points"][-1] == [100, pytest.approx(97.5)]  # of the last six


def test_more_solutions_than_fit(tmp_path):
    write_lines(tmp_path / "s.jsonl", [solution(f"s{i}", [i / 10], [0.0]) for i in range(60)])
    text = report(tmp_path, tmp_path / "s.jsonl", options=["--solutions", "20"])
    assert "20 of 60 scored solutions: the 10 where the model was most wrong, and a random sample" in text
    assert "solutions" not in sections(report(tmp_path, tmp_path / "s.jsonl", options=["--solutions", "0"]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--runs"], "runs: name at least one"),
        (["nowhere"], "nowhere: no such file or folder"),
        (["run", "--out", "."], ".: name an .html file to write"),
        (["run", "--out", "run/metrics.jsonl"], "run/metrics.jsonl: name an .html file to write"),
        (["run", "--solutions", "-1"], "solutions: -1 was given"),
    ],
)
def test_mistakes_are_one_message(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run")
    assert main(["report", *arguments]) == 1
    assert capsys.readouterr().err.startswith(f"pqm-fast: error: {message}")
    assert not (tmp_path / "report.html").exists()


def test_runs_without_their_name_with_it_and_from_a_file(tmp_path, capsys):
    runs = [str(write_run(tmp_path / name)) for name in ("a", "b")]
    file = tmp_path / "options.yaml"
    file.write_text(json.dumps({"runs": runs, "title": "from the file"}))
    for arguments in (runs, ["--runs", *runs], ["--config", str(file)]):
        out = tmp_path / "out.html"
        assert main(["report", *arguments, "--out", str(out)]) == 0
        assert data_of(out.read_text(encoding="utf-8"))["runs"] == ["a", "b"]
    assert "<title>from the file</title>" in out.read_text(encoding="utf-8")
    assert main(["report"]) == 2
    assert "--runs" in capsys.readouterr().err
