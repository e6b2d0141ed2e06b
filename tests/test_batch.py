"""``rmp-fast batch``: as a process with Ray where processes die, else in this process over a store in memory."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pathlib
import random
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_presets import LOOKS

from rmp_fast import images
from rmp_fast.cli import main
from rmp_fast.cli.usage import UsageError
from rmp_fast.priors.network import _FOLDER

pyarrow = pytest.importorskip("pyarrow", reason="rmp-fast batch keeps its manifest with pyarrow: pip install .[ray]")
pytest.importorskip("ray", reason="rmp-fast batch runs on Ray: pip install .[ray]")

import batch_kills  # noqa: E402
from batch_store import SIDE, Memory, go  # noqa: E402

from rmp_fast import _ray  # noqa: E402
from rmp_fast.batch import cluster, manifest, store, worker  # noqa: E402

pytest_plugins = ["batch_store"]  # its fixtures


# Processes.


def test_killed_runs_end_with_every_image_exactly_once(tmp_path: pathlib.Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    batch_kills.make_images(source, 18)
    chance = random.Random(1)
    batch_kills.kill_once(source, out, chance, goal=5)
    batch_kills.kill_once(source, out, chance, goal=9)
    said = batch_kills.finish(source, out)
    assert "18 images: 18 restored (" in said
    batch_kills.verify(source, out)
    assert not batch_kills.abandoned()


def test_a_batch_that_kills_its_workers_is_given_up_and_the_others_arrive() -> None:
    class Mortal:
        def __init__(self, _: object, attempts: cluster.Attempts) -> None:
            self._attempts = attempts

        def __call__(self, table: Any) -> dict[str, list[str]]:
            (work,) = table["work"]
            if not self._attempts.allowed(work):
                return {"result": ["gave up"]}
            if work == "deadly":
                os._exit(1)
            return {"result": [work]}

    with cluster.connect(None, 1) as (cpus, gpus):
        pool = cluster.Pool("cpu", cpus, gpus, None, None)
        assert sorted(cluster.feed(Mortal, None, ["a", "deadly", "b"], pool, 1)) == ["a", "b", "gave up"]
        with pytest.raises(UsageError, match="`--threads` must be at most 1, the processors of Ray's machines, got 2"):
            cluster.check_threads(cluster.Pool("cpu", 2, 0, None, 2))


def test_result_equals_that_of_reconstruct(
    tmp_path: pathlib.Path, fed: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for index in range(5):
        shape = (1, SIDE, SIDE + 8 * (index % 2))
        images.write(folder / f"{index}.png", np.random.default_rng(index).random(shape), 8, "png")
    options = ["--operator=inpaint_random", "--simulate", "--prior=fashion", "--noise-std=0.1", "--evaluations=4"]
    options += ["--batch-size=2", "--seed=3", "--threads=1"]
    assert main(["reconstruct", str(folder), f"--out={tmp_path / 'one'}", "--no-panel", *options]) == 0
    arguments = ["batch", f"--input=file://{folder}", f"--output={tmp_path / 'many'}", "--device=cpu", *options]
    capsys.readouterr()
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.startswith("5 images: 5 restored; mean PSNR ")
    for index in range(5):
        one, many = (
            json.loads((tmp_path / end).read_text()) for end in (f"one/{index}.json", f"many/{index}.png.json")
        )
        assert (tmp_path / "one" / f"{index}.png").read_bytes() == (tmp_path / "many" / f"{index}.png").read_bytes()
        assert many["settings_hash"] == one["settings_hash"]
        assert many["quality"] == one["quality"]
        assert many["seeds"] == one["seeds"]
    assert fed == [["0.png", "2.png"], ["4.png"], ["1.png", "3.png"]]

    assert main(["batch", f"--input=file://{folder}", f"--output={tmp_path / 'many'}", "--device=cpu", *options]) == 0
    assert len(fed) == 3
    assert "5 images: 5 restored (5 before)" in capsys.readouterr().out


# Runs over a store in memory.


def test_poisoned_images_are_rows_and_their_batches_go_on(source: Memory, out: Memory, fed: list[list[str]]) -> None:
    for index in range(3):
        source.picture(f"good{index}.png", index)
    source.write("cut.png", source.read("good0.png")[:-30])
    source.write("text.png", b"no image")
    source.write("empty.png", b"")
    source.picture("colour.png", 9, (3, SIDE, SIDE))
    source.picture("large.png", 9, (1, 70, 70))
    stream = io.BytesIO()
    import tifffile

    tifffile.imwrite(stream, np.full((SIDE, SIDE), np.nan, dtype=np.float32))
    source.write("nan.tif", stream.getvalue())
    # A PNG header that promises 100,000 x 100,000 pixels.
    bomb = bytearray(source.read("good0.png"))
    bomb[16:24] = (100_000).to_bytes(4, "big") * 2
    source.write("bomb.png", bytes(bomb))
    summary = go(source, out, simulate=True, max_pixels=4096)
    expected = {
        "cut.png": "the file: cannot be read as an image",
        "text.png": "cannot be read as an image",
        "empty.png": "cannot be read as an image",
        "colour.png": "with C = 1 for the prior 'fashion', got (1, 3, 16, 16)",
        "large.png": "its 70 x 70 pixels are more than `--max-pixels` 4096",
        "nan.tif": "only 8 and 16 bit unsigned images are supported, this one holds float32",
        "bomb.png": "cannot be read as an image",
    }
    rows = out.rows()
    assert rows.keys() == {*expected, "good0.png", "good1.png", "good2.png"}
    assert summary.failed.keys() == expected.keys()
    for name, text in expected.items():
        assert rows[name]["status"] == "failed"
        assert text in rows[name]["error"]
        assert out.record(name)["error"] == rows[name]["error"] == summary.failed[name]
        assert name not in out.names()
    for index in range(3):
        row = rows[f"good{index}.png"]
        assert (row["status"], row["error"], row["batch_size"]) == ("restored", None, 3)
        assert row["output_sha256"] == hashlib.sha256(out.read(row["output"])).hexdigest()
        assert row["psnr"] == out.record(f"good{index}.png")["quality"]["restoration"]["psnr"]
    assert ["cut.png", "good0.png", "good1.png", "good2.png"] in fed

    # Mended, only what failed is done again, and succeeds.
    source.picture("cut.png", 5)
    fed.clear()
    assert go(source, out, simulate=True, max_pixels=4096).failed.keys() == expected.keys() - {"cut.png"}
    assert [name for names in fed for name in names] == ["cut.png", "colour.png"]


def test_an_image_that_breaks_its_batch_costs_only_itself(
    source: Memory, out: Memory, fed: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    source.pictures(5)
    usual = worker.Chain.restore

    def restore(self: Any, batch: Any, names: list[str], **own: Any) -> Any:
        if "3.png" in names:
            raise RuntimeError("out of memory")
        return usual(self, batch, names, **own)

    monkeypatch.setattr(worker.Chain, "restore", restore)
    assert go(source, out).failed == {"3.png": "out of memory"}
    assert [out.rows()[f"{index}.png"]["batch_size"] for index in range(5)] == [2, 2, 1, None, 1]


def test_error_of_a_worker_is_the_row_s(
    source: Memory, out: Memory, fed: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    source.pictures(2)
    usual = worker.Chain.restore
    monkeypatch.setattr(
        worker.Chain, "restore", lambda self, batch, names, **own: {}["gone"] if "0.png" in names
        else usual(self, batch, names, **own),
    )  # fmt: skip
    assert go(source, out).failed == {"0.png": "KeyError: 'gone'"}


def test_a_picture_that_cannot_be_written_costs_only_itself(
    source: Memory, out: Memory, fed: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    source.pictures(3)
    source.write("1.png", images.encode(np.zeros((1, SIDE, SIDE)), 8, "png", b"profile"))
    usual = images.encode

    def encode(*arguments: Any) -> bytes:
        if arguments[3] is not None:
            raise ValueError("no room for its profile")
        return usual(*arguments)

    monkeypatch.setattr(images, "encode", encode)
    assert go(source, out).failed == {"1.png": "no room for its profile"}
    assert fed == [["0.png", "1.png", "2.png"]]


def test_a_device_that_failed_ends_its_worker(
    source: Memory, out: Memory, fed: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes after it in that process would fail too, and be told of images that are not to blame."""

    class ProcessEnd(BaseException):
        pass

    def fails(*_: Any, **__: Any) -> Any:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    def ends(code: int) -> Any:
        raise ProcessEnd(code)

    source.pictures(2)
    monkeypatch.setattr(worker.Chain, "restore", fails)
    monkeypatch.setattr(worker.os, "_exit", ends)
    with pytest.raises(ProcessEnd):
        go(source, out)
    assert out.names() == {"batch.json", "manifest.parquet"}


