"""`python -m pqm_benchmarks COMMAND`. `gpu` and `publish` need only the packages that torch and transformers bring."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pqm_fast.common.exit_codes import Command, run_command

PROGRAM = "python -m pqm_benchmarks"
USAGE = f"""\
usage: {PROGRAM} COMMAND [options]

  kernels   the fused op against the published computation, eager PyTorch and torch.compile
  probe     training a head on stored hidden states: epochs a second, and the share of copy bandwidth
  train     training steps against the published algorithm, TRL and OpenRLHF, with one switch more at a time
  score     scoring 128 candidates to a question: packed and in trees against the published way
  serve     the reward server under load: latency, throughput, lost answers
  work      operations of a training step, counted, for the published computation and for ours
  scaling   a simulation of 8 to 4,096 ranks: how long they wait for each other and for the network
  search    guided search against plain samples with as many tokens, on the arithmetic world
  fine-tuning  losses compared by fine-tuning a small model, with all weights and with adapters
  gpu       all of it at fixed sizes on a GPU, with the tests, in nine minutes
  publish   stores a run of `gpu`, and makes the README's table and pictures from it

`{PROGRAM} COMMAND --help` explains every option. The first nine also take --config, a YAML or JSON
file of options; options on the command line override it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 for success, 1 if a stage failed or for a mistake that a user can fix, 2 for a wrong
    command line; after a signal 128 and its number."""
    return run_command("pqm_benchmarks", USAGE, COMMANDS, sys.argv[1:] if argv is None else argv)


def _benchmark(name: str, kind: type, run: Callable[[Any], object], arguments: list[str]) -> int:
    """Runs a benchmark whose options are the fields of the dataclass `kind`."""
    from pqm_fast.arguments import parse

    run(parse(kind, name, arguments, program=PROGRAM))
    return 0


def _kernels(arguments: list[str]) -> int:
    from pqm_benchmarks.kernels.run import KernelBench, run

    return _benchmark("kernels", KernelBench, run, arguments)


def _probe(arguments: list[str]) -> int:
    from pqm_benchmarks.kernels.probe import ProbeBench, run

    return _benchmark("probe", ProbeBench, run, arguments)


def _train(arguments: list[str]) -> int:
    from pqm_benchmarks.train.run import TrainBench, run

    return _benchmark("train", TrainBench, run, arguments)


def _score(arguments: list[str]) -> int:
    from pqm_benchmarks.score.run import ScoreBench, run

    return _benchmark("score", ScoreBench, run, arguments)


def _serve(arguments: list[str]) -> int:
    from pqm_benchmarks.serve.run import ServeBench, run

    return _benchmark("serve", ServeBench, run, arguments)


def _work(arguments: list[str]) -> int:
    from pqm_benchmarks.work.run import WorkBench, run

    return _benchmark("work", WorkBench, run, arguments)


def _scaling(arguments: list[str]) -> int:
    from pqm_benchmarks.scaling.run import ScalingBench, run

    return _benchmark("scaling", ScalingBench, run, arguments)


def _search(arguments: list[str]) -> int:
    from pqm_benchmarks.search.run import SearchBench, run

    return _benchmark("search", SearchBench, run, arguments)


def _fine_tuning(arguments: list[str]) -> int:
    from pqm_benchmarks.fine_tuning.run import FineTuningBench, run

    return _benchmark("fine-tuning", FineTuningBench, run, arguments)


def _gpu(arguments: list[str]) -> int:
    from pqm_benchmarks.gpu.run import Request, run
    from pqm_benchmarks.gpu.stages import LISTS

    lists = "\n\n".join(
        f"the list {name}:\n" + "\n".join(f"  {stage.name:<14} {stage.what}" for stage in stages)
        for name, stages in LISTS.items()
    )
    parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} gpu",
        description="Shows whether everything is right on this card, and how fast it is.",
        epilog=lists,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--out", required=True, help="folder for summary.json, log.txt and the measurements; new or empty")
    add("--minutes", type=float, help="for all stages together; default: 9, on a CPU 2 (second list: 3.8 and 1.6)")
    add("--list", choices=tuple(LISTS), default="first", help="the stages to run; default: first")
    add("--stages", nargs="+", metavar="STAGE", help="run only these stages of the list")
    add("--device", choices=("auto", "cuda", "cpu"), default="auto", help="default: cuda if there is a GPU")
    add("--commit", help="the commit that is measured, for a copy of the files without their history")
    add("--earlier", metavar="DIR", help="folder of an earlier run, whose failed tests are run again")
    options = parser.parse_args(arguments)
    return run(
        Request(
            out=Path(options.out).resolve(),
            minutes=options.minutes,
            list=options.list,
            stages=tuple(options.stages or ()),
            device=options.device,
            commit=options.commit,
            earlier=Path(options.earlier).resolve() if options.earlier else None,
        )
    )


def _publish(arguments: list[str]) -> int:
    from pqm_benchmarks.gpu.publish import publish

    parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} publish", description="Stores a run, and makes the README's table and pictures from it."
    )
    parser.add_argument("folder", metavar="DIR", help="the folder that `gpu` has written")
    parser.add_argument("--root", default=".", help="the checkout to write into; default: this folder")
    options = parser.parse_args(arguments)
    print(publish(Path(options.folder), Path(options.root)))
    return 0


COMMANDS: dict[str, Command] = {
    "kernels": _kernels,
    "probe": _probe,
    "train": _train,
    "score": _score,
    "serve": _serve,
    "work": _work,
    "scaling": _scaling,
    "search": _search,
    "fine-tuning": _fine_tuning,
    "gpu": _gpu,
    "publish": _publish,
}


if __name__ == "__main__":
    sys.exit(main())
