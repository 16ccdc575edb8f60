"""The keys of the data."""

from lm.config.key import Key, free

DATA = {
    "data.source": Key(("sotu",), "Sources: sotu, text:GLOB, jsonl:GLOB, parquet:GLOB, pairs:GLOB, tfds:NAME:SPLIT or store:DIR.",
                       kind="strings"),
    "data.weights": Key((), "Share of each source in the examples; empty is by their number of tokens.", kind="floats"),
    "data.validation_source": Key("", "Where the validation split comes from; empty is a part of data.source."),
    "data.tfds_dir": Key("", "Folder of prepared TFDS data sets; empty is TFDS's own default."),
    "data.documents": Key("file", "What one document of a text source is.", choices=("file", "line", "paragraph")),
    "data.text_field": Key("text", "Field of jsonl, parquet and TFDS records that holds the text, of pairs the target; a.b is b in a."),
    "data.source_field": Key("", "Field of jsonl, parquet and TFDS records that holds the source of a pair; empty: they hold texts."),
    "data.pair_columns": Key("0,1", "Columns of source and target in the tab-separated lines of pairs: files, from 0."),
    "data.validation_fraction": Key(0.05, "Share of documents held out for validation, by a hash of their text.", minimum=0.0, maximum=0.5),
    "data.test_fraction": Key(0.0, "Share of documents held out for testing, by a hash of their text.", minimum=0.0, maximum=0.5),
    "data.tokenizer": Key("bpe", "bpe or unigram (SentencePiece), bytebpe or wordpiece (with loss; tokenizers), words (lower case, with "
                          "loss), all trained here, bytes, or a path: a SentencePiece .model, a tokenizer.json, a vocab.txt, or a folder "
                          "with one of them or with vocab.json and merges.txt."),
    "data.allow_lossy": Key(False, "Take a SentencePiece .model that cannot give back every text; evaluations then say so."),
    "data.lower_case": Key(True, "Lower case, and no accents, in data.tokenizer=wordpiece."),
    "data.bos_token": Key("", "Token that begins a document; empty is the tokenizer's own."),
    "data.eos_token": Key("", "Token that ends a document; empty is the tokenizer's own."),
    "data.prompt_bos": Key("", "Whether prompts begin with the token that begins a document; empty is as the tokenizer says.",
                           choices=("", "yes", "no")),
    "data.chat_template": Key("", "Jinja of a conversation, or the path of a file with it; empty is the tokenizer's own."),
    "data.vocab_size": Key(4096, "Pieces of a tokenizer trained here.", minimum=264),
    "data.min_count": Key(5, "Occurrences that a word needs to be in the vocabulary of data.tokenizer=words.", minimum=1),
    "data.tokenizer_sample_bytes": Key(20_000_000, "Text that a tokenizer is trained on, in bytes.", minimum=1),
    "data.tokenizer_seed": Key(0, "Draws the text a tokenizer is trained on; not `seed`, so that all seeds share a tokenizer.", minimum=0),
    "data.joint_tokenizer": Key(True, "Of pairs: one tokenizer, learned from both sides, instead of one for each."),
    "data.source_tokenizer": Key("", "Without joint_tokenizer, the sources' tokenizer; empty is the same as data.tokenizer."),
    "data.source_vocab_size": Key(0, "Without joint_tokenizer, pieces of the sources' tokenizer; 0 is data.vocab_size.", minimum=0),
    "data.buckets": Key((), "Lengths below data.context to which pairs are padded, rising; empty is context / 2, / 4, ... down to 16.",
                        kind="floats"),
    "data.context": Key(256, "Tokens T of a row.", minimum=1),
    "data.global_batch": Key(16, "Rows of a step, over all devices and micro-batches.", minimum=1),
    "data.cache_dir": free("", "Where prepared token stores live; empty is $LM_CACHE or ~/.cache/lm."),
    "data.workers": free(0, "Processes that tokenize; 0 is one a core.", minimum=0),
    "data.prefetch": free(2, "Batches prepared ahead of the step.", minimum=1),
}