def test_images_of_dead_workers_are_tried_alone_and_then_failed(
    source: Memory, out: Memory, fed: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    source.pictures(3)
    usual = cluster.feed

    def feed(kind: Any, job: Any, works: list[str], pool: Any, retries: int) -> Iterator[str]:
        for work in works:
            if "1.png" in work:
                fed.append([f"dies, {retries} retries"])
                out.write(".1.png.0123.part", b"half")
                yield json.dumps({"died": True})
            else:
                yield from usual(kind, job, [work], pool, retries)

    monkeypatch.setattr(cluster, "feed", feed)
    assert go(source, out).failed.keys() == {"1.png"}
    assert "its worker process died" in out.rows()["1.png"]["error"]
    assert fed == [["dies, 2 retries"], ["0.png"], ["dies, 0 retries"], ["2.png"]]
    assert not any(name.endswith(".part") for name in out.names())


def test_names_of_nested_folders_do_not_collide(source: Memory, out: Memory, fed: list[list[str]]) -> None:
    names = ["x.png", "x.jpg", "x.tif", "x.jpg.png", "a/x.png", "b/x.png", "b/c/x.png"]
    for seed, name in enumerate(names):
        source.picture(name, seed)
    source.write(".hidden.png", b"")
    source.write("notes.txt", b"")
    summary = go(source, out)
    assert (summary.images, summary.restored, summary.failed) == (7, 7, {})
    outputs = {row["output"] for row in out.rows().values()}
    assert outputs == {"x.png", "x.jpg.png", "x.tif.png", "x.jpg.png.png", "a/x.png", "b/x.png", "b/c/x.png"}
    assert out.names() == outputs | {f"{name}.json" for name in names} | {"manifest.parquet", "batch.json"}


NAMES = st.lists(st.sampled_from(["x", ".png", ".jpg", ".tif", ".PNG"]), min_size=1, max_size=5).map("".join)


@given(st.sets(NAMES.filter(store.is_image), min_size=2, max_size=30), st.sampled_from(list(images.FORMATS.values())))
def test_no_two_images_share_an_output(names: set[str], suffix: str) -> None:
    outputs = {store.output_name(name, suffix) for name in names}
    assert len(outputs) == len(names)
    assert all(output.endswith(suffix) for output in outputs)


def test_rows_of_a_manifest_have_their_own_seed_noise_and_files(
    source: Memory, out: Memory, fed: list[list[str]]
) -> None:
    for name in ("a.png", "b.png", "sub/c.png", "d.png"):
        source.picture(name, 1)
    np.save(mask := io.BytesIO(), np.arange(SIDE * SIDE).reshape(SIDE, SIDE) % 3 > 0)
    source.write("masks/thirds.npy", mask.getvalue())
    source.picture("masks/small.png", 1, (1, 4, 4))
    table = source.table(
        "list.parquet",
        path=["a.png", "b.png", "sub/c.png", "memory:///in/d.png", "gone.png"],
        seed=[7.0, None, None, None, None],
        noise_std=[0.05, 0.2, None, None, None],
        mask=["masks/thirds.npy"] * 3 + ["masks/small.png", "masks/thirds.npy"],
        comment=["ignored"] * 5,
    )
    summary = go(table, out, operator="inpainting", seed=3)
    assert summary.failed.keys() == {"d.png", "gone.png"}
    rows = out.rows()
    assert rows["gone.png"]["error"] == "does not exist"
    assert "`--mask` must have the size (16, 16) of d.png, got (4, 4)" in rows["d.png"]["error"]
    assert [(rows[name]["seed"], rows[name]["noise_std"]) for name in ("a.png", "b.png", "sub/c.png")] == [
        (7, 0.05), (3, 0.2), (3, 0.1),
    ]  # fmt: skip
    assert fed[1:] == [["a.png", "b.png", "sub/c.png"]] or fed[:1] == [["a.png", "b.png", "sub/c.png"]]
    entry = out.record("a.png")
    digest = hashlib.sha256(mask.getvalue()).hexdigest()
    assert entry["option_files"]["mask"] == {"file": "memory:///in/masks/thirds.npy", "sha256": digest}
    assert entry["settings"]["operator_options"]["mask"] == digest

    # Alone, with the row's values as the run's, the result is the same but for the network's rounding in a batch of
    # another size, which moves a value over the edge between two levels here and there.
    alone = Memory("/alone")
    local = source.table("one.parquet", path=["a.png"], mask=["masks/thirds.npy"])
    go(local, alone, operator="inpainting", seed=7, noise_std=0.05)
    assert alone.record("a.png")["settings_hash"] == entry["settings_hash"]
    assert alone.record("a.png")["seeds"] == entry["seeds"]
    pictures = [images.read(io.BytesIO(end.read("a.png"))).pixels for end in (out, alone)]
    assert np.abs(pictures[0] - pictures[1]).max() < 1.5 / 255

    # Another seed of one row is another task; the others stay.
    fed.clear()
    source.table(
        "list.parquet", path=["a.png", "b.png", "sub/c.png"], seed=[8, None, None], noise_std=[0.05, 0.2, None],
        mask=["masks/thirds.npy"] * 3,
    )  # fmt: skip
    assert go(table, out, operator="inpainting", seed=3).finished_before == 2
    assert fed == [["a.png"]]
    assert out.record("a.png")["seeds"]["base"] == 8
    assert out.rows().keys() == {"a.png", "b.png", "sub/c.png", "d.png", "gone.png"}


def test_a_row_s_kernel_and_simulated_seed_make_batches_of_their_own(
    source: Memory, out: Memory, fed: list[list[str]]
) -> None:
    for name in ("a.png", "b.png", "c.png"):
        source.picture(name, 1)
    for name, size in (("flat.npy", 3), ("one.npy", 1)):
        np.save(stream := io.BytesIO(), np.ones((size, size)))
        source.write(name, stream.getvalue())
    table = source.table(
        "t.parquet", path=["a.png", "b.png", "c.png"], kernel=["flat.npy", "one.npy", "flat.npy"], seed=[1, 1, 2]
    )
    assert not go(table, out, operator="blur", simulate=True).failed
    assert sorted(fed) == [["a.png"], ["b.png"], ["c.png"]]
    before = {name: out.rows()[name]["psnr_before"] for name in ("a.png", "b.png", "c.png")}
    assert before["a.png"] != before["c.png"]  # the same picture and kernel, other noise
    assert before["b.png"] > before["a.png"] + 3  # a kernel of one pixel blurs nothing


# What is there already.


def test_the_same_relative_path_elsewhere_is_another_input(
    tmp_path: pathlib.Path, fed: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("one", "other"):
        (tmp_path / place / "in").mkdir(parents=True)
        images.write(tmp_path / place / "in" / "a.png", np.zeros((1, SIDE, SIDE)), 8, "png")
    monkeypatch.chdir(tmp_path / "one")
    assert go("in", tmp_path / "out").restored == 1
    assert go("./in/", tmp_path / "out").finished_before == 1
    monkeypatch.chdir(tmp_path / "other")
    with pytest.raises(UsageError, match=r"input was .*one/in.*, now .*other/in"):
        go("in", tmp_path / "out")


def test_changed_input_or_missing_output_is_done_again(source: Memory, out: Memory, fed: list[list[str]]) -> None:
    source.pictures(4)
    go(source, out)
    source.picture("0.png", 10)
    out.remove("1.png")
    out.remove("2.png.json")
    fed.clear()
    summary = go(source, out)
    assert fed == [["0.png", "1.png", "2.png"]]
    assert (summary.restored, summary.finished_before) == (3, 1)
    assert out.rows()["0.png"]["input_sha256"] == hashlib.sha256(source.read("0.png")).hexdigest()


def test_what_was_restored_stays_when_its_input_is_gone(source: Memory, out: Memory, fed: list[list[str]]) -> None:
    source.pictures(2)
    table = source.table("list.parquet", path=["0.png", "1.png"])
    go(table, out)
    picture, record = out.read("0.png"), out.read("0.png.json")
    source.remove("0.png")
    fed.clear()
    summary = go(table, out)
    assert not fed
    assert summary.failed == {"0.png": "does not exist; its earlier restoration is kept"}
    assert (summary.restored, summary.finished_before) == (0, 1)
    assert (out.read("0.png"), out.read("0.png.json")) == (picture, record)
    assert out.rows()["0.png"]["status"] == "restored"


def test_run_cut_off_before_its_manifest_goes_on_from_the_records(
    source: Memory, out: Memory, fed: list[list[str]]
) -> None:
    source.pictures(3)
    go(source, out)
    complete = out.rows()
    out.remove("manifest.parquet")
    out.remove("1.png.json")  # its picture was written, its record was not
    out.write(".2.png.0123.part", b"half")
    out.write("2.png.json", out.read("2.png.json")[:100])
    fed.clear()
    go(source, out)
    assert fed == [["1.png", "2.png"]]
    assert out.rows().keys() == complete.keys()
    assert out.rows()["0.png"] == complete["0.png"]
    assert not any(name.endswith(".part") for name in out.names())


def test_manifest_never_vouches_for_an_image_in_work(
    source: Memory, out: Memory, fed: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    source.picture("a.png", 0)
    source.picture("b.png", 1)
    go(source, out)
    source.picture("a.png", 2)
    monkeypatch.setattr(cluster, "feed", lambda *_: (_ for _ in ()).throw(RuntimeError("killed")))
    with pytest.raises(RuntimeError, match="killed"):
        go(source, out)
    assert out.rows().keys() == {"b.png"}


def test_other_settings_are_refused_and_forced(source: Memory, out: Memory, fed: list[list[str]]) -> None:
    source.picture("a.png")
    go(source, out)
    before = out.read("a.png")
    with pytest.raises(UsageError, match=r"another run: noise_std was 0.1, now 0.2; seed was 0, now 1; use another f"):
        go(source, out, noise_std=0.2, seed=1)
    assert out.read("a.png") == before
    assert go(source, out, noise_std=0.2, force=True).restored == 1
    assert out.read("a.png") != before
    assert go(source, out, noise_std=0.2, force=True).finished_before == 1

    # Of another format, the picture is not the one that it replaces.
    assert go(source, out, noise_std=0.2, format="tiff", force=True).restored == 1
    assert out.names() == {"a.png.tif", "a.png.json", "manifest.parquet", "batch.json"}

    other = Memory("/other")
    other.picture("a.png", 1)
    with pytest.raises(UsageError, match=r"input was .*in.*, now .*other"):
        go(other, out, noise_std=0.2)


def test_another_run_takes_the_folder_over(
    source: Memory, out: Memory, fed: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    source.pictures(2)
    usual = worker.Worker.restore

    def restore(self: Any, shape: Any, batch: Any) -> Any:
        rows = usual(self, shape, batch)
        out.write("batch.json", json.dumps({"run": "another"}).encode())
        return rows

    monkeypatch.setattr(worker.Worker, "restore", restore)
    with pytest.raises(manifest.SupersededError, match="another run has started in memory://out; this one stops"):
        go(source, out, batch_size=1)
    assert {"0.png", "1.png"} & out.names() == {"0.png"}


# Parts.


def test_workers_elsewhere_find_weights_and_presets(
    source: Memory, out: Memory, fed: list[list[str]], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.safetensors").write_bytes((_FOLDER / "fashion.safetensors").read_bytes())
    (tmp_path / "tuned.json").write_text(json.dumps({"denoise": {"2": {"looks": LOOKS, "start": "zero"}}}))
    source.pictures(1)
    monkeypatch.chdir(tmp_path)
    assert go(source, out, prior="mine.safetensors", presets="tuned.json").restored == 1
    settings = out.record("0.png")["settings"]
    assert settings["prior"] == str(tmp_path / "mine.safetensors")
    assert settings["looks"] == LOOKS


def test_pools_share_processors_and_gpus() -> None:
    def shape(*arguments: Any) -> tuple[int, int, int]:
        pool = cluster.Pool(*arguments)
        return pool.workers, pool.threads, pool.gpus

    assert shape("cpu", 16, 0, None, None) == (4, 4, 0)
    assert shape("cpu", 2, 0, None, None) == (1, 2, 0)
    assert shape("cpu", 16, 0, 16, None) == (16, 1, 0)
    assert shape("cpu", 16, 0, None, 8) == (2, 8, 0)
    assert shape("cuda", 16, 8, None, None) == (8, 2, 1)
    assert shape("cuda", 64, 8, 2, None) == (2, 4, 1)


def test_stores_without_whole_puts_rename(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = store.Store(str(tmp_path / "out"), "--output")
    place.local = False  # as any file system of fsspec that is neither local nor an object store
    place.write("a/x.png", b"first")
    place.write("a/x.png", b"second")
    assert place.read("a/x.png") == b"second"
    monkeypatch.setattr(place.fs, "mv", lambda *_: (_ for _ in ()).throw(OSError("cut off")))
    with pytest.raises(OSError, match="cut off"):
        place.write("a/x.png", b"third")
    assert place.read("a/x.png") == b"second"
    assert [path.name for path in (tmp_path / "out/a").iterdir()] == ["x.png"]


def test_abandoned_folders_of_ray_are_removed(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ray.tempfile, "gettempdir", lambda: str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    for name in (f"{gone.pid}-a", f"{os.getpid()}-b", "noone-c"):
        (tmp_path / f"{_ray.PREFIX}{name}").mkdir()
    _ray._remove_abandoned()
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{_ray.PREFIX}{os.getpid()}-b", f"{_ray.PREFIX}noone-c",
    }  # fmt: skip
