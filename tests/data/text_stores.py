"""Texts in files, how tests prepare them, and what makes two stores the same."""

import json
import pathlib

from lm import config

TEXTS = [f"document {i}: " + " ".join(str(i * j % 89) for j in range(i % 17)) for i in range(300)]


def write_texts(root):
    """TEXTS, one a line, in three files of the folder `in` of root."""
    (root / "in").mkdir()
    for part in range(3):
        (root / "in" / f"{part}.txt").write_text("\n".join(TEXTS[part::3]) + "\n")


def options(root, **values):
    """The data keys that prepare these texts as bytes, or as `values` say."""
    data = config.default().data
    data.update({"source": (f"text:{root}/in/*.txt",), "documents": "line", "tokenizer": "bytes", "cache_dir": str(root / "cache"),
                 "workers": 1, "validation_fraction": 0.2, "test_fraction": 0.1} | values)
    return data


def contents(folder):
    """{name: bytes} of a store, without the times in its manifest."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in pathlib.Path(folder).rglob("*") if path.is_file()}
    manifest = json.loads(found.pop("manifest.json"))
    return found | {"manifest": {key: value for key, value in manifest.items() if key not in ("seconds", "tokens_per_second")}}
