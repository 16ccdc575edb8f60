"""What a chip can do: its peaks, memory, links and price, from data sheets.

Sources. [G] Google Cloud, "TPU v4", "TPU v5e", "TPU v5p", "TPU v6e" and "TPU7x", system architecture pages, read in November 2026.
[S] Austin et al. 2025, "How to Scale Your Model", part 2: tables of chips and of links, and appendix C. [J] Jouppi et al. 2023, "TPU v4".
[X] what the TPU compiler (libtpu 0.0.52) takes of itself, read from programs that it compiled.
"""

from dataclasses import dataclass

from lm.metrics.flops import KNOWN_PEAKS

_GB, _GIB, _MIB = 1e9, 2**30, 2**20
_GBIT = 1e9 / 8
# Operations a cycle of the vector unit of a core: four in each of 8 x 128 lanes since v5, two on v4 [S, appendix C].
_VECTOR, _VECTOR_V4 = 4 * 8 * 128, 2 * 8 * 128


@dataclass(frozen=True)
class Chip:
    """One chip of a kind.

    All is of a whole chip, of which JAX sees `devices_per_chip` devices. `peak_flops`: FLOP/s of matrix products by the type of their
    operands, in tiles of `tile` x `tile`. `vector_rate`: operations/s on float32 elsewhere. Bytes/s: `hbm_bandwidth`, `link_bandwidth` of
    one link in one direction, `dcn_bandwidth` of the network between slices, `host_bandwidth` to the host's memory, each one way.
    `product_share` and `hbm_share`: what of the peak and of the bandwidth a program can have. Links form a torus of `dimensions`, whose
    sides close into rings where `ring` divides their length. An instruction takes `start_cycles` besides its work. `price_per_hour`: USD.
    """

    kind: str
    devices_per_chip: int
    peak_flops: dict[str, float]
    product_share: float
    tile: int
    vector_rate: float
    clock_hz: float
    start_cycles: int
    vmem_bytes: int
    hbm_bytes: int
    hbm_bandwidth: float
    hbm_share: float
    link_bandwidth: float
    dimensions: int
    ring: int
    dcn_bandwidth: float
    host_bandwidth: float
    price_per_hour: float

    def closed(self, shape: tuple[int, ...]) -> tuple[bool, ...]:
        """Which sides of a slice are rings and not lines: of two dimensions each for itself [S], of three all of a slice made of whole
        cubes, whose faces the optical switches join [J, section 2], or none."""
        rings = tuple(side % self.ring == 0 for side in shape)
        return rings if self.dimensions == 2 else (all(rings),) * len(shape)


def _chip(kind, peak, *, devices=1, share, tile=128, cores, lanes=_VECTOR, clock, start, vmem, hbm, bandwidth, hbm_share, link, dimensions,
          ring, dcn, host, price) -> Chip:
    """A row of the table: `peak` FLOP/s of bfloat16 products, `vmem` MiB, `hbm` GiB, `bandwidth`, `link` and `host` GB/s, `dcn` Gb/s."""
    # XLA's default precision rounds float32 operands to bfloat16 and takes them through the matrix units once.
    peaks = dict.fromkeys(("bf16", "f32", "f16"), peak)
    return Chip(kind, devices, peaks, share, tile, cores * lanes * clock, clock, start, vmem * _MIB, hbm * _GIB, bandwidth * _GB,
                hbm_share, link * _GB, dimensions, ring, dcn * _GBIT, host * _GB, price)


# peak, hbm, bandwidth, dcn: [G], v4's dcn and all of link and host: [S]. Clocks are the peak over the FLOPs that the matrix units do in a
# cycle, [J] for v4. product_share is [X]: cycles that the compiler expects of a bfloat16 product of 8,192 cubed, against the peak.
# hbm_share is [X] too: bytes/s in XLA's `optimal_seconds` of the sum of two large arrays, against the data sheet; of v6e and tpu7x it
# takes all, which no DRAM gives, as it must refresh itself: 0.9, as for v5e. start is [X]: the fewest cycles that it expects of a fusion
# that multiplies no matrices. hbm of v5p is 96 and not the 95 GB of [G]: its compiler
# grants programs 95.7 GiB [X], and a bound must never rule out what fits. Prices: lists, on demand, in the US, November 2026.
CHIPS = {chip.kind: chip for chip in (
    _chip("v4", KNOWN_PEAKS["TPU v4"], share=0.93, cores=2, lanes=_VECTOR_V4, clock=1.05e9, start=610, vmem=2 * 16, hbm=32,
          bandwidth=1228, hbm_share=0.8, link=45, dimensions=3, ring=4, dcn=50, host=16, price=3.22),
    _chip("v5e", KNOWN_PEAKS["TPU v5e"], share=0.88, cores=1, clock=1.5e9, start=1820, vmem=128, hbm=16, bandwidth=819, hbm_share=0.9,
          link=45, dimensions=2, ring=16, dcn=25, host=16, price=1.20),
    _chip("v5p", KNOWN_PEAKS["TPU v5p"], share=0.90, cores=2, clock=1.75e9, start=2120, vmem=2 * 64, hbm=96, bandwidth=2765, hbm_share=0.85,
          link=90, dimensions=3, ring=4, dcn=50, host=16, price=4.20),
    _chip("v6e", KNOWN_PEAKS["TPU v6e"], share=0.70, tile=256, cores=1, clock=1.75e9, start=2120, vmem=128, hbm=32, bandwidth=1638,
          hbm_share=0.9, link=90, dimensions=2, ring=16, dcn=100, host=32, price=2.70),
    _chip("tpu7x", 2 * KNOWN_PEAKS["TPU7x"], devices=2, share=0.80, tile=256, cores=2, clock=2.2e9, start=2300, vmem=2 * 64, hbm=192,
          bandwidth=7380, hbm_share=0.9, link=90, dimensions=3, ring=4, dcn=100, host=32, price=12.00),
)}
