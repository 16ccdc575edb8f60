"""A config explained before anything runs: parameters, what is done to them, FLOPs and memory, on each device of a mesh. No text is read,
but where words are to be counted.
"""

from lm.describe.collectives import text_of_collectives
from lm.describe.config import Place, describe, place_of
from lm.describe.difference import compare
from lm.describe.html import html_of, html_of_difference
from lm.describe.page import bytes_per_device, text_of, text_of_difference
from lm.describe.planned import describe_plan

__all__ = ["Place", "bytes_per_device", "compare", "describe", "describe_plan", "html_of", "html_of_difference", "place_of", "text_of",
           "text_of_collectives", "text_of_difference"]
