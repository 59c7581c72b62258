"""A store that somebody hostile has filled: what lies there is never executed, never leads out, never fills memory.

Five kinds of attack in this order: pickles, names that lead elsewhere, documents and weights that are too large,
Arrow offsets that leave their buffer, and pictures that no memory holds. Digests match wherever one is asked for:
who writes the bytes can write the digest.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import io
import itertools
import json
import os
import pickle
import shutil
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cluster.errors import InputError, StoreError, XdistError
from cluster.runs import open_run, read_config, read_history
from cluster.s3 import S3Store
from cluster.store import DOCUMENT_LIMIT_BYTES, LocalStore, Store, check_key, open_store, ray_filesystem
from cluster.world import World
from dataloading.config import PackConfig
from dataloading.dataset import INFO_KEY, MANIFEST_KEY, Dataset, open_dataset, shard_key
from dataloading.loading.cache import count_classes, open_split
from dataloading.packing.examine import Task, examine_files
from dataloading.packing.images import FILE_LIMIT_BYTES
from dataloading.packing.pack import run_pack
from dataloading.picture_size import PIXEL_LIMIT, read_size
from tests.dataloading.loading.packed import encode_jpeg, speckled_picture, stand_in, write_dataset
from tests.xdist_train.evidence.made_up_run import write_cam, write_run
from tests.xdist_train.training.ranks import make_job
from tune_spaces.ledger import trial_name
from xdist_train.config import ModelConfig, OptimConfig, TrainConfig
from xdist_train.evidence.predict import predict_images
from xdist_train.evidence.report.writing import write_report
from xdist_train.models.backbones import build_model
from xdist_train.models.export import ModelDescription, Preprocessing, Selection, load_model, save_model
from xdist_train.models.tensors import WEIGHTS_LIMIT_BYTES
from xdist_train.models.weights import read_weights, resolve_weights
from xdist_train.training.checkpoint import (
    DamagedCheckpointError,
    Position,
    Snapshots,
    checkpoint_name,
    fetch_checkpoint,
    load_checkpoint,
)
from xdist_train.training.learner import Learner
from xdist_train.training.resume import resume
from xdist_train.training.state import TrainState

_ROOT = Path(__file__).resolve().parents[1]
_FILES = ("model.safetensors", "optim.safetensors", "state.json")
_SMALL_BYTES, _SOON_S = 64 << 20, 20.0
_DEEP = b"[" * 10_000 + b"]" * 10_000


@contextmanager
def _cheaply() -> Iterator[None]:
    """The block takes little memory and little time, whatever sizes it was told of."""
    tracemalloc.start()
    started = time.monotonic()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < _SMALL_BYTES
        assert time.monotonic() - started < _SOON_S
    finally:
        tracemalloc.stop()


def _sparse(path: Path, num_bytes: int, start: bytes = b"") -> Path:
    """A file that claims so many bytes and takes none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(start)
    os.truncate(path, num_bytes)
    return path


# 1. Pickles ----------------------------------------------------------------------------------------------


class _Payload:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def _pickled(marker: Path) -> bytes:
    return pickle.dumps(_Payload(marker))


