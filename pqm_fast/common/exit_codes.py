"""What a command line does about errors: one message on standard error, and an exit code."""

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence

from pqm_fast.common.signals import Stopped, stop_raises
from pqm_fast.errors import PQMError

Command = Callable[[list[str]], int | None]
"""Takes the arguments behind its name. Returns an exit code, or None for 0."""


def run_command(program: str, usage: str, commands: Mapping[str, Command], arguments: Sequence[str]) -> int:
    """Runs the command that the first of the `arguments` names, and turns what it raises into one message.

    Returns:
        The code of the command, or 0 for help; 1 after an error that the user can fix; 2 for a wrong command line; 130,
        143 or 138 after SIGINT, SIGTERM or SIGUSR1. Any other error is raised.
    """
    code = 0
    try:
        code = _run(program, usage, commands, list(arguments))
        sys.stdout.flush()
    except OSError as error:  # standard output is a file on a full disk
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more when it exits
        if code == 0:
            print(f"{program}: error: standard output: {error.strerror}", file=sys.stderr)
            code = 1
    return code


def _run(program: str, usage: str, commands: Mapping[str, Command], arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage)
        return 0 if arguments else 2
    if arguments[0] not in commands:
        print(f"{program}: no command {arguments[0]!r}\n\n{usage}", file=sys.stderr)
        return 2
    try:
        with stop_raises():
            return commands[arguments[0]](arguments[1:]) or 0
    except SystemExit as exit:  # --help or a usage error; the parser has printed either
        return int(exit.code or 0)
    except PQMError as error:
        message = str(error)
    except OSError as error:  # a full disk, or a folder without permission to write
        message = f"{error.filename or 'input or output'}: {error.strerror or error}"
    except MemoryError:
        message = "the machine is out of memory"
    except RuntimeError as error:
        if "can't allocate memory" in str(error):  # torch, on a CPU
            message = f"the machine is out of memory: {error}"
        # torch's OutOfMemoryError, by name because --help must not import torch, or an error of CUDA, Triton or cuBLAS
        elif type(error).__name__ == "OutOfMemoryError" or "out of memory" in str(error).lower():
            hint = "try fewer tokens in a forward pass (--micro-batch-tokens, --max-tokens) or --recompute-layers all"
            message = f"the device is out of memory; {hint}"
        else:
            raise
    except KeyboardInterrupt as stop:
        number = stop.number if isinstance(stop, Stopped) else signal.SIGINT
        event = "terminated" if number == signal.SIGTERM else "interrupted"
        print(f"{program}: {event}; {stop}" if str(stop) else f"{program}: {event}", file=sys.stderr)
        return 128 + number
    print(f"{program}: error: {message}", file=sys.stderr)
    return 1
