"""The configs of published models: their parameters are those that the papers count, and they can be cut over the chips they name."""

import math

import jax
import pytest

from lm import config as configs
from lm import objectives
from lm.parallel import Layout, mesh_sizes
from lm.parallel import layout as layouts
from lm.plan import topology
from lm.plan.absent import tokenizers_of

# Config: (topology, parameters, their source). Exact counts follow from the published shapes and are those of the published weights.
PUBLISHED = {
    "llama.py:7b": ("v5e:16x16", 6_738_415_616, "Touvron et al. 2023a, table 2: 6.7B"),
    "llama.py:13b": ("v5e:16x16", 13_015_864_320, "Touvron et al. 2023a, table 2: 13.0B"),
    "llama.py:70b": ("v5p:8x8x8", 68_976_648_192, "Touvron et al. 2023b: 70B"),
    "llama.py:3-8b": ("v6e:16x16", 8_030_261_248, "Grattafiori et al. 2024: 8B"),
    "llama.py:3-70b": ("v5p:8x8x8", 70_553_706_496, "Grattafiori et al. 2024: 70B"),
    "gpt3.py": ("v5p:8x16x16", 174_604_259_328, "Brown et al. 2020, table 2.1: 175.0B"),
    "t5.py": ("v5e:16x16", 11_307_321_344, "Raffel et al. 2020, section 3.7: 11B"),
    "bert.py": ("v6e:4x4", 336_226_108, "Devlin et al. 2019, section 3: 340M"),
}
ALL = PUBLISHED | {"lstm.py": ("v5e:4x4", 992_149_504, "two layers of 8,192 cells")}


def counted(config) -> int:
    """Parameters of a config's model, without the rows of its tables that stand for no id."""
    objective = objectives.make(config, *tokenizers_of(config))
    model = objective.model(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    # T5 counts the rows of its tables that stand for no id, GPT-3 has none.
    padding = config.model.vocab_rows - objective.vocab_size if config.model.vocab_rows and config.model.name == "transformer" else 0
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) - padding * config.model.width


@pytest.mark.parametrize("name", ALL)
def test_a_large_config_has_the_parameters_that_were_published(name):
    assert counted(configs.load(f"configs/{name}")) == ALL[name][1]


@pytest.mark.parametrize("name", ALL)
def test_a_large_config_can_be_cut_over_its_chips(name):
    config, chips = configs.load(f"configs/{name}"), topology.parse(ALL[name][0]).chips
    sizes = mesh_sizes(config.mesh, chips)
    layouts.check(config, sizes)
    assert config.data.global_batch % (layouts.row_multiple(sizes, Layout.of(config.layout, sizes)) * config.train.accumulate) == 0


def test_a_size_that_was_not_published_is_refused():
    with pytest.raises(Exception, match="there is no Llama 8b: use 7b, 13b, 70b, 3-8b, 3-70b"):
        configs.load("configs/llama.py:8b")