def _torch_saved(marker: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save(_Payload(marker), buffer)
    return buffer.getvalue()


_PICKLES = pytest.mark.parametrize("make", [_pickled, _torch_saved])


def test_the_payload_works(tmp_path: Path) -> None:
    """Unpickled, it would be seen: the tests below can fail."""
    pickle.loads(_pickled(tmp_path / "one"))
    torch.load(io.BytesIO(_torch_saved(tmp_path / "two")), weights_only=False)
    assert ["one", "two"] == sorted(path.name for path in tmp_path.iterdir())


@pytest.fixture(scope="module")
def learner() -> Learner:
    """A small network that takes checkpoints."""
    train = TrainConfig(epochs=1, batch_size=52)
    model = ModelConfig(backbone="small_cnn")
    return make_job(World(), model=model, optim=OptimConfig(), train=train, micro_batch_size=26).learner


@pytest.fixture(scope="module")
def sound(learner: Learner, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of its own."""
    folder = tmp_path_factory.mktemp("sound")
    Snapshots().take(learner, TrainState(epoch=1)).write(folder)
    return folder


@pytest.fixture
def checkpoint(sound: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(sound, tmp_path / "checkpoint")


def _sign(folder: Path) -> None:
    """The digest of what lies in a checkpoint now."""
    digests = {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        for name, data in ((name, (folder / name).read_bytes()) for name in _FILES)
    }
    (folder / "digest.json").write_text(json.dumps(digests))


@_PICKLES
@pytest.mark.parametrize("name", [*_FILES, "digest.json"])
def test_a_pickle_in_a_checkpoint_is_refused_unread(
    name: str, make: Callable[[Path], bytes], checkpoint: Path, learner: Learner, tmp_path: Path
) -> None:
    """In place of any of its files, with the digest that belongs to it."""
    (checkpoint / name).write_bytes(make(tmp_path / "executed"))
    if name != "digest.json":
        _sign(checkpoint)
    with pytest.raises(DamagedCheckpointError):
        load_checkpoint(checkpoint, learner)
    assert not (tmp_path / "executed").exists()


def test_a_checkpoint_of_a_pickle_is_passed_over(
    checkpoint: Path, sound: Path, learner: Learner, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The run goes on from the one before it, and says so."""
    (checkpoint / "state.json").write_bytes(_pickled(tmp_path / "executed"))
    _sign(checkpoint)
    stores = {Position(1, 0, 1): sound, Position(2, 0, 1): checkpoint}
    reported = {
        position: lambda place, folder=folder: fetch_checkpoint(open_store(str(folder)), place)
        for position, folder in stores.items()
    }
    state = resume(reported, learner, World(), f"hostile-{os.getpid()}")
    assert (1, f"checkpoint {checkpoint_name(Position(2, 0, 1))} is passed over" in caplog.text) == (state.epoch, True)
    assert not (tmp_path / "executed").exists()


@_PICKLES
def test_a_pickle_for_a_model_is_refused_unread(make: Callable[[Path], bytes], tmp_path: Path) -> None:
    """In a published model with its digest, and as the weights to start from."""
    store = _write_model(tmp_path / "run")
    data = make(tmp_path / "executed")
    store.write("model/model.safetensors", data)
    description = store.read_json("model/model.json")
    store.write_json("model/model.json", description | {"weights_sha256": hashlib.sha256(data).hexdigest()})
    for read in (lambda: load_model(store.uri), lambda: resolve_weights(store.uri, "small_cnn", open_store("/none"))):
        with pytest.raises(InputError, match="not a whole safetensors file"):
            read()
    store.write("model/model.json", data)
    with pytest.raises(InputError, match="not JSON"):
        load_model(store.uri)
    assert not (tmp_path / "executed").exists()


_EXECUTING_MODULES = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle"}
_EXECUTING_CALLS = {
    *("eval", "exec", "torch.load", "torch.save", "torch.jit.load", "torch.hub.load", "torch.package.PackageImporter"),
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "pandas.read_pickle", "pd.read_pickle"),
}
_WEIGHTS_ONLY = {"xdist_train/models/pretrained.py"}
"""Reads the ImageNet weights that an installed package carries: a pickle, by torch's reader of nothing but tensors."""


def _executing(source: str) -> list[str]:
    """What in a module's text may execute what it reads."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            names = [module, *(f"{module}.{item.name}" if module else item.name for item in node.names)]
            found += [name for name in names if name in _EXECUTING_CALLS or name.split(".")[0] in _EXECUTING_MODULES]
        elif isinstance(node, ast.Call):
            name, options = ast.unparse(node.func), {item.arg: ast.unparse(item.value) for item in node.keywords}
            allows = options.get("allow_pickle", "False") != "False" or options.get("weights_only", "True") != "True"
            found += [name] if name in _EXECUTING_CALLS or name.endswith(".read_pickle") or allows else []
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from joblib import load", "import dill as d", "from torch import load",
        "torch.load(path, weights_only=True)", "torch.save(x, path)", "np.load(path, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.Loader)", "frame.read_pickle(path)", "get(url, weights_only=False)", "eval(text)",
    ],
)  # fmt: skip
def test_the_rule_below_finds_what_executes(source: str) -> None:
    """Each way that this program must not read by is seen."""
    assert [] != _executing(source)


@pytest.mark.parametrize("package", ["cluster", "dataloading", "xdist_train", "tune_spaces"])
def test_no_module_executes_what_it_reads(package: str) -> None:
    """No pickle, no torch.load or torch.save, no unsafe YAML in the whole program, with one exception that is named."""
    for path in sorted((_ROOT / package).rglob("*.py")):
        name = str(path.relative_to(_ROOT))
        allowed = ["torch.load"] if name in _WEIGHTS_ONLY else []
        assert (name, allowed) == (name, _executing(path.read_text()))
        assert not allowed or 'torch.load(path, map_location="cpu", weights_only=True)' in path.read_text()


# 2. Names that lead elsewhere ----------------------------------------------------------------------------

_BAD_KEYS = [
    "../x", "a/../../x", "..", ".", "a/./b", "/etc/passwd", "//etc/passwd", "a//b", "a/", "s3://bucket/x",
    "file:///etc/passwd", "..\\x", "a\\b", "C:\\x", "a\0b", "a\nb",
]  # fmt: skip
_METHODS: dict[str, Callable[[Store, str], Any]] = {
    "child": lambda store, key: store.child(key),
    "info": lambda store, key: store.info(key),
    "exists": lambda store, key: store.exists(key),
    "entries": lambda store, key: store.entries(key),
    "walk": lambda store, key: list(store.walk(key)),
    "read": lambda store, key: store.read(key),
    "read_json": lambda store, key: store.read_json(key),
    "write": lambda store, key: store.write(key, b""),
    "create": lambda store, key: store.create(key, b""),
    "delete": lambda store, key: store.delete(key),
    "delete_tree": lambda store, key: store.delete_tree(key),
    "open_reader": lambda store, key: store.open_reader(key),
    "download": lambda store, key: store.download(key, Path("/nowhere/to/write")),
}


@pytest.mark.parametrize("method", _METHODS)
def test_no_key_leads_out_of_its_store(method: str, tmp_path: Path) -> None:
    """Refused before the disk or the network is asked, by every method, on disks and in buckets."""
    stores = (open_store(str(tmp_path)), S3Store("s3://bucket/prefix", 0))
    for store, key in itertools.product(stores, _BAD_KEYS):
        with pytest.raises(InputError, match="is no key of an object"):
            _METHODS[method](store, key)


@pytest.mark.parametrize(
    "key", ["a", "a/b.c", "a..b/..c/d..", "shards/00000.arrow", "cam/test@ab12/classic-layer4", "ä ö"]
)
def test_honest_keys_are_keys(key: str) -> None:
    """Dots within a name, spaces and letters of other languages lead nowhere."""
    assert key == check_key(key)


def test_ray_is_kept_in_its_store_too(tmp_path: Path) -> None:
    """What Ray's own documents name goes through the same guard."""
    (tmp_path / "secret").write_text("x")
    filesystem, root = ray_filesystem(str(tmp_path / "run"))
    with pytest.raises(InputError, match="is no key"):
        filesystem.open_input_stream(f"{root}/../secret")


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """A small honest data set, to be spoiled."""
    images = [encode_jpeg(speckled_picture(number, 40, 30)) for number in range(7)]
    return write_dataset(tmp_path / "dataset", images, [0, 0, 0, 1, 1, 1, 1])


def _open(dataset: Dataset, cache: Path) -> Any:
    return open_split(open_dataset(dataset.store.uri), "patient", "train", cache)


def _describe(dataset: Dataset, **changes: Any) -> Dataset:
    """The data set with other values in its dataset.json."""
    dataset.store.write_json(INFO_KEY, dataset.store.read_json(INFO_KEY) | changes)
    return open_dataset(dataset.store.uri)


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "s3://bucket/x", "..\\x"])
def test_a_shard_cannot_be_given_a_path(path: str, dataset: Dataset) -> None:
    """A shard's key is its place in the list: a description that names one is refused."""
    shards = dataset.store.read_json(INFO_KEY)["shards"]
    for field in ("key", "path", "name"):
        with pytest.raises(InputError, match=r"dataset\.json is damaged"):
            _describe(dataset, shards=[{**shards[0], field: path}, *shards[1:]])


