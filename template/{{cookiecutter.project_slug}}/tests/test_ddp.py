"""A run on two processes is one run."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from omegaconf import DictConfig
from torch import nn

from {{cookiecutter.package_name}}.processes import Place, this_process
from {{cookiecutter.package_name}}.shard import blocks
from {{cookiecutter.package_name}}.training import train

ROOT = Path(__file__).parents[1]
EXPERIMENT = "digits" if (ROOT / "conf" / "experiment" / "digits.yaml").exists() else "lm"

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "a",
    "TORCHELASTIC_RESTART_COUNT": "2",
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "GROUP_RANK": "1",
}
SRUN = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0",
    "SLURM_JOB_NAME": "train",
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}


def test_two_processes_leave_one_run(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", str(ROOT / "train.py"), "trainer=ddp", "trainer.devices=2", "debug=fast"]
    quiet = ["logger=csv", "callbacks.progress_bar=null", "+trainer.enable_progress_bar=false"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [*command, *quiet, "hydra.run.dir='a run, of \"two\"'"],
        cwd=tmp_path,
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ['a run, of "two"']
    assert done.stdout.count("this run  ") == 1
    checkpoint = torch.load(next(tmp_path.glob("*/checkpoints/last.ckpt")), weights_only=True)
    assert checkpoint["global_step"] == 2


def test_processes_know_their_place() -> None:
    assert this_process({}) == Place()
    assert this_process({"LOCAL_RANK": "1", "WORLD_SIZE": "2"}) == Place(rank=1, world_size=2, local_rank=1)
    assert this_process(TORCHRUN) == Place(3, 4, 1, 1, "torchrun", "torchrun-a", 2)
    assert this_process(SRUN) == Place(3, 4, 1, 1, "srun", "slurm-77-0", 0)
    assert this_process({**SRUN, "SLURM_JOB_NAME": "bash"}).launcher is None


def test_several_machines_need_a_launcher(small: Callable[..., DictConfig]) -> None:
    with pytest.raises(SystemExit, match=r"num_nodes=2: start it with torchrun or srun"):
        train(small(EXPERIMENT, "trainer=ddp", "trainer.num_nodes=2"))


def test_fsdp_needs_a_gpu(small: Callable[..., DictConfig]) -> None:
    with pytest.raises(SystemExit, match="trainer=fsdp needs a GPU"):
        train(small(EXPERIMENT, "trainer=fsdp", "trainer.accelerator=cpu"))


def test_nothing_of_a_run_stays_in_the_process(small: Callable[..., DictConfig]) -> None:
    names = ("LOCAL_RANK", "MASTER_PORT", "NODE_RANK", "PL_GLOBAL_SEED", "WORLD_SIZE")
    before = [os.environ.get(name) for name in names]
    train(small(EXPERIMENT, "trainer=ddp", "trainer.max_epochs=1"))
    assert [os.environ.get(name) for name in names] == before
    assert not torch.distributed.is_initialized()
    assert Trainer(logger=False, enable_checkpointing=False, accelerator="cpu").world_size == 1


def test_blocks_leave_shared_weights_together() -> None:
    model = nn.Module()
    model.inner, model.head = nn.Module(), nn.Linear(2, 2)
    model.inner.layers = nn.ModuleList([nn.Linear(2, 2), nn.GELU(), nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2)])
    model.head.weight = model.inner.layers[3].weight
    assert blocks(model) == [model.inner.layers[0], model.inner.layers[2]]
