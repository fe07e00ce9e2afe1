import dataclasses
import functools
import hashlib
import json
import os
import stat

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dn_core.checkpoints import KEY, Card, Checkpoint, load_checkpoint, read_card, save_checkpoint
from dn_core.errors import CheckpointError
from dn_core.network_config import half_resolution_config, levels_config, paper_config
from dn_core.networks import DnResNet
from dn_core.tensor_files import write_tensors

CONFIG = half_resolution_config(8, 1)


def checkpoint(config=CONFIG, **card):
    torch.manual_seed(0)
    network = DnResNet(config)
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    return Checkpoint(
        config, weights, Card(name="test", noise="Gaussian", scores={"set12": 30.1}, **card)
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def container(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def tensor(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        paper_config(5),
        paper_config(5, block="separable"),
        levels_config((8, 12, 16), (1, 0, 1), (0, 1)),
    ],
)
def test_everything_comes_back(path, config):
    original = checkpoint(config, description="µ, 细胞", recipe={"lr": 1e-3}, data={"images": 3})
    save_checkpoint(path, original)
    found = load_checkpoint(path)
    assert found.config == original.config
    assert found.card == original.card
    assert all(
        np.array_equal(found.weights[name], value) for name, value in original.weights.items()
    )
    image = torch.rand(1, 1, 16, 16)
    torch.manual_seed(0)
    same = DnResNet(config)
    torch.testing.assert_close(found.network()(image), same(image))


def test_the_safetensors_library_reads_the_same_weights(path):
    original = checkpoint()
    save_checkpoint(path, original)
    assert {name: value.tolist() for name, value in load_file(path).items()} == {
        k: v.tolist() for k, v in original.weights.items()
    }


def test_transposed_and_channels_last_weights_are_written_right(path):
    original = checkpoint()
    weights = {
        name: torch.from_numpy(v).contiguous(memory_format=torch.channels_last).numpy()
        for name, v in original.weights.items()
    }
    save_checkpoint(path, dataclasses.replace(original, weights=weights))
    assert all(
        np.array_equal(load_checkpoint(path).weights[name], value)
        for name, value in original.weights.items()
    )


def test_the_same_checkpoint_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        save_checkpoint(tmp_path / f"{name}.safetensors", checkpoint())
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no permission bits")
def test_a_new_file_may_be_read_by_whom_the_umask_allows(path):
    old = os.umask(0o022)
    try:
        save_checkpoint(path, checkpoint())
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_file_changed_under_a_loaded_model_does_not_change_it(path):
    save_checkpoint(path, checkpoint())
    found = load_checkpoint(path)
    path.write_bytes(b"")
    assert np.array_equal(found.weights["last.weight"], checkpoint().weights["last.weight"])


F32_PAIR = {"a": tensor([2], 0, 8), "b": tensor([2], 8, 16)}
BROKEN = {
    "empty": b"",
    "seven bytes": b"1234567",
    "length 2^63": (2**63).to_bytes(8, "little") + b"{}",
    "length beyond the file": (100).to_bytes(8, "little") + b"{}",
    "cut data": container(F32_PAIR, bytes(10)),
    "trailing bytes": container(F32_PAIR, bytes(20)),
    "overlap": container({"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)}, bytes(12)),
    "hole": container({"a": tensor([2], 0, 8), "b": tensor([2], 12, 20)}, bytes(20)),
    "begin after end": container({"a": tensor([2], 8, 0)}, bytes(8)),
    "shape overflow": container({"a": tensor([2**40, 2**40], 0, 8)}, bytes(8)),
    "negative shape": container({"a": tensor([-2], 0, 8)}, bytes(8)),
    "float shape": container({"a": tensor([2.0], 0, 8)}, bytes(8)),
    "shape and bytes disagree": container({"a": tensor([3], 0, 8)}, bytes(8)),
    "bad UTF-8": container(b'{"\xff": 1}'),
    "bad JSON": container(b'{"a": '),
    "deep nesting": container(b"{" + b'"a":[' * 100_000),
    "list header": container(b"[1, 2]"),
    "leading space": container(b' {"__metadata__": {}}'),
    "pickle": b"\x80\x04\x95" + bytes(40),
    "torch zip": b"PK\x03\x04" + bytes(40),
    "PNG": b"\x89PNG\r\n\x1a\n" + bytes(40),
    "header above the cap": container(b"{" + b" " * 2**20 + b"}"),
    "duplicate tensor": container(
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        bytes(8),
    ),
    "duplicate metadata": container(b'{"__metadata__":{"k":"1","k":"2"}}'),
    "two metadata": container(b'{"__metadata__":{"k":"1"},"__metadata__":{"k":"2"}}'),
    "metadata not text": container({"__metadata__": {"k": 1}}),
    "path as a name": container({"../../etc/x": tensor([2], 0, 8)}, bytes(8)),
    "NUL in a name": container({"a\0": tensor([2], 0, 8)}, bytes(8)),
    "huge empty tensor": container({"a": tensor([0, 2**40], 0, 0)}),
    "float64": container({"a": tensor([1], 0, 8, "F64")}, bytes(8)),
    "integers": container({"a": tensor([1], 0, 8, "I64")}, bytes(8)),
    "unknown dtype": container({"a": tensor([1], 0, 8, "Q9")}, bytes(8)),
    "NaN": container({"a": tensor([1], 0, 4)}, np.float32(np.nan).tobytes()),
    "infinity": container({"a": tensor([1], 0, 4)}, np.float32(np.inf).tobytes()),
    "shape no list": container(
        {"a": {"dtype": "F32", "shape": 5, "data_offsets": [0, 4]}}, bytes(4)
    ),
    "dtype no text": container(
        {"a": {"dtype": [], "shape": [1], "data_offsets": [0, 4]}}, bytes(4)
    ),
    "tensor no table": container({"a": 3}),
    "no card": container(F32_PAIR, bytes(16)),
    "card not JSON": container({"__metadata__": {KEY: "{"}}),
    "card of something else": container({"__metadata__": {KEY: '{"format": "other"}'}}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_not_a_model_file_is_refused(path, name):
    path.write_bytes(BROKEN[name])
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert "model.safetensors" in str(caught.value) or "the card" in str(caught.value)
    assert str(caught.value).count(". ") >= 1 or name == "card of something else"


@pytest.mark.parametrize("name", BROKEN)
def test_no_card_is_read_from_what_is_not_a_model_file(path, name):
    path.write_bytes(BROKEN[name])
    with pytest.raises(CheckpointError):
        read_card(path)


def test_bytes_are_the_files_and_come_back_bit_for_bit(path):
    original = checkpoint(description="µ, 细胞", training={"steps": 3})
    content = original.to_bytes()
    save_checkpoint(path, original)
    assert path.read_bytes() == content
    found = Checkpoint.from_bytes(content)
    assert (found.config, found.card) == (original.config, original.card)
    assert found.weights.keys() == original.weights.keys()
    assert all(
        found.weights[name].tobytes() == value.tobytes() for name, value in original.weights.items()
    )
    assert found.to_bytes() == content


def test_the_hash_is_that_of_the_file(path):
    original = checkpoint()
    save_checkpoint(path, original)
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    assert original.sha256 == load_checkpoint(path).sha256 == expected
    assert Checkpoint.from_bytes(path.read_bytes(), sha256=expected).sha256 == expected
    other = dataclasses.replace(original, card=Card(name="other"))
    assert other.sha256 == hashlib.sha256(other.to_bytes()).hexdigest() != expected


def test_bytes_with_another_hash_are_refused_with_both():
    content = checkpoint().to_bytes()
    found = hashlib.sha256(content).hexdigest()
    with pytest.raises(
        CheckpointError, match=f"s3://lab/model must have sha256 {'0' * 64}, got {found}"
    ):
        Checkpoint.from_bytes(content, source="s3://lab/model", sha256="0" * 64)


@pytest.mark.parametrize("name", BROKEN)
def test_bytes_that_are_no_model_are_refused_by_their_source(name):
    with pytest.raises(CheckpointError, match="s3://lab/model"):
        Checkpoint.from_bytes(BROKEN[name], source="s3://lab/model")


def test_weights_that_are_not_finite_have_no_bytes():
    bad = checkpoint()
    bad.weights["last.weight"].flat[0] = np.inf
    with pytest.raises(CheckpointError, match=r"checkpoint 'test' .*not finite in last\.weight"):
        bad.to_bytes()


@pytest.mark.parametrize("place", [0, 4, 9, 40, 200, -1])
def test_a_flipped_bit_is_noticed_by_the_hash(place):
    original = checkpoint()
    content = bytearray(original.to_bytes())
    content[place] ^= 1
    with pytest.raises(CheckpointError, match="changed or damaged"):
        Checkpoint.from_bytes(bytes(content), sha256=original.sha256)


def test_a_file_with_another_hash_is_refused_with_both(path):
    save_checkpoint(path, checkpoint())
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    assert load_checkpoint(path, found).card == checkpoint().card
    with pytest.raises(CheckpointError, match=f"must have sha256 {'0' * 64}, got {found}"):
        load_checkpoint(path, "0" * 64)


def test_a_pickle_is_called_by_its_name(path):
    path.write_bytes(BROKEN["pickle"])
    with pytest.raises(
        CheckpointError, match="must be a safetensors file, got a pickle; pickles are never loaded"
    ):
        load_checkpoint(path)


def test_a_file_above_the_cap_is_refused_unread(path):
    with open(path, "wb") as file:
        file.truncate(513 * 2**20)
    with pytest.raises(CheckpointError, match="at most"):
        load_checkpoint(path)


def with_content(path, **changes):
    """A model file whose card is changed."""
    original = checkpoint()
    save_checkpoint(path, original)
    header = json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])
    content = json.loads(header["__metadata__"][KEY])
    network = changes.pop("network", {})
    content.update(changes)
    content["network"].update(network)
    write_tensors(path, original.weights, {KEY: json.dumps(content)})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 4}, "format version 2 or 3, got version 4. Upgrade"),
        ({"version": 1}, "format version 2 or 3, got version 1. Train it again, or get a new copy"),
        ({"version": "new"}, "Upgrade"),
        ({"network": {"colour": True}}, "unknown settings"),
        ({"network": {"entry": [[3, 2**20]]}}, "1..1024"),
        ({"network": {"entry": [[3, 16]]}}, "do not fit its settings"),
        ({"network": {"blocks": ["full", "full"]}}, "blocks.1.first.weight"),
        ({"weights": 7}, "must have 7 weights, as its card says, got"),
        ({"card": {"name": "x", "mood": "good"}}, "mood"),
        ({"card": {"name": 5}}, "name of the card must be text, got 5"),
        (
            {"card": {"name": "x", "scores": []}},
            r"scores of the card must be a table, got \[\]",
        ),
        ({"version": True}, "Upgrade"),
        ({"network": {"levels": [{"channels": 8}]}}, "level 0 of the network lacks the settings"),
        ({"network": {"levels": [{"channels": 0, "blocks": [], "blocks_up": []}]}}, r"1\.\.1024"),
        ({"network": {"levels": [{"channels": 8, "blocks": [], "blocks_up": []}]}}, "do not fit"),
        ({"network": {"levels": [1]}}, "level 0 of the network must be a table, got 1"),
        (
            {"network": {"levels": 1}},
            r"levels of the network must be a list of 0\.\.3 items, got 1",
        ),
    ],
)
def test_cards_that_do_not_fit_are_refused(path, changes, words):
    with_content(path, **changes)
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(path)


