"""What a comparison with the transformers library needs to know before it loads anything."""

import json

import pytest

from lm.errors import ConfigError
from lm.interop import parity


@pytest.mark.parametrize("entries", [{}, {"architectures": None}, {"architectures": []}, {"architectures": ["A", "B"]}])
def test_a_folder_that_does_not_name_its_class_is_one_line(tmp_path, entries):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"} | entries))
    with pytest.raises(ConfigError, match=r"config\.json has architectures=.*BertForMaskedLM") as caught:
        parity._architecture(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_class_of_a_folder_is_the_one_that_it_names(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["ElectraForPreTraining"]}))
    assert parity._architecture(tmp_path) == "ElectraForPreTraining"
