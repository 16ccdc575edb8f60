"""GloVe (Pennington et al. 2014) on the State of the Union addresses: counts within 10 words, 100 numbers a word.

    python scripts/train.py --config=configs/lineage/glove.py --workdir=runs/glove
    python scripts/words.py --workdir=runs/glove --export=glove.glove.txt --nearest=war

Expect: a loss of 0.058 per cell; Spearman's rho 0.30 on the 201 pairs of WordSim-353 that have vectors, 2.3 % of the 4,840 analogies of
questions-words.txt that can be asked: five passes over the counts of so little text leave it behind word2vec, and nothing here was
tuned. 30 seconds of steps on 2 cores of an AMD EPYC, 870,000 cells a second; counting comes before.
"""

from lm.config import default


def get_config():
    """The config."""
    config = default()
    config.model.name = "glove"
    config.model.width = 100
    config.objective.name = "glove"
    config.objective.window = 10
    config.objective.x_max = 10.0
    config.data.source = "sotu"
    config.data.tokenizer = "words"
    config.data.vocab_size = 20_000
    config.data.min_count = 5
    # A row is 256 cells of the co-occurrence matrix.
    config.data.context = 256
    config.data.global_batch = 64
    config.train.steps = "5 epochs"
    config.train.log_every = 100
    config.optim.name = "adagrad"
    config.optim.learning_rate = 0.1
    config.optim.schedule = "linear"
    config.optim.final_ratio = 0.0
    config.optim.clip = 0.0
    config.checkpoint.every = 0
    config.eval.split = "none"
    return config
