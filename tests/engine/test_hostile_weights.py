"""Weight files that somebody made to crash the process, to take its memory or its time: all are refused by name."""

from __future__ import annotations

import io
import pickle
import resource
import struct
import subprocess
import sys
import time
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lbvq.engine.weight_files import read_weights
from lbvq.files.torch_files import read_torch_file

HOSTILE = sorted((Path(__file__).parent / "hostile_weights").iterdir())
LIMIT = 4 << 30  # bytes of addresses that reading one of these files may take
READ_ALL = """
import resource, sys
from lbvq.engine.weight_files import read_weights
resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))
for path in sys.argv[1:]:
    try:
        read_weights(path)
        print("accepted", path)
    except ValueError as error:
        print("refused" if path in str(error) else "unnamed", path, error)
"""


def put(tmp_path, content: bytes):
    path = tmp_path / "weights.pkl"
    path.write_bytes(content)
    return path


def saved(content, *, legacy=False) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def global_name(name: str) -> bytes:
    module, _, leaf = name.rpartition(".")
    return f"c{module}\n{leaf}\n".encode()


def model_of(value: bytes) -> bytes:
    """A pickle {"model": {"w": value}}."""
    return b"\x80\x02}X\x05\x00\x00\x00model}X\x01\x00\x00\x00w" + value + b"ss."


