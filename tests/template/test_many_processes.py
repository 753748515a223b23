"""Generated projects on two processes: one config, one run directory, equal weights; and what naive wiring does."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.xdist_group("ranks")

LONGEST_RUN_SECONDS = 240
QUIET = ("debug=fast", "logger=csv", "callbacks.progress_bar=null", "+trainer.enable_progress_bar=false")
DDP = ("trainer=ddp", "trainer.devices=2")

RECORD = '''
"""Write down what each process trained, and under which settings."""
import hashlib, json, os, signal
from pathlib import Path
from lightning.pytorch import Callback

class Record(Callback):
    def __init__(self, out, stamp, fail_on=None, end_on=None):
        self.out, self.stamp, self.fail_on, self.end_on = Path(out), stamp, fail_on, end_on

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.fail_on == trainer.global_rank:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.end_on == trainer.global_rank and trainer.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_fit_end(self, trainer, pl_module):
        digest = hashlib.sha256()
        for parameter in pl_module.parameters():
            parameter = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
            digest.update(parameter.detach().float().contiguous().numpy().tobytes())
        facts = {
            "weights": digest.hexdigest(), "stamp": self.stamp, "world_size": trainer.world_size,
            "precision": str(trainer.precision_plugin.precision), "lr": pl_module.lr,
        }
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / f"rank{trainer.global_rank}.json").write_text(json.dumps(facts))
'''

FSDP_ON_CPU = '''
"""FSDP1 on a CPU, which torch wants to be told about."""
import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch.distributed.fsdp import FullyShardedDataParallel
from my_project.shard import FSDP1

class FSDPOnCPU(FSDP1):
    def __init__(self, **settings):
        FSDPStrategy.__init__(self, auto_wrap_policy=self.is_block, **settings)

    def _wrap(self, model):
        model = FullyShardedDataParallel(
            module=model, mixed_precision=self.mixed_precision_config, device_id=torch.device("cpu"), **self.kwargs
        )
        print("units:", sum(isinstance(part, FullyShardedDataParallel) for part in model.modules()))
        return model
'''

Run = Callable[..., str]


@pytest.fixture
def project(bake, tmp_path: Path) -> Path:
    """A project, with the callback that records beside it."""
    folder = bake(task="both", default_precision="fp32")
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra" / "record.py").write_text(RECORD)
    (tmp_path / "extra" / "fsdp_on_cpu.py").write_text(FSDP_ON_CPU)
    (tmp_path / "where").mkdir()
    return folder


@pytest.fixture
def run(project: Path, tmp_path: Path) -> Iterator[Run]:
    """Run a command in an empty folder, and leave no process behind."""
    groups: list[int] = []
    paths = [str(project / "src"), str(tmp_path / "extra"), os.environ.get("PYTHONPATH", "")]
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "HYDRA_"))}

    def command(
        *words: str, status: int | None = 0, until: Callable[[], bool] = lambda: False, **variables: str
    ) -> str:
        environment = plain | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))} | variables
        log = tmp_path / "log.txt"
        with open(log, "w") as stream:
            pipes = {"stdin": subprocess.DEVNULL, "stdout": stream, "stderr": subprocess.STDOUT}
            process = subprocess.Popen(words, cwd=tmp_path / "where", env=environment, start_new_session=True, **pipes)
        groups.append(process.pid)
        deadline = time.monotonic() + LONGEST_RUN_SECONDS
        while process.poll() is None and not until() and time.monotonic() < deadline:
            time.sleep(0.2)
        is_over = process.poll() is not None
        with contextlib.suppress(ProcessLookupError):
            if not is_over:
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        output = log.read_text()
        if status is not None:
            assert is_over, output
            assert process.returncode == status, output
        return output

    yield command
    for group in groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


def record(*settings: str) -> list[str]:
    """Overrides that have every process write down what it trained."""
    fields = ["out: '${paths.run_dir}/ranks'", "stamp: '${now:%H-%M-%S-%f}'", *settings]
    return [f"+callbacks.record={{_target_: record.Record, {', '.join(fields)}}}"]


def ranks(run_dir: Path) -> list[dict]:
    """What the processes of a run wrote down."""
    return [json.loads(path.read_text()) for path in sorted((run_dir / "ranks").glob("rank*.json"))]


def folders(where: Path, kind: str) -> list[Path]:
    return sorted((where / "outputs" / "train" / kind).glob("*"))


def left_alive(marker: str) -> list[str]:
    """Processes whose command line or environment tells that they belong to this test."""
    alive = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if marker.encode() in (process / "environ").read_bytes():
                alive.append((process / "cmdline").read_text())
        except OSError:  # it has just ended, or belongs to somebody else
            continue
    return alive


def test_a_sweep_of_runs_on_two_processes(project, run, tmp_path):
    where = tmp_path / "where"
    done = run(
        sys.executable, str(project / "train.py"), "-m", *DDP, *QUIET, *record(), "precision=fp32,bf16", MARK=str(where)
    )
    (sweep,) = folders(where, "multiruns")
    assert not folders(where, "runs")
    assert [path.name for path in where.iterdir()] == ["outputs"]
    assert done.count("this run  ") == 2
    for job, precision in enumerate(("32-true", "bf16-mixed")):
        first, second = ranks(sweep / str(job))
        assert first == second
        assert (first["world_size"], first["precision"]) == (2, precision)
    assert not left_alive(f"MARK={where}")


def test_the_naive_wiring_strays(project, run, tmp_path):
    """Lightning's own launcher has the child start a sweep of its own."""
    script = (project / "train.py").read_text()
    patched = "\nfrom my_project import training\n\ntraining.start_other_processes = lambda trainer: None\n"
    naive = project / "naive.py"
    naive.write_text(script.replace("\n\n\n@entry_point", f"{patched}\n\n@entry_point", 1))
    assert patched in naive.read_text()
    where = tmp_path / "where"
    # It goes on to hang, or to fail, or to finish.
    command = [sys.executable, str(naive), "-m", *DDP, *QUIET, *record(), "precision=fp32,bf16"]
    run(*command, status=None, until=lambda: len(folders(where, "multiruns")) > 1)
    assert len(folders(where, "multiruns")) > 1


