"""Runs a function in several ranks: processes that are forked from this one, with the environment of torchrun."""

import os
import pickle
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pqm_fast.common.exit_codes import run_command
from pqm_fast.ranks import watch
from pqm_fast.ranks.group import Ranks, join_ranks


def _start_store() -> tuple[str, int]:
    """Starts a process that keeps the store in which ranks meet, as torchrun's own process does. It ends with the last
    process that has the returned handle. Returns the port of the store, too."""
    port_end, port_handle = os.pipe()
    held_end, held = os.pipe()
    child = os.fork()
    if not child:
        if os.fork():
            os._exit(0)  # so that nobody has to wait for the grandchild
        os.close(held)
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        os.write(port_handle, str(store.port).encode())
        os.read(held_end, 1)
        os._exit(0)
    os.waitpid(child, 0)
    os.close(held_end)
    os.close(port_handle)
    port = os.read(port_end, 10).decode()
    os.close(port_end)
    return port, held


def start_ranks(
    world: int, work: Callable[[Ranks], Any], folder: Path, *, machine: Callable[[int], int] = lambda rank: 0
) -> list[int]:
    """Starts `world` processes that call `work` with their ranks, and returns their process numbers. What each returns
    is in folder/result-RANK, what it prints in folder/said-RANK. Errors end a process as they end a command.

    `machine`: the number of the machine that each rank believes to be on."""
    port, held = _start_store()
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": "True"}
    processes = []
    for rank in range(world):
        process = os.fork()
        if not process:
            code = 70
            try:
                # shorter waits: nobody ends a rank here that still has something to say
                watch.SECONDS = watch.EXIT_SECONDS = 0.1
                torch.set_num_threads(1)  # the threads of the process that it was forked from are not here
                sys.stdout = sys.stderr = open(folder / f"said-{rank}", "w", buffering=1)  # noqa: SIM115
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
                os.environ |= variables | {"GROUP_RANK": str(machine(rank))}

                def command(_: list[str], rank: int = rank) -> None:
                    with join_ranks() as ranks:
                        result = work(ranks)
                    (folder / f"result-{rank}").write_bytes(pickle.dumps(result))

                code = run_command("pqm-fast", "", {"work": command}, ["work"])
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        processes.append(process)
    os.close(held)
    return processes


def exit_codes(processes: list[int]) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]


def in_ranks(world: int, work: Callable[[Ranks], Any]) -> list[Any]:
    """What `work` returns in each of `world` ranks. Fails if one of them does not end well."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        codes = exit_codes(start_ranks(world, work, folder))
        said = "\n".join((folder / f"said-{rank}").read_text() for rank in range(world))
        assert codes == [0] * world, f"{codes}\n{said}"
        return [pickle.loads((folder / f"result-{rank}").read_bytes()) for rank in range(world)]
