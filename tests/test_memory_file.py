"""Memory files: what was changed in one is noticed and named; what an older memmod wrote still loads."""

from __future__ import annotations

import json
import logging
import os
import pickle
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from memmod import ModulateConfig, ModulatedModel, modulate
from memmod.errors import MemoryFileError
from memmod.files.sealed import CARD_SHA256, TENSORS_SHA256, seal, tensors_sha256
from memmod.files.state_hash import state_sha256
from memmod.memory_file import read_card
from tests.fuzz_files import NAMES, Net


@pytest.fixture(scope="module")
def base() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def saved(base, tmp_path):
    """A memory file, and the model that it was saved from."""
    wf = modulate(base, len(NAMES), torch.randn(2, 1, 5, 5), ModulateConfig(), NAMES)
    for memory in wf.memory_parameters():
        memory.data.normal_()
    path = tmp_path / "memory.safetensors"
    wf.save_memory(path, {"note": "mine", "metrics": {"worst": 0.25}})
    return path, wf


def rewrite(path, card=None, tensors=None) -> None:
    card, tensors = card or read_card(path), tensors or load_file(path)
    save_file(tensors, path, metadata={"card": card if isinstance(card, str) else json.dumps(card)})


def refused(base, path, *words: str, **options) -> None:
    with pytest.raises(MemoryFileError) as caught:
        ModulatedModel.from_file(base, path, **options)
    assert all(word in str(caught.value) for word in (str(path), *words)), caught.value


REQUIRED = ("num_classes", "class_names", "base_sha256", "input_shape", "config", "layers", "version")


@pytest.mark.parametrize("field", [*REQUIRED, TENSORS_SHA256, CARD_SHA256])
def test_a_card_without_a_field_is_refused(base, saved, field):
    path, _ = saved
    card = read_card(path)
    del card[field]
    rewrite(path, card)
    refused(base, path, field)


@pytest.mark.parametrize("others", [[None, [], {}, "x"], [7, "x", 1.5]])
@pytest.mark.parametrize("field", [*REQUIRED, "config.gate", "config.init", "config.skip"])
def test_a_card_with_another_type_is_refused(base, saved, field, others):
    path, _ = saved
    for other in others:
        card = read_card(path)
        *parents, last = field.split(".")
        holder = card[parents[0]] if parents else card
        if type(holder[last]) is type(other) or (field in ("class_names", "config.init") and other in (None, 7, 1.5)):
            continue
        holder[last] = other
        # Whether its hash was made anew or not.
        rewrite(path, card)
        refused(base, path)
        rewrite(path, seal(card, load_file(path)))
        refused(base, path, last)
        rewrite(path, seal(read_card_of(saved), load_file(path)))


def read_card_of(saved) -> dict:
    """The card that `saved` was written with."""
    path, wf = saved
    wf.save_memory(path, {"note": "mine"})
    return read_card(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_classes": 0}, "$.num_classes (it is 0)"),
        ({"num_classes": 4}, "num_classes is 4, but class_names holds 5"),
        ({"num_classes": 10**400, "class_names": None}, "its card says"),
        ({"num_classes": 10**9, "class_names": None}, "its card says 1000000000 classes"),
        ({"class_names": ["a", "b", "a", "c", "d"]}, "class_names repeats 'a'"),
        ({"base_sha256": "0" * 63}, "$.base_sha256"),
        ({"base_sha256": "0" * 64}, "another base"),
        ({"input_shape": [1, -5, 5]}, "$.input_shape[1] (it is -5)"),
        ({"input_shape": [1, 10**6, 10**6]}, "pass example_input"),
        ({"input_shape": [2, 5, 5]}, "does not fit this base"),
        ({"layers": []}, "$.layers"),
        ({"layers": ["one", "two", "nowhere"]}, "missing nowhere; unknown conv.memory"),
        ({"config": {}}, "granularity"),
        ({"version": 0}, "$.version (it is 0)"),
        ({"version": 3}, "format version 3"),
        ({"version": 10**30}, "upgrade memmod"),
        ({"version": True}, "$.version"),
    ],
)
def test_values_that_cannot_be_are_named(base, saved, change, words):
    path, _ = saved
    rewrite(path, seal(read_card(path) | change, load_file(path)))
    refused(base, path, words)


@pytest.mark.parametrize(
    "change",
    [
        {"class_names": list(NAMES[::-1])},
        {"class_names": None},
        {"note": "yours"},
        {"metrics": {"worst": 0.5}},
        {"more": 1},
        {"version": 1},
        {"input_shape": [1, 6, 5]},
        {TENSORS_SHA256: "0" * 64},
        {CARD_SHA256: "0" * 64},
    ],
)
def test_a_card_that_reads_well_but_was_changed_is_noticed(base, saved, change):
    path, _ = saved
    rewrite(path, read_card(path) | change)
    refused(base, path, "its card_sha256 does not fit")
    with pytest.raises(MemoryFileError, match="card_sha256"):
        read_card(path)


def test_a_changed_gate_is_noticed(base, saved):
    path, _ = saved
    card = read_card(path)
    card["config"]["gate"] = "identity"
    rewrite(path, card)
    refused(base, path, "card_sha256")


def test_changed_tensors_are_noticed(base, saved):
    path, _ = saved
    tensors = load_file(path)
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    for bit in range(8):
        for place in (8 + length, len(content) - 1):
            data = bytearray(content)
            data[place] ^= 1 << bit
            path.write_bytes(data)
            refused(base, path, "its tensors do not fit")
    for change in (
        {"one.memory": tensors["two.memory"], "two.memory": tensors["one.memory"]},
        {"one.memory": tensors["one.memory"].half()},
        {"one.memory": tensors["one.memory"].view(torch.int32)},
        {"one.memory": tensors["one.memory"].reshape(6, 5)},
        {"three.memory": tensors["one.memory"].clone()},
    ):
        path.write_bytes(content)
        rewrite(path, tensors=tensors | change)
        refused(base, path, "its tensors do not fit")
    path.write_bytes(content)
    assert torch.equal(ModulatedModel.from_file(base, path).memory_state()["one.memory"], tensors["one.memory"])


