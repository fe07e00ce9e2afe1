"""Cascade and evolution: networks, order and first weights, and that a kill changes nothing."""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys

import pytest
import torch
from PIL import Image
from skimage import data

from dn_core.checkpoints import load_checkpoint
from dn_core.models import registry
from dn_core.network_config import levels_config, paper_config
from dn_core.networks import DnResNet
from dn_core.training.data.clean_images import CleanImageDataset
from dn_core.training.events import TrainingEvent
from dn_core.training.process_group import ProcessGroup
from dn_core.training.recipes import Phase, Recipe, load_recipe, recipe_names
from dn_core.training.stage_plan import Stage, plan_stages
from dn_core.training.stages import train, train_stages

GAUSSIAN = ({"kind": "gaussian", "sigma": 25},)
CASCADE = Recipe(
    "grown",
    paper_config(7),
    GAUSSIAN,
    (Phase(6, batch=2, patch=16),),
    plan="cascade",
    epoch=2,
    drop=0.0,
)
LEVELS = dataclasses.replace(CASCADE, network=levels_config((8, 8, 8), (1, 0, 1), (1, 0)))


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def dataset():
    return CleanImageDataset(
        tuple(picture()[:96, :96] for picture in (data.camera, data.coins, data.moon)),
        (data.page()[:96, :96],),
    )


@pytest.fixture(scope="module")
def grown(dataset, tmp_path_factory):
    return train(CASCADE, dataset, tmp_path_factory.mktemp("grown"), precision="float32")


def evolve(grown, plan="evolve"):
    return dataclasses.replace(
        CASCADE,
        name="evolved",
        network=paper_config(7, block="separable"),
        plan=plan,
        start=str(grown),
    )


def test_a_cascade_inserts_one_block_a_stage():
    assert plan_stages(CASCADE) == (
        Stage(0, paper_config(3)),
        Stage(1, paper_config(5), (0,)),
        Stage(2, paper_config(7), (1,)),
    )


def test_evolution_goes_from_the_tail():
    stages = plan_stages(evolve("some.safetensors"))
    assert [stage.network.blocks for stage in stages] == [
        ("full", "separable"),
        ("separable", "separable"),
    ]
    assert [stage.new_blocks for stage in stages] == [(1,), (0,)]
    assert [
        stage.new_blocks for stage in plan_stages(evolve("some.safetensors", "evolve-once"))
    ] == [(1, 0)]


def test_a_cascade_with_levels_inserts_a_block_a_stage_in_the_order_of_computing():
    stages = plan_stages(LEVELS)
    assert [(stage.number, stage.new_blocks) for stage in stages] == [
        (0, ()),
        (1, (0,)),
        (2, (1,)),
        (3, (2,)),
    ]
    assert [stage.network.block_names for stage in stages] == [
        (),
        ("blocks.0",),
        ("blocks.0", "levels.1.blocks.0"),
        ("blocks.0", "levels.1.blocks.0", "blocks_up.0"),
    ]
    assert all(len(stage.network.levels) == 2 for stage in stages)
    assert stages[-1].network == LEVELS.network


def test_evolution_with_levels_goes_from_the_tail_up_and_down_again():
    network = LEVELS.network.with_blocks(("full", "separable", "separable"))
    recipe = dataclasses.replace(LEVELS, network=network, plan="evolve", start="some.safetensors")
    assert [(stage.network.all_blocks, stage.new_blocks) for stage in plan_stages(recipe)] == [
        (("full", "full", "separable"), (2,)),
        (("full", "separable", "separable"), (1,)),
    ]


def test_a_cascade_and_an_evolution_with_levels_are_trained_to_the_end(dataset, tmp_path):
    path = train(LEVELS, dataset, tmp_path / "cascade", precision="float32")
    checkpoint = load_checkpoint(path)
    assert checkpoint.config == LEVELS.network
    assert [stage["layers"] for stage in checkpoint.card.training["stages"]] == [6, 8, 10, 12]
    evolved = dataclasses.replace(
        LEVELS,
        network=LEVELS.network.with_blocks(("separable",) * 3),
        plan="evolve-once",
        start=str(path),
    )
    out = tmp_path / "evolved"
    stopped = train_stages(evolved, dataset, out, precision="float32", save_seconds=0)
    for _ in itertools.islice(stopped, 3):
        pass
    stopped.close()
    assert load_checkpoint(train(evolved, dataset, out, precision="float32")).config == (
        evolved.network
    )
    network = levels_config((8, 8, 8), (1, 1, 1), (1, 0)).with_blocks(("separable",) * 4)
    other = dataclasses.replace(evolved, network=network)
    with pytest.raises(ValueError, match=r"with full blocks \(14 layers\), got"):
        train(other, dataset, tmp_path / "other")


