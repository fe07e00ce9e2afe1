"""How much memory is free: what the system says, and less where a container allows less."""

from __future__ import annotations

from dn_core.memory import available_memory

GB = 10**9


def write(root, **texts):
    for name, text in texts.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_the_system_is_asked(tmp_path):
    write(tmp_path, proc__meminfo="MemTotal: 9 kB\nMemAvailable:  2000 kB\n")
    assert available_memory(tmp_path) == 2000 * 1024


def test_a_container_may_allow_less(tmp_path):
    write(tmp_path, proc__meminfo=f"MemAvailable: {8 * GB // 1024} kB\n")
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    for name, text in {"max": str(3 * GB), "current": str(2 * GB), "stat": f"anon 5\ninactive_file {GB}\n"}.items():
        (group / f"memory.{name}").write_text(text)
    assert available_memory(tmp_path) == 2 * GB
    (group / "memory.max").write_text("max\n")
    assert available_memory(tmp_path) == 8 * GB // 1024 * 1024


def test_nothing_is_known_where_nothing_is_said(tmp_path):
    assert available_memory(tmp_path) is None
