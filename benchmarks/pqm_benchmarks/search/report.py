"""The measurement of guided search as Markdown tables, for the terminal and for docs/how-to/guided-search.md."""

from typing import Any

from pqm_fast.search.figures import shown_difference

METHODS = {"beam": "beam", "dvts": "DVTS"}
CHOICES = {"best": "best", "weighted_vote": "weighted vote", "majority_vote": "majority vote"}


def tables(results: dict[str, Any]) -> dict[str, str]:
    """`methods`: beam search and DVTS with N = 4, 8, 16. `policies`: by policy, N = 8. `variants`: other options."""
    main = [row for row in results["settings"] if _is_main(row["setting"])]
    methods, policies = [], []
    for n in sorted({row["setting"]["n"] for row in main}):
        by_method = {method: _one(main, method=method, n=n) for method in METHODS}
        averages = {method: row["search"]["average"] for method, row in by_method.items()}
        cells = _choices(averages, by_method["beam"]["samples"]["average"])
        methods.append(
            [str(n), f"{averages['beam']['tokens']:.0f}", *cells, shown_difference(by_method["beam"]["difference"])]
        )
        if n == 8:
            samples = by_method["beam"]["samples"]["policies"]
            for policy in samples:
                of_policy = {method: row["search"]["policies"][policy] for method, row in by_method.items()}
                policies.append([f"`{policy}`", *_choices(of_policy, samples[policy])])
    choices = [f"{name}: {CHOICES[choice]}" for name in METHODS.values() for choice in ("best", "weighted_vote")]
    choices += [f"samples: {name}" for name in CHOICES.values()]
    return {
        "methods": _markdown(["N", "tokens", *choices, "beam - samples, best"], methods),
        "policies": _markdown(["policy", *choices], policies),
        "variants": _variants(results),
    }


def _variants(results: dict[str, Any]) -> str:
    rows = []
    for row in results["settings"]:
        setting, search = row["setting"], row["search"]["average"]
        if setting["n"] == 8:
            options = f"--method {setting['method']} --beam-width {setting['beam_width']}"
            options += f" --aggregate {setting['aggregate']}"
            options += " --distinct" * setting["distinct"]
            cells = [_shown(search[choice]) for choice in ("best", "weighted_vote", "any_right")]
            rows.append(
                [f"`{options}`", *cells, _shown(row["samples"]["average"]["best"]), shown_difference(row["difference"])]
            )
    return _markdown(["options", "best", "weighted vote", "any right", "samples: best", "search - samples, best"], rows)


def _choices(searches: dict[str, dict[str, float]], samples: dict[str, float]) -> list[str]:
    cells = [_shown(searches[method][choice]) for method in METHODS for choice in ("best", "weighted_vote")]
    return cells + [_shown(samples[choice]) for choice in CHOICES]


def _is_main(setting: dict[str, Any]) -> bool:
    return (setting["beam_width"], setting["aggregate"], setting["distinct"]) == (4, "min", False)


def _one(rows: list[dict[str, Any]], **setting: Any) -> dict[str, Any]:
    [row] = [row for row in rows if setting.items() <= row["setting"].items()]
    return row


def _shown(value: float) -> str:
    return f"{value:.3f}"


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
