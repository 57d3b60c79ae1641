"""Measures how much of the machine's memory this process can still use."""

import os
from collections.abc import Iterable
from pathlib import Path


def free_on_host(root: Path = Path("/")) -> int:
    """Bytes that the machine, and every control group (v1 or v2) around this process, can still provide.

    Files cached in memory count as free. Weights that are mapped from a file count as free too, until the first update
    copies them; so nothing is added for what the process holds already.
    """
    free = list(_free_in_groups(root))
    if available := _numbers(root / "proc/meminfo").get("MemAvailable:"):
        free.append(1024 * available)
    return min(free, default=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _free_in_groups(root: Path) -> Iterable[int]:
    """The free bytes of each control group with a limit on memory."""
    groups_file = root / "proc/self/cgroup"
    for line in groups_file.read_text().splitlines() if groups_file.exists() else ():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mount, limit, usage, total = root / "sys/fs/cgroup", "memory.max", "memory.current", ""
        elif "memory" in controllers.split(","):
            mount, limit, usage = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            total = "total_"
        else:
            continue
        innermost = mount / path.lstrip("/")
        # a container may see the host's path here, and find its group at the mount
        for group in (innermost, *innermost.parents):
            if not group.is_relative_to(mount) or not (group / limit).exists():
                continue
            if (limit_text := (group / limit).read_text().strip()) != "max":
                usage_by_kind = _numbers(group / "memory.stat")
                files = (usage_by_kind.get(f"{total}{kind}_file", 0) for kind in ("active", "inactive"))
                yield int(limit_text) - int((group / usage).read_text()) + sum(files)


def _numbers(file: Path) -> dict[str, int]:
    """The numbers in a file of lines that begin with a name and a number; {} if there is no such file."""
    lines = file.read_text().splitlines() if file.exists() else ()
    return {name: int(number) for name, number, *_ in map(str.split, lines)}
