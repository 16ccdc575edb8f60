"""A small LSTM on the State of the Union addresses."""


from lm.config import default


def get_config():
    """The config."""
    config = default()
    config.model.name = "lstm"
    config.model.layers = 2
    config.model.width = 448
    config.model.embedding_width = 256
    config.data.context = 256
    config.data.global_batch = 16
    config.train.steps = 100
    config.optim.weight_decay = 0.1
    config.optim.warmup = "5%"
    return config
