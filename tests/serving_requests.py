"""Requests to the service, right and wrong, and what each must be answered with."""

from __future__ import annotations

import dataclasses
import io
import pathlib
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

from rmp_fast import images


def npy(values: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def png(values: np.ndarray, depth: int = 8) -> bytes:
    return images.encode(values, depth, "png")


def grey(height: int = 8, width: int = 8, channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((channels, height, width), dtype=np.float32)


def samples(*shape: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


@dataclasses.dataclass
class Wrong:
    """A request that must be refused."""

    name: str
    status: int
    message: str
    fields: dict[str, str]
    files: dict[str, bytes]


def huge_png(width: int, height: int) -> bytes:
    """A few hundred bytes that say they hold a picture of that size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def many_scans() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    start = data.index(b"\xff\xda")
    return data[:start] + data[start:-2] * 200 + data[-2:]


def npy_header(text: str, body: bytes = b"") -> bytes:
    header = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body


def wrong_requests() -> list[Wrong]:
    good = {"operator": "sr4", "noise_std": "0.05"}
    image = {"image": npy(grey())}
    whole = {"image": npy(grey(32, 32))}
    cut = png(grey(32, 32))
    inpaint = {"operator": "inpainting", "noise_std": "0.05"}
    blur = {"operator": "blur", "noise_std": "0.05"}
    mri = {"operator": "mri", "noise_std": "0.05"}
    phase = {"operator": "phase_retrieval", "noise_std": "0.05"}
    shaken = {"operator": "nonlinear_deblur", "noise_std": "0.05"}
    scan = {"image": npy(samples(16, 16)), "mask": npy(np.ones((16, 16)))}
    coils = {"image": npy(samples(2, 16, 16)), "mask": scan["mask"]}
    spectrum = {"image": npy(grey(32, 32))}
    kernels = {"kernel": npy(np.ones((2, 2, 3, 3)))}
    header = "{'descr': '%s', 'fortran_order': False, 'shape': %s, }"

    def case(name: str, status: int, message: str, fields: dict[str, str], files: dict[str, bytes]) -> Wrong:
        return Wrong(name, status, message, fields, files)

    def without(key: str) -> dict[str, str]:
        return {k: v for k, v in good.items() if k != key}

    return [
        case(
            "no operator",
            422,
            "`operator` must be given: how the image was degraded, one of",
            without("operator"),
            image,
        ),
        case("no noise", 422, "`noise_std` must be given: the standard deviation", without("noise_std"), image),
        case("no image", 422, "`image` must be given", good, {}),
        case("misspelt operator", 422, "did you mean 'sr4'", good | {"operator": "sr5"}, image),
        case("unknown field", 422, "`field` must be one of", good | {"sede": "1"}, image),
        case("unknown file", 422, "`file` must be one of", good, image | {"picture": b"x"}),
        case("image as a field", 400, "`image` must be sent as a file", good | {"image": "/etc/passwd"}, {}),
        case("mask as a path", 400, "`mask` must be sent as a file", inpaint | {"mask": "/etc/passwd"}, whole),
        case("noise is text", 422, "`noise_std` must be a number, got 'loud'", good | {"noise_std": "loud"}, image),
        case("noise is NaN", 422, "`noise_std` must be a finite number on [0, 10]", good | {"noise_std": "nan"}, image),
        case("noise below 0", 422, "`noise_std` must be a finite number on [0, 10]", good | {"noise_std": "-1"}, image),
        case("noise infinite", 422, "got 'inf'", good | {"noise_std": "inf"}, image),
        case("seed too large", 422, "`seed` must be a whole number from 0", good | {"seed": str(2**63)}, image),
        case("seed with underscore", 422, "`seed` must be a whole number, got '1_0'", good | {"seed": "1_0"}, image),
        case("other evaluations", 422, "`evaluations` must be one of", good | {"evaluations": "3"}, image),
        case(
            "endless evaluations", 422, "`evaluations` must be a whole number", good | {"evaluations": "9" * 9}, image
        ),
        case("unknown prior", 422, "`prior` must be one of 'fashion'", good | {"prior": "../photo"}, image),
        case("unknown format", 422, "`format` must be one of", good | {"format": "exe"}, image),
        case("negative deadline", 422, "`deadline` must be a finite number", good | {"deadline": "-1"}, image),
        case("alone is text", 422, "`alone` must be true or false", good | {"alone": "maybe"}, image),
        case("factor of sr4", 422, "`factor` does not apply to sr4", good | {"factor": "2"}, image),
        case(
            "factor 3",
            422,
            "`factor` must be one of 2, 4, 8",
            good | {"operator": "super_resolution", "factor": "3"},
            image,
        ),
        case("no mask", 422, "`mask` must be given for inpainting", inpaint, whole),
        case(
            "mask of another size",
            422,
            "`mask` must have the size (32, 32)",
            inpaint,
            whole | {"mask": npy(np.ones((16, 16)))},
        ),
        case("mask of nothing", 422, "add invert_mask", inpaint, whole | {"mask": npy(np.zeros((32, 32)))}),
        case(
            "mask and missing",
            422,
            "`mask` and `missing` exclude each other",
            {"operator": "inpaint_random", "noise_std": "0", "missing": "0.5"},
            whole | {"mask": npy(np.ones((32, 32)))},
        ),
        case(
            "only simulations have a mask",
            422,
            "`mask` must be given for inpaint_random of a measurement",
            {"operator": "inpaint_random", "noise_std": "0"},
            whole,
        ),
        case("no kernel", 422, "`kernel` must be given for blur", blur, whole),
        case(
            "kernel of sum 0", 422, "`kernel` must have a positive sum", blur, whole | {"kernel": npy(np.zeros((3, 3)))}
        ),
        case("kernel too large", 413, "`kernel` must have at most", blur, whole | {"kernel": npy(np.ones((1, 300)))}),
        case(
            "endless motion",
            422,
            "`motion_length` must be at most",
            {"operator": "motion_deblur", "noise_std": "0", "motion_length": "1e9"},
            whole,
        ),
        case(
            "endless blur",
            422,
            "`blur_std` must be at most",
            {"operator": "gaussian_blur", "noise_std": "0", "blur_std": "1e9"},
            whole,
        ),
        case(
            "unknown boundary",
            422,
            "did you mean 'reflect'",
            blur | {"boundary": "reflekt"},
            whole | {"kernel": npy(np.ones((3, 3)))},
        ),
        case("empty image", 415, "got an empty file", good, {"image": b""}),
        case(
            "image of another kind",
            415,
            "`image` must be a PNG, JPEG or .npy file",
            good,
            {"image": b"GIF89a" + b"\0" * 50},
        ),
        case("truncated PNG", 400, "`image` cannot be read as an image", good, {"image": cut[: len(cut) // 2]}),
        case("truncated header", 400, "`image` cannot be read as an image", good, {"image": cut[:20]}),
        case(
            "truncated 16 bit PNG",
            400,
            "`image` cannot be read as an image",
            good,
            {"image": png(grey(32, 32), 16)[:-900]},
        ),
        case(
            "truncated JPEG",
            400,
            "`image` cannot be read as an image",
            good,
            {"image": images.encode(grey(64, 64), 8, "jpeg")[:200]},
        ),
        case("JPEG of many scans", 400, "`image` must have at most 100 scans", good, {"image": many_scans()}),
        case("decompression bomb", 413, "`image` must have at most", good, {"image": huge_png(20000, 20000)}),
        case("larger bomb", 413, "`image` must have at most", good, {"image": huge_png(2**30, 2**30)}),
        case(
            "too many pixels",
            413,
            "must have at most 4096 pixels",
            good | {"operator": "denoise"},
            {"image": png(grey(65, 64))},
        ),
        case(
            "restored too large",
            413,
            "the restored image must have at most 4096 pixels",
            good,
            {"image": png(grey(17, 16))},
        ),
        case("pickle", 400, "got objects, which only a pickle can hold", good, {"image": npy_objects()}),
        case("pickle as a kernel", 400, "objects, which only a pickle", blur, whole | {"kernel": npy_objects()}),
        case("npz", 415, "got a file that begins with 50 4b", good, {"image": b"PK\x03\x04" + b"\0" * 99}),
        case(
            "endless array",
            413,
            "must have at most 4096 pixels",
            good,
            {"image": npy_header(header % ("<f4", (2**40, 2**20)))},
        ),
        case("negative array", 400, "without an empty one", good, {"image": npy_header(header % ("<f4", (-1, 8)))}),
        case("array without axes", 400, "one to three axes", good, {"image": npy(np.float32(1))}),
        case(
            "array cut short",
            400,
            "`image` must hold 256 bytes after its header, got 128",
            good,
            {"image": image["image"][:-128]},
        ),
        case("array too long", 400, "`image` must hold 256 bytes", good, {"image": image["image"] + b"\0"}),
        case("broken header", 400, "its header cannot be read", good, {"image": npy_header("(" * 5000)}),
        case(
            "header that calls",
            400,
            "its header cannot be read",
            good,
            {"image": npy_header("__import__('os').abort()")},
        ),
        case("structured array", 400, "must hold real numbers", good, {"image": npy(np.zeros(4, "f4,i4"))}),
        case(
            "complex image", 400, "must hold real numbers, got complex64", good, {"image": npy(np.zeros((8, 8), "c8"))}
        ),
        case(
            "integers",
            422,
            "`image` must hold floats on [0, 1], got uint8",
            good,
            {"image": npy(np.zeros((8, 8), "u1"))},
        ),
        case("NaN", 422, "`image` must be finite", good, {"image": npy(np.full((8, 8), np.nan, "f4"))}),
        case("NaN kernel", 422, "`kernel` must be finite", blur, whole | {"kernel": npy(np.full((3, 3), np.inf))}),
        case("255 levels", 422, "`image` must lie on [0, 1] but for noise", good, {"image": npy(255 * grey())}),
        case("four channels", 422, "with C = 1 or 3", good, {"image": npy(grey(channels=4))}),
        case("two channels", 422, "with C = 1 or 3", good, {"image": npy(grey(channels=2))}),
        case("a signal", 422, "`image` must have shape (H, W)", good, {"image": npy(np.zeros(8, "f4"))}),
        case("colour for a grey prior", 422, "for the prior 'fashion'", good, {"image": npy(grey(channels=3))}),
        case("no samples", 422, "`image` must be given: the measurement, a .npy file", mri, {"mask": scan["mask"]}),
        case("samples as a picture", 415, "`image` must be a .npy file, got a picture", mri, scan | {"image": cut}),
        case(
            "real samples", 422, "must hold complex samples (H, W), or (coils, H, W), got float32 (2, 16, 16)", mri,
            scan | {"image": npy(grey(16, 16, 2))},
        ),
        case("samples on a line", 422, "got complex64 (16,)", mri, scan | {"image": npy(samples(16))}),
        case("four axes of samples", 400, "one to three axes", mri, scan | {"image": npy(samples(1, 1, 16, 16))}),
        case("NaN sample", 422, "`image` must be finite", mri, scan | {"image": npy(np.full((16, 16), np.nan, "c8"))}),
        case(
            "sample beyond float32", 422, "`image` must hold numbers of float32, got up to 1e+39", mri,
            scan | {"image": npy(np.full((16, 16), 1e39, "c16"))},
        ),
        case(
            "pickle of samples", 400, "must hold numbers, got objects, which only a pickle can", mri,
            scan | {"image": npy_objects()},
        ),
        case(
            "too many coils", 413, "`image` must have at most 32 coils, got 33", mri,
            scan | {"image": npy(samples(33, 4, 4))},
        ),
        case(
            "endless coils", 413, "`maps` must have at most 4096 pixels", mri,
            coils | {"maps": npy_header(header % ("<c8", (2, 2**30, 2**30)))},
        ),
        case("no sampling mask", 422, "`mask` must be given for mri", mri, {"image": scan["image"]}),
        case(
            "only simulations have an acceleration", 422, "`mask` must be given for mri", mri | {"acceleration": "4"},
            {"image": scan["image"]},
        ),
        case(
            "sampling mask of another size", 422, "`mask` must have the size (16, 16) of `image`, got (8, 16)", mri,
            scan | {"mask": npy(np.ones((8, 16)))},
        ),
        case(
            "sampling mask in colour", 422, "`mask` must have the size (1, 16, 16) of `image`, got (3, 16, 16)", mri,
            scan | {"mask": npy(np.ones((3, 16, 16)))},
        ),
        case("coils without maps", 422, "(H, W), or `maps` must give its coils, got (2, 16, 16)", mri, coils),
        case(
            "maps of other coils", 422, "samples must have shape (3, H, W), the coils of `maps`, got (2, 16, 16)", mri,
            coils | {"maps": npy(samples(3, 16, 16))},
        ),
        case(
            "maps of another size", 422, "`maps` must have the size (H, W) = (16, 16) of the mask", mri,
            coils | {"maps": npy(samples(2, 16, 8))},
        ),
        case(
            "real maps", 422, "`maps` must be complex of shape (coils, H, W), got float32 (2, 16, 16)", mri,
            coils | {"maps": npy(grey(16, 16, 2))},
        ),
        case(
            "maps beyond float32", 422, "`maps` must hold numbers of float32", mri,
            coils | {"maps": npy(np.full((2, 16, 16), 1e300, "c16"))},
        ),
        case("maps as a picture", 415, "`maps` must be a .npy file", mri, coils | {"maps": png(grey(16, 16))}),
        case("npz of samples", 415, "`image` must be a .npy file, got a file", mri, scan | {"image": b"PK\x03\x04"}),
        case(
            "maps too wide", 413, "`maps` must have at most 1024 pixels a side, got (1, 1, 1025)", mri,
            scan | {"maps": npy(samples(1, 1, 1025))},
        ),
        case("maps for another operator", 422, "`maps` does not apply to blur", blur, whole | {"maps": b""}),
        case("complex magnitudes", 400, "must hold real numbers, got complex64", phase, {"image": scan["image"]}),
        case("magnitudes on a line", 422, "must hold real magnitudes (H, W)", phase, {"image": npy(np.ones(4))}),
        case("magnitudes as a picture", 415, "`image` must be a .npy file", phase, {"image": cut}),
        case(
            "magnitudes in colour", 422, "`image`: phase_retrieval takes grey pictures, got one in colour", phase,
            {"image": npy(grey(32, 32, 3))},
        ),
        case("padded to an odd size", 422, "of an image padded 2 times", phase, {"image": npy(grey(33, 32))}),
        case("too many starts", 422, "`starts` must be at most 16, got 17", phase | {"starts": "17"}, spectrum),
        case("no start", 422, "`starts` must be a whole number from 1", phase | {"starts": "0"}, spectrum),
        case("undersampled", 422, "`oversampling` must be at least 1", phase | {"oversampling": "0.5"}, spectrum),
        case("no picture is so small", 422, "padded 1e+09 times", phase | {"oversampling": "1e9"}, spectrum),
        case("no kernels", 422, "`kernel` must be given for nonlinear_deblur", shaken, whole),
        case(
            "too many kernels", 413, "`kernel` must have at most 16 kernels, got 17", shaken,
            whole | {"kernel": npy(np.ones((1, 17, 3, 3)))},
        ),
        case(
            "kernels too large", 413, "`kernel` must have at most 255 pixels a side", shaken,
            whole | {"kernel": npy(np.ones((1, 1, 256, 1)))},
        ),
        case("five axes", 400, "one to four axes", shaken, whole | {"kernel": npy(np.ones((1, 1, 1, 3, 3)))}),
        case(
            "one kernel of sum 0", 422, "`kernel` must have a positive sum", shaken,
            whole | {"kernel": npy(np.arange(2.0)[:, None, None, None])},
        ),
        case("complex kernel", 400, "`kernel` must hold real numbers", shaken, whole | {"kernel": scan["image"]}),
        case("kernels of a plain blur", 400, "one to three axes", blur, whole | kernels),
        case("gamma too small", 422, "`gamma` must be a number on [0.1", shaken | {"gamma": ".01"}, whole | kernels),
        case(
            "exposure too large", 422, "`exposure` must be a number on [0.01, 100]", shaken | {"exposure": "1e9"},
            whole | kernels,
        ),
        case("shaken 255 levels", 422, "must lie on [0, 1]", shaken, kernels | {"image": npy(255 * grey())}),
    ]  # fmt: skip


def npy_objects() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}, None], dtype=object), allow_pickle=True)
    return file.getvalue()


def descendants(pid: int) -> list[int]:
    """Processes that a process has started, and theirs; whichever thread of it did."""
    lists = pathlib.Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(child) for text in lists for child in text.read_text().split()]
    return [p for child in children for p in (child, *descendants(child))]
