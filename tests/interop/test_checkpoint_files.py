"""Safetensors files: one or several with an index, both ways, and files that are not what they should be."""

import json

import ml_dtypes
import numpy as np
import pytest

from lm.errors import ConfigError, DataError
from lm.interop.checkpoint_files import INDEX, SINGLE, open_tensors, write_tensors


@pytest.fixture
def named():
    """Tensors of every type that can be read."""
    rng = np.random.default_rng(0)
    types = {"a": np.float32, "b": np.float16, "c": ml_dtypes.bfloat16, "d": np.float32}
    return {name: rng.standard_normal((10, 4)).astype(kind) for name, kind in types.items()}


@pytest.mark.parametrize(("shard_bytes", "files"), [(10**9, 1), (200, 3), (1, 4)])
def test_what_is_written_is_read_again(tmp_path, named, shard_bytes, files):
    assert write_tensors(tmp_path, named.items(), shard_bytes) == 160
    there = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert there == ([SINGLE] if files == 1 else [f"model-{i + 1:05d}-of-{files:05d}.safetensors" for i in range(files)])
    assert (tmp_path / INDEX).exists() == (files > 1)
    again = open_tensors(tmp_path)
    assert set(again) == set(named) and len(again) == 4
    for name, value in named.items():
        assert again[name].dtype == value.dtype and again[name].tobytes() == value.tobytes()


def test_the_library_reads_shards_by_their_index(tmp_path, named):
    write_tensors(tmp_path, named.items(), 200)
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in named.values())
    from safetensors.numpy import load_file

    for name, file in index["weight_map"].items():
        np.testing.assert_array_equal(load_file(tmp_path / file)[name], named[name])


def test_no_more_than_a_shard_is_in_memory(tmp_path):
    alive, most = [0], [0]

    class Counted(np.ndarray):
        def __del__(self):
            alive[0] -= 1

    def items():
        for i in range(20):
            alive[0] += 1
            most[0] = max(most[0], alive[0])
            yield str(i), np.zeros(100, np.float32).view(Counted)

    write_tensors(tmp_path, items(), 1600)  # four tensors
    assert most[0] <= 6


def test_pickles_are_refused_with_the_reason(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(ConfigError, match=r"pytorch_model\.bin, a pickle, and loading one runs whatever program.*safetensors"):
        open_tensors(tmp_path)


def test_files_that_are_torn_missing_or_wrong_are_named(tmp_path, named):
    with pytest.raises(DataError, match=r"there is no model\.safetensors"):
        open_tensors(tmp_path)
    write_tensors(tmp_path, named.items(), 200)
    shard = tmp_path / "model-00002-of-00003.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-5])
    with pytest.raises(DataError, match=r"model-00002-of-00003\.safetensors is not a whole safetensors file"):
        open_tensors(tmp_path)
    shard.unlink()
    with pytest.raises(DataError, match=r"names model-00002-of-00003\.safetensors, which is not there"):
        open_tensors(tmp_path)
    shard.write_bytes((tmp_path / "model-00001-of-00003.safetensors").read_bytes())
    with pytest.raises(DataError, match="do not belong together"):
        open_tensors(tmp_path)
    (tmp_path / INDEX).write_text("[]")
    with pytest.raises(DataError, match="is not an index"):
        open_tensors(tmp_path)


def test_a_tensor_that_the_index_does_not_name_is_not_there(tmp_path, named):
    write_tensors(tmp_path, named.items(), 200)
    index = json.loads((tmp_path / INDEX).read_text())
    del index["weight_map"]["b"]
    (tmp_path / INDEX).write_text(json.dumps(index))
    assert set(open_tensors(tmp_path)) == {"a", "c", "d"}


def test_an_index_cannot_name_files_outside_its_folder(tmp_path, named):
    inside = tmp_path / "inside"
    inside.mkdir()
    write_tensors(tmp_path, named.items())
    (inside / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(named, f"../{SINGLE}")}))
    with pytest.raises(DataError, match="which is not there"):
        open_tensors(inside)
