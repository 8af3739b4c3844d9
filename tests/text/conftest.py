"""Small vocabularies of every kind, built once."""

import pytest
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers

from headrace.text.tokenizer import Tokenizer
from headrace.text.vocabulary import Vocabulary
from tests.text.vocabularies import byte_level_metadata, sentence_piece_model


@pytest.fixture(scope="session")
def byte_level() -> Tokenizer:
    return Tokenizer.from_gguf(byte_level_metadata())


@pytest.fixture(scope="session")
def model_file() -> bytes:
    return sentence_piece_model()


@pytest.fixture(scope="session")
def pieces(model_file: bytes, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("pieces")
    (folder / "tokenizer.model").write_bytes(model_file)
    return Tokenizer.from_folder(folder)


@pytest.fixture(scope="session")
def metaspace() -> Tokenizer:
    """A vocabulary whose decoder looks at neighbours."""
    library = Library(
        models.Unigram([("<unk>", 0.0), *((c, -5.0) for c in "▁abcdé"), ("▁ab", -2.0), ("cd", -2.0)], 0)
    )
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    library.add_special_tokens(["<s>"])
    return Tokenizer(Vocabulary(library, {"bos_token": "<s>"}))


@pytest.fixture(scope="session", params=["byte_level", "pieces", "metaspace"])
def any_tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return request.getfixturevalue(request.param)
