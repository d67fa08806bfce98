"""Images: tables of pixels, pickled arrays, photos, folders, a hub; and what is wrong in them."""

from __future__ import annotations

import gzip
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bitgate.catalog import CatalogError, HubSource, LabelledDataset, load_entries
from bitgate.quantize import recipe_types
from bitgate.sources import SourceError, load_items
from bitgate.sources.arrays import read_array
from bitgate.sources.pictures import Look, crops

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@pytest.fixture
def dataset(tmp_path):
    """A labelled dataset of a file in the test's folder."""

    def make(form, file, classes=("a", "b"), labels=None, more=(), items=1, **options):
        def local(name):
            return {"kind": "local", "path": str(tmp_path / name)}

        given = {
            "name": "some",
            "of": "images",
            "format": form,
            "source": file if isinstance(file, dict) else local(file),
            "classes": classes,
            "items": items,
            "options": options,
            "more": [local(name) for name in more],
        }
        return LabelledDataset.model_validate(
            given if labels is None else {**given, "labels": local(labels)}
        )

    return make


def whole(items):
    """Images in the order of their source."""
    tensor = items.inputs[0 : len(items)]
    return tensor[torch.tensor(items.numbers).argsort()]


# --- pixels in a table ---------------------------------------------------------------------


def test_a_table_of_pixels_ends_in_labels(tmp_path, dataset):
    rows = "0,16,8,4,1\n16,0,0,0,0\n\n1,2,3,4,1\n"
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(rows.encode()))
    (tmp_path / "y.csv").write_text("5,5,5,5,0\n")
    found = dataset("pixels-csv", "x.csv.gz", shape=[1, 2, 2], largest=16, mean=0.5, std=0.25)
    items = load_items(found.model_copy(update={"items": 3}))
    assert [items.labels[items.numbers.index(n)] for n in range(3)] == [1, 0, 1]
    expected = (torch.tensor([0.0, 16, 8, 4]) / 16 - 0.5) / 0.25
    images = whole(items)
    assert images.dtype == torch.float32
    assert torch.equal(images[0], expected.reshape(1, 2, 2))
    both = dataset("pixels-csv", "x.csv.gz", more=["y.csv"], items=4, shape=[1, 2, 2], largest=16)
    assert len(load_items(both)) == 4


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (
            "1,2,3,4,0",
            {"shape": [1, 3, 3]},
            r"options.shape: \[1, 3, 3\] is 9 pixels, and a row of",
        ),
        ("1,2,3,4,2", {}, "item 0: label 2 is outside of the 2 `classes`"),
        ("1,2,3,4,-1", {}, "item 0: label -1 is outside"),
        ("1,2,3,4,0.5", {}, "a label is no whole number"),
        ("1,2,nan,4,0", {}, "a pixel is no finite number"),
        ("1,2,3,4,0\n1,2,3,0", {}, "x.csv is no table of numbers: .*row 2"),
        ("1,two,3,4,0", {}, "no table of numbers"),
        ("", {}, "holds no items at all"),
        ("1,2,3,4,0", {"shape": [1, 2]}, r"options.shape.2: format pixels-csv needs this key"),
        ("1,2,3,4,0", {"largest": 0}, "options.largest: .*greater than 0"),
        ("1,2,3,4,0", {"larges": 1.0}, "options.larges: .* did you mean 'largest'"),
    ],
)
def test_what_is_wrong_in_a_table_is_said(tmp_path, dataset, rows, options, message):
    (tmp_path / "x.csv").write_text(rows)
    with pytest.raises(SourceError, match="labelled some: ") as error:
        load_items(dataset("pixels-csv", "x.csv", **{"shape": [1, 2, 2], **options}))
    error.match(message)


def test_a_truncated_table_is_said_to_be(tmp_path, dataset):
    whole_file = gzip.compress(b"1,2,3,4,0\n" * 50)
    (tmp_path / "x.csv.gz").write_bytes(whole_file[:-9])
    with pytest.raises(SourceError, match=r"x.csv.gz is truncated or damaged"):
        load_items(dataset("pixels-csv", "x.csv.gz", shape=[1, 2, 2]))


# --- pickled arrays ------------------------------------------------------------------------


def pickled(path: Path, value: object, protocol: int = 4) -> Path:
    path.write_bytes(gzip.compress(pickle.dumps(value, protocol=protocol)))
    return path


