"""Memory limits of control groups (containers, batch systems, systemd), of version 1 and of version 2."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/")
# Per version: where the groups are, and the names of limit, usage and what of it is clean pages of files.
_FILES = {
    1: (
        "sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        ("total_active_file", "total_inactive_file"),
    ),
    2: ("sys/fs/cgroup", "memory.max", "memory.current", ("active_file", "inactive_file")),
}


def group_limits(root: Path = _ROOT) -> Iterator[tuple[int, int]]:
    """(limit, used) in bytes for this process's group and each group around it that has a limit.

    Pages of files do not count as used: the system takes them back before anybody is killed. Nothing where
    there are no groups; `root` is another root of the file system, for tests.
    """
    for version, path in _groups(root):
        top, limit, usage, kept = _FILES[version]
        group = root / top / path.lstrip("/")
        # A container sees its own group at the top, under whatever path the host gave it.
        for folder in (group, *group.parents[: len(Path(path).parts) - 1]):
            try:
                bound = (folder / limit).read_text(encoding="utf-8").strip()
                used = int((folder / usage).read_text(encoding="utf-8"))
                lines = (folder / "memory.stat").read_text(encoding="utf-8").splitlines()
            except OSError:
                continue
            stat = dict(line.split() for line in lines)
            if bound != "max":
                yield int(bound), max(0, used - sum(int(stat.get(name, 0)) for name in kept))


def _groups(root: Path) -> Iterator[tuple[int, str]]:
    """(version, path) of the groups of this process that may bound its memory."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            yield 2, path
        elif "memory" in controllers.split(","):
            yield 1, path