def test_an_edit_of_conf_and_odd_paths_do_not_reach_the_other_process(project, run, tmp_path):
    where = tmp_path / "where"
    # Spoilt before the other process starts: this function is called just then.
    script = (project / "train.py").read_text()
    spoil = "\nfrom my_project import launch\n\nSTART = launch._start\n\n\ndef spoilt(job, rank):\n"
    spoil += f"    open({str(project / 'conf' / 'train.yaml')!r}, 'w').write('[')\n    return START(job, rank)\n\n\n"
    spoil += "launch._start = spoilt\n"
    (project / "spoilt.py").write_text(script.replace("\n\n\n@entry_point", f"{spoil}\n\n@entry_point", 1))
    odd = "hydra.run.dir='a, \"b\" c=${task_name}'"
    run(sys.executable, str(project / "spoilt.py"), *DDP, *QUIET, *record(), odd)
    assert (project / "conf" / "train.yaml").read_text() == "["
    assert [path.name for path in where.iterdir()] == ['a, "b" c=train']
    first, second = ranks(where / 'a, "b" c=train')
    assert first == second


def test_a_process_that_dies_ends_its_run_and_nothing_else(project, run, tmp_path):
    where = tmp_path / "where"
    fails = record("fail_on: 1")
    done = run(sys.executable, str(project / "train.py"), *DDP, *QUIET, *fails, status=1, MARK=str(where))
    assert "Process 1 of 2 ended with status -9" in done
    assert not left_alive(f"MARK={where}")


def test_a_process_that_is_told_to_end_ends_its_run_and_loses_no_step(project, run, tmp_path):
    where = tmp_path / "where"
    for rank, name in enumerate(("first", "second", "whole")):  # there is no third process to be told
        settings = [
            "trainer.max_epochs=1",
            *QUIET[1:],
            *record(f"end_on: {rank}"),
            "callbacks.record.stamp=0",
            "resume=latest",
        ]
        command = (sys.executable, str(project / "train.py"), *DDP, *settings, f"hydra.run.dir={where / name}")
        if name != "whole":
            run(*command, status=128 + signal.SIGTERM, MARK=str(where))
            assert not left_alive(f"MARK={where}")
            checkpoint = torch.load(where / name / "checkpoints" / "last.ckpt", weights_only=True)
            assert checkpoint["global_step"] == 2
        run(*command)
    assert len({facts["weights"] for name in ("first", "second", "whole") for facts in ranks(where / name)}) == 1


