"""Training: the state and its step (`step`), a run set up (`job`), as a plan has it (`planned`), and the loop around them (`loop`)."""

from lm.train.job import Job, set_up
from lm.train.loop import train
from lm.train.step import TrainState, train_step

__all__ = ["Job", "TrainState", "set_up", "train", "train_step"]
