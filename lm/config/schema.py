"""Every key of a run, by its full name. Nothing outside this table is a key."""

from lm.config.data_keys import DATA
from lm.config.key import Key
from lm.config.model_keys import MODEL
from lm.config.objective_keys import OBJECTIVE
from lm.config.run_keys import OPTIM, REST, TRAIN

SCHEMA: dict[str, Key] = MODEL | DATA | OBJECTIVE | OPTIM | TRAIN | REST