def repacked(content: bytes, change) -> bytes:
    """A zip with each record passed through `change(name, data)`."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(out, "w") as target:
        for record in source.infolist():
            target.writestr(record.filename, change(record.filename, source.read(record)))
    return out.getvalue()


def test_crafted_numpy_pickles_are_refused_and_the_process_lives(tmp_path):
    """Of 63 to 468 bytes; they laid arrays of objects over bytes of the file, or asked for 8 GB."""
    code = READ_ALL.format(limit=LIMIT)
    done = subprocess.run([sys.executable, "-c", code, *map(str, HOSTILE)], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(HOSTILE) == 7 == len(lines), done.stderr
    assert all(line.startswith("refused") for line in lines), lines


ARRAY = global_name("numpy.ndarray")
EIGHT_GB = b"\x8a\x05" + (8 << 30).to_bytes(5, "little")
NESTED_TUPLES = b"(t" + b"2\x86" * 60  # each holds the one before it twice


@pytest.mark.parametrize(
    "value, message",
    [
        (ARRAY + EIGHT_GB + b"\x85R", "calling a class"),
        (global_name("numpy.dtype") + b"X\x01\x00\x00\x00O\x85R", "array type 'O'"),
        (global_name("numpy.dtype") + b"X\x07\x00\x00\x00O8,<f4,\x85R", "array type"),
        (global_name("builtins.bytearray") + EIGHT_GB + b"\x85R", "bytes made of a int"),
        (global_name("torch.nn.parameter.Parameter") + b")\x81", "objects of classes"),
        (global_name("torch.nn.parameter.Parameter") + b"N}X\x01\x00\x00\x00aK\x01s\x86b", "state of a function"),
        (global_name("collections.OrderedDict") + b")R}X\x05\x00\x00\x00itemsK\x01sb", "is a OrderedDict"),
        (b"}" + NESTED_TUPLES + b"K\x01s", "a tuple as a key"),
        (b"(" + NESTED_TUPLES + b"\x91", "a tuple as a key"),
        (b"K\x01(K\x01K\x01u", "setting items of a int"),
        (b"\x8e" + struct.pack("<Q", 8 << 30), "ends in the middle"),
        (b"\x96" + struct.pack("<Q", 8 << 30), "ends in the middle"),
        (b"\x8b" + struct.pack("<i", 1 << 30), "ends in the middle"),
        (b"Nr" + struct.pack("<I", 2**32 - 1), "not a tensor"),  # the index of a memo: 64 GB in the C unpickler
        (b"\x82\x01", "objects of classes"),
        (b"Qstorage\n", "objects outside"),
        (b"K\x01K\x01\x85R", "calling a int"),
    ],
)
def test_what_a_pickle_may_not_do_is_said_at_once(tmp_path, value, message):
    path = put(tmp_path, model_of(value))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(ValueError, match=message) as info:
        read_weights(path)
    assert str(path) in str(info.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB
    assert time.process_time() - start < 2


@pytest.mark.parametrize("shape, data", [((2**40,), 4), ((3,), 4), ((-1,), 4), ((0,) * 40, 0), ((2**62, 4), 0)])
def test_an_array_has_exactly_the_bytes_that_its_shape_needs(tmp_path, shape, data):
    class Crafted:
        def __reduce__(self):
            make, (kind, _, code), _ = np.zeros(1, "f4").__reduce__()
            return make, (kind, (0,), code), (1, shape, np.dtype("f4"), False, b"\0" * data)

    class Adopts(Crafted):  # numpy itself would refuse the state while pickling, were it applied
        pass

    with pytest.raises(ValueError, match=r"shape|dimensions"):
        read_weights(put(tmp_path, pickle.dumps({"model": {"w": Adopts()}}, 2)))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_tensor_may_not_reach_beyond_its_storage(tmp_path, legacy):
    content = saved({"model": {"w": torch.ones(4)}}, legacy=legacy)
    size = (b"K\x00K\x04\x85", b"K\x00J\x00\x00\x00\x10\x85")  # offset 0, sizes (4,)

    def change(name, data):
        assert size[0] in data or not name.endswith("data.pkl")
        return data.replace(*size)

    changed = change("data.pkl", content) if legacy else repacked(content, change)
    with pytest.raises(ValueError, match=r"has 4 values in the file|out of bounds"):
        read_weights(put(tmp_path, changed))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_storage_may_not_be_larger_than_what_the_file_has_for_it(tmp_path, legacy):
    content = saved({"model": {"w": torch.ones(4)}}, legacy=legacy)
    number = (b"cpuq\x08K\x04", b"cpuq\x08J\x00\x00\x00\x10")

    def change(name, data):
        return data.replace(*number)

    changed = change("", content) if legacy else repacked(content, change)
    assert changed != content
    with pytest.raises(ValueError, match=r"ends before|has 16 bytes"):
        read_weights(put(tmp_path, changed))


def test_a_zip_that_unpacks_to_much_more_is_refused_before_it_is_read(tmp_path):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"model": {}}, 2))
        archive.writestr("archive/data/0", b"\0" * (64 << 20))
    with pytest.raises(ValueError, match="would unpack to 67"):
        read_weights(put(tmp_path, out.getvalue()))


def test_a_flipped_byte_anywhere_in_the_values_is_noticed(tmp_path):
    content = bytearray(saved({"model": {"w": torch.zeros(1000)}, "iteration": 3}))
    place = content.index(b"\0" * 3000) + 1500
    content[place] ^= 1
    with pytest.raises(ValueError, match=r"weights\.pkl is damaged.*CRC"):
        read_weights(put(tmp_path, bytes(content)))


def test_torch_files_without_checksums_are_read(tmp_path):
    config = pytest.importorskip("torch.utils.serialization").config
    with config.patch({"save.compute_crc32": False}):
        content = saved({"model": {"w": torch.ones(2)}})
    assert read_weights(put(tmp_path, content)).tensors["w"].tolist() == [1, 1]


def test_an_expanded_tensor_of_terabytes_is_refused_and_a_small_one_is_read(tmp_path):
    small = saved({"model": {"w": torch.ones(1).expand(8)}})
    assert read_weights(put(tmp_path, small)).tensors["w"].tolist() == [1] * 8
    with pytest.raises(ValueError, match="has 1 values in the file"):
        read_weights(put(tmp_path, saved({"model": {"w": torch.ones(1).expand(2**40)}})))


@pytest.mark.parametrize("legacy", [False, True])
def test_everything_that_training_saves_comes_back(tmp_path, legacy):
    """Dtypes, views of one storage, scalars, containers; the values are those that were saved."""
    base = torch.arange(12.0)
    content = {
        "views": [base[2:5], base.view(3, 4).t(), base[::2]],
        "dtypes": {str(dtype): torch.ones(3).to(dtype) for dtype in (torch.bfloat16, torch.int8, torch.complex64)},
        "float8": torch.ones(3).to(torch.float8_e4m3fn),
        "bool": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(2.5),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "containers": [{1, 2}, Counter("aab"), OrderedDict(a=1), (1, (2,)), b"bytes", bytearray(b"x"), 3 + 4j, None],
        "size": torch.Size([1, 2]),
        "device": torch.device("cpu"),
        "dtype": torch.float16,
        "keys": {0: "a", (1, "b"): 2, 1.5: None, True: 3},
    }
    ours = read_torch_file(put(tmp_path, saved(content, legacy=legacy)))
    assert ours["views"][0].untyped_storage().data_ptr() == ours["views"][1].untyped_storage().data_ptr()
    tensors = ("views", "dtypes", "float8", "bool", "empty", "scalar", "parameter")
    for key in tensors:
        torch.testing.assert_close(ours[key], content[key], rtol=0, atol=0)
    assert {key: ours[key] for key in ours if key not in tensors} == {
        key: content[key] for key in content if key not in tensors
    }


def test_a_file_of_another_byte_order_is_read(tmp_path):
    content = saved({"model": {"w": torch.arange(3.0), "z": torch.tensor([1 + 2j], dtype=torch.complex64)}})
    foreign = "big" if sys.byteorder == "little" else "little"

    def change(name, data):
        if name.endswith("byteorder"):
            return foreign.encode()
        return np.frombuffer(data, "u4").byteswap().tobytes() if "/data/" in name else data

    tensors = read_weights(put(tmp_path, repacked(content, change))).tensors
    assert tensors["w"].tolist() == [0, 1, 2] and tensors["z"].tolist() == [1 + 2j]


def test_torchscript_is_no_weight_file(tmp_path):
    out = io.BytesIO(saved({"w": torch.ones(1)}))
    with zipfile.ZipFile(out, "a") as archive:
        archive.writestr("archive/constants.pkl", b"")
    with pytest.raises(ValueError, match="TorchScript"):
        read_weights(put(tmp_path, out.getvalue()))


@pytest.mark.parametrize("damage", ["header", "offsets", "cut"])
def test_damaged_safetensors_are_refused_by_name(tmp_path, damage):
    path = tmp_path / "w.safetensors"
    save_file({"w": torch.ones(4)}, path)
    data = path.read_bytes()
    changed = {
        "header": data.replace(b'"F32"', b'"XYZ"'),
        "offsets": data.replace(b"[0,16]", b"[0,99]"),
        "cut": data[:-4],
    }[damage]
    path.write_bytes(changed)
    with pytest.raises(ValueError, match=r"w\.safetensors is damaged"):
        read_weights(path)
