"""How much memory a machine and the control groups around a process leave free, from made-up system files."""

import pytest

from pqm_fast.train.host_memory import free_on_host


def write_files(root, texts):
    for name, text in texts.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


MEMINFO = "MemTotal:       2000 kB\nMemFree:         100 kB\nMemAvailable:   1000 kB\nHugePages_Total:       0\n"


def machine(root, *groups):
    """proc/meminfo with 1,024,000 bytes available, and lines of proc/self/cgroup."""
    write_files(root, {"proc/meminfo": MEMINFO, "proc/self/cgroup": "".join(f"{line}\n" for line in groups)})


def write_group(folder, limit, used, files):
    """A control group of version 2; `files` of the used bytes are cached files."""
    stat = f"anon {used - files}\ninactive_file {files - 10}\nactive_file 10\n"
    write_files(folder, {"memory.max": f"{limit}\n", "memory.current": f"{used}\n", "memory.stat": stat})


def test_free_memory_without_control_groups(tmp_path):
    assert free_on_host(tmp_path) >= free_on_host() > 0  # no file says what is free: all memory of the machine
    write_files(tmp_path, {"proc/meminfo": "MemFree:  100 kB\n"})  # as on old or small systems: the same
    assert free_on_host(tmp_path) >= free_on_host() > 0
    write_files(tmp_path, {"proc/meminfo": MEMINFO})
    assert free_on_host(tmp_path) == 1000 * 1024
    machine(tmp_path, "0::/")  # the outermost group has no limit, and no file for one
    assert free_on_host(tmp_path) == 1000 * 1024


def test_free_memory_in_control_groups(tmp_path):
    """The least of what the groups around the process and the machine itself leave free."""
    machine(tmp_path, "0::/outer/inner")
    mount = tmp_path / "sys" / "fs" / "cgroup"
    write_group(mount / "outer" / "inner", "max", 300_000, 100_000)
    assert free_on_host(tmp_path) == 1000 * 1024
    write_group(mount / "outer", 700_000, 400_000, 100_000)
    assert free_on_host(tmp_path) == 400_000
    write_group(mount / "outer" / "inner", 500_000, 300_000, 100_000)
    assert free_on_host(tmp_path) == 300_000
    write_group(mount / "beside", 1, 1, 10)
    assert free_on_host(tmp_path) == 300_000
    (mount / "outer" / "inner" / "memory.stat").unlink()  # not every system counts cached files
    assert free_on_host(tmp_path) == 200_000


@pytest.mark.parametrize("path", ["/", "/kubepods/of/the/host", "/../elsewhere"])
def test_free_memory_in_a_container(tmp_path, path):
    """The container's group is at the mount, whatever path the host has for it."""
    machine(tmp_path, f"0::{path}")
    write_group(tmp_path / "sys" / "fs" / "cgroup", 500_000, 300_000, 10)
    assert free_on_host(tmp_path) == 200_010


def test_free_memory_in_control_groups_of_the_first_version(tmp_path):
    machine(tmp_path, "9:name=systemd:/a", "5:cpu,cpuacct:/a", "4:memory:/docker/a:b", "0::/")
    group = tmp_path / "sys" / "fs" / "cgroup" / "memory" / "docker" / "a:b"
    stat = "inactive_file 1\nactive_file 1\ntotal_inactive_file 50000\ntotal_active_file 1000\n"
    texts = {"memory.limit_in_bytes": "500000\n", "memory.usage_in_bytes": "300000\n", "memory.stat": stat}
    write_files(group, texts)
    write_files(group.parents[1], texts | {"memory.limit_in_bytes": "9223372036854771712\n"})
    assert free_on_host(tmp_path) == 251_000
