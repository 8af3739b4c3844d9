"""Fetches a model ahead of time."""

from headrace.base.config import Model


def run(model: str = Model().path, /) -> None:
    """Fetch a model ahead of time and print where it lies.

    What is there already is checked, and fetched again if it is damaged.

    Parameters
    ----------
    model
        a known name, a folder, a .gguf file, or a repo id on the Hugging Face hub
    """
    from headrace.checkpoint.hub import pull

    print(pull(model))  # noqa: T201 - the answer of this command