@pytest.mark.parametrize("experiment", ["digits", "lm"])
@pytest.mark.parametrize("sharding", ["fsdp", "fsdp2"])
def test_sharded_training(sharding, experiment, project, run, tmp_path):
    where = tmp_path / "where"
    settings = [f"experiment={experiment}", f"trainer={sharding}", "trainer.devices=2", "precision=bf16"]
    if sharding == "fsdp":
        # A full state dict of FSDP1 on a CPU is a use after free in torch; sharded ones are in order.
        on_cpu = ["trainer.strategy._target_=fsdp_on_cpu.FSDPOnCPU", "trainer.strategy.state_dict_type=sharded"]
        done = run(sys.executable, str(project / "train.py"), *settings, *QUIET, *on_cpu)
        assert "units: " in done
        assert "units: 1\n" not in done
    else:
        run(sys.executable, str(project / "train.py"), *settings, *QUIET, *record())
        (run_dir,) = folders(where, "runs")
        first, second = ranks(run_dir)
        assert first == second
    assert len(folders(where, "runs")) == 1


@pytest.mark.parametrize("launcher", ["torchrun", "srun"])
def test_processes_that_others_start_agree_on_one_run(launcher, project, run, tmp_path):
    where = tmp_path / "where"
    command = [str(project / "train.py"), *DDP, *QUIET, *record()]
    if launcher == "torchrun":
        run(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *command)
    else:
        srun = "export SLURM_NTASKS=2 SLURM_NTASKS_PER_NODE=2 SLURM_JOB_ID=4711 SLURM_STEP_ID=0 SLURM_NODEID=0 "
        srun += "SLURM_NODELIST=localhost SLURM_JOB_NAME=train SLURM_NNODES=1; "
        srun += 'SLURM_PROCID=1 SLURM_LOCALID=1 "$@" & SLURM_PROCID=0 SLURM_LOCALID=0 "$@" && wait $!'
        run("bash", "-c", srun, "srun", sys.executable, *command)
    (run_dir,) = folders(where, "runs")
    assert launcher == "torchrun" or run_dir.name == "slurm-4711-0"
    first, second = ranks(run_dir)
    assert first == second
    assert first["world_size"] == 2


@pytest.mark.parametrize("launcher", ["none", "torchrun"])
def test_a_command_that_resumes_can_be_given_again(launcher, project, run, tmp_path):
    command = [str(project / "train.py"), *DDP, *QUIET, "resume=latest", "hydra.run.dir=again"]
    if launcher == "torchrun":
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *command]
    run(sys.executable, *command)
    assert json.loads((tmp_path / "where" / "again" / "run.json").read_text())["status"] == "finished"
    assert run(sys.executable, *command).count("again has finished already.") == 1


def test_torchrun_starts_again_in_the_same_directory(project, run, tmp_path):
    where = tmp_path / "where"
    once = project / "once.py"
    failing = "\nfrom my_project import training\n\nANNOUNCE = training.announce\n\n\ndef fail_once(*args):\n"
    failing += "    if os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':\n        raise RuntimeError('the first time')\n"
    failing += "    ANNOUNCE(*args)\n\n\ntraining.announce = fail_once\n"
    script = (project / "train.py").read_text().replace("import hydra\n", "import os\n\nimport hydra\n", 1)
    once.write_text(script.replace("\n\n\n@entry_point", f"{failing}\n\n@entry_point", 1))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = run(*torchrun, "--max-restarts=1", str(once), *DDP, *QUIET, *record())
    assert "the first time" in done
    (run_dir,) = folders(where, "runs")
    assert len(ranks(run_dir)) == 2


def test_submitit_runs_ddp_jobs(project, run, tmp_path):
    pytest.importorskip("submitit")
    where = tmp_path / "where"
    local = ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"]
    run(sys.executable, str(project / "train.py"), "-m", *local, *DDP, *QUIET, *record(), "seed=0,1")
    (sweep,) = folders(where, "multiruns")
    weights = []
    for job in range(2):
        first, second = ranks(sweep / str(job))
        assert first == second
        weights.append(first["weights"])
    assert weights[0] != weights[1]
