"""`pqm-fast COMMAND`: one function per command. Heavy imports are inside the functions."""

import sys
from collections.abc import Sequence
from pathlib import Path

from pqm_fast.arguments import gather, parse
from pqm_fast.common.exit_codes import Command, run_command
from pqm_fast.errors import PQMError

USAGE = """\
usage: pqm-fast COMMAND [--config FILE] [options]

  demo         train and evaluate on the embedded arithmetic world
  train        fine-tune a decoder into a process Q-value model
  probe        train Q-value heads on the hidden states of a frozen decoder
  export       a checkpoint of a training as a model folder
  push         upload a checkpoint to the Hugging Face hub
  status       how trainings are doing: progress, time left, health, checkpoints
  score        write the Q-value of every step of a file of solutions
  serve        answer requests for Q-values and step rewards over HTTP
  evaluate     step metrics and Best-of-N of scored solutions
  sample       solutions of questions from one policy or several, as a Best-of-N pool
  annotate     step labels from Monte-Carlo rollouts
  search       solutions whose steps a model guides: beam search, DVTS
  study        train with every loss under the same conditions, and compare their Best-of-N
  probe-study  compare losses by heads on the hidden states of a frozen decoder
  reproduce    a published protocol: train as a paper did, score its pools, compare its losses
  report       one HTML page about runs: curves, ablation table, solutions coloured by Q-value

`pqm-fast COMMAND --help` explains every option. --config reads options from a YAML or JSON file;
the command line overrides it. Type texts (TEXT in the help) with escapes: "\\n" is a line break,
"\\t" a tab, "\\\\" a backslash, "\\u4e00" a character. In a file, write the characters themselves."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    0: done. 1: an error that the user can fix, printed as one message. 2: a usage error. 130, 143, 138: stopped by
    SIGINT, SIGTERM or SIGUSR1.
    """
    commands = {"--version": _version, **COMMANDS}
    return run_command("pqm-fast", USAGE, commands, sys.argv[1:] if argv is None else argv)


def _version(_: list[str]) -> None:
    from importlib.metadata import version

    print(version("pqm-fast"))


def _demo(arguments: list[str]) -> None:
    from pqm_fast.arithmetic.demo import DemoConfig, demo

    demo(parse(DemoConfig, "demo", arguments))


def _train(arguments: list[str]) -> None:
    from pqm_fast.train.config import TrainConfig

    config = parse(TrainConfig, "train", arguments)

    from pqm_fast.ranks.group import join_ranks
    from pqm_fast.train.loop import train

    with join_ranks() as ranks:
        train(config, ranks)
    if ranks.first:
        print(f"checkpoint: {config.out}\ncurve: {config.folder / 'training.png'}\ncard: {config.folder / 'README.md'}")
        _print_commands(config.folder)


def _probe(arguments: list[str]) -> None:
    from pqm_fast.probe.options import ProbeConfig

    config = parse(ProbeConfig, "probe", arguments)

    from pqm_fast.probe.run import probe

    chosen = probe(config)
    print(f"best head: {chosen['name']}, held-out {config.select} {chosen['held_out'][config.select]:.3f}")
    print(f"checkpoint: {config.out}\npicture: {config.folder / 'layers.png'}\ncard: {config.folder / 'README.md'}")
    _print_commands(config.folder)


def _export(arguments: list[str]) -> None:
    from pqm_fast.train.export_options import ExportConfig

    config = parse(ExportConfig, "export", _named_first(arguments, "--run"))

    from pqm_fast.train.export import export

    print(f"model: {export(config)}")
    _print_commands(Path(config.out))


def _print_commands(checkpoint: Path) -> None:
    """The commands that serve a checkpoint."""
    from pqm_fast.publish.serving import served

    print("\n".join(f"serve: {command}" for command in served(checkpoint).commands))


def _push(arguments: list[str]) -> None:
    from pqm_fast.publish.push_options import PushConfig

    config = parse(PushConfig, "push", _named_first(arguments, "--checkpoint", "--repo"))

    from pqm_fast.publish.push import push

    print(push(config))


def _status(arguments: list[str]) -> None:
    from pqm_fast.status.run import StatusConfig, status

    print(status(parse(StatusConfig, "status", _named_first(arguments, "--runs"))))


def _score(arguments: list[str]) -> None:
    from pqm_fast.scoring.options import ScoreConfig

    config = parse(ScoreConfig, "score", arguments)

    from pqm_fast.ranks.group import join_ranks
    from pqm_fast.scoring.run import score

    with join_ranks() as ranks:
        out = score(config, ranks)
    if ranks.first:
        print(f"scores: {out}")


