"""Programs that tests start for themselves: SLURM, sshd, Dask's own, stores."""

from __future__ import annotations

import http.client
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from http.server import (
    BaseHTTPRequestHandler,
    SimpleHTTPRequestHandler,
    ThreadingHTTPServer,
)
from pathlib import Path

from distributed import LocalCluster

from daskgmm.storage import models

PACKAGES = {
    "munged": "munge",
    "slurmctld": "slurm-wlm",
    "slurmd": "slurm-wlm",
    "sbatch": "slurm-wlm",
    "sshd": "openssh-server",
    "ssh-keygen": "openssh-client",
    "openssl": "openssl",
    "systemd-analyze": "systemd",
}
BIN = Path(sys.executable).parent
NODE = BIN.parent / "azurite" / "node_modules" / ".bin"
PATH = os.pathsep.join([str(BIN), os.environ["PATH"], "/usr/sbin", "/sbin", str(NODE)])
ENVIRONMENT = {
    "PATH": PATH,
    # How BLAS computes decides on the last bits.
    **{name: os.environ[name] for name in os.environ if name.startswith("OPENBLAS_")},
}


def program(name):
    """Where a program is; a test that needs it fails without, and says what to do."""
    found = shutil.which(name, path=PATH)
    package = PACKAGES.get(name)
    how = f"apt-get install {package}" if package else "make test-cluster installs it"
    assert found, f"{name} is missing: {how}"
    return found


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_until(condition, what, seconds=60):
    """The condition's first true value."""
    until = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < until, f"{what}: not in {seconds} s"
        time.sleep(0.1)
    return value


@contextmanager
def running(log, *command, **options):
    """A process for as long as the context; what it says goes to a file."""
    with open(log, "a") as out:
        process = subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            **options,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def listens(port):
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", int(port))) == 0


SLURM_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
KillWait=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=64000 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@contextmanager
def slurm(folder):
    """A SLURM of one node, this machine; yields the environment of its commands."""
    folder.chmod(0o755)
    ports = {"controller": free_port(), "node": free_port()}
    host = socket.gethostname().split(".")[0]
    conf = folder / "slurm.conf"
    conf.write_text(SLURM_CONF.format(folder=folder, host=host, **ports))
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    # Nothing of the tests' own: a job must find its way by the files that are shipped.
    environment = {**ENVIRONMENT, "HOME": os.environ["HOME"], "SLURM_CONF": str(conf)}
    munged = (
        *(program("munged"), "--foreground", "--force"),
        *("--socket", folder / "munge.socket", "--key-file", key),
        *("--pid-file", folder / "munge.pid", "--seed-file", folder / "munge.seed"),
        *("--log-file", folder / "munge.log"),
    )
    controller = (program("slurmctld"), "-D", "-f", conf)
    node = (program("slurmd"), "-D", "-f", conf)
    with running(folder / "munged.out", *munged):
        wait_until((folder / "munge.socket").exists, "munged")
        with (
            running(folder / "slurmctld.out", *controller, env=environment),
            running(folder / "slurmd.out", *node, env=environment),
        ):
            idle = lambda: "idle" in output("sinfo", "-h", "-o", "%t", env=environment)  # noqa: E731
            try:
                wait_until(idle, "SLURM")
                yield environment
            finally:
                output("scancel", "--signal=KILL", "--user=root", env=environment)
                output("scancel", "--user=root", env=environment)


def output(name, *args, **options):
    """What a command prints, whether it fails or not."""
    done = subprocess.run(
        [program(name), *map(str, args)],
        capture_output=True,
        text=True,
        timeout=60,
        **options,
    )
    return done.stdout


HOST = "127.0.0.1"
STORE_SERVERS = {
    "moto": lambda port, _: (BIN / "moto_server", "-H", HOST, "-p", port),
    "rclone": lambda port, data: (
        *(BIN / "rclone", "serve", "s3"),
        *("--addr", f"{HOST}:{port}", data),
    ),
    # An emulator of Google's storage.
    "google": lambda port, _: (
        *(sys.executable, "-m", "gcp_storage_emulator", "start", "--quiet"),
        *("--host", HOST, "--port", port, "--in-memory"),
    ),
    # Azurite, Microsoft's emulator of Azure's storage.
    "azure": lambda port, data: (
        *(program("azurite-blob"), "--silent", "--disableTelemetry"),
        *("--location", data, "--blobPort", port, "--skipApiVersionCheck"),
    ),
}
"""Commands that serve objects at a port, in a folder if they want one."""


