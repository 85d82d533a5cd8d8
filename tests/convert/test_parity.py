"""Every family under every head against transformers' torch models: outputs, gradients, and both ways through files.

What is measured, and on which models, is in experiments/benchmarks/conversion_parity.py, which records the table.
"""

import importlib.util
from pathlib import Path

import pytest
import torch
import transformers

from jaxptft.convert.families import FAMILIES

PATH = Path(__file__).parents[2] / "experiments" / "benchmarks" / "conversion_parity.py"
SPEC = importlib.util.spec_from_file_location(PATH.stem, PATH)
assert SPEC is not None
assert SPEC.loader is not None
parity = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(parity)

# The largest recorded errors are 1.4e-6 and 7e-5: gradients that cancel to nearly nothing (biases of keys, which the
# softmax does not see) are all rounding. A swapped norm or another GELU gives above 1e-2.
OUTPUTS, GRADIENTS = 1e-5, 3e-4


@pytest.fixture(scope="module", autouse=True)
def quiet():
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.enable_progress_bar()


@pytest.mark.parametrize(("family", "architecture"), parity.CASES, ids=lambda name: name)
def test_an_architecture_equals_torch_and_survives_both_ways(family, architecture, tmp_path):
    measured = parity.measure(family, architecture, tmp_path)
    assert measured.outputs < OUTPUTS
    assert measured.gradients < GRADIENTS
    assert measured.identical
    assert measured.missing == 0
    assert measured.fresh < OUTPUTS


def test_the_measure_sees_a_difference(tmp_path, monkeypatch):
    """A torch model computing with another activation than its file says."""

    def otherwise(family, architecture):
        model = made(family, architecture)
        for layer in model.bert.encoder.layer:
            layer.intermediate.intermediate_act_fn = torch.nn.GELU()
        return model

    made = parity.reference
    monkeypatch.setattr(parity, "reference", otherwise)
    measured = parity.measure("bert", "BertForTokenClassification", tmp_path)
    assert measured.outputs > 1e-2
    assert measured.gradients > 1e-2
    assert measured.fresh < OUTPUTS


def test_every_family_has_a_case_for_each_of_its_heads():
    for family in FAMILIES.values():
        covered = {head for heads in family.architectures.values() for head in heads}
        assert covered == family.heads.keys()
        # transformers has no model to compare our own with.
        assert (family.name in parity.CONFIGS) != family.name.startswith("jaxptft_")
