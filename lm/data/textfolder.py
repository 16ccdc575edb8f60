"""A TFDS data set of a folder of text files, written as array_record without TensorFlow.

    prepare_text_folder('texts/', 'tfds/')   then   --config.data.source=tfds:text_folder:train --config.data.tfds_dir=tfds/

Import this module only where it is needed: it imports tensorflow_datasets.
"""

import glob
import os

import tensorflow_datasets as tfds

from lm.data.sources import TextSource
from lm.errors import DataError


class TextFolder(tfds.core.GeneratorBasedBuilder):
    """Every .txt file below the manual folder is a record {id, text} of split train."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Give the folder of text files as DownloadConfig(manual_dir=...)."

    def _info(self):
        features = tfds.features.FeaturesDict({"id": tfds.features.Text(), "text": tfds.features.Text()})
        return self.dataset_info_from_configs(features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(os.fspath(dl_manager.manual_dir))}

    def _generate_examples(self, folder):
        for document in _source(folder).documents():
            yield document.id, {"id": document.id, "text": document.text}


def _source(folder: str) -> TextSource:
    return TextSource(f"text:{folder}", os.path.join(glob.escape(folder), "**", "*.txt"), {"documents": "file"})


def prepare_text_folder(folder: str, data_dir: str) -> None:
    """Writes data set text_folder into `data_dir`. Raises DataError when it is already there or the folder has no text."""
    if not os.path.isdir(folder):
        raise DataError(f"{folder} is not a folder")
    _source(folder).shards()
    builder = TextFolder(data_dir=data_dir, file_format="array_record")
    if os.path.exists(builder.data_dir):
        raise DataError(f"{builder.data_dir} is already there: delete it, or choose another folder")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=folder))
