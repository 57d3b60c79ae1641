"""The page's scripts in headless Chromium."""

import pytest
from chromium import dom, run_in, screenshot
from PIL import Image
from report_files import HOSTILE, pool, solution, write_lines, write_results, write_run
from test_page import hostile_run

from pqm_fast.cli import main

IDS = 'texts("article header > code")'


def make(tmp_path, *paths, options=()):
    out = tmp_path / "report.html"
    assert main(["report", *map(str, paths), "--out", str(out), *options]) == 0
    return out


def set_value(name, value, event="change"):
    return f'{{ const e = $("[name={name}]")[0]; e.value = "{value}"; e.dispatchEvent(new Event("{event}")); }}'


@pytest.fixture
def whole(tmp_path):
    for name, good in (("rank", 0.6), ("bce", 2.0)):
        write_run(tmp_path / "runs" / name, loss=name)
        write_results(tmp_path / "runs" / name / "test.json", pool(good))
        write_lines(tmp_path / "runs" / name / "test.jsonl", pool(good))
    return make(tmp_path, tmp_path / "runs")


@pytest.fixture
def viewer(tmp_path):
    """Twelve solutions with known errors, the most wrong ones last; two have no labels, one of them only an outcome."""
    rows = [solution(f"s{i}", [2.0, i - 4.0], [1.0, 0.0], policy="ab"[i % 2]) for i in range(10)]
    rows += [solution("unlabelled", [-9.0]), solution("outcome", [-9.0, 0.5], correct=True, policy="b")]
    rows[3] |= {"prompt": "Where is the Needle?"}
    return make(tmp_path, write_lines(tmp_path / "s.jsonl", rows))


def test_sections_charts_and_table(whole):
    found = run_in(
        whole,
        """return {
          sections: texts("h2"), charts: texts("figure h4"),
          empty: $("figure").filter((figure) => !figure.querySelector("path.curve")).length,
          rows: texts("table.sortable tbody tr td:first-child"), best: texts("td.best"), articles: $("article").length,
          bad: $("svg *").filter((e) => /NaN|Infinity/.test(e.outerHTML)).length,
        }""",
    )
    assert found["sections"] == ["Runs", "Training", "Best-of-N", "Steps", "Solutions"]
    assert found["charts"][:4] == ["Loss", "Pairs in order", "Step AUROC, held out", "Step accuracy"]
    assert {"all candidates (4 questions)", "weak (4 questions)", "Calibration", "AUROC by position"} <= {
        *found["charts"]
    }
    assert (found["empty"], found["bad"]) == (0, 0)
    runs = ["bce", "rank"] * 4  # training, steps, ProcessBench, solutions
    assert found["rows"] == [*runs, "1", "2", "no error"]  # where models are wrong
    assert found["best"]
    assert found["articles"] == 10  # of 64: one page


def test_the_tables_fit_a_page_of_1300_pixels(tmp_path):
    """With every figure, deviations over seeds, options that differ, and names too long for the columns."""
    for loss in ("rank", "bce"):
        for seed in (0, 1):
            name = f"qwen2.5-math-1.5b-{loss}-zeta4-seed{seed}"
            write_run(tmp_path / "runs" / name, loss=loss, seed=seed, learning_rate=1e-5 if loss == "rank" else 2e-5)
            write_results(tmp_path / "runs" / name / "test.json", pool(0.5 + seed))
    page = make(tmp_path, tmp_path / "runs")
    widths = """return [innerWidth, document.documentElement.scrollWidth, ...$(".scroll").map((e) => e.scrollWidth),
      ...$(".scroll").map((e) => e.clientWidth)]"""
    window, whole, *tables = run_in(page, widths)
    assert window == 1300
    assert whole <= window
    assert len(tables) == 10
    assert tables[:5] == tables[5:]


