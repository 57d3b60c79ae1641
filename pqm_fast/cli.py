"""`pqm-fast COMMAND`: one function per command, heavy imports inside."""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from pqm_fast.common.signals import Stopped, stop_raises
from pqm_fast.errors import PQMError

USAGE = """\
usage: pqm-fast COMMAND [--config FILE] [options]

  demo      train and evaluate on the embedded arithmetic world
  train     fine-tune a decoder into a process Q-value model
  score     write the Q-value of every step of a file of solutions
  evaluate  step metrics and Best-of-N of scored solutions
  sample    solutions of questions from one policy or several, as a Best-of-N pool
  annotate  step labels from Monte-Carlo rollouts
  study     train with every loss under the same conditions, and compare what they pick
  report    one HTML page about runs: curves, ablation table, solutions coloured by Q-value

`pqm-fast COMMAND --help` explains every option. --config takes a YAML or JSON file of options;
what is given on the command line wins. Texts (TEXT in the help) are typed with escapes: "\\n" is a
line break, "\\t" a tab, "\\\\" a backslash, "\\u4e00" a character; a file gives them as they are."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Returns the exit code: 0; 1 for a mistake a user can mend, told in one message; 2 for usage;
    130, 143 and 138 where SIGINT, SIGTERM and SIGUSR1 ended it."""
    code = 0
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except OSError as error:  # a file on a full disk
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python tries once more at its end
        if code == 0:
            print(f"pqm-fast: error: standard output: {error.strerror}", file=sys.stderr)
            code = 1
    return code


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(version("pqm-fast"))
        return 0
    command = COMMANDS.get(arguments[0])
    if command is None:
        print(f"pqm-fast: no command {arguments[0]!r}\n\n{USAGE}", file=sys.stderr)
        return 2
    try:
        with stop_raises():
            command(arguments[1:])
    except SystemExit as exit:  # --help, and usage errors, both told by tyro
        return int(exit.code or 0)
    except PQMError as error:
        print(f"pqm-fast: error: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # a full disk, a folder that may not be written
        print(f"pqm-fast: error: {error.filename or 'input or output'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except MemoryError:
        print("pqm-fast: error: the machine is out of memory", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if "can't allocate memory" in str(error):  # torch, on a CPU
            print(f"pqm-fast: error: the machine is out of memory: {error}", file=sys.stderr)
            return 1
        # torch's own error, not imported here, for --help needs no torch; or one of CUDA, Triton or cuBLAS
        if type(error).__name__ != "OutOfMemoryError" and "out of memory" not in str(error).lower():
            raise
        hint = "fewer tokens in a forward pass (--micro-batch-tokens, --max-tokens) or --recompute-layers all need less"
        print(f"pqm-fast: error: the device is out of memory; {hint}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        number = stop.number if isinstance(stop, Stopped) else signal.SIGINT
        how = "terminated" if number == signal.SIGTERM else "interrupted"
        print(f"pqm-fast: {how}; {stop}" if str(stop) else f"pqm-fast: {how}", file=sys.stderr)
        return 128 + number
    return 0


def _demo(arguments: list[str]) -> None:
    from pqm_fast.arithmetic.demo import DemoConfig, demo

    demo(_parse(DemoConfig, "demo", arguments))


def _train(arguments: list[str]) -> None:
    from pqm_fast.train.config import TrainConfig

    config = _parse(TrainConfig, "train", arguments)

    from pqm_fast.train.loop import train

    train(config)
    print(f"checkpoint: {config.out}\ncurve: {config.folder / 'training.png'}")


def _score(arguments: list[str]) -> None:
    from pqm_fast.scoring.options import ScoreConfig

    config = _parse(ScoreConfig, "score", arguments)

    from pqm_fast.scoring.run import score

    print(f"scores: {score(config)}")


def _evaluate(arguments: list[str]) -> None:
    from pqm_fast.evaluate.run import EvaluateConfig, evaluate

    evaluate(_parse(EvaluateConfig, "evaluate", arguments))


def _sample(arguments: list[str]) -> None:
    from pqm_fast.sample.run import SampleConfig, sample

    arguments = ["--n" if argument == "-n" else argument for argument in arguments]
    print(f"pool: {sample(_parse(SampleConfig, 'sample', _joined(arguments, '--policy')))}")


def _joined(arguments: list[str], option: str) -> list[str]:
    """`--policy A --policy B` as `--policy A B`. An option without a value is a usage error."""
    values: list[str] = []
    rest: list[str] = []
    taking, wanting = False, False
    for argument in [*arguments, "--"]:
        named = argument == option or argument.startswith(f"{option}=")
        if wanting and (named or argument.startswith("-")):
            print(f"pqm-fast: {option}: has no value; give one, or leave it out", file=sys.stderr)
            raise SystemExit(2)
        wanting = argument == option
        if named:
            taking = True
            values += [argument.partition("=")[2]] if "=" in argument else []
        elif argument.startswith("-"):
            taking = False
            rest.append(argument)
        else:
            (values if taking else rest).append(argument)
    rest.pop()  # the mark at the end
    return [*rest, option, *values] if values else rest


def _attached(arguments: list[str], option: str) -> list[str]:
    """`--label-map -1=0` as `--label-map=-1=0`: a value may begin as an option does."""
    remaining = iter(arguments)
    return [f"{a}={next(remaining, '')}" if a == option else a for a in remaining]


def _annotate(arguments: list[str]) -> None:
    from pqm_fast.sample.annotate import AnnotateConfig, annotate

    print(f"labels: {annotate(_parse(AnnotateConfig, 'annotate', arguments))}")


def _study(arguments: list[str]) -> None:
    from pqm_fast.study.config import StudyConfig

    config = _parse(StudyConfig, "study", arguments)

    from pqm_fast.study.run import study

    study(config)
    print(f"study: {config.folder / 'study.md'}, with pictures beside it")


def _report(arguments: list[str]) -> None:
    from pqm_fast.report.run import ReportConfig, report

    if arguments and not arguments[0].startswith("-"):
        arguments = ["--runs", *arguments]
    print(f"report: {report(_parse(ReportConfig, 'report', arguments))}")


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "demo": _demo,
    "train": _train,
    "score": _score,
    "evaluate": _evaluate,
    "sample": _sample,
    "annotate": _annotate,
    "study": _study,
    "report": _report,
}


def _parse(kind: type, command: str, arguments: list[str], program: str = "pqm-fast") -> Any:
    """Options from the command line over those of --config over the defaults of the dataclass."""
    import tyro

    file, own = _split_config(_joined(_attached(arguments, "--label-map"), "--field"))
    # the options of the file stand first: one parser checks both, and the last one wins
    given = [*_file_options(file, _typed_options(kind)), *own] if file else own
    try:
        return tyro.cli(kind, prog=f"{program} {command}", args=given, config=(tyro.conf.OmitArgPrefixes,))
    except SystemExit as exit:
        if file and exit.code:
            print(
                f"pqm-fast: error: the options stand in {file} or on the command line; mend them there", file=sys.stderr
            )
        raise


def _split_config(arguments: list[str]) -> tuple[str | None, list[str]]:
    """(the --config file, the other arguments)."""
    own: list[str] = []
    files: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        if argument == "--config" or argument.startswith("--config="):
            files.append(argument.partition("=")[2] or next(remaining, ""))
        else:
            own.append(argument)
    if len(files) > 1 or "" in files:
        raise PQMError("--config: name one file")
    return files[0] if files else None, own


def _typed_options(kind: type) -> set[str]:
    """Names of the options of a dataclass, and of those in it, whose texts are typed with escapes."""
    from pqm_fast.common.options import Text

    found: set[str] = set()
    for name, hint in get_type_hints(kind, include_extras=True).items():
        if is_dataclass(hint):
            found |= _typed_options(hint)  # type: ignore[arg-type]
        elif Text in (hint, *get_args(hint)):
            found.add(name)
    return found


def _file_options(file: str, typed: set[str]) -> list[str]:
    from pqm_fast.common.yaml_file import read_yaml

    values = read_yaml(Path(file))
    if not isinstance(values, dict):
        raise PQMError(f"{file}: holds no options; write one `name: value` a line")
    return list(_as_arguments(values, typed))


def _as_arguments(values: dict[str, Any], typed: set[str]) -> Iterator[str]:
    from pqm_fast.common.options import escape

    for name, value in values.items():
        option = "--" + str(name).replace("_", "-")
        written = escape if option[2:].replace("-", "_") in typed else str  # a file's text is meant as it is
        if isinstance(value, dict):  # a group of options, such as `template`
            yield from _as_arguments(value, typed)
        elif isinstance(value, bool):
            yield option if value else f"--no-{option[2:]}"
        elif isinstance(value, list):
            yield option
            yield from (written(str(item)) for item in value)
        else:
            yield f"{option}={written(str(value))}"
