"""Cluster files: what is read, refused, rendered and started."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import dask
import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from conftest import blobs, create_zarr, current_client
from distributed import LocalCluster, get_client

from daskgmm import GaussianMixture, load, steps
from daskgmm.cli.main import main
from daskgmm.errors import ClusterError, MissingLibraryError
from daskgmm.execution import deploy

CONFIGS = Path(__file__).parents[2] / "cluster_configs"
FILES = sorted(set(CONFIGS.glob("*.yaml")) - {CONFIGS / "compose.yaml"})
LOCAL = {
    "cluster": "distributed.LocalCluster",
    "arguments": {
        "n_workers": 0,
        "threads_per_worker": 1,
        "processes": False,
        "dashboard_address": "127.0.0.1:0",
    },
}


@pytest.fixture
def write(tmp_path):
    def write(content):
        file = tmp_path / "cluster.yaml"
        file.write_text(content if isinstance(content, str) else yaml.dump(content))
        return file

    return write


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_files_that_are_shipped_are_read(file):
    read = deploy.read(file)
    assert read.file == file
    assert not read.scale or not read.adapt


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a: [", "is no YAML"),
        ("just words", "cluster: name a class"),
        ("arguments: {}", "cluster: name a class"),
        ("cluster: 7", "cluster: name a class"),
        ({**LOCAL, "cores": 3}, "cores: known are adapt, arguments, cluster"),
        ({**LOCAL, "arguments": [1]}, "arguments: write names and values below it"),
        ({**LOCAL, "dask": "x"}, "dask: write names and values below it"),
        ({**LOCAL, "scale": {"workers": 1, "jobs": 2}}, "scale: give one of cores, jo"),
        ({**LOCAL, "scale": {"n": 1}}, "scale: give one of cores, jobs, memory, wo"),
        ({**LOCAL, "adapt": {"maxium": 1}}, "adapt.maxium: known are interval, max"),
        ({**LOCAL, "adapt": {"maximum": 3}}, "adapt.minimum: a fit needs one worker"),
        ({**LOCAL, "adapt": {"minimum": 0}}, "adapt.minimum: a fit needs one worker"),
        ({**LOCAL, "adapt": {"minimum": "one"}}, "adapt.minimum: 'one' is no whole"),
        ({**LOCAL, "scale": {"workers": "two"}}, "scale.workers: 'two' is no whole"),
        ({**LOCAL, "scale": {"workers": 0}}, "0 is no whole number that is 1 or more"),
        ({**LOCAL, "scale": {"workers": True}}, "scale.workers: True is no whole"),
        ({**LOCAL, "scale": {"memory": "16 big"}}, "scale.memory: '16 big' is no size"),
        ({**LOCAL, "scale": {"memory": [1]}}, "scale.memory: [1] is no size of mem"),
        ({**LOCAL, "dask": {"distributed": 3}}, "dask.distributed: write names and"),
        (
            {**LOCAL, "scale": {"workers": 1}, "adapt": {"minimum": 1}},
            "adapt: there is scale already",
        ),
        (
            {
                **LOCAL,
                "arguments": {"security": True},
                "security": {"tls_ciphers": "x"},
            },
            "security: it is among the arguments already",
        ),
    ],
)
def test_mistakes_are_named_with_file_and_key(write, content, words):
    file = write(content)
    with pytest.raises(ValueError, match=re.escape(f"{file}")) as caught:
        deploy.read(file)
    assert words in str(caught.value)


def test_a_size_that_follows_the_work_needs_no_maximum(write):
    sizes = {"minimum": 1, "maximum": float("inf"), "target_duration": "5s"}
    assert deploy.read(write({**LOCAL, "adapt": sizes})).adapt == sizes


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"cluster": "LocalCluster"},
            "cluster: write where it is imported from, such as distributed.LocalClus",
        ),
        ({"cluster": "distributed.NoCluster"}, "there is no distributed.NoCluster"),
        ({"cluster": "distributed.deploy"}, "distributed.deploy is no cluster class"),
        ({"cluster": "os.getcwd", "arguments": {}}, "os.getcwd is no cluster class"),
        (
            {"arguments": {**LOCAL["arguments"], "n_workers": 1, "n_workrs": 1}},
            ": distributed.LocalCluster takes no n_workrs: is n_workers meant?",
        ),
        *(
            (
                {"arguments": {**LOCAL["arguments"], name: value}},
                f"arguments.{name}: {value!r} is no whole number that is {least} or m",
            )
            for name, value, least in (
                ("n_workers", -1, 0),
                ("n_workers", "one", 0),
                ("threads_per_worker", 0, 1),
                ("threads_per_worker", 1.5, 1),
            )
        ),
        ({"scale": {"jobs": 2}}, "scale: distributed.LocalCluster does not take it"),
        (
            {"cluster": "distributed.SSHCluster", "arguments": {}},
            "value 'None' found; given are none.",
        ),
        ({"security": {"tls_file": "x"}}, "security.tls_file: there is no file"),
        ({"security": {"colour": "x"}}, "security: Unknown parameters: ['colour']"),
        (
            {"cluster": "distributed.SSHCluster", "arguments": {"hosts": []}},
            "value '[]' found; given are hosts=[].",
        ),
    ],
)
def test_mistakes_that_show_at_the_start(write, change, words):
    file = write({**LOCAL, **change})
    with (
        pytest.raises((ValueError, ClusterError)) as caught,
        deploy.read(file).connect(),
    ):
        pass
    assert words in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_package_that_is_not_there_is_named(write):
    read = deploy.read(write("cluster: dask_cloudprovider.aws.FargateCluster"))
    with (
        pytest.raises(MissingLibraryError, match="pip install 'dask-cloudprovider'"),
        read.connect(),
    ):
        pass


@pytest.mark.parametrize(
    ("cluster", "package", "extra"),
    [
        ("dask_jobqueue.SLURMCluster", "dask_jobqueue", "jobqueue"),
        ("distributed.SSHCluster", "asyncssh", "ssh"),
    ],
)
def test_so_is_the_extra_that_brings_it(write, monkeypatch, cluster, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    more = {"hosts": ["localhost"] * 2} if extra == "ssh" else {}
    read = deploy.read(write({"cluster": cluster, "arguments": more}))
    with (
        pytest.raises(MissingLibraryError, match=rf"pip install 'daskgmm\[{extra}\]'"),
        read.connect(),
    ):
        pass


def test_a_cluster_is_sized_and_closed(write):
    file = write({**LOCAL, "scale": {"workers": 2}})
    with deploy.read(file).connect() as client:
        client.wait_for_workers(2, timeout=30)
        assert get_client() is client
        cluster = client.cluster
    assert client.status == "closed"
    assert cluster.status.name == "closed"


def test_a_cluster_is_closed_after_an_error(write):
    file = write({**LOCAL, "scale": {"workers": 1}})
    with pytest.raises(KeyError), deploy.read(file).connect() as client:
        raise KeyError
    assert client.cluster.status.name == "closed"


def test_workers_are_waited_for_no_longer_than_told(write):
    limit = {"daskgmm": {"no-workers-timeout": "1s"}}
    with (
        pytest.raises(ClusterError, match="no worker came in 1 s"),
        deploy.read(write({**LOCAL, "dask": limit})).connect(),
    ):
        pass


def test_a_job_that_is_refused_is_an_error_at_once(tmp_path, monkeypatch, capfd):
    sbatch = tmp_path / "sbatch"
    sbatch.write_text("#!/bin/sh\necho this queue is closed >&2\nexit 1\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(ClusterError, match="(?s)cannot be started.*queue is closed"),
        deploy.read(CONFIGS / "slurm.yaml").connect(),
    ):
        pass
    assert capfd.readouterr() == ("", "")


def test_configuration_holds_meanwhile_and_the_environment_wins(write, monkeypatch):
    file = write(
        {
            **LOCAL,
            "dask": {"daskgmm": {"pass-retries": 7, "storage-retries": 8}},
        }
    )
    before = dask.config.get("daskgmm")
    monkeypatch.setenv("DASK_DASKGMM__STORAGE_RETRIES", "9")
    with deploy.read(file).start():
        assert dask.config.get("daskgmm.pass-retries") == 7
        assert dask.config.get("daskgmm.storage-retries") == 9
        assert dask.config.get("daskgmm.worker-timeout") == before["worker-timeout"]
    assert dask.config.get("daskgmm") == before


# Job scripts

SCRIPTS = {
    "slurm": (
        "#SBATCH -J daskgmm-worker",
        "#SBATCH -o daskgmm-logs/daskgmm-worker-%J.out",
        "#SBATCH -n 1",
        "#SBATCH --cpus-per-task=1",
        "#SBATCH --mem=4G",
        "#SBATCH -t 04:00:00",
        "#SBATCH --requeue",
    ),
    "pbs": (
        "#PBS -N daskgmm-worker",
        "#PBS -l select=1:ncpus=4:mem=15GB",
        "#PBS -l walltime=04:00:00",
        "#PBS -o daskgmm-logs/",
        "#PBS -r y",
    ),
    "sge": (
        "#$ -N daskgmm-worker",
        "#$ -q all.q",
        "#$ -l h_vmem=4G",
        "#$ -l h_rt=04:00:00",
        "#$ -o daskgmm-logs/",
        "#$ -cwd",
        "#$ -pe smp 4",
        "#$ -r y",
    ),
    "lsf": (
        "#BSUB -J daskgmm-worker",
        "#BSUB -n 4",
        '#BSUB -R "span[hosts=1]"',
        "#BSUB -M 16000",
        "#BSUB -W 04:00",
        "#BSUB -r",
    ),
}


@pytest.mark.parametrize("system", SCRIPTS)
def test_job_scripts(system, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    queue = "short.q"
    monkeypatch.setenv(f"DASK_JOBQUEUE__{system.upper()}__QUEUE", queue)
    with deploy.read(CONFIGS / f"{system}.yaml").start() as cluster:
        script = cluster.job_script()
    lines = script.splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    for line in SCRIPTS[system]:
        # The queue is set in the environment.
        assert re.sub(r"-q .*", f"-q {queue}", line) in lines
    directives = [line for line in lines[1:] if line.startswith("#")]
    assert sum(queue in line for line in directives) == 1
    (command,) = (line for line in lines if line and not line.startswith("#"))
    assert "-m distributed.cli.dask_worker tcp://" in command
    threads = 1 if system == "slurm" else 4
    assert f"--nthreads {threads} " in command
    assert "--death-timeout 60" in command
    checked = subprocess.run(["bash", "-n"], input=script, text=True)
    assert checked.returncode == 0


_INTERRUPTED = """
import signal, sys
from daskgmm.execution import deploy