_WRONG_RECORDS = [
    ("shard", -1), ("shard", 2), ("row", -1), ("row", 5), ("row", 2**31 - 1), ("label", -1), ("label", 2),
    ("width", 0), ("height", -5), ("width", 2**31 - 1),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), _WRONG_RECORDS)
def test_a_manifest_leads_to_rows_that_are_there(field: str, value: int, dataset: Dataset, tmp_path: Path) -> None:
    """Each row's shard, place, class and size must be possible, though the manifest's digest is right."""
    _spoil_manifest(dataset, field, value)
    with pytest.raises(InputError, match=r"manifest\.parquet: image 3 has .* is not possible"):
        _open(dataset, tmp_path / "cache")


def _spoil_manifest(dataset: Dataset, field: str, value: int) -> None:
    table = dataset.read_manifest()
    place = table.schema.get_field_index(field)
    column = table.column(field).to_pylist()
    column[3] = value
    _write_manifest(dataset, table.set_column(place, table.schema.field(place), pa.array(column, table[field].type)))


def _write_manifest(dataset: Dataset, table: pa.Table) -> None:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    dataset.store.write(MANIFEST_KEY, buffer.getvalue())
    _describe(dataset, manifest_sha256=hashlib.sha256(buffer.getvalue()).hexdigest())


def test_a_manifest_has_the_rows_that_are_counted(dataset: Dataset) -> None:
    """A column of one value is a few bytes however often it stands there, so it is counted before it is unpacked."""
    table = dataset.read_manifest()
    _write_manifest(dataset, table.take(pa.array(np.zeros(3_000_000, np.int64))))
    with _cheaply(), pytest.raises(InputError, match=r"has 3,000,000 rows, but dataset\.json counts 7 images"):
        count_classes(open_dataset(dataset.store.uri), "patient")


