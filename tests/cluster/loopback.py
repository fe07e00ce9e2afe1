"""A real Ray cluster on this machine, a head and worker nodes, in a network of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
RAY = str(Path(sys.executable).with_name("ray"))
HEAD = "127.0.0.2"  # Ray replaces 127.0.0.1 by the machine's public address
PORT = 6379


class Network:
    """A network namespace with a loopback device only; without rights, the machine's network."""

    def __init__(self) -> None:
        self.holder: subprocess.Popen[str] | None = None
        self.prefix: list[str] = []
        for options, enter in (
            (["--net"], []),
            (["--user", "--map-root-user", "--net"], ["--user", "--preserve-credentials"]),
        ):
            if not (shutil.which("unshare") and shutil.which("nsenter") and shutil.which("ip")):
                return
            script = "ip link set lo up && echo up && exec sleep infinity"
            holder = subprocess.Popen(
                ["unshare", *options, "sh", "-c", script],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            if holder.stdout.readline().strip() == "up":
                self.holder, self.prefix = (
                    holder,
                    ["nsenter", "--target", str(holder.pid), *enter, "--net", "--"],
                )
                return
            holder.wait()
            holder.stdout.close()

    def has(self, pid: int) -> bool:
        """Whether a process is in this network."""
        try:
            return (
                os.readlink(f"/proc/{pid}/ns/net") == os.readlink(f"/proc/{self.holder.pid}/ns/net")
                and pid != self.holder.pid
            )
        except OSError:
            return False

    def close(self) -> None:
        if self.holder is not None:
            self.holder.kill()
            self.holder.wait()
            self.holder.stdout.close()


class Cluster:
    """A head without CPUs and nodes with `cpus` each; its logs and addresses are under `folder`.

    Attributes
    ----------
    absent
        A folder that looks empty on the last node; None without the rights to mount.
    small_disk
        A disk of a few megabytes; None without the rights to mount.
    """

    def __init__(self, folder: Path, nodes: int, cpus: int) -> None:
        self.folder, self.network, self.started, self.cpus = folder, Network(), [], cpus
        home, absent = folder / "home", folder / "absent"
        for path in (home, absent):
            path.mkdir(parents=True)
        # Not in pytest's folders, which cannot be removed while a disk is mounted there.
        self._disk = Path(tempfile.mkdtemp(prefix="dn-small-disk-"))
        self.small_disk = self._disk if self.resize_disk("") else None
        self.absent = absent if self._without([absent]) else None
        self.sessions = Path(f"/tmp/dn-ray-{os.getpid()}")  # socket paths must be short
        self.environment = {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("RAY_", "PYTHON"))
            },
            # where a job finds python
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
            "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
            "HOME": str(home),
            "RAY_AUTH_MODE": "disabled",
            "RAY_ADDRESS": "http://127.0.0.1:8265",
            "RAY_DISABLE_DOCKER_CPU_WARNING": "1",
            "RAY_raylet_start_wait_time_s": "120",
            # Notice a killed node after some seconds, and still give a slow one Ray's default time.
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_timeout_ms": "10000",
            "RAY_health_check_failure_threshold": "5",
        }
        self._start(
            [],
            "--head",
            f"--node-ip-address={HEAD}",
            f"--port={PORT}",
            "--dashboard-host=127.0.0.1",
            "--num-cpus=0",
            "--object-store-memory=100000000",
            f"--temp-dir={self.sessions}",
            "--disable-usage-stats",
        )
        self.nodes: dict[int, subprocess.Popen[str]] = {}
        for number in range(nodes):
            self.start_node(number, last=number == nodes - 1)

    def start_node(self, number: int, last: bool) -> None:
        """Start a node that, like another machine, does not see the checkout's code."""
        self.nodes[number] = self._start(
            self._without(
                [ROOT / "src", ROOT / "distributed", *([self.folder / "absent"] if last else [])]
            ),
            f"--address={HEAD}:{PORT}",
            f"--node-ip-address={self.address(number)}",
            f"--num-cpus={self.cpus}",
            "--num-gpus=0",
            "--object-store-memory=100000000",
            "--disable-usage-stats",
            # nodes that share one unpack a job's code over each other's
            f"--temp-dir={self.sessions}-{number}",
        )

    def restart_node(self, number: int) -> None:
        """Kill a node, as if its machine had lost power, and start it again."""
        os.kill(self.processes("raylet", under=self.nodes[number])[0], signal.SIGKILL)
        self.nodes[number].wait()
        self.start_node(number, last=number == max(self.nodes))

    def resize_disk(self, options: str) -> bool:
        """Mount the small disk, or resize it with "remount"; False without the rights."""
        command = ["mount", "-t", "tmpfs", "-o", options or "size=4m", "tmpfs", str(self._disk)]
        return subprocess.run(command, capture_output=True).returncode == 0

    def address(self, number: int) -> str:
        """A node's IP address."""
        return f"127.0.0.{3 + number}"

    def _without(self, folders: Sequence[Path]) -> list[str]:
        """Prefix of a command line that makes folders look empty; nothing without the rights."""
        hidden = " && ".join(f"mount -t tmpfs tmpfs '{folder}'" for folder in folders)
        command = ["unshare", "--mount", "sh", "-c", f'{hidden} && exec "$@"', "sh"]
        if (
            not self.network.prefix
            or subprocess.run(
                [*self.network.prefix, *command, "true"], capture_output=True
            ).returncode
        ):
            return []
        return command

    def _start(self, before: list[str], *options: str) -> subprocess.Popen[str]:
        """Start a node; `before` is the prefix of its command line."""
        command = [*self.network.prefix, *before, RAY, "start", "--block", *options]
        path = self.folder / f"node-{len(self.started)}.log"
        with open(path, "w") as log:
            process = subprocess.Popen(
                command,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started.append(process)
        end = time.monotonic() + 120
        while "Ray runtime started" not in path.read_text():
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"a node did not start: {path.read_text()}")
            time.sleep(0.2)
        return process

    def run(
        self, *command: str, log: Path | None = None, **environment: str
    ) -> subprocess.Popen[str]:
        """Run a command in the cluster's network, from the checkout, with a pipe or a log file."""
        with contextlib.nullcontext(subprocess.PIPE) if log is None else open(log, "a") as output:
            process = subprocess.Popen(
                [*self.network.prefix, *command],
                env={**self.environment, **environment},
                cwd=ROOT,
                text=True,
                start_new_session=True,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.started.append(process)
        return process

    def submit(
        self, *command: str, log: Path | None = None, **environment: str
    ) -> subprocess.Popen[str]:
        """Run `ray job submit` for a Python script, with environment variables for all nodes."""
        variables = (
            ("--runtime-env-json", json.dumps({"env_vars": environment})) if environment else ()
        )
        return self.run(
            RAY,
            "job",
            "submit",
            "--working-dir",
            ".",
            *variables,
            "--",
            "python",
            *command,
            log=log,
        )

    def drive(self, *command: str, log: Path | None = None) -> subprocess.Popen[str]:
        """Run a Python script on the head, without a job."""
        return self.run(sys.executable, *command, log=log, RAY_ADDRESS=f"{HEAD}:{PORT}")

    def processes(self, *words: str, under: subprocess.Popen[str] | None = None) -> list[int]:
        """Processes of this cluster whose command line begins with parts that have these words.

        Without words all of them; with `under` only those that this process started.
        """
        lines, parents = {}, {}
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                lines[int(path.name)] = (
                    (path / "cmdline").read_bytes().decode(errors="replace").split("\0")
                )
                parents[int(path.name)] = int(
                    (path / "stat").read_text().rpartition(")")[2].split()[1]
                )
        ours = {process.pid for process in ([under] if under else self.started)}
        while more := {
            pid for pid, parent in parents.items() if parent in ours and pid not in ours
        }:
            ours |= more
        if self.network.holder is not None and not under:  # also those whose parent has died
            ours |= {pid for pid in lines if self.network.has(pid)}
        return sorted(
            pid
            for pid in ours & lines.keys()
            if all(word in part for word, part in zip(words, lines[pid], strict=False))
        )

    def kill(self, *words: str) -> None:
        """Kill the newest such process with SIGKILL."""
        os.kill(self.processes(*words)[-1], signal.SIGKILL)

    def close(self) -> None:
        """Kill all processes that were started here, by their ids."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self.started:
            process.wait()
            for pipe in filter(None, (process.stdin, process.stdout)):
                pipe.close()
        self.network.close()
        if self.small_disk is not None:
            subprocess.run(["umount", "--lazy", self.small_disk], check=True)
        self._disk.rmdir()
        for folder in self.sessions.parent.glob(f"{self.sessions.name}*"):
            shutil.rmtree(folder, ignore_errors=True)
        note = Path(
            "/tmp/ray/ray_current_cluster"
        )  # where programs without an address look for a cluster
        if note.is_file() and note.read_text().strip() == f"{HEAD}:{PORT}":
            note.unlink()


@contextlib.contextmanager
def cluster(folder: Path, nodes: int = 2, cpus: int = 2) -> Iterator[Cluster]:
    """Start the cluster, and stop it when the block ends."""
    one = Cluster(folder, nodes, cpus)
    try:
        yield one
    finally:
        one.close()