def test_a_click_on_a_heading_sorts_the_table(whole):
    found = run_in(
        whole,
        """const table = $("table.sortable")[0], head = table.querySelector("th[data-column]");
        const rows = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent);
        const orders = [rows()];
        for (let k = 0; k < 2; k++) { head.click(); orders.push(rows()); }
        return orders""",
    )
    assert found == [["bce", "rank"], ["rank", "bce"], ["bce", "rank"]]


def test_runs_and_aggregators_are_chosen(whole):
    found = run_in(
        whole,
        f"""const chart = () => $("#best-of-n figure")[0];
        const curves = () => chart().querySelectorAll("path.curve:not(.sample *)").length;
        const counts = [curves()], legends = [chart().querySelector(".legend").textContent];
        {set_value("aggregator", "last")}
        legends.push(chart().querySelector(".legend").textContent);
        $("[data-run='0']")[0].click();
        counts.push(curves());
        $("[data-run='0']")[0].click();
        counts.push(curves());
        return [counts, legends]""",
    )
    counts, legends = found
    assert counts == [6, 4, 6]  # of each run best and vote, of all the vote without a model and pass@N
    assert legends == ["best by minvote by minvotepass@N", "best by lastvote by lastvotepass@N"]


def test_values_under_the_pointer(whole):
    found = run_in(
        whole,
        """const figure = $("#training figure")[2], svg = figure.querySelector("svg");
        const box = svg.getBoundingClientRect();
        const at = (x) => svg.dispatchEvent(new PointerEvent("pointermove", { clientX: box.left + x * box.width }));
        const tip = figure.querySelector(".tip"), seen = [tip.hidden];
        at(0.99);
        seen.push([...tip.children].map((e) => e.textContent));
        svg.dispatchEvent(new PointerEvent("pointerleave"));
        seen.push(tip.hidden);
        return seen""",
    )
    assert found == [True, ["optimizer step 40", "bce · held out: 0.8", "rank · held out: 0.8"], True]


def test_the_order_and_what_a_step_shows(viewer):
    found = run_in(
        viewer,
        f"""const shown = {IDS}, first = $("article")[0];
        return {{
          shown, off: texts(".off")[0], worst: texts("article:first-child .step.worst .number"), count: texts(".count"),
          steps: [...first.querySelectorAll(".step")].map((e) => [...e.children].map((c) => c.textContent)),
          hue: [...first.querySelectorAll(".step")].map((e) => e.style.getPropertyValue("--hue")),
        }}""",
    )
    # |sigmoid(q) - label|: s9 has q = 5 on a wrong step; "outcome" q = -9 on the lowest of a right solution
    assert found["shown"][:3] == ["outcome", "s9", "s8"]
    assert found["off"] == "off by 1.000 at step 1"
    assert found["worst"] == ["1"]
    assert found["steps"] == [
        ["1", "outcome step 1", "-9.00", "0.000", "·"],
        ["2", "outcome step 2", "0.50", "0.622", "·"],
    ]
    assert found["hue"] == ["var(--low)", "var(--high)"]
    assert found["count"] == ["12 of 12 solutions"]


def test_sorting_filtering_searching_and_turning_pages(viewer):
    found = run_in(
        viewer,
        f"""const seen = {{}};
        {set_value("sort", "right")} seen.right = {IDS};
        {set_value("sort", "low")} seen.low = {IDS};
        {set_value("sort", "file")} seen.file = {IDS};
        $(".pager button").find((e) => e.textContent === "next").click();
        seen.second = {IDS}; seen.pager = $(".pager")[0].textContent; seen.address = location.hash;
        {set_value("policy", "a")} seen.a = {IDS};
        {set_value("policy", "")} {set_value("verdict", "missed")} seen.missed = {IDS};
        {set_value("verdict", "")} {set_value("outcome", "correct")} seen.correct = {IDS};
        {set_value("outcome", "")} {set_value("search", "needle", "input")}
        await wait(400);
        seen.needle = {IDS}; seen.count = texts(".count")[0];
        return seen""",
    )
    ids = [f"s{i}" for i in range(10)]
    assert found["right"] == ids  # all have a labelled step with q = 2 (off by 0.12); then the wrong step's q rises
    assert found["low"][:3] == ["unlabelled", "outcome", "s0"]
    assert found["file"] == ids
    assert found["second"] == ["unlabelled", "outcome"]
    assert found["pager"] == "firstpreviouspage 2 of 2nextlast"
    assert found["address"] == "#viewer=&sort=file&page=2"
    assert found["a"] == ids[::2]
    assert found["missed"] == [*ids[5:], "outcome"]
    assert found["correct"] == ["outcome"]
    assert found["needle"] == ["s3"]
    assert found["count"] == "1 of 12 solutions"