def test_a_set_does_not_get_the_index_of_one_that_claims_its_fingerprint(dataset: Dataset, tmp_path: Path) -> None:
    """Whoever was on the node first under that name."""
    other = write_dataset(tmp_path / "other", [encode_jpeg(speckled_picture(1, 20, 10))] * 7, [0, 1, 1, 1, 1, 1, 1])
    _describe(other, fingerprint=dataset.info.fingerprint)
    assert ((1, 6), (3, 4)) == tuple(_open(item, tmp_path / "cache").class_counts for item in (other, dataset))


@pytest.mark.parametrize("key", [shard_key(1), INFO_KEY, MANIFEST_KEY, "shards"])
def test_a_link_that_leaves_the_data_set_is_refused(key: str, dataset: Dataset, tmp_path: Path) -> None:
    """Even where what it leads to is what was packed; a link within the set, and one to the whole set, are not."""
    path = dataset.store.path(key)
    shutil.move(path, tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")
    with pytest.raises(InputError, match=r"is a symbolic link that leads out of its folder, to .*outside"):
        _open(dataset, tmp_path / "cache")
    path.unlink()
    shutil.move(tmp_path / "outside", dataset.store.path("elsewhere"))
    path.symlink_to("elsewhere" if "/" not in key else "../elsewhere")
    (tmp_path / "link").symlink_to(dataset.store.uri)
    linked = open_split(open_dataset(str(tmp_path / "link")), "patient", "train", tmp_path / "cache")
    assert 7 == linked.num_images


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd"])
def test_a_digest_names_no_other_file(name: str, checkpoint: Path, learner: Learner) -> None:
    """A file that is not a checkpoint's own is not even opened, or a device would be read for ever."""
    for other in (name, "/dev/zero"):
        (checkpoint / "digest.json").write_text(json.dumps({other: {}, "state.json": {}, "model.safetensors": {}}))
        with pytest.raises(DamagedCheckpointError, match=r"digest\.json is not what"):
            load_checkpoint(checkpoint, learner)


@pytest.mark.parametrize("key", ["../other/cam/test/classic-layer4/cam.json", "/etc/cam.json"])
def test_run_json_lists_nothing_outside_its_folder(key: str, tmp_path: Path) -> None:
    """What `complete` names is read as keys of the run, though it be there."""
    run, other = write_run(tmp_path / "run"), write_run(tmp_path / "other")
    write_cam(other, ids=[10_000])
    record = run.read_json("run.json")
    run.write_json("run.json", {**record, "complete": [*record["complete"], key]})
    with pytest.raises(InputError, match="is no key"):
        write_report(run.uri)


@pytest.mark.parametrize("key", ["../secret.jpg", "/etc/passwd", "s3://bucket/x"])
@pytest.mark.parametrize("field", ["image", "overlay"])
def test_cam_json_shows_nothing_outside_its_run(field: str, key: str, tmp_path: Path) -> None:
    """A page would carry the picture to whoever is sent it."""
    run = write_run(tmp_path / "run")
    write_cam(run, ids=[10_000])
    (tmp_path / "secret.jpg").write_bytes(encode_jpeg(speckled_picture(0, 20, 20)))
    place = "cam/test/classic-layer4/cam.json"
    summary = run.read_json(place)
    summary["gallery"][0][field] = key
    run.write_json(place, summary)
    with pytest.raises(InputError, match="is no key"):
        write_report(run.uri)


def test_the_pointer_to_stored_weights_stays_in_its_folder(tmp_path: Path) -> None:
    """`weights/<network>.json` names a digest, which becomes a key."""
    store = open_store(str(tmp_path / "storage"))
    normalisation = {"mean": [0.5] * 3, "std": [0.5] * 3}
    pointer = {"sha256": "../../secret", "source": "imagenet", "normalisation": normalisation}
    store.write_json("weights/torchvision-resnet18.json", pointer)
    stored = resolve_weights("imagenet", "resnet18", store)
    assert stored is not None
    with pytest.raises(InputError, match="is no key"):
        read_weights(store, stored)


def test_a_trials_folder_is_a_plain_name() -> None:
    """Names of trials are made of numbers and values, never read from `search.json`; a value cannot lead out."""
    name = trial_name(7, {"model.backbone": "../../x", "optim.name": "/etc"})
    assert (name, "/" in name) == (check_key(name), False)


@pytest.mark.parametrize("text", ["data: {uri: 's3://other/${oc.env:HOME}'}", "a: &x {b: 1}\nc: *x", "a: " + "[" * 40])
def test_config_yaml_is_plain_values(text: str, tmp_path: Path) -> None:
    """An interpolation would carry this machine's environment to the address that the run names."""
    run = write_run(tmp_path / "run")
    run.write("config.yaml", text.encode())
    with pytest.raises(InputError, match=r"config\.yaml: (holds|not a readable)"):
        read_config(run)


# 3. Documents and weights that are too large -------------------------------------------------------------


def _write_model(folder: Path) -> Store:
    """A run folder with a published model."""
    torch.manual_seed(0)
    config, store = ModelConfig(backbone="small_cnn", norm="group"), open_store(str(folder))
    description = ModelDescription(
        classes=("A", "B"),
        preprocessing=Preprocessing(
            image_size=32, fit="stretch", channels=1, mean=(0.2,), std=(0.1,), reduce_tolerance=0.9
        ),
        model=config,
        split="patient",
        fingerprint="",
        selection=Selection(epoch=0, step=1, metric="mcc", value=0.0),
    )
    save_model(store, build_model(config, 2).state_dict(), description)
    return store


_DOCUMENTS: dict[str, Callable[[str], Any]] = {
    "model/model.json": load_model,
    "dataset.json": open_dataset,
    "run.json": lambda uri: open_run(uri).read_record(),
    "config.yaml": lambda uri: read_config(open_store(uri)),
    "metrics.jsonl": lambda uri: read_history(open_store(uri)),
}


@pytest.mark.parametrize("key", _DOCUMENTS)
def test_a_document_of_a_gigabyte_is_not_read(key: str, tmp_path: Path) -> None:
    """Its size is looked at first, and named with the limit."""
    _sparse(tmp_path / key, 1 << 30)
    with _cheaply(), pytest.raises(InputError, match=r"has 1\.00 GiB, and at most .* MiB of such an object are read"):
        _DOCUMENTS[key](str(tmp_path))


@pytest.mark.parametrize("key", _DOCUMENTS)
@pytest.mark.parametrize("text", [_DEEP, b'{"a":' * 10_000 + b"1" + b"}" * 10_000])
def test_a_document_nested_ten_thousand_deep_is_refused(key: str, text: bytes, tmp_path: Path) -> None:
    """The parser's own limit becomes an error of this program, in one paragraph."""
    open_store(str(tmp_path)).write(key, text)
    with pytest.raises((InputError, StoreError)) as caught:
        _DOCUMENTS[key](str(tmp_path))
    assert key.rpartition("/")[2] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_pipe_and_a_device_are_not_read(tmp_path: Path) -> None:
    """A pipe would be waited for, a device read for ever."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    store = LocalStore(tmp_path)
    for name in ("pipe", "device"):
        with _cheaply(), pytest.raises(StoreError, match="not a regular file"):
            store.read_json(name)


def test_weights_over_the_limit_are_not_read(tmp_path: Path) -> None:
    """Neither as a model, nor as the weights to start from."""
    store = _write_model(tmp_path / "run")
    _sparse(store.path("model/model.safetensors"), WEIGHTS_LIMIT_BYTES + 1)
    for read in (lambda: load_model(store.uri), lambda: resolve_weights(store.uri, "small_cnn", open_store("/none"))):
        with _cheaply(), pytest.raises(InputError, match=r"model\.safetensors has 4\.00 GiB, and at most 4\.00 GiB"):
            read()


@pytest.mark.parametrize("name", [*_FILES, "digest.json"])
def test_a_checkpoint_over_the_limit_is_neither_fetched_nor_read(
    name: str, checkpoint: Path, learner: Learner, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It would fill the node's disk before it could be refused."""
    _sparse(checkpoint / name, 20 << 30)
    (tmp_path / "fetched").mkdir()
    fetch_checkpoint(open_store(str(checkpoint)), tmp_path / "fetched")
    assert (name in os.listdir(tmp_path / "fetched"), f"{name} has 20.00 GiB" in caplog.text) == (False, True)
    for folder in (checkpoint, tmp_path / "fetched"):
        with _cheaply(), pytest.raises(DamagedCheckpointError):
            load_checkpoint(folder, learner)


def test_only_a_checkpoints_own_files_are_fetched(checkpoint: Path, learner: Learner, tmp_path: Path) -> None:
    """What else lies beside them stays there."""
    (checkpoint / "more").write_bytes(b"")
    (tmp_path / "fetched").mkdir()
    fetch_checkpoint(open_store(str(checkpoint)), tmp_path / "fetched")
    assert sorted([*_FILES, "digest.json"]) == sorted(os.listdir(tmp_path / "fetched"))
    assert TrainState(epoch=1) == load_checkpoint(tmp_path / "fetched", learner)


@pytest.mark.parametrize("state", [b"[]", b"{}", b"3", _DEEP, b'{"train": {}, "optimizer": [], "scaler": {}}'])
def test_a_state_of_another_shape_is_damage(state: bytes, checkpoint: Path, learner: Learner) -> None:
    """JSON that is no state passes over the checkpoint instead of ending the run as a defect."""
    (checkpoint / "state.json").write_bytes(state)
    _sign(checkpoint)
    with pytest.raises(DamagedCheckpointError):
        load_checkpoint(checkpoint, learner)


_HEADERS = {
    "claims more than there is": struct.pack("<Q", 2**63),
    "claims what is not parsed": struct.pack("<Q", DOCUMENT_LIMIT_BYTES + 1) + bytes(DOCUMENT_LIMIT_BYTES + 1),
    "is cut": b"\x08\0\0",
    "is no JSON": struct.pack("<Q", 10_000) + _DEEP[:10_000],
    "leaves the file": struct.pack("<Q", 60) + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'.ljust(60),
    "overflows": struct.pack("<Q", 90)
    + b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}'.ljust(90),
}


