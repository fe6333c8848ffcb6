"""What is in cluster_configs/, run for real on this machine."""

from __future__ import annotations

import getpass
import json
import os
import re
import shlex
import string
import subprocess
import sys
import zipfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from conftest import blobs, create_zarr
from jsonschema import Draft202012Validator
from services import (
    BIN,
    ENVIRONMENT,
    free_port,
    listens,
    output,
    program,
    running,
    slurm,
    wait_until,
)

from daskgmm import GaussianMixture, load
from daskgmm.execution import deploy

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]

CONFIGS = Path(__file__).parents[2] / "cluster_configs"
K, ITERATIONS = 6, 25
OPTIONS = ("-k", K, "--seed", 0, "--tol", 0, "--max-iter", ITERATIONS)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Rows whose passes take a while, as there are many chunks."""
    place = tmp_path_factory.mktemp("data") / "rows.zarr"
    create_zarr(place, blobs(1, 120_000, 4, K, spread=1.0), chunks=(150, 4))
    return place


@pytest.fixture(scope="module")
def expected(store):
    """What this process finds without any cluster."""
    mixture = GaussianMixture(K, random_state=0, tol=0, max_iter=ITERATIONS)
    return mixture.fit(str(store))


def assert_same(place, expected):
    """To the last bit."""
    model = load(place)
    for name in ("weights_", "means_", "covariances_", "lower_bounds_", "n_iter_"):
        np.testing.assert_array_equal(getattr(model, name), getattr(expected, name))


class Fit:
    """The command `daskgmm fit`, at work."""

    def __init__(self, process, log):
        self._process, self._log = process, log

    @property
    def text(self):
        return self._log.read_text()

    def reach(self, n_pass):
        """Wait for a pass, which must not be the last one."""
        line = re.compile(rf"^pass +{n_pass}  ", re.M)
        wait_until(lambda: line.search(self.text) or self._ended(), "pass", 100)
        assert not self._ended(), self.text

    def _ended(self):
        return self._process.poll() is not None

    def wait(self, seconds):
        return self._process.wait(seconds)

    def finish(self):
        assert self.wait(150) == 0, self.text
        assert "Traceback" not in self.text


@contextmanager
def fitting(folder, store, *options, **environment):
    log = folder / "fit.log"
    command = (BIN / "daskgmm", "fit", store, folder / "model", *OPTIONS, *options)
    everything = {**ENVIRONMENT, "HOME": os.environ["HOME"], **environment}
    with running(log, *command, cwd=folder, env=everything) as process:
        yield Fit(process, log)


# SLURM


@pytest.fixture(scope="module")
def queue(tmp_path_factory):
    with slurm(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


def jobs(queue, states="RUNNING"):
    listed = output("squeue", "-h", "-o", "%i %j", "-t", states, env=queue)
    return dict(line.split() for line in listed.splitlines())


def test_slurm_goes_on_when_the_job_of_a_worker_is_cancelled(
    queue, tmp_path, store, expected
):
    with fitting(tmp_path, store, "--cluster", CONFIGS / "slurm.yaml", **queue) as fit:
        fit.reach(3)
        wait_until(lambda: len(jobs(queue)) == 4, "all jobs run")
        assert set(jobs(queue).values()) == {"daskgmm-worker"}
        cancelled = min(jobs(queue))
        output("scancel", cancelled, env=queue)
        wait_until(lambda: cancelled not in jobs(queue), "the job ends")
        fit.finish()
    assert_same(tmp_path / "model", expected)
    # The cluster is closed: no job is left.
    wait_until(
        lambda: not jobs(queue, "PENDING,RUNNING,COMPLETING"), "the jobs are gone"
    )


def test_slurm_takes_its_options_from_the_environment(queue, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DASK_JOBQUEUE__SLURM__QUEUE", "short")
    with deploy.read(CONFIGS / "slurm.yaml").start() as cluster:
        script = tmp_path / "job.sh"
        script.write_text(cluster.job_script())
    refused = subprocess.run(
        [program("sbatch"), script], env=queue, capture_output=True, text=True
    )
    assert refused.returncode != 0
    assert "invalid partition" in refused.stderr


@pytest.mark.timeout(480)
def test_slurm_sbatch_is_requeued_and_resumes(queue, tmp_path, store, expected):
    log, model = tmp_path / "job.log", tmp_path / "model"
    command = ("sbatch", "--parsable", "--output", log, CONFIGS / "slurm.sbatch")
    environment = {**queue, "INTERVAL": "1"}

    def submit():
        done = output(*command, store, model, *OPTIONS, env=environment)
        return done.strip()

    def said(words):
        return log.exists() and words in log.read_text()

    job = submit()
    wait_until(lambda: said("pass   5  "), "five passes")
    output("scontrol", "requeue", job, env=queue)
    wait_until(lambda: job in jobs(queue, "PENDING"), "the job is in the queue again")

    # SLURM lets two minutes go by, from the end of the old run's processes on.
    wait_until(lambda: said("Resuming from"), "the job runs again", 240)
    wait_until(lambda: said("The model is in"), "the job ends", 120)
    text = log.read_text()
    went_on = int(re.search(r"Resuming from the checkpoint after pass (\d+)", text)[1])
    assert 5 <= went_on < load(model).n_passes_
    assert text.count(f"pass {went_on:3d}  ") == 1
    assert_same(model, expected)
    before = model.stat().st_mtime_ns
    submit()
    wait_until(lambda: said(f"The model is in {model} already."), "the job ends")
    assert model.stat().st_mtime_ns == before


def test_slurm_sbatch_puts_itself_into_the_queue_when_time_is_up(
    queue, tmp_path, store
):
    log, model = tmp_path / "job.log", tmp_path / "model"
    options = ("--parsable", "--output", log)
    command = ("sbatch", *options, CONFIGS / "slurm.sbatch", store, model, *OPTIONS)
    job = output(*command, env=queue).strip()
    wait_until(lambda: log.exists() and "pass   2  " in log.read_text(), "two passes")
    # What SLURM sends before the limit.
    output("scancel", "--batch", "--signal=USR1", job, env=queue)
    wait_until(lambda: job in jobs(queue, "PENDING"), "the job is in the queue again")
    assert f"job {job} is put into the queue again" in log.read_text()
    output("scancel", job, env=queue)


# TLS


def make_certificates(folder, *hosts):
    script = CONFIGS / "tls" / "make_certificates.sh"
    return subprocess.run(
        [script, folder, *hosts],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Those of the cluster, and those of another authority."""
    program("openssl")
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("own", "other"):
        done = make_certificates(folder / name)
        assert done.returncode == 0, done.stderr
    return folder


