"""A real Ray cluster on this machine, a head and worker nodes, that nothing outside it can reach: each test run has its own network."""

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
HEAD = "127.0.0.2"  # Ray replaces 127.0.0.1 by the address that is seen from outside
PORT = 6379


class Network:
    """A network of its own, with a loopback device only; where that may not be made, the machine's."""

    def __init__(self) -> None:
        self.holder: subprocess.Popen[str] | None = None
        self.prefix: list[str] = []
        for options, enter in ((["--net"], []), (["--user", "--map-root-user", "--net"], ["--user", "--preserve-credentials"])):
            if not (shutil.which("unshare") and shutil.which("nsenter") and shutil.which("ip")):
                return
            script = "ip link set lo up && echo up && exec sleep infinity"
            holder = subprocess.Popen(
                ["unshare", *options, "sh", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            if holder.stdout.readline().strip() == "up":
                self.holder, self.prefix = holder, ["nsenter", "--target", str(holder.pid), *enter, "--net", "--"]
                return
            holder.wait()
            holder.stdout.close()

    def has(self, pid: int) -> bool:
        """Whether a process is in it."""
        try:
            return os.readlink(f"/proc/{pid}/ns/net") == os.readlink(f"/proc/{self.holder.pid}/ns/net") and pid != self.holder.pid
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
        A folder that looks empty on the last node; None where that may not be done.
    small_disk
        A disk of a few megabytes; None where none may be mounted.
    """

    def __init__(self, folder: Path, nodes: int, cpus: int) -> None:
        self.folder, self.network, self.started, self.cpus = folder, Network(), [], cpus
        home, absent = folder / "home", folder / "absent"
        for path in (home, absent):
            path.mkdir(parents=True)
        # Not in pytest's folders: it could not remove a disk that a killed run has left there.
        self._disk = Path(tempfile.mkdtemp(prefix="dn-small-disk-"))
        self.small_disk = self._disk if self.resize_disk("") else None
        self.absent = absent if self._without([absent]) else None
        self.sessions = Path(f"/tmp/dn-ray-{os.getpid()}")  # sockets have short names only
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHON"))},
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # a job's python is found by it
            **{"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", "RAY_TRAIN_ENABLE_STATE_TRACKING": "0"},
            **{"HOME": str(home), "RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": "http://127.0.0.1:8265"},
            **{"RAY_DISABLE_DOCKER_CPU_WARNING": "1", "RAY_raylet_start_wait_time_s": "120"},
            # A node that was killed is missed after some seconds; one that is slow has as long to answer as it has by default.
            **{"RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "10000", "RAY_health_check_failure_threshold": "5"},
        }
        self._start(
            [],
            *("--head", f"--node-ip-address={HEAD}", f"--port={PORT}", "--dashboard-host=127.0.0.1", "--num-cpus=0"),
            *("--object-store-memory=100000000", f"--temp-dir={self.sessions}", "--disable-usage-stats"),
        )
        self.nodes: dict[int, subprocess.Popen[str]] = {}
        for number in range(nodes):
            self.start_node(number, last=number == nodes - 1)

    def start_node(self, number: int, last: bool) -> None:
        """Start a node; as on another machine it sees nothing of the checkout's code."""
        self.nodes[number] = self._start(
            self._without([ROOT / "src", ROOT / "distributed", *([self.folder / "absent"] if last else [])]),
            *(f"--address={HEAD}:{PORT}", f"--node-ip-address={self.address(number)}", f"--num-cpus={self.cpus}", "--num-gpus=0"),
            *("--object-store-memory=100000000", "--disable-usage-stats"),
            f"--temp-dir={self.sessions}-{number}",  # its own: nodes that share one unpack a job's code over each other's
        )

    def restart_node(self, number: int) -> None:
        """Kill a node as if its machine had lost power, and start it again."""
        os.kill(self.processes("raylet", under=self.nodes[number])[0], signal.SIGKILL)
        self.nodes[number].wait()
        self.start_node(number, last=number == max(self.nodes))

    def resize_disk(self, options: str) -> bool:
        """Mount the small disk, or with the option "remount" change its size; whether that may be done."""
        command = ["mount", "-t", "tmpfs", "-o", options or "size=4m", "tmpfs", str(self._disk)]
        return subprocess.run(command, capture_output=True).returncode == 0

    def address(self, number: int) -> str:
        """What a node is known by."""
        return f"127.0.0.{3 + number}"

    def _without(self, folders: Sequence[Path]) -> list[str]:
        """What goes before a command line so that folders look empty; nothing where that may not be done."""
        hidden = " && ".join(f"mount -t tmpfs tmpfs '{folder}'" for folder in folders)
        command = ["unshare", "--mount", "sh", "-c", f'{hidden} && exec "$@"', "sh"]
        if not self.network.prefix or subprocess.run([*self.network.prefix, *command, "true"], capture_output=True).returncode:
            return []
        return command

    def _start(self, before: list[str], *options: str) -> subprocess.Popen[str]:
        """A node; what stands before the command line is about where it runs."""
        command = [*self.network.prefix, *before, RAY, "start", "--block", *options]
        path = self.folder / f"node-{len(self.started)}.log"
        with open(path, "w") as log:
            process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        self.started.append(process)
        end = time.monotonic() + 120
        while "Ray runtime started" not in path.read_text():
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"a node did not start: {path.read_text()}")
            time.sleep(0.2)
        return process

    def run(self, *command: str, log: Path | None = None, **environment: str) -> subprocess.Popen[str]:
        """A command within the cluster's network, from the checkout's folder; it writes to a pipe, or to the end of a file."""
        with contextlib.nullcontext(subprocess.PIPE) if log is None else open(log, "a") as output:
            process = subprocess.Popen(
                [*self.network.prefix, *command],
                **{"env": {**self.environment, **environment}, "cwd": ROOT, "text": True, "start_new_session": True},
                **{"stdin": subprocess.PIPE, "stdout": output, "stderr": subprocess.STDOUT},
            )
        self.started.append(process)
        return process

    def submit(self, *command: str, log: Path | None = None, **environment: str) -> subprocess.Popen[str]:
        """`ray job submit` of a Python script, which also gets these variables on all nodes."""
        variables = ("--runtime-env-json", json.dumps({"env_vars": environment})) if environment else ()
        return self.run(RAY, "job", "submit", "--working-dir", ".", *variables, "--", "python", *command, log=log)

    def drive(self, *command: str, log: Path | None = None) -> subprocess.Popen[str]:
        """A Python script on the head, without a job."""
        return self.run(sys.executable, *command, log=log, RAY_ADDRESS=f"{HEAD}:{PORT}")

    def processes(self, *words: str, under: subprocess.Popen[str] | None = None) -> list[int]:
        """Processes of this cluster whose command line has these words in its first places; all of them without words.

        With `under` only what that process started.
        """
        lines, parents = {}, {}
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                lines[int(path.name)] = (path / "cmdline").read_bytes().decode(errors="replace").split("\0")
                parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        ours = {process.pid for process in ([under] if under else self.started)}
        while more := {pid for pid, parent in parents.items() if parent in ours and pid not in ours}:
            ours |= more
        if self.network.holder is not None and not under:  # also those whose parent has died
            ours |= {pid for pid in lines if self.network.has(pid)}
        return sorted(pid for pid in ours & lines.keys() if all(word in part for word, part in zip(words, lines[pid], strict=False)))

    def kill(self, *words: str) -> None:
        """Do ``kill -9`` to the newest such process."""
        os.kill(self.processes(*words)[-1], signal.SIGKILL)

    def close(self) -> None:
        """Kill all that was started here, by number."""
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
        note = Path("/tmp/ray/ray_current_cluster")  # where programs without an address look for a cluster
        if note.is_file() and note.read_text().strip() == f"{HEAD}:{PORT}":
            note.unlink()


@contextlib.contextmanager
def cluster(folder: Path, nodes: int = 2, cpus: int = 2) -> Iterator[Cluster]:
    """The cluster, until the block ends."""
    one = Cluster(folder, nodes, cpus)
    try:
        yield one
    finally:
        one.close()
