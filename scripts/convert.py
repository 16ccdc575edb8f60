"""Models of the transformers library and of llama.cpp in and out of work directories.

    python scripts/convert.py import --from=HF_DIR_OR_GGUF --workdir=runs/imported
    python scripts/convert.py export --workdir=runs/imported --to=HF_DIR --dtype=bfloat16

An imported model is a run at step 0: scripts/eval.py and generate.py work on it, and configs/continued.py:runs/imported trains on. The last
line of standard output is a JSON object: {"family", "parameters", "max_abs_diff", ...}; with --check, which needs PyTorch and transformers
(the extra parity), max_abs_diff is the largest difference of outputs between both libraries on random tokens, else null.
"""

from lm import cli


def main(argv):
    """Entry point."""
    parser = cli.Parser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="import|export", parser_class=cli.Parser)
    come = commands.add_parser("import", help="a model of another library becomes a run", description="Imports a model.")
    come.add_argument("--from", dest="source", required=True, metavar="PATH",
                      help="a folder with config.json and safetensors, or a .gguf file")
    come.add_argument("--workdir", required=True, help="work directory to make")
    come.add_argument("--tokenizer", metavar="PATH", help="tokenizer of a model that comes without one: a folder or a file")
    come.add_argument("--context", type=int, default=0, help="data.context of the run (default: the model's longest, at most 2,048)")
    go = commands.add_parser("export", help="a run becomes a model that transformers opens", description="Exports a run.")
    go.add_argument("--workdir", required=True, help="work directory of the run")
    go.add_argument("--to", required=True, metavar="FOLDER", help="folder to make")
    go.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="", help="type of the tensors (default: as imported)")
    go.add_argument("--shard_bytes", type=int, default=5_000_000_000, help="most bytes of a file (default: 5e9)")
    go.add_argument("--step", type=int, help="checkpoint to export (default: the latest)")
    for command in (come, go):
        command.add_argument("--check", action="store_true", help="compare the outputs of both libraries (needs the extra parity)")
    arguments = parser.parse_args(argv)
    from lm.data.tokenizer_files import open_tokenizer
    from lm.interop import convert, parity

    if arguments.command == "import":
        tokenizer = open_tokenizer(arguments.tokenizer, lossy=True) if arguments.tokenizer else None
        result, folder = convert.import_run(arguments.source, arguments.workdir, arguments.context, tokenizer), arguments.source
    else:
        result = convert.export_run(arguments.workdir, arguments.to, arguments.dtype, arguments.shard_bytes, arguments.step)
        folder = arguments.to
    if arguments.check:
        came = arguments.command == "import"
        rounded = {} if came else {"step": arguments.step, "dtype": result["dtype"]}
        result["max_abs_diff"] = parity.compare(arguments.workdir, folder, **rounded)
    cli.print_result(result)


if __name__ == "__main__":
    cli.run(main)
