"""`python -m pqm_benchmarks gpu` and `publish`: they need no package but those that torch and transformers bring."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pqm_fast.errors import PQMError


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0; 1 if a stage failed, or for a mistake that a user can mend; 2 for usage."""
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except PQMError as error:
        print(f"pqm_benchmarks: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("pqm_benchmarks: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    from pqm_benchmarks.gpu.stages import LISTS

    parser = argparse.ArgumentParser(prog="python -m pqm_benchmarks", description="pqm-fast on a GPU")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    lists = "\n\n".join(
        f"the list {name}:\n" + "\n".join(f"  {stage.name:<14} {stage.what}" for stage in stages)
        for name, stages in LISTS.items()
    )
    gpu = commands.add_parser(
        "gpu",
        help="shows that everything is right on this card, and how fast it is",
        epilog=lists,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    gpu.add_argument("--out", required=True, help="folder for summary.json, log.txt and the measurements; new or empty")
    gpu.add_argument("--minutes", type=float, help="for all stages together; default: 9, on a CPU 2 (second list: 3.5)")
    gpu.add_argument("--list", choices=tuple(LISTS), default="first", help="the stages to run; default: first")
    gpu.add_argument("--stages", nargs="+", metavar="STAGE", help="run these of the list alone")
    gpu.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto", help="default: cuda if there is one")
    gpu.add_argument("--commit", help="what is measured, where the files are but not their history")
    gpu.add_argument("--earlier", metavar="DIR", help="folder of an earlier run, whose failed tests are run again")
    gpu.set_defaults(run=_gpu)
    publish = commands.add_parser("publish", help="stores a run and makes the README's table and pictures from it")
    publish.add_argument("folder", metavar="DIR", help="the folder that `gpu` has written")
    publish.add_argument("--root", default=".", help="the checkout to write into; default: this folder")
    publish.set_defaults(run=_publish)
    return parser


def _gpu(arguments: argparse.Namespace) -> int:
    from pqm_benchmarks.gpu.run import Request, run

    return run(
        Request(
            out=Path(arguments.out).resolve(),
            minutes=arguments.minutes,
            list=arguments.list,
            stages=tuple(arguments.stages or ()),
            device=arguments.device,
            commit=arguments.commit,
            earlier=Path(arguments.earlier).resolve() if arguments.earlier else None,
        )
    )


def _publish(arguments: argparse.Namespace) -> int:
    from pqm_benchmarks.gpu.publish import publish

    print(publish(Path(arguments.folder), Path(arguments.root)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
