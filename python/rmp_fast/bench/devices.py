"""What the cards can do on paper, each number with its source; the CPU is measured instead."""

from __future__ import annotations

import dataclasses

from .cost import KINDS, Work

__all__ = ["DEVICES", "Device", "known"]

# Copies, read plus written, on H100 and H200 against their data sheets: 3.0 of 3.35 and 4.3 of 4.8 TB/s.
_MEASURED_SHARE = (3.0 / 3.35 + 4.3 / 4.8) / 2


@dataclasses.dataclass(frozen=True)
class Device:
    """Limits of one device.

    Attributes:
        name: in words.
        bandwidth: bytes per second that a plain copy reads plus writes; ``bandwidth_source`` where it is from. On a CPU
            that depends on how many are read, overwritten and written afresh, so it is that of plain passes like the
            kernel (:func:`rmp_fast.bench.observe.plain_passes`).
        rates: instructions per second by kind, and ``"all"`` of any kind; ``rates_source``.
        start: seconds from one kernel's last byte to the next one's full speed, inside a graph.
        host_launch: seconds of the host for one launch without a graph; ``launch_source`` of both.
        processor: a CPU, which computes blurs in a cache while memory waits, and normals while it reads. On a card some
            threads compute while others wait for memory.
        normal: seconds of a standard normal on a processor; cards make them from their instructions.
    """

    name: str
    bandwidth: float
    bandwidth_source: str
    rates: dict[str, float]
    rates_source: str
    start: float
    host_launch: float
    launch_source: str
    processor: bool = False
    normal: float = 0.0

    def memory_seconds(self, work: Work) -> float:
        """Of its bytes at the bandwidth."""
        return work.bytes / self.bandwidth

    def arithmetic_seconds(self, work: Work) -> float:
        """Of its instructions, at the rate of the kind that takes longest."""
        if self.processor:
            return self._floating_seconds(work) + work.normals * self.normal
        counted = work.operations
        return max(*(counted[kind] / self.rates[kind] for kind in KINDS), sum(counted.values()) / self.rates["all"])

    def seconds(self, work: Work) -> float:
        """Of one call: its start, and memory or arithmetic, whichever is slower, or both where they take turns."""
        memory, start = self.memory_seconds(work), self.start * work.launches
        if not self.processor:
            return start + max(memory, self.arithmetic_seconds(work))
        if work.kernel == "normals":  # nothing but its stores waits
            return start + max(memory, work.normals * self.normal)
        floating = self._floating_seconds(work)
        together = memory + floating if work.staged else max(memory, floating)
        # The next tile is fetched while normals are made; what is written waits for them.
        normals, reads = work.normals * self.normal, memory * work.read_share
        return self.start + together + max(0.0, normals - reads)

    def _floating_seconds(self, work: Work) -> float:
        return work.operations_beside_normals["floating"] / self.rates["floating"]


_LAUNCHES = (
    "assumed: 1.5 us from kernel to kernel inside a graph; 5 us of the host for a launch without one, where 4 to 6 us "
    "are reported publicly for CUDA 13"
)
_PIPES = "other kinds as in the table of arithmetic throughput of NVIDIA's CUDA C++ programming guide"


def _card(
    name: str, terabytes: float, source: str, teraflops: float, integer: float, special: float, every: float
) -> Device:
    """Args: integer, special, every: instructions of a kind for one floating-point instruction."""
    floating = teraflops * 1e12 / 2  # data sheets count a fused multiply-add as two
    rates = {
        "floating": floating,
        "integer": floating * integer,
        "special": floating * special,
        "all": floating * every,
    }
    told = f"data sheet: {teraflops:g} TFLOP/s in FP32; {_PIPES}"
    return Device(name, terabytes * 1e12, source, rates, told, 1.5e-6, 5e-6, _LAUNCHES)


def _assumed(sheet: float) -> str:
    return f"data sheet {sheet:g} TB/s, of which a copy is assumed to reach {_MEASURED_SHARE:.1%}, as on H100 and H200"


DEVICES = {
    "a100": _card("NVIDIA A100 SXM 80 GB", 2.039 * _MEASURED_SHARE, _assumed(2.039), 19.5, 1.0, 0.25, 2.0),
    "h100": _card("NVIDIA H100 SXM", 3.0, "measured on such cards, read plus written", 67.0, 0.5, 0.125, 1.0),
    "h200": _card("NVIDIA H200 SXM", 4.3, "measured on such cards, read plus written", 67.0, 0.5, 0.125, 1.0),
    "b200": _card("NVIDIA B200", 8.0 * _MEASURED_SHARE, _assumed(8.0), 75.0, 0.5, 0.125, 1.0),
}

#: What the driver calls them.
_NAMES = {
    "NVIDIA A100-SXM4-80GB": "a100",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
    "NVIDIA B200": "b200",
}


def known(name: str) -> Device | None:
    """The card of :data:`DEVICES` that the driver calls so, or None: others of its family have other limits."""
    return DEVICES[_NAMES[name]] if name in _NAMES else None
