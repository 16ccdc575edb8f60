"""What `scripts/words.py` does."""

import json
import pathlib

from lm.data.files import write_json
from lm.errors import ConfigError
from lm.run import open_run
from lm.words import files, peer, scores
from lm.words.vectors import Vectors, of_model


def read(workdir: str | None, vectors: str | None, step: int | None = None) -> tuple[Vectors, dict]:
    """(word vectors, where they are from) of a run's checkpoint or of a file; ConfigError unless exactly one is given."""
    if (workdir is None) == (vectors is None):
        raise ConfigError("give either --workdir, of a run, or --vectors, a file of word vectors")
    if vectors is not None:
        return files.load(vectors), {"vectors": vectors}
    run = open_run(workdir)
    params, step = run.parameters(step=step)
    return of_model(run.model, params, run.tokenizer), {"workdir": str(workdir), "step": step}


def report(vectors: Vectors, export: str | None = None, similarity: str | None = None, analogies: str | None = None,
           nearest: str | None = None, count: int = 10) -> dict:
    """Does what is asked of some vectors and says what came of it; the keys are those of the arguments, and words and width."""
    if count < 1:
        raise ConfigError(f"--count={count} is not allowed: it must be at least 1")
    result = {"words": len(vectors.words), "width": vectors.matrix.shape[1]}
    if export:
        files.save(vectors, export)
        result["export"] = export
    if similarity:
        result["similarity"] = scores.similarity(vectors, similarity)
    if analogies:
        result["analogies"] = scores.analogies(vectors, analogies)
    if nearest:
        result["nearest"] = scores.nearest(vectors, nearest, count)
    return result


def against_gensim(workdir: str | None, similarity: str | None, analogies: str | None, nearest: str | None, count: int) -> dict:
    """{"words_per_second", "gensim": what `report` says of gensim's vectors, its words per second, passes and workers} for a run."""
    if workdir is None:
        raise ConfigError("--against=gensim trains on the text of a run: give --workdir, not --vectors")
    run = open_run(workdir)
    vectors, speed = peer.gensim_vectors(run)
    return {"words_per_second": peer.words_per_second(run), "gensim": report(vectors, None, similarity, analogies, nearest, count) | speed}


def keep(workdir: str, result: dict):
    """Leaves what a run's vectors scored, and gensim's beside them, in its scores/words.json, for scripts/results.py."""
    told = _told(result) | {f"gensim_{name}": value for name, value in _told(result.get("gensim", {})).items()}
    file = pathlib.Path(workdir) / "scores" / "words.json"
    if told:
        before = json.loads(file.read_text()) if file.exists() else {}
        kept = before if before.get("step") == result.get("step") else {}
        write_json(file, kept | {"step": result.get("step")} | told)


def _told(result: dict) -> dict:
    """What `report` or `against_gensim` measured, flat."""
    told = {"similarity": result["similarity"]["rho"]} if "similarity" in result else {}
    told |= {"analogy": result["analogies"]["accuracy"]} if "analogies" in result else {}
    return told | ({"words_per_second": result["words_per_second"]} if "words_per_second" in result else {})