def test_a_file_of_version_2_which_knows_no_levels_is_read(path):
    original = checkpoint()
    save_checkpoint(path, original)
    header = json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])
    content = json.loads(header["__metadata__"][KEY])
    assert content["version"] == 3
    for setting in ("levels", "blocks_up"):
        assert content["network"].pop(setting) == []
    for version in (2, 3):
        write_tensors(path, original.weights, {KEY: json.dumps(content | {"version": version})})
        if version == 2:
            assert load_checkpoint(path).config == original.config
    with pytest.raises(CheckpointError, match=r"lacks the settings \['blocks_up', 'levels'\]"):
        load_checkpoint(path)


def test_levels_in_a_file_of_version_2_are_not_left_out(path):
    with_content(path, version=2, network=CONFIG.as_dict() | {"levels": [{"channels": 4}]})
    with pytest.raises(CheckpointError, match="must have no levels in format version 2"):
        load_checkpoint(path)


@pytest.mark.parametrize("setting", sorted(CONFIG.as_dict()))
def test_a_network_without_one_of_its_settings_is_refused(path, setting):
    original = checkpoint()
    save_checkpoint(path, original)
    header = json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])
    content = json.loads(header["__metadata__"][KEY])
    del content["network"][setting]
    write_tensors(path, original.weights, {KEY: json.dumps(content)})
    with pytest.raises(CheckpointError, match=setting):
        load_checkpoint(path)


