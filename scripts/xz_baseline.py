"""What a general compressor makes of a config's validation text, in bits per byte: a scale for a language model's number.

    python scripts/xz_baseline.py --config=configs/quickstart.py

`alone` is `xz -9e` of the validation documents; `primed` is what they add to an archive that starts with the training text.
"""

import lzma

from lm import cli


def main(argv):
    """Entry point."""
    parser = cli.Parser(description=__doc__)
    parser.add_config()
    arguments, overrides = parser.parse_with_overrides(argv)
    config = cli.load_config(arguments, overrides)
    from lm.data.sources import open_source
    from lm.data.splits import Fractions, split_of

    fractions = Fractions(config.data.validation_fraction, config.data.test_fraction)
    parts = {"train": [], "validation": [], "test": []}
    for spec in config.data.source:
        for document in open_source(spec, config.data).documents():
            text = document.text.encode()
            parts[split_of(text, fractions)].append(text)
    training, held_out = b"".join(parts["train"]), b"".join(parts["validation"])
    alone = 8 * size(held_out) / len(held_out)
    primed = 8 * (size(training + held_out) - size(training)) / len(held_out)
    cli.print_result({"bytes": len(held_out), "alone": alone, "primed": primed})


def size(text: bytes) -> int:
    """Bytes of the text after `xz -9e`."""
    return len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))


if __name__ == "__main__":
    cli.run(main)
