# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Checkpoints whose files are broken or were made to harm: no code is run, memory is bounded, and our errors name the field."""

import json
import pickle
import shutil
import traceback
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageClassification, AutoModelForObjectDetection

import hf_methods
from hf_methods import MBFDetector


ROOT = Path(__file__).parents[1]
CHECKPOINTS = {
    "softmax1-orthoadam": AutoModelForCausalLM,
    "cpe-mnist-reversed": AutoModelForImageClassification,
    "ct-digit-scenes": AutoModelForObjectDetection,
    "mbf-mnist5k": MBFDetector,
}
# Fields of transformers, of all models, and the id of the classifier, which is asked for on the Hub: not ours to check.
FOREIGN = {
    "auto_map", "dtype", "architectures", "model_type", "transformers_version", "custom_pipelines", "classifier_id", "backbone_config",
    "id2label", "label2id",
    "activation_function",
}  # fmt: skip
SIZES = {"n_layer", "n_embd", "n_inner", "n_positions", "vocab_size", "n_head"}  # GPT-2's own, which takes any number
BAD_VALUES = [None, "x", -1, 0, 10**9, [], {}, float("nan"), True, [None], {"a": 1}, 0.5]
REFUSALS = (ValueError, TypeError, OSError, RuntimeError, KeyError, SafetensorError, StrictDataclassError)
fuzz = settings(
    max_examples=10, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(params=CHECKPOINTS)
def checkpoint(request, tmp_path):
    folder = tmp_path / request.param
    shutil.copytree(ROOT / "model_cards" / request.param, folder)
    return folder


def load(folder: Path):
    return CHECKPOINTS[folder.name].from_pretrained(folder)


def is_ours(error: BaseException) -> bool:
    """Whether it was raised by a line of the package."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return Path(hf_methods.__file__).parent in Path(frame.filename).parents


def fields_of(folder: Path) -> list[str]:
    return sorted(set(json.loads((folder / "config.json").read_text())) - FOREIGN - SIZES)


@fuzz
@given(data=st.data())
def test_a_field_of_another_kind_is_refused_by_name_or_does_no_harm(checkpoint, data):
    path = checkpoint / "config.json"
    whole = path.read_text()
    field = data.draw(st.sampled_from(fields_of(checkpoint)), label="field")
    value = data.draw(st.sampled_from(BAD_VALUES), label="value")
    path.write_text(json.dumps({**json.loads(whole), field: value}))
    try:
        load(checkpoint)
    except REFUSALS as error:
        names = [f"`{name}`" for name in fields_of(checkpoint)]  # the field, or one that no longer goes with it
        words = (*names, "config.json", "digest")  # or the file, which does not go with the weights
        assert not is_ours(error) or isinstance(error, ValueError) and any(w in str(error) for w in words), repr(error)
    finally:
        path.write_text(whole)


@fuzz
@given(data=st.data())
def test_weights_with_other_bytes_load_or_are_refused(checkpoint, data):
    path = checkpoint / "model.safetensors"
    whole = path.read_bytes()
    if data.draw(st.booleans(), label="cut"):
        broken = whole[: data.draw(st.integers(0, len(whole) - 1), label="at")]
    else:  # the header has the names, shapes and places of the tensors
        at = data.draw(st.integers(0, 2000), label="byte")
        broken = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255), label="bits")]) + whole[at + 1 :]
    path.write_bytes(broken)
    try:
        load(checkpoint)
    except REFUSALS as error:
        assert not is_ours(error) or isinstance(error, ValueError), repr(error)
    finally:
        path.write_bytes(whole)


@fuzz
@given(text=st.one_of(st.just(""), st.just("[]"), st.just("null"), st.just("{" * 5000), st.text(max_size=40)))
def test_a_configuration_that_is_no_mapping_is_refused(checkpoint, text):
    path = checkpoint / "config.json"
    whole = path.read_text()
    path.write_text(text)
    try:
        with pytest.raises((ValueError, TypeError, OSError, RecursionError, AttributeError)):
            load(checkpoint)
    finally:
        path.write_text(whole)


class Harm:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_in_place_of_the_weights_is_not_run(checkpoint, tmp_path):
    mark, payload = tmp_path / "harmed", pickle.dumps(Harm(tmp_path / "harmed"))
    (checkpoint / "model.safetensors").write_bytes(payload)
    with pytest.raises(REFUSALS):
        load(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "model.pkl", "detector.joblib"):
        (checkpoint / name).write_bytes(payload)
    with pytest.raises((*REFUSALS, pickle.UnpicklingError)):
        load(checkpoint)
    assert not mark.exists()
    pickle.loads(payload)
    assert mark.exists()  # the payload does work


def test_code_beside_the_weights_is_not_run(checkpoint, tmp_path):
    mark = tmp_path / "harmed"
    for path in checkpoint.glob("*.py"):
        path.write_text(f"open({str(mark)!r}, 'w').close()\n")
    load(checkpoint)  # the package has the classes
    assert not mark.exists()


def test_a_tensor_of_another_shape_is_refused(checkpoint):
    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    name = max(tensors, key=lambda key: tensors[key].numel())
    tensors[name] = torch.zeros(3, 5, dtype=tensors[name].dtype)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises((ValueError, RuntimeError), match=r"size|shape|mismatch|support"):
        load(checkpoint)