def of_role(certificates, role):
    return (
        *("--tls-ca-file", certificates / "ca.pem"),
        *("--tls-cert", certificates / f"{role}.pem"),
        *("--tls-key", certificates / f"{role}.key"),
    )


def address_in(file):
    def address():
        try:
            return json.loads(file.read_text())["address"]
        except (OSError, ValueError):
            return None

    return wait_until(address, "the scheduler")


@pytest.fixture(scope="module")
def tls_address(certificates, tmp_path_factory):
    """A scheduler and two workers that talk TLS."""
    folder = tmp_path_factory.mktemp("tls")
    file = folder / "scheduler.json"
    dask = (sys.executable, "-m", "dask")
    scheduler = (
        *(*dask, "scheduler", "--protocol", "tls", "--host", "127.0.0.1"),
        *("--port", 0, "--no-dashboard", "--scheduler-file", file),
        *of_role(certificates / "own", "scheduler"),
    )
    with running(folder / "scheduler.log", *scheduler):
        address = address_in(file)
        worker = (
            *(*dask, "worker", address, "--nthreads", 1, "--no-dashboard"),
            *of_role(certificates / "own", "worker"),
        )
        with (
            running(folder / "1.log", *worker),
            running(folder / "2.log", *worker),
        ):
            yield address


