import math

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from mp_plugin.hydra_guard import check, complaint, override_value, without_precision

OURS = "${precision}"
SLURM = {"_target_": "lightning.pytorch.plugins.environments.SLURMEnvironment", "auto_requeue": False}
TRAINER = {"_target_": "lightning.pytorch.Trainer"}


@pytest.mark.parametrize(
    "value",
    [
        OURS,
        SLURM,
        [OURS, SLURM],
        {"nested": {"list": [1, 2.5, -3e-5, None, True, False]}, "empty": {}, "none": []},
        "plain",
        "two words, and a comma",
        'a "quoted" word',
        "it's",
        "back\\slash",
        "ends in a backslash\\",
        'backslashes before a quote \\\\"',
        "a\nline",
        "",
        "1",
        "true",
        "null",
        "1.5",
        "${oc.env:HOME}/x",
        '${oc.env:NOWHERE,"default"}',
        "${a}, ${b}",
        math.inf,
        "naïve",
    ],
    ids=repr,
)
def test_override_value_reads_back_unchanged(value):
    parsed = OverridesParser.create().parse_override(f"key={override_value(value)}")
    assert parsed.value() == value


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["+precision=bf16", "seed=1"], ["seed=1"]),
        (["++precision=bf16"], []),
        (["precision=bf16", "seed=1"], ["seed=1", "~precision"]),
        (["experiment=e"], ["experiment=e", "~precision"]),
        (["+precision=fp16", "precision/scaling=static", "precision.scaling.init_scale=8"], []),
        (["+precision=fp16", "trainer.precision=16-mixed", "trainer.max_steps=1"], ["trainer.max_steps=1"]),
        (["+precision=fp16", "precision_map=x", "++a.precision=1"], ["precision_map=x", "++a.precision=1"]),
    ],
    ids=str,
)
def test_without_precision(overrides, expected):
    assert without_precision(overrides) == expected


def config(**trainer):
    return OmegaConf.create({"trainer": {**TRAINER, **trainer}, "precision": {"_target_": "x"}, "slurm": SLURM})


@pytest.mark.parametrize(
    ("final", "host"),
    [
        (config(precision=None, plugins=[OURS]), config(precision="32-true")),
        (config(precision=None, plugins=[OURS]), config(plugins=None)),
        (config(precision=None, plugins=[OURS, SLURM]), config(plugins=[SLURM])),
        (config(precision=None, plugins=[SLURM, OURS]), config(plugins=[SLURM, OURS])),
        # An app that has no cfg.trainer builds its Trainer elsewhere, whatever lands in this one.
        (config(precision="16-mixed", plugins=[]), OmegaConf.create({"train": {"trainer": TRAINER}})),
    ],
    ids=["no plugins", "null plugins", "kept", "the app names ours itself", "no trainer"],
)
def test_nothing_to_complain_about(final, host):
    assert complaint(final, host, "bf16") is None


@pytest.mark.parametrize(
    ("host_plugins", "shown", "pasted"),
    [
        ([SLURM], SLURM["_target_"], [OURS, SLURM]),
        (SLURM, SLURM["_target_"], [OURS, SLURM]),
        (["${slurm}"], "${slurm}", [OURS, "${slurm}"]),
        ("${environments}", SLURM["_target_"], [OURS, SLURM]),
        (["${..name}"], "spelled out", [OURS, "spelled out"]),
    ],
    ids=["list", "single", "interpolated entry", "interpolated list", "relative interpolation"],
)
def test_a_lost_plugin_is_named_and_can_be_pasted_back(host_plugins, shown, pasted):
    host = config(plugins=host_plugins, name="spelled out")
    host.environments = [SLURM]
    sentence = complaint(config(precision=None, plugins=[OURS]), host, "bf16")
    assert sentence.startswith(f"Stopped before training: precision=bf16 would drop {shown} from this app's trainer")
    assert sentence.endswith(f"; to go on, add 'trainer.plugins={override_value(pasted)}'")


def test_a_plugin_of_ours_that_a_later_config_replaced_is_noticed():
    final = config(precision=None, plugins=[SLURM])
    sentence = complaint(final, final, "bf16")
    assert "trainer.plugins does not contain ${precision}, so that precision=bf16 would have no effect" in sentence
    assert f"'trainer.plugins={override_value([OURS, SLURM])}'" in sentence


def test_two_precisions_for_one_trainer_are_noticed():
    final = config(precision="16-mixed", plugins=[OURS])
    assert complaint(final, config(), "bf16") == (
        "Stopped before training: precision=bf16 and trainer.precision=16-mixed are two precisions for one trainer; "
        "to go on, add trainer.precision=null"
    )


def test_resolving_a_config_outside_a_job_is_harmless() -> None:
    assert not HydraConfig.initialized()
    assert check() == "not in a job"