@pytest.fixture
def compared(tmp_path):
    """Two models on twenty questions with one solution each: `good` finds every error, `poor` misses every fourth and
    has a false alarm at s0. The errors are at step 2, of two types, or at step 3; every other solution has none."""
    rows = []
    for i in range(20):
        labels = [1.0, float(i % 4 != 1), float(i % 4 != 3)]
        kind = {1: "sign", 3: "unit <b>"}.get(i % 4)
        rows.append(solution(f"s{i:02}", [3.0 * y - 1 for y in labels], labels, error_type=kind) | {"prompt": f"Q{i}"})
    write_lines(tmp_path / "good.jsonl", rows)
    missed = lambda i, row: [2.0] * 3 if i % 8 == 1 else [-1.0, 2.0, 2.0] if i == 0 else row["scores"]  # noqa: E731
    write_lines(tmp_path / "poor.jsonl", [row | {"scores": missed(i, row)} for i, row in enumerate(rows)])
    return make(tmp_path, tmp_path / "good.jsonl", tmp_path / "poor.jsonl")


def test_filters_by_type_position_and_first_error_combine(compared):
    found = run_in(
        compared,
        f"""const seen = {{ options: {{}} }};
        for (const name of ["type", "position", "first0", "first1"])
          seen.options[name] = [...$(`[name=${{name}}]`)[0].options].map((option) => option.textContent);
        {set_value("sort", "file")} {set_value("run", "1")}
        {set_value("type", "sign")} seen.sign = {IDS};
        {set_value("first1", "missed")} seen.missed = {IDS}; seen.facts = $("article header")[0].textContent;
        seen.count = texts(".count")[0]; seen.names = texts("article:first-child .names span");
        seen.steps = $("article:first-child .step").map((row) => [...row.children].map((e) => e.textContent));
        seen.called = texts("article:first-child .called");
        seen.labels = $("select").map((select) => select.ariaLabel);
        seen.spoken = $("article:first-child [role=img]").map((mark) => mark.ariaLabel);
        {set_value("first0", "found")} seen.both = {IDS};
        {set_value("type", "unit <b>")} seen.none = {IDS};
        {set_value("first1", "")} {set_value("first0", "")} {set_value("type", "")} {set_value("position", "3–4")}
        seen.third = {IDS};
        {set_value("position", "none")} {set_value("first1", "early")} seen.early = {IDS};
        seen.alarm = $("article header")[0].textContent; seen.address = location.hash;
        return seen""",
    )
    assert found["options"] == {
        "type": ["any error_type", "none", "sign", "unit <b>"],
        "position": ["first error anywhere", "first error at step 2", "first error at step 3–4", "no wrong step"],
        "first0": [
            "good: first error found or not",
            "good: first error found",
            "good: no error, none called",
        ],
        "first1": [
            "poor: first error found or not",
            *(f"poor: {text}" for text in ("first error found", "first error missed", "false alarm")),
            "poor: no error, none called",
        ],
    }
    assert found["sign"] == ["s01", "s05", "s09", "s13", "s17"]
    assert found["missed"] == found["both"] == ["s01", "s09", "s17"]
    assert found["count"] == "3 of 40 solutions"
    assert "error_type sign" in found["facts"]
    assert "first error missed" in found["facts"]
    assert found["names"] == ["", "", "poor", "good"]
    assert found["steps"][1:] == [
        ["1", "s01 step 1", "2.00", "0.881", "2.00", "✓"],
        ["2", "s01 step 2", "2.00", "0.881", "-1.00", "✗"],
        ["3", "s01 step 3", "2.00", "0.881", "2.00", "✓"],
    ]
    assert found["called"] == ["-1.00"]  # by `good`; `poor` calls no step wrong
    assert found["none"] == []
    assert found["third"] == ["s03", "s07", "s11", "s15", "s19"]
    assert found["early"] == ["s00"]
    assert "false alarm, first called wrong: step 1" in found["alarm"]
    assert found["labels"] == [
        "order",
        "run",
        "outcome",
        "model right or wrong",
        "error_type",
        "place of the first error",
        "good: first error",
        "poor: first error",
    ]
    assert found["spoken"] == [
        "labelled correct",
        "-1.00, first step called wrong",
        "labelled wrong",
        "labelled correct",
    ]
    assert found["address"].startswith("#viewer=&sort=file&run=1&position=")