def test_tls_is_joined_by_who_has_a_certificate(
    tls_address, certificates, tmp_path, store, expected
):
    assert tls_address.startswith("tls://")
    credentials = of_role(certificates / "own", "client")
    with fitting(tmp_path, store, "--scheduler", tls_address, *credentials) as fit:
        fit.finish()
    assert_same(tmp_path / "model", expected)


def test_tls_takes_certificates_from_the_configuration_of_dask(
    tls_address, certificates, tmp_path, store
):
    own = certificates / "own"
    variables = {
        "DASK_DISTRIBUTED__COMM__TLS__CA_FILE": str(own / "ca.pem"),
        "DASK_DISTRIBUTED__COMM__TLS__CLIENT__CERT": str(own / "client.pem"),
        "DASK_DISTRIBUTED__COMM__TLS__CLIENT__KEY": str(own / "client.key"),
    }
    options = ("--scheduler", tls_address, "--max-iter", 2)
    with fitting(tmp_path, store, *options, **variables) as fit:
        fit.finish()


def assert_refused(folder, store, words, *options, **environment):
    """Status 1, in bounded time, and one line that says why."""
    (folder / "fit.log").unlink(missing_ok=True)
    with fitting(folder, store, *options, **environment) as fit:
        assert fit.wait(60) == 1, fit.text
    lines = [line for line in fit.text.splitlines() if " WARNING - " not in line]
    assert len(lines) == 1, fit.text
    assert re.search(words, fit.text), fit.text
    assert not (folder / "model").exists()


TALKS_TLS = "no Dask scheduler, or one that talks TLS, and takes tls:// alone"


def test_tls_refuses_plain_tcp(tls_address, certificates, tmp_path, store):
    plain = tls_address.replace("tls://", "tcp://")
    assert_refused(tmp_path, store, TALKS_TLS, "--scheduler", plain)
    credentials = of_role(certificates / "own", "client")
    words = "must begin with tls://"
    assert_refused(tmp_path, store, words, "--scheduler", plain, *credentials)


def test_tls_refuses_another_authority(tls_address, certificates, tmp_path, store):
    other = of_role(certificates / "other", "client")
    words = "could not be joined.*certificate does not match"
    assert_refused(tmp_path, store, words, "--scheduler", tls_address, *other)
    # One that trusts the scheduler, but shows what another authority has signed.
    mixed = ("--tls-ca-file", certificates / "own" / "ca.pem", *other[2:])
    words = "could not be joined.*certificates of its own authority"
    assert_refused(tmp_path, store, words, "--scheduler", tls_address, *mixed)


def test_tls_wants_certificates(tls_address, tmp_path, store):
    words = "wants certificates: pass --tls-ca-file"
    assert_refused(tmp_path, store, words, "--scheduler", tls_address)


def test_tls_cluster_file(certificates, tmp_path, store, expected):
    """With the certificates where the file looks for them: beside itself."""
    file = tmp_path / "tls.yaml"
    file.write_text((CONFIGS / "tls.yaml").read_text())
    assert_refused(tmp_path, store, "there is no file .*ca.pem", "--cluster", file)
    (tmp_path / "certificates").symlink_to(certificates / "own")
    with fitting(tmp_path, store, "--cluster", file) as fit:
        fit.finish()
    assert_same(tmp_path / "model", expected)


def test_tls_cluster_file_refuses_plain_tcp(certificates, tmp_path, store):
    file = tmp_path / "tls.yaml"
    file.write_text((CONFIGS / "tls.yaml").read_text())
    (tmp_path / "certificates").symlink_to(certificates / "own")
    with deploy.read(file).connect() as client:
        address = client.scheduler.address
        assert address.startswith("tls://")
        assert all(w.startswith("tls://") for w in client.nthreads())
        plain = address.replace("tls://", "tcp://")
        assert_refused(tmp_path, store, TALKS_TLS, "--scheduler", plain)


