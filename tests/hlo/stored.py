"""A Llama's train step as the TPU compiler gave it, and what it must do by closed forms.

    python tests/hlo/stored.py      compiles it again, prints what XLA counts in it, and stores its text
"""

import gzip
import pathlib
import re
import sys

FILE = pathlib.Path(__file__).with_name("llama_v5e.txt.gz")
LAYERS, WIDTH, FF, VOCABULARY, CONTEXT, ROWS, DEVICES = 2, 256, 512, 512, 256, 8, 4
LAYER = 4 * WIDTH * WIDTH + 3 * WIDTH * FF  # weights of its matrices


def text() -> str:
    """The stored one: v5e:2x2, libtpu 0.0.52, bfloat16, full remat, untied embeddings, parameters cut over four devices."""
    return gzip.decompress(FILE.read_bytes()).decode()


def compiled() -> tuple[str, dict]:
    """(text, what `cost_analysis` says of it) of the same step from the compiler that is here; its paths are those of no machine."""
    from lm.plan import topology
    from lm.plan.absent import job_of
    from lm.plan.program import compile_job
    from tests.plan.tiny import tiny

    config = tiny(model__ff_width=FF, data__vocab_size=VOCABULARY, data__context=CONTEXT, data__global_batch=ROWS, model__layers=LAYERS,
                  model__width=WIDTH, model__tie_embeddings=False, model__attention_kernel="xla")
    program = compile_job(job_of(config, topology.devices(topology.parse("v5e:2x2"))))
    return re.sub(r'"/[^"]*?/((?:lm|tests|site-packages)/[^"]*)"', r'"/checkout/\1"', program.text), program.cost


def product_flops() -> float:
    """Of one device: forward, twice that backward, and forward again for all but a layer's last product, whose result nothing needs."""
    tokens = ROWS // DEVICES * CONTEXT
    matrices = 3 * 2 * tokens * WIDTH * VOCABULARY + LAYERS * 2 * tokens * (4 * LAYER - WIDTH * FF)
    # Two products of attention forward and again, and four backward. Blocks of 64 queries see no later blocks of keys.
    blocks = CONTEXT // 64
    seen = sum(range(1, blocks + 1)) / blocks**2
    return matrices + LAYERS * 8 * 2 * tokens * CONTEXT * WIDTH * seen


def gathered_bytes() -> int:
    """Of one device, in bfloat16: the matrices of layers forward and, after full remat, again backward; and both vocabularies."""
    return 2 * (2 * LAYERS * LAYER + 2 * VOCABULARY * WIDTH)


if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
    found, cost = compiled()
    FILE.write_bytes(gzip.compress(found.encode(), 9, mtime=0))
    print(f"{FILE.name}: {FILE.stat().st_size:,} bytes; XLA counts {cost['flops']:,.0f} FLOPs")
