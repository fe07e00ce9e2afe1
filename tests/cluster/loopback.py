"""A real Ray cluster on this machine, a head and worker nodes, that nothing outside it can reach: each test run has its own network."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
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
    """A head without CPUs and nodes with `cpus` each; its logs and addresses are under `folder`."""

    def __init__(self, folder: Path, nodes: int, cpus: int) -> None:
        self.folder, self.network, self.started = folder, Network(), []
        home = folder / "home"
        home.mkdir(parents=True)
        self.sessions = Path(f"/tmp/dn-ray-{os.getpid()}")  # sockets have short names only
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHON"))},
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # a job's python is found by it
            **{"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", "RAY_TRAIN_ENABLE_STATE_TRACKING": "0"},
            **{"HOME": str(home), "RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": "http://127.0.0.1:8265"},
            **{"RAY_DISABLE_DOCKER_CPU_WARNING": "1", "RAY_raylet_start_wait_time_s": "120"},
        }
        self._start(
            [],
            *("--head", f"--node-ip-address={HEAD}", f"--port={PORT}", "--dashboard-host=127.0.0.1", "--num-cpus=0"),
            *("--object-store-memory=100000000", f"--temp-dir={self.sessions}", "--disable-usage-stats"),
        )
        for number in range(nodes):
            self._start(
                self._without_sources(),
                *(f"--address={HEAD}:{PORT}", f"--node-ip-address=127.0.0.{3 + number}", f"--num-cpus={cpus}", "--num-gpus=0"),
                *("--object-store-memory=100000000", "--include-log-monitor=False", "--disable-usage-stats"),
            )

    def _without_sources(self) -> list[str]:
        """What hides the checkout's code from a node, as on another machine; nothing where that may not be done."""
        hidden = " && ".join(f"mount -t tmpfs tmpfs '{ROOT / name}'" for name in ("src", "distributed"))
        command = ["unshare", "--mount", "sh", "-c", f'{hidden} && exec "$@"', "sh"]
        if not self.network.prefix or subprocess.run([*self.network.prefix, *command, "true"], capture_output=True).returncode:
            return []
        return command

    def _start(self, before: list[str], *options: str) -> None:
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

    def run(self, *command: str, **environment: str) -> subprocess.Popen[str]:
        """A command within the cluster's network, from the checkout's folder; it writes to a pipe."""
        process = subprocess.Popen(
            [*self.network.prefix, *command],
            **{"env": {**self.environment, **environment}, "cwd": ROOT, "text": True, "start_new_session": True},
            **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT},
        )
        self.started.append(process)
        return process

    def submit(self, *command: str) -> subprocess.Popen[str]:
        """`ray job submit` of a Python script."""
        return self.run(RAY, "job", "submit", "--working-dir", ".", "--", "python", *command)

    def drive(self, *command: str) -> subprocess.Popen[str]:
        """A Python script on the head, without a job."""
        return self.run(sys.executable, *command, RAY_ADDRESS=f"{HEAD}:{PORT}")

    def processes(self, *words: str) -> list[int]:
        """Processes of this cluster whose command line has these words in its first places; all of them without words."""
        lines, parents = {}, {}
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                lines[int(path.name)] = (path / "cmdline").read_bytes().decode(errors="replace").split("\0")
                parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        ours = {process.pid for process in self.started}
        while more := {pid for pid, parent in parents.items() if parent in ours and pid not in ours}:
            ours |= more
        if self.network.holder is not None:  # also those whose parent has died
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
            if process.stdout:
                process.stdout.close()
        self.network.close()
        shutil.rmtree(self.sessions, ignore_errors=True)
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