def test_pickled_arrays_come_with_a_file_of_labels(tmp_path, dataset):
    images = np.arange(3 * 4, dtype="u1").reshape(3, 2, 2)
    pickled(tmp_path / "images.gz", images)
    pickled(tmp_path / "labels.gz", np.array([1, 0, 1]))
    given = {"labels": "labels.gz", "items": 3, "shape": [1, 2, 2]}
    items = load_items(dataset("pickled-arrays", "images.gz", **given))
    assert torch.equal(whole(items), torch.from_numpy(images / 255).float()[:, None])
    assert [items.labels[items.numbers.index(n)] for n in range(3)] == [1, 0, 1]
    unlabelled = dataset("pickled-arrays", "images.gz", classes=(), shape=[1, 2, 2])
    assert load_items(unlabelled).labels is None


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", ["u1", "<i8", ">f4", "?"])
def test_an_array_survives_its_pickle(tmp_path, dtype, protocol):
    array = (np.arange(24).reshape(2, 3, 4) % 5).astype(dtype)
    others = (np.asfortranarray(array), array.transpose(0, 2, 1), array[:, ::2], array[:0])
    for one in (array, *others):
        found = read_array(pickled(tmp_path / "a.gz", one, protocol))
        assert found.dtype == one.dtype
        assert np.array_equal(found, one)
    (tmp_path / "plain").write_bytes(pickle.dumps(array, protocol=protocol))
    assert np.array_equal(read_array(tmp_path / "plain"), array)


def test_an_array_of_before_numpy_2_is_read(tmp_path):
    """As animal-mnist has it: numpy's functions were elsewhere."""
    array = np.arange(12, dtype="u1").reshape(3, 2, 2)
    content = pickle.dumps(array, protocol=3).replace(b"numpy._core", b"numpy.core")
    assert b"numpy.core.multiarray" in content
    (tmp_path / "old.gz").write_bytes(gzip.compress(content))
    assert np.array_equal(read_array(tmp_path / "old.gz"), array)


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


class Shell(Evil):
    def __reduce__(self):
        import os

        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize(("kind", "name"), [(Evil, "pathlib.Path"), (Shell, "posix.system")])
def test_a_pickle_that_runs_code_is_refused_and_named(tmp_path, kind, name):
    made = tmp_path / "made"
    pickle.loads(pickle.dumps(kind(made)))  # the trap works
    assert made.exists()
    made.unlink()
    with pytest.raises(SourceError, match=r"x\.gz: the pickle asks for .*, which is refused") as e:
        read_array(pickled(tmp_path / "x.gz", kind(made)))
    assert name in str(e.value) or "getattr" in str(e.value)  # of Path.touch, getattr comes first
    assert not made.exists()
    with pytest.raises(SourceError, match="no array of numbers"):  # nor inside of an array
        read_array(pickled(tmp_path / "y.gz", np.array([kind(made)], dtype=object)))
    assert not made.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(pickle.dumps(np.arange(99)))[:-20], "x.gz is truncated or damaged"),
        (pickle.dumps(np.arange(99))[:-20], "x.gz is no pickled array that can be read"),
        (b"nothing", "x.gz is no pickled array"),
        (b"", "truncated or damaged"),
        (pickle.dumps([1, 2]), "holds no array of numbers, but something with EMPTY_LIST"),
        (pickle.dumps("text"), "holds no array of numbers, but str"),
        (pickle.dumps(np.dtype("u1")), "holds no array of numbers, but _Dtype"),
        (pickle.dumps(np.array(["a"])), "holds no array of numbers, but <U1"),
        (pickle.dumps(np.array([None], dtype=object)), "something with EMPTY_LIST"),
        (pickle.dumps(np.zeros(1, [("a", "u1")])), "holds no array of numbers, but "),
        (pickle.dumps(np.zeros(1), protocol=0), "protocols 2 to 5 are read"),
    ],
)
def test_damaged_pickles_are_said_to_be(tmp_path, content, message):
    (tmp_path / "x.gz").write_bytes(content)
    with pytest.raises(SourceError, match=message):
        read_array(tmp_path / "x.gz")


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