def test_sixteen_bit_weights_are_widened(path):
    original = checkpoint()
    weights = {
        name: torch.from_numpy(value).to(torch.bfloat16) for name, value in original.weights.items()
    }
    save_checkpoint(path, original)
    header = json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])
    from safetensors.torch import save_file

    save_file(weights, path, metadata=header["__metadata__"])
    found = load_checkpoint(path)
    assert all(
        np.array_equal(found.weights[name], value.float().numpy())
        for name, value in weights.items()
    )


def test_weights_in_float16_are_half_the_size_and_stay_so(path):
    original = checkpoint(half_resolution_config(32, 1))
    whole = len(original.to_bytes())
    save_checkpoint(path, original, half=True)
    content = path.read_bytes()
    assert len(content) < 0.55 * whole
    assert {value.dtype for value in load_file(path).values()} == {torch.float16}
    found = load_checkpoint(path)
    for name, value in original.weights.items():
        assert found.weights[name].dtype == np.float32
        expected = value.astype(np.float16).astype(np.float32)
        assert found.weights[name].tobytes() == expected.tobytes()
    assert found.to_bytes() == content
    renamed = dataclasses.replace(found, card=Card(name="other"))
    assert len(renamed.to_bytes()) < 0.55 * whole
    trained = {name: value * np.float32(1.001) for name, value in found.weights.items()}
    assert len(dataclasses.replace(found, weights=trained).to_bytes()) > 0.95 * whole


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda value: value * 1e8, r"weights must be at most 65504, got \S+ in last\.weight"),
        (
            lambda value: value * 1e-6,
            r"of a tensor may be lost by rounding, got \S+ of last\.weight",
        ),
    ],
)
def test_weights_that_float16_cannot_hold_are_not_written_in_it(path, change, words):
    original = checkpoint()
    original.weights["last.weight"][...] = change(original.weights["last.weight"])
    with pytest.raises(CheckpointError, match=f"{words}.*Write it in float32"):
        save_checkpoint(path, original, half=True)
    assert not path.exists()
    save_checkpoint(path, original)
    found = load_checkpoint(path).weights["last.weight"]
    assert np.array_equal(found, original.weights["last.weight"])