def test_certificates_name_the_hosts_and_hide_the_keys(tmp_path):
    done = make_certificates(tmp_path / "new", "node1", "10.0.0.3", "fd00::3")
    assert done.returncode == 0, done.stderr
    for key in (tmp_path / "new").glob("*.key"):
        assert key.stat().st_mode & 0o777 == 0o600
    for role in ("scheduler", "worker", "client"):
        certificate = tmp_path / "new" / f"{role}.pem"
        text = output("openssl", "x509", "-in", certificate, "-noout", "-text")
        for name in ("DNS:localhost", "DNS:node1", "10.0.0.3", "FD00:0:0:0:0:0:0:3"):
            assert name in text
        assert "CA:FALSE" in text


def test_certificates_are_never_overwritten(tmp_path):
    assert make_certificates(tmp_path / "new").returncode == 0
    before = (tmp_path / "new" / "ca.key").read_bytes()
    again = make_certificates(tmp_path / "new")
    assert again.returncode == 1
    assert "exists" in again.stderr
    assert (tmp_path / "new" / "ca.key").read_bytes() == before


# SSH

SSHD = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile {folder}/sshd.pid
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
"""

SSH = """
Host localhost
    HostName 127.0.0.1
    Port {port}
    User {user}
    IdentityFile {folder}/user
    UserKnownHostsFile {folder}/known_hosts
"""


@pytest.fixture(scope="module")
def ssh_home(tmp_path_factory):
    """A home whose .ssh leads to a private sshd."""
    folder = tmp_path_factory.mktemp("ssh")
    for name in ("host", "user"):
        output("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name)
    names = {"folder": folder, "port": free_port(), "user": getpass.getuser()}
    (folder / "sshd_config").write_text(SSHD.format(**names))
    (folder / ".ssh").mkdir()
    (folder / ".ssh" / "config").write_text(SSH.format(**names))
    key = (folder / "host.pub").read_text()
    hosts = "[localhost]:{port},[127.0.0.1]:{port}".format(**names)
    (folder / "known_hosts").write_text(f"{hosts} {key}")
    Path("/run/sshd").mkdir(exist_ok=True)  # sshd does not start without
    sshd = (program("sshd"), "-D", "-e", "-f", folder / "sshd_config")
    with running(folder / "sshd.log", *sshd):
        wait_until(lambda: listens(names["port"]), "sshd")
        yield folder


def test_ssh_starts_a_cluster_and_closes_it(ssh_home, tmp_path, store, expected):
    options = ("--cluster", CONFIGS / "ssh.yaml")
    with fitting(tmp_path, store, *options, HOME=str(ssh_home)) as fit:
        fit.reach(3)
        assert len(dask_processes(ssh_home)) == 3
        fit.finish()
    assert_same(tmp_path / "model", expected)
    log = (ssh_home / "sshd.log").read_text()
    assert log.count("Accepted publickey") == 3
    wait_until(lambda: not dask_processes(ssh_home), "all processes end")


def dask_processes(home):
    """Schedulers and nannies started from one sshd."""
    pid = int((home / "sshd.pid").read_text())
    return [
        process
        for process in psutil.Process(pid).children(recursive=True)
        if "distributed.cli.dask_spec" in process.cmdline()
        and "python" in process.name()
    ]


def test_ssh_refuses_a_host_that_is_not_known(ssh_home, tmp_path, store):
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    config = (ssh_home / ".ssh" / "config").read_text()
    output("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", home / "host")
    known = (ssh_home / "known_hosts").read_text().split()[0]
    key = (home / "host.pub").read_text()
    (home / "known_hosts").write_text(f"{known} {key}")
    config = config.replace(f"{ssh_home}/known_hosts", f"{home}/known_hosts")
    (home / ".ssh" / "config").write_text(config)
    options = ("--cluster", CONFIGS / "ssh.yaml")
    words = "did not start.*Host key is not trusted"
    assert_refused(tmp_path, store, words, *options, HOME=str(home))


# Adaptive scaling


class Watch:
    """Workers of a cluster, and what they have run, read while a fit is on."""

    def __init__(self, client):
        self._client = client
        self.seen, self.worked = set(), set()

    def look(self, _progress=None):
        workers = self._client.scheduler_info(n_workers=-1)["workers"]
        self.seen |= set(workers)
        for worker, keys in self._client.run(passes_run).items():
            if keys:
                self.worked.add(worker)
        return len(workers)


def passes_run(dask_worker):
    """Tasks of passes that a worker has finished."""
    return [
        str(event[0])
        for event in dask_worker.state.log
        if str(event[0]).startswith("map_shard") and "memory" in event
    ]


def test_adaptive_workers_come_and_go_during_a_fit(store, expected):
    read = deploy.read(CONFIGS / "adaptive.yaml")
    # What is shipped is for passes that take seconds.
    quick = {"target_duration": "50ms", "interval": "200ms", "wait_count": 100}
    read = replace(read, adapt={**read.adapt, **quick})
    with read.connect() as client:
        watch = Watch(client)
        assert watch.look() == 1
        numbers = []

        def observe(progress):
            numbers.append(watch.look())
            if progress.n_pass == 5:
                client.wait_for_workers(3, timeout=60)
            elif progress.n_pass == 15:
                # Now those that came are retired, whatever they hold.
                client.cluster.adapt(minimum=1, maximum=1, wait_count=1)
                wait_until(lambda: watch.look() == 1, "workers leave")

        mixture = GaussianMixture(K, random_state=0, tol=0, max_iter=ITERATIONS)
        mixture.fit(str(store), sample_weight=None, callback=observe)
        assert max(numbers) >= 3, numbers
        assert len(watch.worked) > 1, "the new workers got no work"
    for name in ("weights_", "means_", "covariances_", "lower_bounds_", "n_iter_"):
        np.testing.assert_array_equal(getattr(mixture, name), getattr(expected, name))


# Kubernetes


@pytest.fixture(scope="module")
def definitions():
    """Definitions of the operator's resources by kind, as its chart installs them."""
    wheels = sorted((Path(sys.prefix) / "wheels").glob("dask_kubernetes-*.whl"))
    assert wheels, "the wheel of dask-kubernetes is missing: run make test-cluster"
    with zipfile.ZipFile(wheels[-1]) as wheel:
        names = [n for n in wheel.namelist() if re.search(r"/crds/\w+\.yaml$", n)]
        found = [yaml.safe_load(wheel.read(name)) for name in names]
    return {definition["spec"]["names"]["kind"]: definition for definition in found}


