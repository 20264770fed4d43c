"""Where calibration inputs come from: files, pictures, functions, nothing; and what is kept of them."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from onnx_text import parse, run

import spa.cache
from spa.calibration import Drawn, cache, load, restore, standardize
from spa.calibration.images import Preprocessing
from spa.calibration.pictures import noise, pictures
from spa.calibration.sources import read_options
from spa.errors import MissingTool, UsageError
from spa.model import Model


def picture_net(layout: str = "N,3,8,8") -> Model:
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    if layout.endswith("3"):
        text = f"agraph (float[{layout}] x) => (float[N,4,6,6] y) {{ t = Transpose<perm=[0,3,1,2]>(x) y = Conv(t, w) }}"
    else:
        text = f"agraph (float[{layout}] x) => (float[N,4,6,6] y) {{ y = Conv(x, w) }}"
    return parse(text, {"w": weight})


def joined(feeds: list[dict[str, np.ndarray]], name: str = "x") -> np.ndarray:
    return np.concatenate([f[name] for f in feeds])


# Files and folders of arrays -------------------------------------------------------------------------------------


def test_a_folder_of_arrays_is_one_array(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    parts = [rng.standard_normal((n, 3, 8, 8)).astype(np.float32) for n in (3, 5)]
    np.savez(tmp_path / "a.npz", x=parts[0])
    np.savez(tmp_path / "b.npz", x=parts[1])
    np.testing.assert_array_equal(joined(load(tmp_path, picture_net())), np.concatenate(parts))


def test_at_most_so_many_samples_evenly_spaced(tmp_path: Path) -> None:
    x = np.arange(600, dtype=np.float32)[:, None, None, None] * np.ones((1, 3, 8, 8), np.float32)
    np.save(tmp_path / "x.npy", x)
    assert len(joined(load(tmp_path / "x.npy", picture_net()))) == 256
    few = joined(load(f"{tmp_path}/x.npy{{samples=6}}", picture_net()))
    assert few[:, 0, 0, 0].tolist() == [0, 100, 200, 300, 400, 500]
    assert len(joined(load({"x": x}, picture_net()))) == 600  # arrays given in Python are taken as they are


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 8, 8, 3), np.float32), "transpose"),
        (np.zeros((4, 3, 9, 8), np.float32), r"the network takes \['N', 3, 8, 8\]"),
        (np.zeros((0, 3, 8, 8), np.float32), "no samples"),
        (np.full((4, 3, 8, 8), np.nan, np.float32), "not finite"),
        (np.zeros((4, 3, 8, 8), np.complex64), "the network takes float32"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(array: np.ndarray, message: str) -> None:
    with pytest.raises(UsageError) as error:
        load(array, picture_net())
    assert error.match(message) or message in str(error.value)


def test_other_number_types_are_converted() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8))
    assert joined(load(x, picture_net())).dtype == np.float32
    with pytest.warns(UserWarning, match="not scaled"):
        feeds = load(np.full((2, 3, 8, 8), 200, np.uint8), picture_net())
    assert (joined(feeds) == 200).all() and joined(feeds).dtype == np.float32


def test_integers_beyond_the_table_are_refused() -> None:
    table = np.zeros((10, 4), np.float32)
    model = parse("agraph (int64[N,5] ids) => (float[N,5,4] y) { y = Gather(table, ids) }", {"table": table})
    assert joined(load(np.full((3, 5), 9), model), "ids").max() == 9
    with pytest.raises(UsageError, match="index a table of 10"):
        load(np.full((3, 5), 10), model)


# Images ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Three pictures of one colour each, in subfolders; their names are not in the order of writing."""
    image = pytest.importorskip("PIL.Image")
    for name, colour in (("b/two", (0, 255, 0)), ("a/one", (255, 0, 0)), ("c", (0, 0, 255))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        image.new("RGB", (20, 10), colour).save(tmp_path / f"{name}.png")
    return tmp_path


def test_images_are_scaled_as_told_and_sorted(album: Path) -> None:
    x = joined(load(f"{album}{{scale=127.5,mean=1,std=1}}", picture_net()))
    assert x.shape == (3, 3, 8, 8) and x.dtype == np.float32
    assert x[:, :, 4, 4].tolist() == [[1, -1, -1], [-1, 1, -1], [-1, -1, 1]]
    default = joined(load(album, picture_net()))
    np.testing.assert_allclose(default[0, :, 0, 0], [(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225], rtol=1e-5)


def test_layout_and_order_of_channels(album: Path) -> None:
    bgr = joined(load(f"{album}{{scale=255,mean=0,std=1,order=bgr}}", picture_net("N,8,8,3")))
    assert bgr.shape == (3, 8, 8, 3) and bgr[0, 4, 4].tolist() == [0, 0, 1]


def test_the_middle_is_cut_or_both_sides_are_resized(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, 4:12] = 255  # white is exactly the middle square
    image.fromarray(pixels).save(tmp_path / "x.png")
    cut, exact = (
        joined(load(f"{tmp_path}{{mean=0,std=1,resize={how}}}", picture_net())) for how in ("shorter", "exact")
    )
    assert cut.min() == 1
    assert exact.min() == 0 and 0.4 < exact.mean() < 0.6


def test_images_ask_for_what_they_need(album: Path, tmp_path: Path) -> None:
    grey = parse("agraph (float[N,1,8,8] x) => (float[N,1,8,8] y) { y = Relu(x) }")
    with pytest.raises(UsageError, match="mean"):
        load(album, grey)
    assert joined(load(f"{album}{{mean=0,std=1}}", grey)).shape == (3, 1, 8, 8)
    with pytest.raises(UsageError, match="no option 'maen'"):
        load(f"{album}{{maen=0}}", grey)
    with pytest.raises(UsageError, match="takes no pictures"):
        load(album, parse("agraph (float[N,7] x) => (float[N,7] y) { y = Relu(x) }"))
    open_size = parse("agraph (float[N,3,H,W] x) => (float[N,3,H,W] y) { y = Relu(x) }")
    with pytest.raises(UsageError, match="how large"):
        load(album, open_size)
    assert joined(load(f"{album}{{size=5}}", open_size)).shape == (3, 3, 5, 5)
    (album / "d.png").write_bytes(b"not a picture")
    with pytest.raises(UsageError, match="cannot read the image"):
        load(album, picture_net())
    (tmp_path / "none").mkdir()
    with pytest.raises(UsageError, match="no images"):
        load(tmp_path / "none", picture_net())


def test_without_pillow_the_command_is_named(album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingTool) as error:
        load(album, picture_net())
    assert error.value.hint == "pip install pillow"


def test_preprocessing_is_checked() -> None:
    assert read_options("folder") == ("folder", Preprocessing())
    assert read_options("folder{size=160,crop=0.875}")[1] == Preprocessing(size=160, crop=0.875)
    with pytest.raises(UsageError, match="crop"):
        read_options("folder{crop=2}")


# Functions -------------------------------------------------------------------------------------------------------


def test_a_function_gives_an_array_a_mapping_or_feeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_inputs.py").write_text(
        "import numpy as np\n"
        "def array(): return np.ones((4, 3, 8, 8), np.float32)\n"
        "def mapping(): return {'x': array()}\n"
        "def feeds():\n    for _ in range(2): yield {'x': array()[:2]}\n"
        "value = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    try:
        for name in ("array", "mapping", "feeds"):
            assert joined(load(f"own_inputs:{name}", picture_net())).shape == (4, 3, 8, 8)
        with pytest.raises(UsageError, match="not a function"):
            load("own_inputs:value", picture_net())
        with pytest.raises(UsageError, match="cannot import"):
            load("own_inputs:nothing", picture_net())
    finally:
        sys.modules.pop("own_inputs", None)
    assert str(tmp_path) not in sys.path


# Without data ----------------------------------------------------------------------------------------------------


def test_drawn_pictures_are_plausible_and_the_same_again() -> None:
    rng = np.random.default_rng(0)
    x = pictures((48, 3, 32, 32), rng)
    assert abs(x.mean()) < 0.3 and 0.5 < x.std() < 1.5
    # what white noise is not: neighbours and colours are alike
    assert np.corrcoef(x[..., 1:].ravel(), x[..., :-1].ravel())[0, 1] > 0.8
    assert np.corrcoef(x[:, 0].ravel(), x[:, 1].ravel())[0, 1] > 0.6
    first, again = (load("synthetic{samples=20}", picture_net()) for _ in range(2))
    assert isinstance(first, Drawn) and 20 <= len(joined(first)) < 40
    np.testing.assert_array_equal(joined(first), joined(again))


def test_noise_has_the_slope_asked_for() -> None:
    x = noise((64, 64, 64), 1.0, np.random.default_rng(0))
    power = (np.abs(np.fft.fft2(x)) ** 2).mean(0)
    low, high = power[0, 4], power[0, 16]
    assert np.log(low / high) / np.log(4) == pytest.approx(2.0, abs=0.35)  # amplitude f^-1 is power f^-2


def test_drawn_inputs_have_the_range_the_network_expects() -> None:
    """The network brings its own scaling from 0..255, or a first layer made for large numbers."""
    weight = np.random.default_rng(0).standard_normal((8, 3, 3, 3)).astype(np.float32)
    own = parse(
        "agraph (float[N,3,16,16] x) => (float[N,8,14,14] y) { a = Sub(x, m) b = Div(a, s) y = Conv(b, w) }",
        {"w": weight, "m": np.float32(127.5), "s": np.float32(60)},
    )
    x = joined(load("synthetic{samples=64}", own))
    assert 90 < x.mean() < 165
    small = parse("agraph (float[N,3,16,16] x) => (float[N,8,14,14] y) { y = Conv(x, w) }", {"w": weight / 100})
    feeds = load("synthetic{samples=64}", small)
    spread = np.median(np.concatenate([run(small, f)[0] for f in feeds]).std((0, 2, 3)))
    assert 0.3 < spread < 1.3


def normalised() -> Model:
    rng = np.random.default_rng(1)
    weights = {
        "w": rng.standard_normal((4, 3, 3, 3)).astype(np.float32),
        "v": rng.standard_normal((5, 4, 3, 3)).astype(np.float32),
    }
    for i, n in ((1, 4), (2, 5)):
        weights |= {
            f"g{i}": rng.uniform(0.5, 2, n).astype(np.float32),
            f"b{i}": rng.standard_normal(n).astype(np.float32),
            f"m{i}": rng.standard_normal(n).astype(np.float32),
            f"s{i}": rng.uniform(0.5, 2, n).astype(np.float32),
        }
    return parse(
        "agraph (float[N,3,12,12] x) => (float[N,5,8,8] y) { a = Conv(x, w) b = BatchNormalization(a, g1, b1, m1, s1)"
        " c = Relu(b) d = Conv(c, v) y = BatchNormalization(d, g2, b2, m2, s2) }",
        weights,
    )


def test_standardised_networks_see_the_stored_mean_and_spread() -> None:
    model = normalised()
    feeds = load("synthetic{samples=32}", model)
    changed = standardize(model, feeds)
    y = np.concatenate([run(changed, f)[0] for f in feeds])
    constants = {v.name: v.const_value.numpy() for v in model.ir.graph.initializers.values() if v.const_value}
    np.testing.assert_allclose(y.mean((0, 2, 3)), constants["b2"], atol=1e-3)
    np.testing.assert_allclose(y.std((0, 2, 3)), constants["g2"], rtol=1e-3)
    before = run(model, feeds[0])[0]
    assert not np.allclose(run(changed, feeds[0])[0], before)  # something was changed
    np.testing.assert_array_equal(run(restore(changed, model), feeds[0])[0], before)


def test_a_network_without_normalisation_stays_itself() -> None:
    model = picture_net()
    assert standardize(model, load("synthetic{samples=4}", model)) is model


# Kept by content -------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPA_CACHE_DIR", str(tmp_path))
    return tmp_path / cache.KIND


def test_entries_depend_on_network_inputs_and_options() -> None:
    x = np.ones((2, 3, 8, 8), np.float32)
    one, other = picture_net(), normalised()
    keys = [
        cache.key(one, [{"x": x}], {"seed": 0}),
        cache.key(other, [{"x": x}], {"seed": 0}),
        cache.key(one, [{"x": x * 2}], {"seed": 0}),
        cache.key(one, [{"x": x.reshape(2, 8, 3, 8)}], {"seed": 0}),
        cache.key(one, [{"x": x[:1]}, {"x": x[1:]}], {"seed": 0}),
        cache.key(one, [{"x": x}], {"seed": 1}),
    ]
    assert len(set(keys)) == len(keys)
    assert keys[0] == cache.key(picture_net(), [{"x": x.copy()}], {"seed": 0})


def test_what_was_put_is_got_and_damage_is_a_miss(store: Path) -> None:
    assert cache.get("k") is None
    arrays = {"second": np.random.default_rng(0).standard_normal((3, 4)), "count": np.array(7)}
    cache.put("k", arrays)
    found = cache.get("k")
    assert found is not None and set(found) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
    file = store / "k" / "arrays.npz"
    file.write_bytes(file.read_bytes()[:-20])
    assert cache.get("k") is None
    cache.put("k", arrays)  # mended
    assert cache.get("k") is not None
    (store / "k" / "facts.json").write_text("[]")
    assert cache.get("k") is None


def test_the_cache_stays_within_its_size(store: Path) -> None:
    array = {"a": np.zeros(1000)}
    for name in "abc":
        cache.put(name, array, limit=20_000)
        os.utime(store / name, (1000 + ord(name),) * 2)
    assert sorted(p.name for p in store.iterdir()) == ["b", "c"]
    assert cache.get("b") is not None  # read: now the newest
    cache.put("d", array, limit=20_000)
    assert sorted(p.name for p in store.iterdir()) == ["b", "d"]


def test_concurrent_writers_leave_one_whole_entry(store: Path) -> None:
    arrays = {"a": np.arange(5000.0)}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: cache.put("k", arrays), range(32)))
    found = cache.get("k")
    assert found is not None
    np.testing.assert_array_equal(found["a"], arrays["a"])
    assert [p.name for p in store.iterdir()] == ["k"]


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPA_CACHE_DIR", str(tmp_path / "file"))
    spa.cache.write("kind", "k", {"f": b"1"}, {})
    assert spa.cache.read("kind", "k") is None