def test_what_does_not_change_the_meaning_may_change(base, saved):
    path, wf = saved
    card = read_card(path)
    rewrite(path, json.dumps(dict(reversed(card.items())), indent=3))
    again = ModulatedModel.from_file(base, path)
    assert all(torch.equal(a, b) for a, b in zip(again.memory_parameters(), wf.memory_parameters(), strict=True))
    assert again.class_names == NAMES and read_card(path)["note"] == "mine"


def test_an_older_file_loads_with_a_word(base, saved, caplog):
    path, wf = saved
    card = {key: value for key, value in read_card(path).items() if key not in (TENSORS_SHA256, CARD_SHA256)}
    rewrite(path, card | {"version": 1})
    with caplog.at_level(logging.WARNING, logger="memmod"):
        again = ModulatedModel.from_file(base, path)
    assert [record.getMessage().count("without a hash") for record in caplog.records] == [1]
    assert all(torch.equal(a, b) for a, b in zip(again.memory_parameters(), wf.memory_parameters(), strict=True))
    # Saved again with the card that it had, it is sealed.
    again.save_memory(path, read_card(path))
    card = read_card(path)
    assert card["version"] == 2 and card["note"] == "mine" and card[TENSORS_SHA256] == tensors_sha256(load_file(path))


@pytest.mark.parametrize(
    "text", ['{"format": 1, "format": 1}', "[" * 100_000, '{"a": NaN}', '{"a": "\\ud800"}', "1e999"]
)
def test_a_card_that_is_no_json(base, saved, text):
    path, _ = saved
    rewrite(path, text)
    refused(base, path, "cannot be read as JSON")


@pytest.mark.parametrize("text", ["null", "[]", "{}", '"x"', "5", '{"format": "other"}', '{"format": null}'])
def test_a_card_of_something_else(base, saved, text):
    path, _ = saved
    rewrite(path, text)
    refused(base, path, "without a memmod card")


def header(**entries: object) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 8,
        b"\xff" * 8,
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 10**8) + b"{}",
        header(a={"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}),
        header(a={"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]}),
        header(a={"dtype": "F32", "shape": [2**63, 2**63], "data_offsets": [0, 0]}),
        header(a={"dtype": "F99", "shape": [0], "data_offsets": [0, 0]}),
        header(a={"dtype": "F4", "shape": [1], "data_offsets": [0, 0]}),
        header(a={"dtype": "F32", "shape": [-1], "data_offsets": [0, 0]}),
        header(a=[]),
        header(__metadata__={"card": 5}),
        header(__metadata__=[]),
        header(),
        b"[" * 100_000,
        pickle.dumps({"memory": [1.0]}),
    ],
)
def test_what_is_no_memory_file(base, tmp_path, content):
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    refused(base, path)


def test_what_is_no_file_at_all(base, tmp_path):
    path = tmp_path / "m.safetensors"
    refused(base, path, "there is no memory file at")
    path.mkdir()
    refused(base, path, "there is no memory file at")
    path.rmdir()
    path.symlink_to(path)
    refused(base, path, "there is no memory file at")
    path.unlink()
    os.mkfifo(path)
    refused(base, path, "there is no memory file at")
    refused(base, tmp_path / ("a" * 300), "there is no memory file at")
    refused(base, f"{tmp_path}/a\0b", "there is no memory file at")


@pytest.mark.parametrize("card", [{"a": float("nan")}, {"a": object()}, {"a": "\ud800"}, {1: 0, "1": 0}])
def test_a_card_that_could_not_be_read_again_is_not_written(saved, card):
    path, wf = saved
    before = path.read_bytes()
    with pytest.raises(MemoryFileError, match="nothing was written"):
        wf.save_memory(path, card)
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


def test_a_card_of_the_makers_cannot_replace_what_memmod_writes(base, saved):
    path, wf = saved
    wf.save_memory(path, {"version": 99, "format": "x", "num_classes": 3, CARD_SHA256: "x", TENSORS_SHA256: "y"})
    assert ModulatedModel.from_file(base, path).num_classes == len(NAMES)


def test_a_large_sample_loads_with_an_example(base, saved):
    path, wf = saved
    rewrite(path, seal(read_card(path) | {"input_shape": [1, 10**6, 10**6]}, load_file(path)))
    again = ModulatedModel.from_file(base, path, example_input=torch.randn(2, 1, 5, 5))
    assert torch.equal(again.memory_state()["one.memory"], wf.memory_state()["one.memory"])


def test_the_hash_of_tensors_tells_them_apart(base):
    one = {"a": torch.arange(6.0), "b": torch.zeros(0, 3)}
    assert tensors_sha256(one) == tensors_sha256(dict(reversed(one.items()))) == tensors_sha256(one | {})
    others = [
        {"a": torch.arange(6.0)},
        one | {"c": torch.zeros(0)},
        one | {"b": torch.zeros(3, 0)},
        one | {"a": torch.arange(6.0).view(2, 3)},
        one | {"a": torch.arange(6.0).view(torch.int32)},
        {"b": one["a"], "a": one["b"]},
        one | {"a": -torch.arange(6.0)},
    ]
    assert len({tensors_sha256(other) for other in [one, *others]}) == 8
    assert state_sha256(base) == tensors_sha256(base.state_dict())