def test_the_address_holds_the_view(viewer):
    found = run_in(viewer, f"return {IDS}", "#viewer=&sort=low&policy=b")
    assert found == ["outcome", "s1", "s3", "s5", "s7", "s9"]
    assert run_in(viewer, f"return {IDS}.length", "#viewer=&sort=nonsense&page=-3") == 10
    assert run_in(viewer, f"return {IDS}.length", "#solutions") == 10


def test_values_that_are_empty_that_few_have_and_that_none_has(tmp_path):
    """An empty text is a value and not "any"; a single value is a filter if some solutions do not have it."""
    rows = [solution(f"s{i}", [2.0, i - 1.0], [1.0, 0.0]) for i in range(3)]
    rows[0]["error_type"], rows[1]["policy"] = "", "a"
    page = make(tmp_path, write_lines(tmp_path / "s.jsonl", rows))
    found = run_in(
        page,
        f"""const seen = {{ shown: $("select").map((select) => select.name) }}, type = $("[name=type]")[0];
        seen.options = [...type.options].map((option) => option.textContent);
        type.selectedIndex = 1; type.dispatchEvent(new Event("change"));
        seen.empty = {IDS}; seen.address = location.hash; seen.index = type.selectedIndex;
        seen.fact = texts("article header")[0];
        {set_value("policy", "a")} seen.none = [{IDS}, texts(".solutions")[0], texts(".count")[0]];
        $("button.reset")[0].click(); seen.reset = [{IDS}.length, location.hash, type.selectedIndex];
        return seen""",
    )
    assert found["shown"] == ["sort", "policy", "verdict", "type"]
    assert found["options"] == ["any error_type", '""']
    assert (found["empty"], found["address"], found["index"]) == (["s0"], "#viewer=&type=", 1)
    assert 'error_type ""' in found["fact"]
    assert found["none"] == [[], "No solution matches. show all", "0 of 3 solutions"]
    assert found["reset"] == [3, "#viewer=", 0]
    assert run_in(page, f"return {IDS}", "#viewer=&type=") == ["s0"]
    ids, count = run_in(page, f"return [{IDS}, texts('.count')[0]]", "#viewer=&type=gone&policy=a")
    assert (ids, count) == (["s1"], "1 of 3 solutions; not found here, so not asked for: error_type gone")


def test_a_filter_of_thousands_of_values(tmp_path):
    """The 200 most frequent ones, and the search finds the others."""
    rows = [solution(f"s{i}", [2.0], [1.0], error_type=f"kind {min(i, 998):04}") for i in range(1000)]
    page = make(tmp_path, write_lines(tmp_path / "s.jsonl", rows), options=["--solutions", "1000"])
    found = run_in(
        page,
        f"""const options = [...$("[name=type]")[0].options];
        {set_value("search", "kind 0997", "input")}
        await wait(400);
        return [options.length, options.at(-1).textContent, options.at(-1).disabled,
          options.some((option) => option.value === "kind 0998"), {IDS}]""",
    )
    assert found == [202, "799 rarer ones: use the search", True, True, ["s997"]]