@pytest.mark.parametrize("header", _HEADERS.values(), ids=_HEADERS)
def test_a_safetensors_header_is_not_believed(
    header: bytes, checkpoint: Path, learner: Learner, tmp_path: Path
) -> None:
    """Of a model and of a checkpoint: no more is parsed or made room for than the limits say."""
    store = _write_model(tmp_path / "run")
    store.write("model/model.safetensors", header)
    description = store.read_json("model/model.json")
    store.write_json("model/model.json", description | {"weights_sha256": hashlib.sha256(header).hexdigest()})
    with _cheaply(), pytest.raises(InputError):
        load_model(store.uri)
    (checkpoint / "model.safetensors").write_bytes(header)
    _sign(checkpoint)
    with _cheaply(), pytest.raises(DamagedCheckpointError):
        load_checkpoint(checkpoint, learner)


def test_a_described_network_is_not_built_before_it_fits(tmp_path: Path) -> None:
    """A description of a few bytes may ask for a layer of any size; its file has the size that it has."""
    store = _write_model(tmp_path / "run")
    description = store.read_json("model/model.json")
    description["model"]["hidden"] = 10**9
    store.write_json("model/model.json", description)
    with _cheaply(), pytest.raises(InputError, match="do not fit the described model"):
        load_model(store.uri)


