"""The measurement of guided search as Markdown tables, for the terminal and for docs/how-to/guided-search.md."""

from typing import Any


def tables(results: dict[str, Any]) -> dict[str, str]:
    """`methods`: beam search and DVTS with N = 4, 8, 16. `policies`: by policy, N = 8. `variants`: other options."""
    main = [row for row in results["settings"] if _is_main(row["setting"])]
    header = ("N", "tokens", "beam", "DVTS", "best sample", "weighted vote", "majority vote", "beam - best sample")
    methods = []
    for n in sorted({row["setting"]["n"] for row in main}):
        beam, dvts = (_one(main, method=method, n=n) for method in ("beam", "dvts"))
        found, plain = (beam[part]["average"] for part in ("search", "samples"))
        cells = [found["best"], dvts["search"]["average"]["best"], plain["best"], plain["weighted_vote"]]
        cells.append(plain["majority_vote"])
        methods.append([str(n), f"{found['tokens']:.0f}", *map(_shown, cells), _difference(beam)])
    beam, dvts = (_one(main, method=method, n=8) for method in ("beam", "dvts"))
    policies = [
        [
            policy,
            *(_shown(row["search"]["policies"][policy]["best"]) for row in (beam, dvts)),
            *(
                _shown(beam["samples"]["policies"][policy][choice])
                for choice in ("best", "weighted_vote", "majority_vote")
            ),
            _shown(beam["samples"]["policies"][policy]["any_right"]),
        ]
        for policy in beam["search"]["policies"]
    ]
    variants = []
    for row in results["settings"]:
        setting = row["setting"]
        if setting["n"] == 8:
            found, plain = (row[part]["average"] for part in ("search", "samples"))
            options = f"--method {setting['method']} --m {setting['m']} --aggregate {setting['aggregate']}"
            options += " --distinct" * setting["distinct"]
            cells = [found["best"], found["any_right"], plain["best"]]
            variants.append([f"`{options}`", *map(_shown, cells), _difference(row)])
    return {
        "methods": _markdown(header, methods),
        "policies": _markdown(
            ("policy", "beam", "DVTS", "best sample", "weighted vote", "majority vote", "any sample right"), policies
        ),
        "variants": _markdown(("options, with N = 8", "search", "any right", "best sample", "difference"), variants),
    }


def _is_main(setting: dict[str, Any]) -> bool:
    return (setting["m"], setting["aggregate"], setting["distinct"]) == (4, "min", False)


def _one(rows: list[dict[str, Any]], **setting: Any) -> dict[str, Any]:
    [row] = [row for row in rows if setting.items() <= row["setting"].items()]
    return row


def _shown(value: float) -> str:
    return f"{value:.3f}"


def _difference(row: dict[str, Any]) -> str:
    difference = row["difference"]
    return f"{difference['mean']:+.3f} [{difference['low']:+.3f}, {difference['high']:+.3f}]"


def _markdown(header: tuple[str, ...], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