def strict(schema):
    """A schema that refuses fields that it does not name."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(part) for key, part in schema.items()}
    is_open = schema.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(schema.get("properties"), dict) and not is_open:
        closed.setdefault("additionalProperties", False)
    return closed


def mistakes(resource, definitions):
    definition = definitions[resource["kind"]]["spec"]
    (version,) = definition["versions"]
    assert resource["apiVersion"] == f"{definition['group']}/{version['name']}"
    assert resource.keys() == {"apiVersion", "kind", "metadata", "spec"}
    schema = strict(version["schema"]["openAPIV3Schema"]["properties"]["spec"])
    Draft202012Validator.check_schema(schema)
    return [
        f"{'/'.join(map(str, error.absolute_path))}: {error.message}"
        for error in Draft202012Validator(schema).iter_errors(resource["spec"])
    ]


def manifest(name):
    return yaml.safe_load((CONFIGS / "kubernetes" / f"{name}.yaml").read_text())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("cluster", "DaskCluster"),
        ("autoscaler", "DaskAutoscaler"),
        ("job", "DaskJob"),
    ],
)
def test_kubernetes_manifests_are_what_the_operator_defines(name, kind, definitions):
    resource = manifest(name)
    assert resource["kind"] == kind
    assert not mistakes(resource, definitions)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("worker", "replica"), 3),
        (("worker", "replicas"), "three"),
        (("worker", "spec", "containers", 0, "arguments"), []),
        (("scheduler", "spec", "containers", 0, "ports", 0, "port"), 1),
        (("scheduler", "service", "ports", 0, "nodeport"), 1),
    ],
)
def test_kubernetes_manifests_are_checked_to_the_leaves(path, value, definitions):
    resource = manifest("cluster")
    part = resource["spec"]
    for step in path[:-1]:
        part = part[step]
    part[path[-1]] = value
    assert mistakes(resource, definitions)


def test_kubernetes_manifests_belong_together():
    cluster, scaler, job = map(manifest, ("cluster", "autoscaler", "job"))
    assert scaler["spec"]["cluster"] == cluster["metadata"]["name"]
    assert scaler["spec"]["minimum"] >= 1
    for resource, spec in (
        (cluster, cluster["spec"]),
        (job, job["spec"]["cluster"]["spec"]),
    ):
        selector = spec["scheduler"]["service"]["selector"]
        assert selector["dask.org/cluster-name"] == resource["metadata"]["name"]
        ports = spec["scheduler"]["spec"]["containers"][0]["ports"]
        served = {port["targetPort"] for port in spec["scheduler"]["service"]["ports"]}
        assert served == {port["name"] for port in ports}


# Commands in containers and units


def in_manifests():
    for resource in (manifest("cluster"), manifest("job")["spec"]["cluster"]):
        for part in ("scheduler", "worker"):
            yield resource["spec"][part]["spec"]["containers"][0]["args"]
    yield manifest("job")["spec"]["job"]["spec"]["containers"][0]["args"]


def in_compose():
    services = yaml.safe_load((CONFIGS / "compose.yaml").read_text())["services"]
    for service in services.values():
        yield service.get("entrypoint", []) + service.get("command", [])


@pytest.mark.parametrize("command", [*in_manifests(), *in_compose()], ids=" ".join)
def test_commands_know_their_options(command):
    program, name, *arguments = command
    done = output(BIN / program, name, "--help")
    known = set(re.findall(r"--[\w-]+", done))
    given = {a.split("=")[0] for a in arguments if a.startswith("--")}
    assert given <= known


# Compose


def check_compose(file):
    check = (BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec")
    return subprocess.run([*check, file], capture_output=True, text=True)


def test_compose_file_follows_the_specification(tmp_path):
    text = (CONFIGS / "compose.yaml").read_text()
    done = check_compose(CONFIGS / "compose.yaml")
    assert done.returncode == 0, done.stdout
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(text.replace("healthcheck:", "healthchek:"))
    done = check_compose(wrong)
    assert done.returncode == 1
    assert "healthchek" in done.stdout


# systemd

UNITS = CONFIGS / "systemd"


def verify(unit):
    return subprocess.run(
        [program("systemd-analyze"), "verify", "--man=no", unit],
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("name", ["dask-scheduler.service", "dask-worker@.service"])
def test_systemd_units_are_verified(name, tmp_path):
    # A template is verified as one of its instances.
    unit = tmp_path / name.replace("@", "@1")
    unit.write_text((UNITS / name).read_text())
    done = verify(unit)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    unit.write_text(unit.read_text().replace("Restart=", "Restrat="))
    assert "Restrat" in verify(unit).stderr


def started_by(name, environment):
    """The command of a unit, with its variables and specifiers put in."""
    text = (UNITS / name).read_text()
    defaults = dict(re.findall(r"^Environment=(\w+)=(.*)$", text, re.M))
    (command,) = re.findall(r"^ExecStart=(.*)$", text, re.M)
    command = command.replace("%H-%i", "host-1")
    filled = string.Template(command).substitute({**defaults, **environment})
    return shlex.split(filled)


def test_systemd_units_start_a_cluster(tmp_path, store, expected):
    """systemd itself does not run here: what it would start is started."""
    file = tmp_path / "scheduler.json"
    # Ports of their own, as these tests may not be alone.
    options = f"--port 0 --dashboard-address 127.0.0.1:0 --scheduler-file {file}"
    scheduler = started_by("dask-scheduler.service", {"OPTIONS": options})
    environment = dict(ENVIRONMENT)
    with running(tmp_path / "scheduler.log", *scheduler, env=environment):
        address = address_in(file)
        variables = {"SCHEDULER": address, "STATE_DIRECTORY": str(tmp_path / "state")}
        worker = started_by("dask-worker@.service", variables)
        with (
            running(tmp_path / "worker.log", *worker, env=environment),
            fitting(tmp_path, store, "--scheduler", address) as fit,
        ):
            fit.finish()
    assert_same(tmp_path / "model", expected)