# 4. Arrow offsets that leave their buffer ----------------------------------------------------------------


class _Remote:
    """A store that is not on this disk, as far as the loader can tell; the objects are a local store's."""

    is_local = False

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def _replace_shard(dataset: Dataset, data: bytes) -> Dataset:
    """Shard 0 with other bytes, as if they had been packed."""
    dataset.store.write(shard_key(0), data)
    shards = dataset.store.read_json(INFO_KEY)["shards"]
    shards[0] |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    return _describe(dataset, shards=shards)


_OFFSETS = {
    "beyond the buffer": [0, 0, 2**40, 0],
    "beyond the buffer at the end": [0, 0, 0, 2**40],
    "before the buffer": [0, -4096, 0, 0],
    "before the buffer at the start": [-4096, 0, 0, 0],
    "backwards": [0, 60, -60, 0],
}
"""What is added to the offsets of three pictures."""


@pytest.mark.parametrize("where", ["local", "remote"])
@pytest.mark.parametrize("column", ["image", "mask"])
@pytest.mark.parametrize("change", _OFFSETS.values(), ids=_OFFSETS)
def test_offsets_that_leave_the_buffer_are_refused(change: list[int], column: str, where: str, tmp_path: Path) -> None:
    """Found in the one full look at a shard: before it enters the cache, and before a local one is mapped in place."""
    images = [stand_in(bytes(count)) for count in (16, 19, 22)]
    dataset = write_dataset(tmp_path / "dataset", images, [0] * 3)
    ends = np.cumsum([0, *map(len, images)])
    data = _with_masks(dataset, images) if column == "mask" else dataset.store.read(shard_key(0))
    spoilt = _replace_last(data, ends.tobytes(), (ends + np.array(change)).tobytes())
    dataset = _replace_shard(dataset, spoilt)
    if where == "remote":
        dataset = dataclasses.replace(dataset, store=_Remote(dataset.store))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"00000\.arrow is not a readable shard"):
        open_split(dataset, "patient", "train", tmp_path / "cache")
    assert [] == list((tmp_path / "cache").rglob("*.arrow"))


def _with_masks(dataset: Dataset, masks: list[bytes]) -> bytes:
    """Shard 0 with masks as large as its images: the same offsets twice."""
    table = pa.ipc.open_file(pa.BufferReader(dataset.store.read(shard_key(0)))).read_all()
    table = table.set_column(3, table.schema.field("mask"), pa.array(masks, pa.large_binary()))
    buffer = io.BytesIO()
    with pa.ipc.new_file(buffer, table.schema) as writer:
        writer.write_table(table)
    return buffer.getvalue()


def _replace_last(data: bytes, old: bytes, new: bytes) -> bytes:
    place = data.rindex(old)
    return data[:place] + new + data[place + len(old) :]