#: what the names of arrays can be made to do, by hand: pickle.dumps writes no such things
DTYPE = named("numpy", "dtype") + b"X\2\0\0\0%s\x89\x88\x87R"
RECONSTRUCT = named("numpy._core.multiarray", "_reconstruct")
EMPTY = RECONSTRUCT + named("numpy", "ndarray") + b"K\0\x85C\1b\x87R"
#: a state of it: byte order, then a field of objects, none of which its flags tell
OBJECTS = b"(K\3X\1\0\0\0|N(X\1\0\0\0at}X\1\0\0\0a" + DTYPE % b"O8" + b"K\0\x86sK\x08K\1K\0tb"
NAMES = b"(K\3X\1\0\0\0|N(X\1\0\0\0atNK\1K\1K\0tb"
FILLED = b"\x80\4" + EMPTY + b"(K\1%s%s\x89%stb"  # with shape, dtype and bytes
CRAFTED = {
    "an object in the place of bytes": FILLED
    % (b"K\1\x85", DTYPE % b"V8" + OBJECTS, b"C\x08AAAAAAAA")
    + b"K\0Ns.",
    "a record": FILLED % (b"K\1\x85", DTYPE % b"u1" + NAMES, b"C\1A") + b".",
    "an array of objects": FILLED % (b"K\1\x85", DTYPE % b"O8", b"C\x08AAAAAAAA") + b".",
    "a function changed": b"\x80\4%s(N}X\x0c\0\0\0__defaults__K\1\x85stb." % RECONSTRUCT,
    "a function with a state": b"\x80\4%sNb." % RECONSTRUCT,
    "a class with a state": b"\x80\4%sNb." % named("numpy", "ndarray"),
    "a huge array made": b"\x80\4%sJ\0\0\0\x40\x85X\1\0\0\0d\x86R." % named("numpy", "ndarray"),
    "a huge shape": FILLED % (b"J\0\0\0\x40\x85", DTYPE % b"f8", b"C\1A") + b".",
    "negative sizes": FILLED % (2 * b"J\xff\xff\xff\xff" + b"\x86", DTYPE % b"u1", b"C\1A") + b".",
    "fewer bytes than numbers": FILLED % (b"K\2\x85", DTYPE % b"f8", b"C\1A") + b".",
    "a huge number of a memo": b"\x80\4Nr\xff\xff\xff\x7f.",
    "room for bytes that are not there": b"\x80\5\x96\0\0\0\0\2\0\0\0A.",
}
READ = """
import resource, sys
from pathlib import Path
import numpy
from bitgate.sources import SourceError, arrays

resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))
for path in map(Path, sys.argv[1:]):
    print(path.name, flush=True)
    before = getattr(arrays._reconstruct, "__defaults__", None)
    try:
        arrays.read_array(path)
    except SourceError as error:
        assert not isinstance(error.__cause__, MemoryError), "it was tried"
    else:
        assert False, "it was read"
    assert getattr(arrays._reconstruct, "__defaults__", None) == before
"""


def test_a_crafted_pickle_neither_crashes_nor_changes_nor_fills_anything(tmp_path):
    """In a process of its own, with 4 GiB: memory is what they are after."""
    paths = [tmp_path / name for name in CRAFTED]
    for path in paths:
        path.write_bytes(CRAFTED[path.name])
    command = [sys.executable, "-c", READ, *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout.splitlines()[-1]}: {done.returncode} {done.stderr}"


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 3, 3)), [0, 1], r"options.shape: \[1, 2, 2\] was expected .*has \[3, 3\]"),
        (np.zeros((2, 2, 2, 3)), [0, 1], r"options.shape: .* has \[2, 2, 3\]"),
        (np.zeros((2, 2, 2)), [0, 1, 1], r"labels: labels.gz is int64 \[3\], where 2 whole"),
        (np.zeros((2, 2, 2)), [0.0, 1.0], r"labels: labels.gz is float64 \[2\]"),
        (np.zeros((2, 2, 2)), [0, 7], "label 7 is outside"),
        (np.zeros((0, 2, 2)), [], "holds no items at all|whole numbers"),
    ],
)
def test_arrays_that_do_not_fit_are_said_to(tmp_path, dataset, images, labels, message):
    pickled(tmp_path / "images.gz", images)
    pickled(tmp_path / "labels.gz", np.array(labels))
    with pytest.raises(SourceError, match=message):
        load_items(dataset("pickled-arrays", "images.gz", labels="labels.gz", shape=[1, 2, 2]))


