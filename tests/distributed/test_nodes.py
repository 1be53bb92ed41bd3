"""Two nodes of two processes on the loopback device, started as the README of `examples/multi_node` says."""

import json
import os
import shlex
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lightning_bsscale.demo import digits_data
from tests.helpers.node_worker import LAST_WINDOW, LIFE, TIME_OUT
from tests.helpers.processes import ROOT, free_port, script_environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

EXAMPLE = ROOT / "examples" / "multi_node"
GRACE = 10  # seconds for an error to travel from process to process and for the launchers to end
FAKE_SRUN = """#!/bin/bash
# Two nodes of two tasks, as srun would start them.
while [[ $1 == --* ]]; do shift; done
for id in 0 1 2 3; do
    SLURM_PROCID=$id SLURM_LOCALID=$((id % 2)) SLURM_NODEID=$((id / 2)) "$@" &
    tasks+=($!)
done
for task in "${tasks[@]}"; do wait "$task" || exit 1; done
"""


def torchrun_of_readme(port):
    """The options of torchrun in the README's commands for one machine, with a port of our own."""
    text = (EXAMPLE / "README.md").read_text().replace("\\\n", " ")
    line = next(line for line in text.splitlines() if "torchrun" in line and "127.0.0.1:29500" in line)
    options = shlex.split(line.replace("29500", str(port)))[1:]
    return options[: options.index("examples/multi_node/train.py")]


def end(processes):
    """Whoever is left goes, with all that it has started in its own session."""
    for process in processes:
        if process.poll() is None:
            process.terminate()  # torchrun then ends its workers, which are in sessions of their own
    for process in processes:
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def two_nodes(folder, name, *how):
    """Trains on two nodes; the launchers' exit codes, and what each rank wrote."""
    launcher = [sys.executable, "-m", "torch.distributed.run", *torchrun_of_readme(free_port())]
    command = [*launcher, "-m", "tests.helpers.node_worker", str(folder), name, *how]
    nodes = []
    try:
        for node in range(2):
            with (folder / f"node-{node}.txt").open("w") as log:
                settings = dict(stdout=log, stderr=log, start_new_session=True)
                nodes.append(subprocess.Popen(command, env=script_environment(), **settings))
        deadline = time.monotonic() + LIFE + GRACE
        codes = [node.wait(max(0.1, deadline - time.monotonic())) for node in nodes]
    finally:
        end(nodes)
    files = sorted(folder.glob(f"{name}-*.json"))
    return codes, {int(file.stem.rsplit("-")[-1]): json.loads(file.read_text()) for file in files}


def without_times(told):
    agreed = json.loads(told["agreed"])
    for record in agreed["decisions"]:
        record["situation"] |= {"seconds_per_loader_batch": None, "seconds_per_step": None}
    return agreed


@pytest.fixture(scope="module")
def new_folder(tmp_path_factory):
    """Makes folders with the data: scikit-learn is then imported here, not in every process."""
    tensors = digits_data()[0].tensors

    def make(name):
        folder = tmp_path_factory.mktemp(name)
        torch.save(tensors, folder / "digits.pt")
        return folder

    return make


@pytest.fixture(scope="module")
def unbroken(new_folder):
    codes, told = two_nodes(new_folder("unbroken"), "unbroken")
    assert codes == [0, 0]
    return told


def test_every_rank_of_two_nodes_decides_alike(unbroken):
    places = [(told["node"], told["local_rank"]) for _, told in sorted(unbroken.items())]
    assert places == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert len({told["agreed"].encode() for told in unbroken.values()}) == 1
    agreed = without_times(unbroken[0])
    assert agreed["examples_seen"] == 3 * 1348, "1347, and one twice, so that four ranks have as many"
    assert set(agreed["windows"]) >= {1, 2, 4}, "the batch grew twice"
    assert agreed["windows"][LAST_WINDOW] == 4
    assert agreed["history"][0]["optimizer_steps"] <= 2, "four ranks measure without accumulation"


def test_a_rank_killed_in_mid_window_ends_the_others_and_a_restart_decides_as_if_nothing_was(unbroken, new_folder):
    folder = new_folder("killed")
    codes, told = two_nodes(folder, "killed", "kill")
    ended = time.time()
    killed = json.loads((folder / "killed.json").read_text())
    assert killed["epoch"] == 1
    assert ended - killed["at"] < TIME_OUT + GRACE
    assert codes == [1, 1]
    assert 3 not in told
    # A launcher ends its other process when one has failed, perhaps before that could write; one a node had to notice.
    assert told, "a survivor wrote what it ended with"
    for rank, found in told.items():
        assert found["error"] == "RuntimeError", (rank, found)
        assert "gloo" in found["text"] or "Connection" in found["text"], (rank, found)
        assert "on_exception" not in found["functions"], (rank, found)  # nothing of ours failed on top of it
        assert found["at"] - killed["at"] < TIME_OUT + GRACE / 2

    codes, again = two_nodes(folder, "again", "go_on")
    assert codes == [0, 0]
    assert len({found["agreed"].encode() for found in again.values()}) == 1
    whole, rest = without_times(unbroken[0]), without_times(again[0])
    repeated = len(rest["windows"])
    assert 0 < len(whole["windows"]) - repeated < LAST_WINDOW, "from the checkpoint on, not from the beginning"
    for part in ("windows", "rates"):  # of this process only
        assert rest.pop(part) == whole.pop(part)[-repeated:]
    assert rest == whole


@pytest.mark.nightly
def test_the_slurm_script_starts_every_process(tmp_path):
    """Not on a cluster: a stand-in for srun sets what SLURM would."""
    srun = tmp_path / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text(FAKE_SRUN)
    srun.chmod(srun.stat().st_mode | stat.S_IXUSR)
    slurm = {"SLURM_JOB_ID": f"{free_port() % 10000}", "SLURM_NODELIST": "127.0.0.1", "SLURM_JOB_NAME": "bsscale"}
    slurm |= {"SLURM_NNODES": "2", "SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2"}
    path = os.pathsep.join([str(srun.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    options = ["--accelerator", "cpu", "--max_epochs", "1", "--folder", str(tmp_path / "runs")]
    job = subprocess.Popen(
        ["bash", str(EXAMPLE / "train.sbatch"), *options],
        cwd=ROOT,
        env=script_environment(PATH=path, MASTER_PORT=str(free_port()), **slurm),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        told, _ = job.communicate(timeout=LIFE)
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()
    assert job.returncode == 0, told
    assert "4 processes, 43 optimizer steps, " in told
    assert told.count("accuracy") == 1, "one process speaks"
    assert (tmp_path / "runs" / "last.ckpt").is_file()
    assert (tmp_path / "runs" / "bsscale.jsonl").is_file()