def test_damage_anywhere_in_a_shard_is_refused_or_harmless(dataset: Dataset, tmp_path: Path) -> None:
    """Bytes of the file's own headers at random: what passes can be read to its end, and nothing else is raised."""
    generator, sound = np.random.default_rng(0), dataset.store.read(shard_key(0))
    refused = 0
    for number in range(150):
        data = bytearray(sound)
        for place in generator.integers(0, 1200, 2):
            data[place if generator.random() < 0.5 else -1 - place] = generator.integers(256)
        try:
            split = open_split(_replace_shard(dataset, bytes(data)), "patient", "train", tmp_path / str(number))
            assert all(len(image) for image in split.images(split.records(np.arange(len(split)))))
        except InputError:
            refused += 1
    assert 0 < refused < 150


def test_a_shard_larger_than_described_is_not_fetched(dataset: Dataset, tmp_path: Path) -> None:
    """Room was made for the bytes that dataset.json names; a local one is not hashed to its end either."""
    _sparse(dataset.store.path(shard_key(0)), 1 << 40)
    for store in (dataset.store, _Remote(dataset.store)):
        with _cheaply(), pytest.raises(InputError, match=r"00000\.arrow is damaged: it has 1,099,511,627,776 bytes"):
            open_split(
                dataclasses.replace(dataset, store=store),
                "patient",
                "train",
                tmp_path / "cache",  # type: ignore[arg-type]
            )


# 5. Pictures that no memory holds ------------------------------------------------------------------------


def _huge_jpeg() -> bytes:
    """65,500 x 65,500 pixels, as a JPEG's header can say, and a few bytes of scan."""
    jpeg = encode_jpeg(speckled_picture(0, 16, 16))
    frame = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:frame] + struct.pack(">HH", 65_500, 65_500) + jpeg[frame + 4 :]


def _huge_png() -> bytes:
    """100,000 x 100,000 pixels of gray, with right checksums."""

    def chunk(name: bytes, payload: bytes) -> bytes:
        return struct.pack(">I", len(payload)) + name + payload + struct.pack(">I", zlib.crc32(name + payload))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


_HUGE = pytest.mark.parametrize(
    ("make", "text"), [(_huge_jpeg, "65500 x 65500"), (_huge_png, "100000 x 100000")], ids=["jpeg", "png"]
)


def test_pack_quarantines_pictures_that_no_memory_holds(tmp_path: Path) -> None:
    """Each by name, with its reason; the others are packed."""
    for label, name in enumerate(("A", "B")):
        (tmp_path / "source" / name).mkdir(parents=True)
        for number in range(6):
            picture = encode_jpeg(speckled_picture(10 * label + number, 48, 32))
            (tmp_path / "source" / name / f"{name}-{10 * label + number}-1.jpeg").write_bytes(picture)
    (tmp_path / "source" / "A" / "A-90-1.jpeg").write_bytes(_huge_jpeg())
    (tmp_path / "source" / "A" / "A-91-1.png").write_bytes(_huge_png())
    result = run_pack(tmp_path / "source", open_store(str(tmp_path / "out")), PackConfig(workers=1))
    rows = open_dataset(str(tmp_path / "out")).read_quarantine().to_pylist()
    assert (12, ["A/A-90-1.jpeg", "A/A-91-1.png"]) == (result.info.num_images, sorted(row["source"] for row in rows))
    assert all(row["reason"].startswith("too many pixels") for row in rows)


@_HUGE
def test_a_picture_that_no_memory_holds_is_refused_by_its_header(
    make: Callable[[], bytes], text: str, tmp_path: Path
) -> None:
    """By the worker of `pack` and by `predict`, before anything makes room for it."""
    path = tmp_path / "huge"
    path.write_bytes(make())
    with _cheaply():
        (reason,) = examine_files([Task(path, None, PackConfig().max_pixels)])
    assert str(reason).startswith(f"too many pixels ({text}")
    store = _write_model(tmp_path / "run")
    _predict_once(store, tmp_path)
    with _cheaply(), pytest.raises(InputError, match=rf"huge' is not a readable image \(too many pixels \({text}"):
        predict_images(store.uri, [path])


def _predict_once(store: Store, folder: Path) -> None:
    """What is imported on the way to the first answer is no picture's doing."""
    (folder / "small.jpeg").write_bytes(encode_jpeg(speckled_picture(1, 48, 32)))
    predict_images(store.uri, [folder / "small.jpeg"])


