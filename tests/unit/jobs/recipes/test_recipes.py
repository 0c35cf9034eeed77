"""Every file in deploy/configs loads; the recipes fit the fleets that their heads name."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from common import config
from common.errors import ConfigError
from common.model.architecture import architecture_of
from jobs.recipes.plan import Plan, misfits, plan, rows
from jobs.recipes.times import Fleet
from tempsamp import app

ROOT = Path(__file__).resolve().parents[4]
CONFIGS = ROOT / "deploy/configs"
RECIPES = sorted(CONFIGS.glob("*_*.toml"))
TEMPSAMP = CONFIGS / "timelens_tempsamp_qwen3_5_4b.toml"
ROOTS = {"/data/videos", "/data/cache", "/data/rows", "/data/runs"}


def planned(path: Path, *overrides: str, gpus: int = 4, memory_gb: float = 96.0) -> Plan:
    """On as many learner ranks as rollout GPUs, H20."""
    run = config.load(path, overrides=overrides)
    fleet = Fleet(
        learner_gpus=gpus,
        rollout_gpus=gpus,
        gpu_memory_gb=memory_gb,
        gpu_tflops=148,
        gpu_bandwidth_gbs=4000,
    )
    return plan(run, architecture=architecture_of(run.shared.model), fleet=fleet)


def head(path: Path) -> dict[str, list[str]]:
    """The table on top of a recipe: its first column → the others."""
    lines = re.findall(r"^#   (\S.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    table = [re.split(r"  +", line.strip()) for line in lines]
    return {name: cells for name, *cells in table if cells}


def test_the_recipes_are_there() -> None:
    assert [path.stem for path in RECIPES] == [
        "activitynet_tempsamp_qwen2_5_vl_7b",
        "charades_tempsamp_qwen2_5_vl_7b",
        "qvhighlights_tempsamp_qwen2_5_vl_7b",
        "timelens_grpo_qwen3_5_4b",
        "timelens_tempsamp_qwen3_5_4b",
    ]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_a_config_loads(path: Path) -> None:
    assert config.load(path).shared.run_id


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_fits_the_fleets_of_its_head(path: Path) -> None:
    table = head(path)
    one_node, two_nodes = table["more --set"]
    assert one_node == "none"
    made = [planned(path, gpus=4), planned(path, *two_nodes.split(", "), gpus=8)]
    assert [misfits(each) for each in made] == [[], []]
    assert [int(cell.split()[0]) for cell in table["learner ranks"]] == [4, 8]
    assert [int(cell.split()[0]) for cell in table["rollout replicas"]] == [4, 8]
    ranks = [f"{each.rank.peak / 1e9:.0f} GB of 96 GB" for each in made]
    assert table["memory of a rank"] == ranks
    times = [each.times for each in made]
    assert table["a step"] == [f"{each.step_s:.0f} s" for each in times if each]
    hours = [each.run.learner.steps * each.times.step_s / 3600 for each in made if each.times]
    assert table["all steps"] == [f"{each:.1f} h" for each in hours]
    (replica,) = table["memory of a replica"]
    first = made[0].replica
    twice = f"2 x {first.weights / 1e9:.0f} GB of weights"
    assert first.staging == first.weights
    assert f"{twice}, {first.cache / 1e9:.0f} GB left" in replica
    assert f"has {first.longest_sequence / 1e9:.1f} GB" in replica


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_that_nobody_ran_it_and_has_one_root_a_kind(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "NOBODY HAS RUN THIS ON A CLUSTER" in text
    found = set(re.findall(r'"(/[^"/]+/[^"/]+)', text))
    assert found == ROOTS
    assert all(root in text.split("[shared]")[0] for root in ROOTS)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_two_epochs_are_asked_for_where_two_phases_are(path: Path) -> None:
    """Steps come from the rows and epochs that their comment names."""
    text = path.read_text(encoding="utf-8")
    epochs, num_rows = re.search(r"steps = .*?(?:(\d) epochs of )?([\d,]+) rows", text).groups()  # type: ignore[union-attr]
    learner = config.load(path).learner
    assert len(learner.phases) == (int(epochs) if epochs else 0)
    assert [phase.mode for phase in learner.phases] in ([], ["answer", "think"])
    wanted = int(epochs or 1) * int(num_rows.replace(",", "")) / learner.groups_per_step
    assert learner.steps == -(-wanted // 1)


def test_grpo_is_tempsamp_without_the_true_answer() -> None:
    runs = [
        config.load(CONFIGS / f"timelens_{name}_qwen3_5_4b.toml") for name in ("grpo", "tempsamp")
    ]
    grpo, tempsamp = (run.model_dump() for run in runs)
    assert (grpo["shared"].pop("strategy"), tempsamp["shared"].pop("strategy")) == (
        "none",
        "shaping",
    )
    for run in (grpo, tempsamp):
        run["shared"].pop("run_id")
        run["learner"].pop("run_dir")
    assert grpo == tempsamp


def test_numbers_of_one_recipe_by_hand() -> None:
    """Qwen3.5-4B, 4 ranks and 4 replicas.

    A layer's MLP has 3 x 2560 x 9216 = 70,778,880 parameters, full attention 2560 x (2 x 4096 +
    4096 + 2 x 1024) = 36,700,160, a delta net 2560 x (2 x 2048 + 3 x 4096 + 2 x 32) = 42,106,880,
    the embedding 248,320 x 2560 = 635,699,200.
    """
    made = planned(TEMPSAMP)
    decoder = 32 * 70_778_880 + 8 * 36_700_160 + 24 * 42_106_880
    assert made.architecture.language_parameters == decoder + 635_699_200 == 4_204_789_760
    # 754 frames are 377 patches of floor(2 x 14,680,064 / 754 / 1024) = 38 tokens each.
    assert made.tokens.visual == 377 * 38 == 14_326
    assert made.tokens.prompt == 14_326 + 10 * 377 + 200 == 18_296
    assert made.tokens.packed == 18_296 + 8 * 256 == 20_344
    assert made.rank.states == 16 * 4_204_789_760 / 4 == 16_819_159_040
    assert made.rank.root == 8 * 635_699_200
    # 4.54e9 parameters in bfloat16, and a bucket of 2^28 bytes for either stream.
    assert made.rank.snapshot == 2 * made.architecture.parameters + 2 * 268_435_456
    assert made.rank.kept == 32 * 20_344 * 2560 * 2
    # Keys and values: 8 layers x 4 heads x 256, twice, in 2 bytes.
    a_token, a_state = 32_768, 24 * 32 * 128 * 128 * 4
    assert made.replica.longest_sequence == 24_576 * a_token + a_state
    assert made.replica.in_work == 8 * ((18_296 + 7 * 256) * a_token + 7 * a_state)
    assert (made.outstanding, made.slots) == (32, 32)


ALLOWED = "learner.allow_float32_on_cuda=true"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["shared.max_prompt_tokens=16384"],
            "shared.max_prompt_tokens: found 16,384, wanted 18,296",
        ),
        (["rollout.max_model_len=20480"], "rollout.max_model_len: found 20,480, wanted 20,736"),
        (
            ["shared.video.factor=28"],
            "shared.video.factor: found 28, wanted 32 for Qwen/Qwen3.5-4B",
        ),
        (["shared.dtype=float32", ALLOWED], "shared.dtype: found 'float32', wanted 'bfloat16'"),
        (["learner.device=cpu"], "learner.device: found 'cpu', wanted 'cuda'"),
        (["rollout.tensor_parallel=3"], "leaves 1 of 4 rollout GPUs idle"),
        (["rollout.tensor_parallel=8"], "--rollout-gpus: found 4, wanted at least one replica's 8"),
        (["rollout.tensor_parallel=3"], "found 3, wanted a divisor of the 16 attention heads"),
        (["learner.shard_within=3"], "learner.shard_within: found 3, wanted a divisor of the 4"),
        (["learner.min_replicas=5"], "found 5, wanted at most the 4 replicas there are"),
        (["rollout.concurrent_prompts=16"], "found 16 x 4 replicas = 64, wanted at most the 32"),
        (["learner.groups_per_step=2"], "learner.groups_per_step: found 2, wanted at least 4"),
        (["rollout.max_num_seqs=4"], "rollout.max_num_seqs: found 4, wanted at least 7"),
        (["learner.gradient_checkpointing=off"], "learner memory: found"),
        (["learner.max_tokens_per_rank=160000"], "learner memory: found"),
        (["rollout.kv_cache_bytes=500000000"], "found room for 0.5 GB of keys and values"),
        (["rollout.gpu_memory_utilization=0.3"], "replica memory: found room for 4.7 GB"),
        (["rollout.gpu_memory_utilization=0.3"], "(9.1 GB) in rollout.weight_staging = 'host'"),
    ],
)
def test_what_does_not_fit_is_one_line_with_its_knob(overrides: list[str], said: str) -> None:
    found = misfits(planned(TEMPSAMP, *overrides))
    assert [said in line for line in found].count(True) == 1
    assert all("\n" not in line and "wanted" in line for line in found)


def test_a_smaller_card_is_refused() -> None:
    (line,) = misfits(planned(TEMPSAMP, memory_gb=48))
    assert line.startswith("learner memory: found 59.3 GB a rank in backward, wanted 44.2 GB")
    assert "learner.weight_staging = 'host' (9.6 GB on rank 0)" in line


def test_a_plan_without_replicas_has_no_times() -> None:
    made = planned(TEMPSAMP, "rollout.tensor_parallel=8")
    assert made.times is None
    assert all(figure.part != "estimate" for figure in rows(made))


def test_the_command_prints_a_table_and_ends_with_0() -> None:
    gpus = ["--learner-gpus", "4", "--rollout-gpus", "4"]
    shown = CliRunner().invoke(app, ["plan", str(TEMPSAMP), *gpus])
    assert shown.exit_code == 0
    assert "timelens-tempsamp-qwen3.5-4b: 4 learner ranks, 4 replicas" in shown.stdout
    assert re.search(r"packed group +20,344", shown.stdout)


def test_the_command_ends_with_1_and_a_line_each() -> None:
    gpus = ["--learner-gpus", "4", "--rollout-gpus", "4", "--gpu-memory-gb", "24"]
    shown = CliRunner().invoke(app, ["plan", str(TEMPSAMP), *gpus])
    assert shown.exit_code == 1
    lines = shown.stderr.splitlines()
    assert [line.split(":")[1] for line in lines] == [" learner memory", " replica memory"]


def test_a_model_of_unknown_size_is_a_mistake_of_the_user() -> None:
    gpus = ["--learner-gpus", "4", "--rollout-gpus", "4", "--set", "shared.model=Qwen/Other"]
    shown = CliRunner().invoke(app, ["plan", str(TEMPSAMP), *gpus])
    assert isinstance(shown.exception, ConfigError)