@contextmanager
def store_server(kind, folder):
    """A server of objects of a kind; yields its port."""
    port, data = free_port(), folder / "data"
    data.mkdir()
    with running(folder / "server.out", *STORE_SERVERS[kind](port, data)):
        wait_until(lambda: listens(port), kind)
        yield port


class Relay(ThreadingHTTPServer):
    """Stands before an HTTP server, and can let requests fail."""

    daemon_threads = True
    block_on_close = False  # clients keep connections open

    def __init__(self, port):
        super().__init__(("127.0.0.1", 0), _Relayed)
        self.target = port
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.one_in = 0
        self.ways = ()
        self.failed = 0

    @contextmanager
    def failing(self, one_in, *, seed=0, ways=("refuse", "drop", "lose")):
        """Let one request in so many fail, at random.

        Some are answered with status 500, some not at all, and some are done, but
        nobody is told.
        """
        self._random, self.failed = random.Random(seed), 0
        self.one_in, self.ways = one_in, ways
        try:
            yield self
        finally:
            self.one_in = 0

    def fate(self):
        if not self.one_in or self._random.randrange(self.one_in):
            return "pass"
        self.failed += 1
        return self._random.choice(self.ways)

    def handle_error(self, request, client_address):
        pass  # clients that are killed, or give up


ONE_LINK = ("connection", "content-length", "keep-alive", "transfer-encoding")
"""Headers that are of one connection, not of what is sent."""


class _Relayed(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else an answer waits for the one before: 40 ms

    def _relay(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fate = self.server.fate()
        if fate == "refuse":
            self.send_response(500)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if fate == "drop":
            self.close_connection = True
            return
        status, headers, content = self._ask(body)
        if fate == "lose":
            self.close_connection = True
            return
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ONE_LINK:
                self.send_header(name, value)
        # The answer to HEAD has the length of what it leaves out.
        lengths = [v for name, v in headers if name.lower() == "content-length"]
        length = lengths[0] if self.command == "HEAD" and lengths else len(content)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_PATCH = _relay

    def _ask(self, body):
        connection = http.client.HTTPConnection("127.0.0.1", self.server.target)
        try:
            connection.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect"):
                    connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def log_message(self, *_):
        pass


@contextmanager
def serving(server):
    """A server of the standard library, in a thread for as long as the context."""
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Folder(ThreadingHTTPServer):
    """The files of a folder by plain HTTP, read-only."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, folder, *, lists):
        super().__init__(
            ("127.0.0.1", 0), partial(_OfFolder, directory=str(folder), lists=lists)
        )
        self.url = f"http://127.0.0.1:{self.server_port}"


class _OfFolder(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, *args, lists, **options):
        self._lists = lists
        super().__init__(*args, **options)

    def list_directory(self, path):
        if self._lists:
            return super().list_directory(path)
        self.send_error(404)
        return None

    def log_message(self, *_):
        pass


def kill_until_done(command, model, seed):
    """Run a fit, and kill it by SIGKILL with its cluster, until its model is saved."""
    rng = random.Random(seed)
    kills, wait = 0, 4.0
    while True:
        process = subprocess.Popen(command, start_new_session=True)
        try:
            process.wait(timeout=wait + rng.uniform(0.0, 3.0))
            break
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            wait *= 1.25  # ends in bounded time however slow the machine is
            time.sleep(0.1)
            # Killed while its cluster was closed, when all was done.
            if models.existing(str(model)) is not None:
                break
    assert process.returncode in (0, -signal.SIGKILL)
    assert kills >= 1


def worker_processes():
    """A cluster of two worker processes of one thread each."""
    return LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0"
    )