# --- photos and pictures -------------------------------------------------------------------


def photo(path: Path, width: int, height: int, seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype="u1")
    Image.fromarray(pixels).save(path)
    return path


def test_crops_cover_a_photo():
    found = list(crops(60, 40, [0.5, 1.0], 0.5))
    assert found[-2:] == [(0, 0, 40, 40), (20, 0, 60, 40)]
    small = [box for box in found if box[2] - box[0] == 20]
    assert len(small) == 5 * 3  # 40 and 20 to go, 10 at a time
    seen = np.zeros((40, 60), bool)
    for left, upper, right, lower in small:
        assert 0 <= left < right <= 60
        assert 0 <= upper < lower <= 40
        seen[upper:lower, left:right] = True
    assert seen.all()


def test_a_picture_becomes_what_imagenets_models_take():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype="u1")
    look = Look(6, 8, **IMAGENET)
    found = look.tensor(Image.fromarray(pixels))
    mean, std = (np.array(IMAGENET[key])[:, None, None] for key in ("mean", "std"))
    expected = (pixels.transpose(2, 0, 1) / 255 - mean) / std
    assert np.allclose(found.numpy(), expected, atol=1e-6)
    flat = Image.new("RGB", (50, 30), (255, 0, 51))
    scaled = Look(4, 4, (0, 0, 0), (1, 1, 1)).tensor(flat, (3, 2, 20, 19))
    assert torch.allclose(scaled, torch.tensor([1.0, 0, 0.2])[:, None, None].expand(3, 4, 4))
    assert Look(4, 4, (0,), (1,)).tensor(flat).shape == (1, 4, 4)


def test_photos_are_cut_and_have_no_labels(tmp_path, dataset):
    photo(tmp_path / "a.png", 60, 40)
    photo(tmp_path / "b.png", 40, 40, seed=1)
    options = {"size": [16, 16], "scales": [0.5, 1.0], **IMAGENET}
    found = dataset("photo-crops", "a.png", (), more=["b.png"], items=20, **options)
    items = load_items(found)
    assert items.labels is None
    assert items.inputs[0:20].shape == (20, 3, 16, 16)
    assert items.fingerprint == load_items(found).fingerprint
    with pytest.raises(SourceError, match="classes: its source has no labels; leave"):
        load_items(dataset("photo-crops", "a.png", ("a",), size=[16, 16]))
    (tmp_path / "c.jpg").write_bytes(b"\xff\xd8 no picture")
    with pytest.raises(SourceError, match=r"c\.jpg is no picture that can be read"):
        load_items(dataset("photo-crops", "c.jpg", (), size=[16, 16]))


def test_options_of_pictures_have_as_many_channels_each(tmp_path, dataset):
    with pytest.raises(SourceError, match=r"options: mean and std: expected three numbers each"):
        load_items(dataset("photo-crops", "a.png", (), size=[16, 16], mean=[0.5], std=[1.0, 1.0]))
    with pytest.raises(SourceError, match=r"options\.size: format photo-crops needs this key"):
        load_items(dataset("photo-crops", "a.png", ()))


def test_a_folder_has_a_folder_for_each_class(tmp_path, dataset):
    for number, name in enumerate(["b", "a", "b"]):
        (tmp_path / "there" / name).mkdir(parents=True, exist_ok=True)
        photo(tmp_path / f"there/{name}/{number}.png", 9, 7, number)
    items = load_items(dataset("picture-folder", "there", items=3, size=[8, 8]))
    assert [items.labels[items.numbers.index(n)] for n in range(3)] == [0, 1, 1]
    (tmp_path / "there/c").mkdir()
    with pytest.raises(SourceError, match=r"classes: .*there/c is none of them; there is a, b"):
        load_items(dataset("picture-folder", "there", size=[8, 8]))
    (tmp_path / "there/c").rmdir()
    (tmp_path / "there/b/x.png").write_text("no")
    with pytest.raises(SourceError, match=r"x\.png is no picture"):
        load_items(dataset("picture-folder", "there", items=4, size=[8, 8]))
    with pytest.raises(SourceError, match="source: format picture-folder reads a folder"):
        load_items(dataset("picture-folder", "nowhere", size=[8, 8]))