# A job in a shell's background starts with the signal ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
with deploy.read(sys.argv[1]).start():
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        print("interrupted", "dask_jobqueue.runner" in sys.modules)
"""


def test_ctrl_c_is_no_success_on_a_batch_system(tmp_path):
    """dask_jobqueue has it exit with 0, unless its handler is taken away again."""
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED, str(CONFIGS / "slurm.yaml")],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        cwd=tmp_path,
    )
    assert done.stdout == "interrupted True\n"


@pytest.mark.parametrize("name", ["slurm.sbatch", "tls/make_certificates.sh"])
def test_shell_scripts_parse(name):
    assert subprocess.run(["bash", "-n", CONFIGS / name]).returncode == 0


# The command line


@pytest.fixture
def store(tmp_path):
    place = tmp_path / "rows.zarr"
    create_zarr(place, blobs(3, 3000, 2, 3), chunks=(700, 2))
    return place


@pytest.mark.slow
def test_fit_and_predict_on_a_cluster_of_a_file(store, tmp_path):
    options = ["--cluster", str(CONFIGS / "local.yaml")]
    fit = ["fit", str(store), str(tmp_path / "m"), "-k", "3", "--seed", "0"]
    result = CliRunner().invoke(main, [*fit, *options])
    assert result.exit_code == 0, result.output
    expected = GaussianMixture(3, random_state=0).fit(str(store))
    np.testing.assert_array_equal(load(tmp_path / "m").means_, expected.means_)
    predict = ["predict", str(tmp_path / "m"), str(store), str(tmp_path / "o")]
    result = CliRunner().invoke(main, [*predict, *options])
    assert result.exit_code == 0, result.output


AFTER = """
import logging, sys
from daskgmm.cli.main import main
main(sys.argv[1:], standalone_mode=False)
logging.getLogger("distributed.batched").info("a connection is closed")
logging.getLogger("distributed.scheduler").warning("a worker is removed")
logging.getLogger("asyncio").error("Future exception was never retrieved")
logging.getLogger("distributed.worker").error("told")
"""


@pytest.mark.slow
def test_what_is_logged_when_the_cluster_is_closed_is_kept_quiet(
    store, tmp_path, write
):
    """Dask logs the ends of connections after that, with tracebacks."""
    file = write({**LOCAL, "arguments": {**LOCAL["arguments"], "n_workers": 1}})
    args = ["fit", str(store), str(tmp_path / "m"), "-k", "3", "--cluster", str(file)]
    result = subprocess.run(
        [sys.executable, "-c", AFTER, *args], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stderr.endswith("distributed.worker - ERROR - told\n")


def test_a_file_with_a_mistake_is_one_line(store, tmp_path, write):
    args = ["fit", str(store), str(tmp_path / "m"), "-k", "3", "--cluster"]
    result = CliRunner().invoke(main, [*args, str(write("cluster: a.b"))])
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "cluster.yaml: cluster: there is no module a here" in result.stderr


@pytest.mark.parametrize(
    "options",
    [
        ["--scheduler", "tcp://a:1"],
        ["--workers", "2"],
        ["--threads-per-worker", "2"],
        ["--memory-limit", "2GB"],
        ["--dashboard", ":8787"],
        ["--tls-ca-file", "FILE"],
        ["--tls-cert", "FILE"],
        ["--tls-key", "FILE"],
    ],
)
def test_cluster_excludes_other_options(options, write):
    file = str(write(LOCAL))
    options = [file if option == "FILE" else option for option in options]
    args = ["fit", "rows", "model", "-k", "2", "--cluster", file, *options]
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 2
    assert "Usage: " in result.stderr
    assert "--cluster" in result.stderr


def test_certificates_are_for_a_scheduler(write):
    args = ["fit", "rows", "model", "-k", "2", "--tls-ca-file", str(write(LOCAL))]
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 2
    assert "are for --scheduler" in result.stderr


@pytest.mark.slow
def test_what_is_left_out_is_said(pytestconfig):
    """As `make test` does, of the files with tests that need services."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "--collect-only", "-q"),
            *("-m", "not slow and not cluster"),
            *(
                "tests/execution/test_cluster.py",
                "tests/execution/test_cluster_configs.py",
            ),
        ],
        cwd=pytestconfig.rootpath,
        capture_output=True,
        text=True,
    )
    assert re.search(
        r"left out: \d+ tests marked cluster; run them with make test-cluster\n"
        r"left out: \d+ tests marked slow; run them with make test-slow\n",
        done.stdout,
    ), done.stdout


def test_a_workers_address_is_not_a_schedulers():
    with (
        LocalCluster(
            n_workers=1, processes=False, protocol="tcp", dashboard_address=None
        ) as cluster,
        pytest.raises(
            ClusterError, match="is no scheduler's address .*not that of a"
        ) as raised,
    ):
        deploy.join(cluster.workers[0].address).__enter__()
    assert current_client() is None, raised


def test_a_busy_scheduler_greets_late(monkeypatch):
    """Also one who was told that nothing comes."""
    monkeypatch.setattr(deploy, "_LOOK", 0.1)
    told = []
    with (
        LocalCluster(n_workers=0, protocol="tcp", dashboard_address=None) as cluster,
        steps.told_to(told.append),
    ):
        cluster.loop.add_callback(time.sleep, 1.0)
        deploy._check_greets(cluster.scheduler_address)
    assert [step.name for step in told] == [
        f"waiting for {cluster.scheduler_address} (it says nothing yet)"
    ]