def test_an_image_file_of_any_size_is_not_read(tmp_path: Path) -> None:
    """`pack` gives the reason, `predict` refuses it."""
    path = _sparse(tmp_path / "long.jpeg", FILE_LIMIT_BYTES + 1, start=_huge_jpeg())
    with _cheaply():
        (reason,) = examine_files([Task(path, None, PackConfig().max_pixels)])
    assert str(reason).startswith("too large a file (1,073,741,825 bytes")
    store = _write_model(tmp_path / "run")
    _predict_once(store, tmp_path)
    with _cheaply(), pytest.raises(InputError, match="too large a file"):
        predict_images(store.uri, [path])


def _hostile_set(folder: Path, picture: bytes, column: str) -> Dataset:
    """A set whose manifest describes a picture of 8 x 8 pixels, and whose shard holds another."""
    small = stand_in(b"")
    dataset = write_dataset(folder, [small] * 3, [0] * 3)
    table = pa.ipc.open_file(pa.BufferReader(dataset.store.read(shard_key(0)))).read_all()
    place = table.schema.get_field_index(column)
    values = pa.array([small, picture, small], pa.large_binary())
    buffer = io.BytesIO()
    with pa.ipc.new_file(buffer, table.schema) as writer:
        writer.write_table(table.set_column(place, table.schema.field(column), values))
    return _replace_shard(dataset, buffer.getvalue())


@_HUGE
@pytest.mark.parametrize("column", ["image", "mask"])
def test_a_shard_with_a_picture_that_no_memory_holds_is_refused(
    make: Callable[[], bytes], text: str, column: str, tmp_path: Path
) -> None:
    """Whatever the manifest says of it, when the shard is looked at and before any picture is decoded."""
    dataset = _hostile_set(tmp_path / "dataset", make(), column)
    claim = " x ".join(f"{int(side):,}" for side in text.split(" x "))
    with _cheaply(), pytest.raises(InputError, match=rf"00000\.arrow: the {column} in row 1 claims {claim} pixels"):
        open_split(dataset, "patient", "train", tmp_path / "cache")


def _twice_framed() -> bytes:
    """A small frame for who looks for the first one, a huge one for who looks for the last."""
    jpeg = _huge_jpeg()
    place = jpeg.index(b"\xff\xc0")
    frame = jpeg[place : place + 2 + int.from_bytes(jpeg[place + 2 : place + 4], "big")]
    return jpeg[:place] + frame[:5] + struct.pack(">HH", 16, 16) + frame[9:] + jpeg[place:]


_NO_SIZE = {
    "another format": b"BM" + bytes(60),
    "two frames": _twice_framed(),
    "no frame": b"\xff\xd8\xff\xda\x00\x08" + bytes(60),
    "bytes between segments": b"\xff\xd8 " + encode_jpeg(speckled_picture(0, 16, 16))[2:],
    "a height that comes later": _huge_jpeg().replace(
        struct.pack(">HH", 65_500, 65_500), struct.pack(">HH", 0, 65_500)
    ),
    "a cut header": _huge_png()[:20],
}


@pytest.mark.parametrize("picture", _NO_SIZE.values(), ids=_NO_SIZE)
def test_a_picture_without_a_plain_size_is_refused(picture: bytes, tmp_path: Path) -> None:
    """Where two readers could see two sizes there is none; what `pack` writes always has one."""
    assert read_size(picture) is None
    dataset = _hostile_set(tmp_path / "dataset", picture, "image")
    with pytest.raises(InputError, match=r"the image in row 1 is no JPEG or PNG as `pack` writes them"):
        open_split(dataset, "patient", "train", tmp_path / "cache")


def test_the_size_of_what_is_packed_is_read(tmp_path: Path) -> None:
    """Of either format, as stored; a picture of just the limit passes, and no setting of `pack` goes beyond it."""
    assert [(37, 21), (65_500, 65_500), (100_000, 100_000)] == [
        read_size(data) for data in (encode_jpeg(speckled_picture(0, 37, 21)), _huge_jpeg(), _huge_png())
    ]
    PackConfig(max_pixels=PIXEL_LIMIT)
    with pytest.raises(ValueError, match=r"pack\.max_pixels must lie in 1\.\."):
        PackConfig(max_pixels=PIXEL_LIMIT + 1)


@_HUGE
def test_a_report_does_not_decode_a_picture_that_no_memory_holds(
    make: Callable[[], bytes], text: str, tmp_path: Path
) -> None:
    """The pictures of a CAM job are the run folder's, which may be anybody's."""
    run = write_run(tmp_path / "run")
    write_cam(run, ids=[10_000])
    run.write("cam/test/classic-layer4/overlays/10000.jpg", make())
    with pytest.raises(InputError, match=r"10000\.jpg is not a picture that `xdist-train cam` drew"):
        write_report(run.uri)


def test_errors_of_a_hostile_store_are_the_programs_own() -> None:
    """One tree, so that the command line says one paragraph and ends with its exit code."""
    assert all(issubclass(kind, XdistError) for kind in (InputError, StoreError, DamagedCheckpointError))
