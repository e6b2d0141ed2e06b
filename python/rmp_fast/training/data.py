"""The training data, from Debian packages and scikit-learn: fetched, unpacked, checked and turned into arrays."""

from __future__ import annotations

import gzip
import pathlib
import shutil
import subprocess

import numpy as np
from PIL import Image

__all__ = ["PHOTOS", "fashion_images", "photo_pyramid"]

FASHION_PACKAGE = "dataset-fashion-mnist"

#: The photographs (no drawings or renderings): package, file, author and licence as its copyright file has them.
PHOTOS: tuple[tuple[str, str, str, str], ...] = (
    ("lomiri-wallpapers-16.04", "Bridge_by_Sander_Klootwijk.jpg", "Sander Klootwijk", "CC-BY-SA-4.0"),
    ("lomiri-wallpapers-16.04", "Dragonfly_by_Bolly.jpg", "Bolly", "CC-BY-SA-4.0"),
    ("lomiri-wallpapers-16.04", "Picture_0B_by_freespace.jpg", "Trevor Freespace", "CC-BY-4.0"),
    ("lomiri-wallpapers-16.04", "Picture_1A_by_freespace.jpg", "Trevor Freespace", "CC-BY-4.0"),
    ("lomiri-wallpapers-16.04", "Wine_by_Jakkub_Mede.jpg", "Jakub Mede", "CC-BY-4.0"),
    ("lomiri-wallpapers-16.04", "aitzgorri_by_Aitzol_Berasategi.jpg", "Aitzol Berasategi", "CC-BY-4.0"),
    ("lomiri-wallpapers-16.04", "free_by_Peter_Nerlich.jpg", "Peter Nerlich", "CC-BY-SA-4.0"),
    ("lomiri-wallpapers-16.04", "friends_by_Aitzol_Berasategi.jpg", "Aitzol Berasategi", "CC-BY-4.0"),
    ("lomiri-wallpapers-16.04", "greentock_by_Peter_Nerlich.jpg", "Peter Nerlich", "CC-BY-SA-4.0"),
    ("lomiri-wallpapers-16.04", "life_by_Aitzol_Berasategi.jpg", "Aitzol Berasategi", "CC-BY-4.0"),
    ("lomiri-wallpapers-16.04", "picosdeeuropa_by_Aitzol_Berasategi.jpg", "Aitzol Berasategi", "CC-BY-4.0"),
    ("lomiri-wallpapers-16.04", "seeding_by_Clements_Engelhardt.jpg", "Clemens Engelhardt", "CC0-1.0"),
    ("lomiri-wallpapers-16.04", "sunset_by_Aitzol_Berasategi.jpg", "Aitzol Berasategi", "CC-BY-4.0"),
    ("lomiri-wallpapers-20.04", "Kleiber_by_Lukas_Baubkus.jpg", "Lukas Baubkus", "CC-BY-SA-3.0"),
    ("mate-backgrounds", "Aqua.jpg", "Charles Barbin", "GPL-2+"),
    ("mate-backgrounds", "Blinds.jpg", "Lennart Poettering, Andrea Cimitan", "GPL-2+"),
    ("mate-backgrounds", "Dune.jpg", "Marco Cogoni, Hylke Bons", "GPL-2+"),
    ("mate-backgrounds", "FreshFlower.jpg", "Jens Ansorg", "GPL-2+"),
    ("mate-backgrounds", "Garden.jpg", "Charles Barbin", "GPL-2+"),
    ("mate-backgrounds", "GreenMeadow.jpg", "Timothy Schellhase, Lapo Calamandrei", "GPL-2+"),
    ("mate-backgrounds", "LadyBird.jpg", "Charles Barbin", "GPL-2+"),
    ("mate-backgrounds", "RainDrops.jpg", "blackcombwhistler07", "GPL-2+"),
    ("mate-backgrounds", "Storm.jpg", "Sergey Nazarov", "GPL-2+"),
    ("mate-backgrounds", "TwoWings.jpg", "Charles Barbin, Hylke Bons", "GPL-2+"),
    ("mate-backgrounds", "Wood.jpg", "Jean-François Fortin Tam", "GPL-2+"),
    ("mate-backgrounds", "YellowFlower.jpg", "Charles Barbin", "GPL-2+"),
    ("scikit-learn", "china.jpg", "danielbuechele", "CC-BY-2.0"),
    ("scikit-learn", "flower.jpg", "vultilion", "CC-BY-2.0"),
)

#: Short sides to which every photograph is reduced (never enlarged), and how often each is drawn.
PYRAMID = ((1080, 0.35), (640, 0.35), (380, 0.2), (220, 0.1))


def unpack(package: str, cache: pathlib.Path) -> pathlib.Path:
    """Download a Debian package with ``apt-get download`` and unpack it under ``cache``; does nothing if it is there.

    Raises:
        RuntimeError: on a system without apt-get and dpkg, naming the file to put into ``cache`` by hand.
    """
    target = cache / package
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    found = sorted(cache.glob(f"{package}_*.deb"))
    if not found:
        if shutil.which("apt-get") is None:
            raise RuntimeError(
                f"no apt-get here: download the Debian package {package} into {cache} as {package}_*.deb"
            )
        subprocess.run(["apt-get", "download", package], cwd=cache, check=True)
        found = sorted(cache.glob(f"{package}_*.deb"))
    partial = cache / f".{package}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    subprocess.run(["dpkg-deb", "-x", str(found[-1]), str(partial)], check=True)
    partial.rename(target)
    return target


def fashion_images(cache: pathlib.Path, split: str) -> np.ndarray:
    """Fashion-MNIST, padded from 28x28 to 32x32 with black.

    Args:
        cache: folder for downloads.
        split: ``"train"`` (60,000 images) or ``"test"`` (10,000).

    Returns:
        uint8 array (N, 1, 32, 32).
    """
    name = {"train": "train", "test": "t10k"}[split]
    path = unpack(FASHION_PACKAGE, cache) / f"usr/share/datasets/fashion-mnist/{name}-images-idx3-ubyte.gz"
    with gzip.open(path) as file:
        raw = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    return np.pad(raw, ((0, 0), (0, 0), (2, 2), (2, 2)))


def photo_pyramid(cache: pathlib.Path) -> list[list[np.ndarray]]:
    """Every training photograph at the short sides of :data:`PYRAMID`.

    Returns:
        one list per photograph of uint8 arrays (3, H, W), largest first, without sizes the original does not reach.
    """
    from sklearn.datasets import load_sample_image

    pyramids = []
    for package, name, _, _ in PHOTOS:
        if package == "scikit-learn":
            image = Image.fromarray(load_sample_image(name))
        else:
            (path,) = unpack(package, cache).rglob(name)
            image = Image.open(path).convert("RGB")
        levels = []
        for short, _ in PYRAMID:
            scale = short / min(image.size)
            if scale <= 1:
                size = (round(image.width * scale), round(image.height * scale))
                levels.append(np.asarray(image.resize(size, Image.Resampling.LANCZOS)).transpose(2, 0, 1).copy())
        pyramids.append(levels)
    return pyramids
