"""What the families of decoders share: non-linearities by name, and the entries that all of them have."""

from collections.abc import Callable

from lm.interop.families.base import Family, Reading
from lm.interop.families.ours import family
from lm.models import Sizes

# Their name of a non-linearity to ours; a model that was trained here gets the first name that fits.
PLAIN = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu_fast": "gelu", "gelu_accurate": "gelu", "gelu": "gelu_erf",
         "gelu_python": "gelu_erf", "quick_gelu": "quick_gelu", "relu": "relu", "relu2": "relu2", "silu": "silu", "swish": "silu"}
GATED = {"silu": "swiglu", "swish": "swiglu", "gelu_pytorch_tanh": "geglu", "gelu_new": "geglu", "gelu_fast": "geglu", "gelu": "geglu_erf"}
# Objectives whose models see the past alone, as a causal model of theirs does.
CAUSAL = ("causal", "infill")


def called(activation: str, names: dict[str, str]) -> str:
    """Their name of one of our non-linearities; where there is none, a name that reads back as another one."""
    return next((theirs for theirs, ours in names.items() if ours == activation), next(iter(names)))


def decoder(name: str, read: Callable[[dict, set[str]], Reading], describe: Callable) -> Family:
    """A family of decoders. `describe(model, spec)` gives the config.json of a model whose keys and `Spec` these are."""
    def whole(model, spec, sizes: Sizes) -> dict:
        # Without an entry the other ids would be those of the published model, which may not even have a row here.
        ids = {"bos_token_id": sizes.bos, "eos_token_id": None, "pad_token_id": None}
        return describe(model, spec) | ids | {"vocab_size": sizes.vocab, "initializer_range": 0.02, "use_cache": True}

    return family("transformer", name, read, whole, CAUSAL)