def test_the_hash_of_a_file_of_an_older_version_is_its_own(path):
    with_content(path, version=2)
    assert load_checkpoint(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_card_without_terms_is_read_and_states_none(path):
    with_content(path, version=2, card={"name": "x"})
    assert read_card(path).terms == load_checkpoint(path).card.terms == ""
    save_checkpoint(path, checkpoint(terms="Free for any use."))
    assert read_card(path).terms == "Free for any use."


def test_weights_that_are_not_finite_are_not_written(path):
    bad = checkpoint()
    bad.weights["last.weight"].flat[0] = np.nan
    with pytest.raises(CheckpointError, match=r"not finite in last\.weight"):
        save_checkpoint(path, bad)
    assert not path.exists()


@pytest.mark.parametrize(
    "score",
    [
        float("nan"),
        float("inf"),
        np.float32(3),
        functools.reduce(lambda x, _: [x], range(10**5), 0),
    ],
)
def test_a_card_that_json_cannot_hold_is_not_written(score, tmp_path):
    good = checkpoint()
    bad = dataclasses.replace(good, card=dataclasses.replace(good.card, scores={"set12": score}))
    with pytest.raises(CheckpointError, match="must be plain text and finite numbers"):
        save_checkpoint(tmp_path / "bad.safetensors", bad)
    assert not list(tmp_path.iterdir())


def test_a_card_with_nan_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    with_content(path, card={"name": "x", "scores": {"set12": float("nan")}})
    with pytest.raises(CheckpointError, match="NaN"):
        load_checkpoint(path)


@pytest.mark.parametrize("content", ["text", None, 7])
def test_only_bytes_are_read_as_a_checkpoint(content):
    with pytest.raises(TypeError, match="content must be bytes"):
        Checkpoint.from_bytes(content)
    whole = checkpoint().to_bytes()
    assert Checkpoint.from_bytes(memoryview(whole)).sha256 == checkpoint().sha256


def test_missing_files_and_folders_are_plain_os_errors(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "none.safetensors")
    with pytest.raises(IsADirectoryError):
        load_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match="folder"):
        save_checkpoint(tmp_path / "none" / "model.safetensors", checkpoint())