def test_long_texts_and_many_steps_collapse(tmp_path):
    long = "𝔸" * 10_000  # two code units each
    rows = [solution("long", [0.0, 1.0], [1.0, 1.0]) | {"completions": [long, "short"]}]
    rows += [solution("many", [0.0] * 1000, [1.0] * 1000), solution("late", [3.0] * 499 + [-3.0], [1.0] * 500)]
    found = run_in(
        make(tmp_path, write_lines(tmp_path / "s.jsonl", rows), options=["--solutions", "10"]),
        """const of = (name) => $("article").find((e) => e.querySelector("code").textContent === name);
        const text = () => of("long").querySelector(".text").firstChild.firstChild.textContent, counts = [];
        const count = (name) => counts.push(of(name).querySelectorAll(".step").length);
        const before = [text().length, text().isWellFormed(), of("long").querySelector("button.more").textContent];
        of("long").querySelector("button.more").click();
        count("many"); count("late");
        $("article > button").forEach((e) => counts.push(e.textContent));
        of("many").querySelector("article > button").click();
        count("many");
        return { before, after: text().length, counts, buttons: of("many").querySelectorAll("button").length }""",
    )
    assert found["before"] == [600, True, "19,400 more characters"]
    assert found["after"] == 20_000
    assert found["counts"] == [40, 500, "960 more steps", 1000]  # `late`: down to its worst step
    assert found["buttons"] == 0


def test_thousands_of_solutions_do_not_freeze(tmp_path):
    rows = [solution(f"s{i}", [i / 1000] * 8, [1.0] * 8) | {"prompt": f"Q{i}"} for i in range(5000)]
    page = make(tmp_path, write_lines(tmp_path / "s.jsonl", rows), options=["--solutions", "5000"])
    found = run_in(
        page,
        f"""const start = performance.now();
        {set_value("sort", "right")} {set_value("sort", "low")} {set_value("search", "q4999", "input")}
        await wait(200);
        return [{IDS}, document.querySelectorAll("*").length, performance.now() - start]""",
    )
    assert found[0] == ["s4999"]
    assert found[1] < 200


def test_no_text_runs_as_a_script(tmp_path):
    page = make(tmp_path, *hostile_run(tmp_path), options=["--title", "safe"])
    found = run_in(page, 'return [document.title, $("img").length, $("script").length, texts(".text")]')
    assert found[:3] == ["safe", 0, 3]  # the data, the page's own and this test's
    assert HOSTILE in found[3]


def test_the_policy_stops_a_script_that_got_in(tmp_path):
    page = make(tmp_path, write_run(tmp_path / "run"), options=["--title", "safe"])
    markup = "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script>"
    page.write_text(page.read_text(encoding="utf-8").replace("<footer", f"{markup}<footer"), encoding="utf-8")
    text = dom(page)
    assert '<img src="x" onerror=' in text
    assert "<title>safe</title>" in text
    assert "<path" in text  # while the page's own script did run


def test_a_screenshot(whole, tmp_path):
    picture = Image.open(screenshot(whole, tmp_path / "page.png", "1200,3900")).convert("RGB")
    assert picture.size == (1200, 3900)
    seen = {colour: count for count, colour in picture.getcolors(maxcolors=2**24)}
    assert 0.5 < seen[255, 255, 255] / (1200 * 3900) < 0.95
    assert seen[0xF5, 0xF6, 0xF8] > 10_000  # behind the solutions
    assert min(seen[0x00, 0x72, 0xB2], seen[0xD5, 0x5E, 0x00]) > 50  # curves of both runs