def test_a_hub_has_columns_of_pictures_and_labels(monkeypatch, dataset):
    import datasets

    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 5, 3), dtype="u1")

    def load_dataset(repo, subset, *, split, revision):
        columns = {"img": [Image.fromarray(one) for one in pixels], "fine_label": [1, 0, 1]}
        return datasets.Dataset.from_dict(columns)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    hub = {"kind": "hub", "repo": "uoft-cs/cifar100", "revision": "a" * 40, "split": "test"}
    options = {"size": [8, 8], "image": "img", "label": "fine_label"}
    items = load_items(dataset("hub-pictures", hub, items=3, **options))
    assert [items.labels[items.numbers.index(n)] for n in range(3)] == [1, 0, 1]
    look = Look(8, 8, (0, 0, 0), (1, 1, 1))
    assert torch.equal(whole(items)[1], look.tensor(Image.fromarray(pixels[1])))
    with pytest.raises(SourceError, match="no column 'label'; there is img, fine_label"):
        load_items(dataset("hub-pictures", hub, size=[8, 8], image="img"))
    assert HubSource.model_validate(hub).split == "test"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": [0, None]}, "row 2: its label None is no whole number; options.label names"),
        ({"label": ["0", "a"]}, "row 1: its label '0' is no whole number"),
        ({"label": [0, 0.7]}, r"row 1: its label 0\.0 is no whole number"),
        ({"label": [True, False]}, "row 1: its label True is no whole number"),
        ({"label": [0, 7]}, "item 1: label 7 is outside of the 2 `classes`"),
        (
            {"image": [True, None]},
            r"row 2: its image is no picture .*NoneType.*options\.image names",
        ),
        ({"image": ["a.png", "b.png"]}, "row 1: its image is no picture that can be read .*'str'"),
    ],
)
def test_what_is_wrong_in_a_hubs_columns_is_said(monkeypatch, dataset, columns, message):
    import datasets

    def load_dataset(repo, subset, *, split, revision):
        there = Image.new("RGB", (5, 5))
        images = [there if image is True else image for image in columns.get("image", [True] * 2)]
        return datasets.Dataset.from_dict({"image": images, "label": columns.get("label", [0, 1])})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    hub = {"kind": "hub", "repo": "some/pictures", "revision": "a" * 40, "split": "test"}
    with pytest.raises(SourceError, match=f"labelled some: {message}"):
        load_items(dataset("hub-pictures", hub, size=[8, 8]))


@pytest.mark.parametrize(
    "form", ["pixels-csv", "pickled-arrays", "photo-crops", "picture-folder", "hub-pictures"]
)
def test_a_format_of_images_holds_no_texts(dataset, form):
    texts = dataset(form, "x", size=[8, 8]).model_copy(update={"of": "texts"})
    with pytest.raises(SourceError, match=f"of: format '{form}' holds images, not texts"):
        load_items(texts)


# --- in TOML -------------------------------------------------------------------------------

TOML = """
[labelled.some]
of = "images"
format = "pickled-arrays"
classes = ["a", "b"]
items = 1
options = { shape = [1, 2, 2] }
source = { kind = "local", path = "images.gz" }
labels = { kind = "local", path = "labels.gz" }
more = [{ kind = "local", path = "again.gz" }]
"""


def read(folder):
    return load_entries(folder, recipe_types()).labelled["some"]


def test_files_beside_the_first_start_at_the_folder_of_the_toml(tmp_path):
    (tmp_path / "datasets.toml").write_text(TOML)
    found = read(tmp_path)
    assert found.labels.path == tmp_path / "labels.gz"
    assert [one.path for one in found.more] == [tmp_path / "again.gz"]
    with pytest.raises(SourceError, match="more: format pickled-arrays reads one file"):
        load_items(found)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('path = "labels.gz"', 'pat = "labels.gz"', r"labels.path: this key is missing"),
        ('path = "again.gz"', 'pat = "again.gz"', r"more.0.path: this key is missing"),
        ('of = "images"', 'of = "texts"', "`labels` and `more` are for images"),
        (
            "items = 1",
            'items = 1\ntrain_items = 1\ntraining = { kind = "local", path = "x" }',
            "`training` does not go with `labels`",
        ),
    ],
)
def test_wrong_keys_are_named(tmp_path, old, new, message):
    (tmp_path / "datasets.toml").write_text(TOML.replace(old, new))
    with pytest.raises(CatalogError, match=rf"\[labelled\.some\].*{message}"):
        read(tmp_path)
