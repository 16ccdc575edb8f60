"""What a forward pass keeps for the backward pass, before anything is compiled."""

from lm import models
from lm.plan.analytic import lower_bound
from lm.plan.topology import Topology


def activations(config, model, topology: Topology | None, devices: int) -> dict[str, int | None]:
    """{"activations", "logits"}: bytes that a device keeps of its rows at the least, by the trace of a step and model.remat; a compiled
    plan knows how many they are. None for both where batches follow from words that are yet to be counted, or nothing is trained.
    """
    if isinstance(model, models.CountedModel) or config.data.tokenizer == "words":
        return {"activations": None, "logits": None}
    parts = lower_bound(config, topology or Topology("cpu", (devices,))).parts
    return {name: int(parts[name]) for name in ("activations", "logits")}