@pytest.mark.parametrize("new_blocks", ["identity", "paper"])
def test_a_stage_begins_where_the_one_before_ended(new_blocks):
    """A new full block changes nothing at first; the others keep their weights."""
    before = DnResNet(paper_config(5))
    recipe = dataclasses.replace(CASCADE, new_blocks=new_blocks)
    after = Stage(2, paper_config(7), (1,)).initial_network(before, recipe)
    image = torch.rand(1, 1, 24, 24, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        after(image), before(image), rtol=1e-3, atol=1e-3 if new_blocks == "paper" else 0
    )
    again = Stage(2, paper_config(7), (1,)).initial_network(before, recipe)
    assert all(
        torch.equal(after.state_dict()[name], again.state_dict()[name])
        for name in after.state_dict()
    )


def test_the_last_stage_may_have_a_budget_of_its_own(dataset, tmp_path):
    recipe = dataclasses.replace(CASCADE, last_phases=(Phase(9, batch=1, patch=32),))
    done = {
        step.stage: (step.step, step.megapixels)
        for step in train_stages(recipe, dataset, tmp_path)
        if step.path is None
    }
    assert {stage: steps for stage, (steps, _) in done.items()} == {0: 6, 1: 6, 2: 9}
    assert done[2][1] == pytest.approx(9 * 32**2 / 1e6)
    assert recipe.largest_patch == 32
    for steps, expected in ((3, [3, 4]), (1, [1, 2])):
        assert [phase.steps for phase in recipe.with_steps(steps).all_phases] == expected
    assert dataclasses.replace(recipe, last_phases=(Phase(1),)).with_steps(1).last_phases == (
        Phase(1),
    )
    assert "last_phases" not in CASCADE.as_dict()


def test_another_budget_for_the_last_stage_is_another_training(dataset, tmp_path):
    long = dataclasses.replace(CASCADE, last_phases=(Phase(9, batch=1, patch=32),))
    training = train_stages(long, dataset, tmp_path)
    while next(training).stage == 0:
        pass
    training.close()
    with pytest.raises(ValueError, match=r"recipe\.last_phases: .* there, None here"):
        next(train_stages(CASCADE, dataset, tmp_path))
    longer = dataclasses.replace(long, last_phases=(Phase(12, batch=1, patch=32),))
    steps = [
        step.step
        for step in train_stages(longer, dataset, tmp_path, allow=("recipe.last_phases",))
        if step.stage == 2
    ]
    assert max(steps) == 12


def test_a_last_stage_that_cannot_be_trained_is_refused_before_the_first(dataset, tmp_path):
    with pytest.raises(ValueError, match="sides of at least 500 pixels"):
        next(
            train_stages(
                dataclasses.replace(CASCADE, last_phases=(Phase(9, batch=1, patch=500),)),
                dataset,
                tmp_path,
            )
        )
    with pytest.raises(ValueError, match="got 3 patches for 2 workers"):
        next(
            train_stages(
                dataclasses.replace(CASCADE, last_phases=(Phase(9, batch=3),)),
                dataset,
                tmp_path,
                workers=ProcessGroup(0, 2),
            )
        )
    assert list(tmp_path.iterdir()) == []


def test_all_new_weights_of_a_near_identity_block_can_learn():
    network = Stage(0, paper_config(5, block="separable"), (0,)).initial_network(
        DnResNet(paper_config(5)), CASCADE
    )
    network(torch.rand(2, 1, 24, 24)).square().mean().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in network.blocks[0].parameters())


def test_the_model_is_the_last_stages_with_the_history_of_all(grown):
    model, last = (
        load_checkpoint(grown),
        load_checkpoint(grown.parent / "stage-2" / "grown.safetensors"),
    )
    assert model.config == paper_config(7)
    assert all((model.weights[name] == last.weights[name]).all() for name in last.weights)
    assert model.card.recipe["plan"] == "cascade"
    assert [(stage["layers"], stage["steps"]) for stage in model.card.training["stages"]] == [
        (3, 6),
        (5, 6),
        (7, 6),
    ]
    assert model.card.training["steps"] == 18


def test_a_stage_ends_when_its_loss_is_low_enough(dataset, tmp_path):
    """With a drop near 0 every later stage ends with its first epoch that is no worse."""
    easy = dataclasses.replace(CASCADE, drop=1e-9, lr=1e-9, phases=(Phase(40, batch=2, patch=16),))
    stages = load_checkpoint(train(easy, dataset, tmp_path, precision="float32")).card.training[
        "stages"
    ]
    assert stages[0]["steps"] == 40
    for before, after in itertools.pairwise(stages):
        assert after["steps"] % easy.epoch == 0
        assert after["steps"] == 40 or after["loss"] <= before["loss"]
    assert min(stage["steps"] for stage in stages) < 40


@pytest.mark.parametrize("kills", [(1,), (4, 2), (1, 1, 1, 1, 1, 1)])
def test_a_killed_cascade_and_evolution_give_the_same_weights(kills, dataset, grown, tmp_path):
    for recipe, whole in ((CASCADE, grown), (evolve(grown), None)):
        whole = whole or train(recipe, dataset, tmp_path / "whole", precision="float32")
        out = tmp_path / recipe.name
        for count in kills:
            steps = train_stages(recipe, dataset, out, precision="float32", save_seconds=0)
            for _ in itertools.islice(steps, count):
                pass
            steps.close()
        resumed = train(recipe, dataset, out, precision="float32")
        assert resumed.read_bytes() == whole.read_bytes()