def _serve(arguments: list[str]) -> None:
    from pqm_fast.serve.options import ServeConfig

    config = parse(ServeConfig, "serve", arguments)

    try:
        from pqm_fast.serve.run import serve
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "prometheus_client", "pydantic", "starlette", "uvicorn"):
            raise
        raise PQMError(f"serve: needs {error.name}; install it with `pip install 'pqm-fast[serve]'`") from error
    serve(config)


def _evaluate(arguments: list[str]) -> None:
    from pqm_fast.evaluate.run import EvaluateConfig, evaluate
    from pqm_fast.ranks.group import join_ranks

    config = parse(EvaluateConfig, "evaluate", arguments)
    with join_ranks() as ranks:
        evaluate(config, ranks)


def _sample(arguments: list[str]) -> None:
    from pqm_fast.sample.options import SampleConfig

    config = parse(SampleConfig, "sample", gather(_with_long_n(arguments), "--policy"))

    from pqm_fast.ranks.group import join_ranks
    from pqm_fast.sample.sample_solutions import sample

    with join_ranks() as ranks:
        out = sample(config, ranks)
    if ranks.first:
        print(f"pool: {out}")


def _annotate(arguments: list[str]) -> None:
    from pqm_fast.sample.options import AnnotateConfig

    config = parse(AnnotateConfig, "annotate", arguments)

    from pqm_fast.ranks.group import join_ranks
    from pqm_fast.sample.annotate import annotate

    with join_ranks() as ranks:
        out = annotate(config, ranks)
    if ranks.first:
        print(f"labels: {out}")


def _search(arguments: list[str]) -> None:
    from pqm_fast.search.options import SearchConfig

    config = parse(SearchConfig, "search", _with_long_n(arguments))

    from pqm_fast.ranks.group import join_ranks
    from pqm_fast.search.run import search

    with join_ranks() as ranks:
        out = search(config, ranks)
    if ranks.first:
        print(f"pool: {out}")


def _study(arguments: list[str]) -> None:
    from pqm_fast.study.config import StudyConfig

    config = parse(StudyConfig, "study", arguments)

    from pqm_fast.study.run import study

    study(config)
    print(f"study: {config.folder / 'study.md'}, with pictures beside it")


def _probe_study(arguments: list[str]) -> None:
    from pqm_fast.probe_study.options import ProbeStudyConfig

    config = parse(ProbeStudyConfig, "probe-study", arguments)

    from pqm_fast.probe_study.run import probe_study

    probe_study(config)
    print(f"study: {config.folder / 'study.md'}, with pictures beside it")


def _reproduce(arguments: list[str]) -> None:
    from pqm_fast.reproduce.options import ReproduceConfig

    config = parse(ReproduceConfig, "reproduce", _named_first(arguments, "--protocol"))

    from pqm_fast.ranks.group import join_ranks
    from pqm_fast.reproduce.run import reproduce

    with join_ranks() as ranks:
        reproduce(config, ranks)
    if ranks.first and not config.estimate_only:
        print(f"reproduction: {config.folder / 'reproduce.md'}, with a picture beside it")


def _report(arguments: list[str]) -> None:
    from pqm_fast.report.run import ReportConfig, report

    print(f"report: {report(parse(ReportConfig, 'report', _named_first(arguments, '--runs')))}")


def _with_long_n(arguments: list[str]) -> list[str]:
    """`-n` is short for `--n`, and torchrun takes only the short form for the command's own."""
    return ["--n" if argument == "-n" else argument for argument in arguments]


def _named_first(arguments: list[str], *options: str) -> list[str]:
    """Arguments that come first without a name are the values of `options`, in turn; all others are of the last."""
    named: list[str] = []
    remaining = arguments
    for option in options:
        if not remaining or remaining[0].startswith("-"):
            break
        named += [option, remaining[0]]
        remaining = remaining[1:]
    return [*named, *remaining]


COMMANDS: dict[str, Command] = {
    "demo": _demo,
    "train": _train,
    "probe": _probe,
    "export": _export,
    "push": _push,
    "status": _status,
    "score": _score,
    "serve": _serve,
    "evaluate": _evaluate,
    "sample": _sample,
    "annotate": _annotate,
    "search": _search,
    "study": _study,
    "probe-study": _probe_study,
    "reproduce": _reproduce,
    "report": _report,
}
