"""`jaxptft plan`: the table and its numbers, by hand."""

import json

import pytest

LAYERS, WIDTH, MLP, VOCAB, POSITIONS = 2, 64, 256, 100, 40
EMBEDDINGS = (VOCAB + POSITIONS + 2) * WIDTH + 2 * WIDTH
KERNELS, BIASES = 4 * WIDTH * WIDTH + 2 * WIDTH * MLP, 4 * WIDTH + MLP + WIDTH + 2 * WIDTH
LAYER = KERNELS + BIASES + 2 * WIDTH  # and the norms' scales
POOLER, HEAD = WIDTH * WIDTH + WIDTH, 3 * WIDTH + 3
TOTAL = EMBEDDINGS + LAYERS * LAYER + POOLER + HEAD


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A config.json alone: nothing else is read."""
    found = tmp_path_factory.mktemp("models") / "bert"
    found.mkdir()
    fields = {
        "model_type": "bert",
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": MLP,
        "max_position_embeddings": POSITIONS,
    }
    (found / "config.json").write_text(json.dumps(fields))
    return found


@pytest.fixture
def planned(command, folder, tmp_path):
    """A function: flags -> what is printed, and what is written."""

    def run(*flags):
        line = ("plan", folder, "--classes", 3, "--batch-size", 4, "--max-length", 32, "--out", tmp_path / "plan.json")
        told = command(*line, *flags)
        assert told.status == 0, told.err
        return told.out, json.loads((tmp_path / "plan.json").read_text())

    return run


def test_full_fine_tuning(planned):
    told, found = planned()
    assert [(piece["name"], piece["parameters"]) for piece in found["pieces"]] == [
        ("backbone/embeddings", EMBEDDINGS),
        ("backbone/layer_0", LAYER),
        ("backbone/layer_1", LAYER),
        ("backbone/pooler", POOLER),
        ("classifier", HEAD),
    ]
    assert found["trainable"] == TOTAL
    assert found["optimizer_bytes"] == 8 * TOTAL
    assert found["flops_share"] == 1.0
    assert f"trainable: {TOTAL:,} of {TOTAL:,} parameters (100.00%)" in told


def test_the_head_alone_needs_a_third_of_the_flops(planned):
    """A forward pass in place of a forward pass and two more for the gradients by inputs and by parameters."""
    told, found = planned("--freeze", "backbone")
    assert found["trainable"] == HEAD
    assert found["flops_share"] == pytest.approx(1 / 3, rel=0.1)
    rows, length = 4, 32
    products = LAYERS * (2 * rows * length * KERNELS + 4 * rows * length * length * WIDTH)
    assert found["stages"][0]["flops"] == pytest.approx(products, rel=0.15)  # the rest is no matrix product
    assert found["stages"][0]["memory"] == 12 * HEAD
    assert "frozen" in told


def test_a_plan_in_stages(planned):
    flags = ("--unfreeze.every", 10, "--layer-decay", 0.5, "--steps", 40, "--plan", "backbone/embeddings/**", "frozen")
    told, found = planned(*flags)
    pieces = {piece["name"]: piece for piece in found["pieces"]}
    assert [pieces[f"backbone/layer_{index}"]["rates"] for index in (0, 1)] == [[0.125], [0.25]]
    assert [pieces[f"backbone/layer_{index}"]["unfrozen"] for index in (0, 1)] == [[20], [10]]
    assert pieces["backbone/embeddings"]["trainable"] == 0
    assert pieces["classifier"]["decays"] == [0.01]
    stages = found["stages"]
    assert [stage["begin"] for stage in stages] == [0, 10, 20]
    assert [stage["trainable"] for stage in stages] == [
        POOLER + HEAD, LAYER + POOLER + HEAD, 2 * LAYER + POOLER + HEAD
    ]  # fmt: skip
    flops = [stage["flops"] for stage in stages]
    assert flops == sorted(flops)
    # 10 steps of the first, 10 of the second, 20 of the third, of 40 of full fine-tuning.
    spent = 10 * flops[0] + 10 * flops[1] + 20 * flops[2]
    assert found["flops_share"] == pytest.approx(spent / (40 * found["full"]["flops"]))
    assert "from step 20" in told


def test_what_comes_after_the_run_is_named_and_not_counted(planned):
    told, found = planned("--unfreeze.every", 10, "--steps", 15)
    assert found["trainable"] == LAYER + POOLER + HEAD
    assert found["optimizer_bytes"] == 8 * TOTAL  # there from the start, so that a longer run finds them
    assert found["unreached"] == ["backbone/layer_0", "backbone/embeddings"]
    assert "unfrozen after the last of 15 steps: backbone/layer_0, backbone/embeddings" in told


def test_bitfit_in_numbers(planned):
    _, found = planned("--bitfit")
    # The embeddings' norm, both layers, the pooler's bias, and the whole classifier.
    assert found["trainable"] == WIDTH + LAYERS * BIASES + WIDTH + HEAD


def test_adapters_in_numbers(planned):
    """Of rank 4 beside queries and values, 64 x 64: what trains, and the products that their gradients take."""
    told, found = planned("--lora.rank", 4)
    adapters = LAYERS * 2 * 4 * (WIDTH + WIDTH)
    names = [piece["name"] for piece in found["pieces"]]
    assert names[-2:] == ["lora/backbone/layer_0", "lora/backbone/layer_1"]
    assert {piece["name"] for piece in found["pieces"] if piece["trainable"]} == {"classifier", *names[-2:]}
    assert found["trainable"] == adapters + HEAD
    assert found["optimizer_bytes"] == 8 * (adapters + HEAD)
    assert found["stages"][0]["memory"] == 12 * (adapters + HEAD)
    assert found["full"]["trainable"] == TOTAL
    assert f"trainable: {adapters + HEAD:,} of {TOTAL + adapters:,} parameters" in told
    # A pass forwards, one for the gradients by inputs, and those of 2 of 12 squares of the width in a layer.
    assert found["flops_share"] == pytest.approx((2 + 2 / 12) / 3, rel=0.1)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--lora.rank", "2", "--bitfit"), "bitfit trains the backbone's biases, and lora keeps them as they are"),
        (("--lora.rank", "2", "--freeze", "backbone"), "freeze='backbone' leaves none of it to train"),
        (
            ("--freeze", "backbone", "--bitfit"),
            "bitfit changes nothing: all that it is about stays frozen; leave it out",
        ),
        (("--plan", "backbone/**", "frozn"), "backbone/** must be frozen, or have a rate, decay or unfreeze"),
        (
            ("--unfreeze.every", "0.5"),
            "an unfreeze of type float is a fraction of the run, whose steps are not given: give steps",
        ),
        (("--max-length", "64"), "max_length is 64, but the model has 40 positions"),
        (("--task", "poetry"), "poetry"),
    ],
)
def test_what_makes_no_sense_is_refused(flags, expected, folder, refused):
    assert expected in refused("plan", folder, "--max-length", "32", *flags)


def test_a_folder_that_names_no_family_is_refused(tmp_path, refused):
    (tmp_path / "config.json").write_text("{}")
    assert "names no model_type: give --family" in refused("plan", tmp_path)