def test_finished_stages_are_not_done_again(dataset, grown):
    reports = list(train_stages(CASCADE, dataset, grown.parent, precision="float32"))
    assert [type(report) for report in reports] == [TrainingEvent]
    assert reports[0].kind == "done"
    assert reports[0].path == grown


def test_progress_says_which_stage(dataset, tmp_path):
    seen = [
        (report.stage, report.stages)
        for report in train_stages(CASCADE, dataset, tmp_path, precision="float32")
    ]
    assert seen[0] == (0, 3)
    assert seen[-1] == (2, 3)
    assert seen == sorted(seen)


def test_another_recipe_or_a_changed_stage_is_refused(dataset, grown, tmp_path):
    out = tmp_path / "run"
    train(CASCADE, dataset, out, precision="float32")
    with pytest.raises(ValueError, match=r"recipe\.lr: 0\.002 there, 0\.1 here"):
        train(dataclasses.replace(CASCADE, lr=0.1), dataset, out, precision="float32")
    (out / "stage-1" / "grown.safetensors").write_bytes(b"something else")
    with pytest.raises(ValueError, match="must be as its stage left it"):
        train(CASCADE, dataset, out, precision="float32")
    older = json.loads((out / "stages.json").read_text())
    del older["format"]
    (out / "stages.json").write_text(json.dumps(older))
    with pytest.raises(ValueError, match="must be of format 2, got format 1.*cannot be resumed"):
        train(CASCADE, dataset, out, precision="float32")
    (out / "stages.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        train(CASCADE, dataset, out, precision="float32")


def test_evolution_needs_a_trained_network_of_full_blocks(dataset, grown, tmp_path):
    with pytest.raises(ValueError, match="needs start .a model. and separable blocks"):
        dataclasses.replace(evolve(grown), start="")
    with pytest.raises(ValueError, match="full blocks and no start"):
        dataclasses.replace(CASCADE, start="dn-fast")
    with pytest.raises(ValueError, match="network with full blocks .9 layers., got"):
        train(
            dataclasses.replace(evolve(grown), network=paper_config(9, block="separable")),
            dataset,
            tmp_path,
        )


@pytest.mark.parametrize(
    "name", [name for name in recipe_names() if load_recipe(name).plan.startswith("evolve")]
)
def test_a_shipped_evolution_can_begin_with_the_model_that_it_names(name):
    recipe = load_recipe(name)
    full = ("full",) * len(recipe.network.blocks)
    assert registry.load(recipe.start).config == dataclasses.replace(recipe.network, blocks=full)


TOY = """
base = "paper-blind"
name = "toy"
epoch = 4

[network]
family = "paper"
layers = 7

[[phase]]
steps = 12
batch = 2
patch = 32
"""
TOY_EVOLVED = TOY.replace('"toy"', '"toy-ds"').replace(
    "layers = 7", 'layers = 7\nblock = "separable"'
)


def dn_resnet_killed(command, *lines):
    """Run a command; kill it when it prints each of `lines`, start it again, and let it end."""
    for line in lines:
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as child:
            while line not in (said := child.stderr.readline()):
                assert said, "the training ended before it could be killed"
            child.kill()
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
def test_the_command_line_trains_cascade_and_evolution_though_killed(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    pictures = (
        data.camera,
        data.coins,
        data.moon,
        data.page,
        data.text,
        data.clock,
        data.brick,
        data.grass,
        data.gravel,
        data.cell,
    )
    for picture in pictures:
        Image.fromarray(picture()[:160, :160]).save(images / f"{picture.__name__}.png")
    (tmp_path / "toy.toml").write_text(TOY)
    (tmp_path / "ds.toml").write_text(
        f'plan = "evolve"\nstart = "{(tmp_path / "whole" / "toy.safetensors").as_posix()}"\n'
        + TOY_EVOLVED
    )

    def command(recipe, out):
        arguments = [
            "train",
            str(tmp_path / recipe),
            "--data",
            str(images),
            "--out",
            str(tmp_path / out),
        ]
        return [sys.executable, "-m", "dn_core.cli", *arguments]

    dn_resnet_killed(command("toy.toml", "whole"))
    dn_resnet_killed(command("toy.toml", "killed"), "stage 2 of 3, epoch", "stage 3 of 3, epoch")
    dn_resnet_killed(
        command("ds.toml", "evolved"), "stage 1 of 2, epoch 1", "stage 1 of 2, epoch 2"
    )
    assert (tmp_path / "whole" / "toy.safetensors").read_bytes() == (
        tmp_path / "killed" / "toy.safetensors"
    ).read_bytes()
    evolved = load_checkpoint(tmp_path / "evolved" / "toy-ds.safetensors")
    assert evolved.config == paper_config(7, block="separable")


def test_the_state_is_plain_data(grown):
    state = json.loads((grown.parent / "stages.json").read_text())
    assert set(state) == {"format", "recipe", "data", "done"}
    assert [set(entry) for entry in state["done"]] == [
        {"stage", "layers", "steps", "loss", "megapixels", "sha256"}
    ] * 3
