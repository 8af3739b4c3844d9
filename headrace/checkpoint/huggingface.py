"""Fetches a model from the Hugging Face hub: the files we read, and no others."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors
from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]  # whichever library it is

from headrace.base.errors import Refused, UnknownName, Unreachable

PATTERN = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?(:(?P<file>[\w./-]+))?")
BESIDE = (".json", ".jinja", ".model", ".txt")  # what lies beside the weights and may be needed
SHOWN = 20  # file names in a message
PATIENCE = 10.0  # seconds for the hub to say what a repository holds


@dataclass(frozen=True, slots=True)
class Reference:
    """org/name, org/name@revision, and either with :file.gguf or a quantization such as :Q4_K_M behind it."""

    repo: str
    revision: str | None = None
    file: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Reference | None":
        """None where the text is no reference."""
        match = PATTERN.fullmatch(text)
        return cls(**match.groupdict()) if match else None


def fetch(reference: Reference) -> Path:
    """A folder with config.json and safetensors, or a .gguf file, in huggingface-hub's own cache.

    Without a network, what an earlier call fetched. Raises UnknownName for what is not there, Refused for
    what needs a licence accepted or has no weights we read, Unreachable when the hub cannot be reached.
    """
    repo, revision = reference.repo, reference.revision
    with _faults(reference):
        try:
            # Once and shortly: other calls of the library try for half a minute before they believe in no network.
            found = huggingface_hub.HfApi().model_info(repo, revision=revision, timeout=PATIENCE)
        except (HTTPError, OSError) as fault:
            status = fault.response.status_code if isinstance(fault, errors.HfHubHTTPError) else 500
            if status < 500 or (earlier := _cached(reference)) is None:
                raise
            return earlier
        chosen = choose(reference, [sibling.rfilename for sibling in found.siblings or []])
        folder = huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=chosen)
    return _result(Path(folder), chosen)


def fetch_config(reference: Reference) -> Path:
    """The config.json of a repository and nothing else, in huggingface-hub's own cache; raises as `fetch` does."""
    repo, revision = reference.repo, reference.revision
    with _faults(reference):
        try:
            huggingface_hub.HfApi().model_info(repo, revision=revision, timeout=PATIENCE)  # once and shortly
        except (HTTPError, OSError) as fault:
            status = fault.response.status_code if isinstance(fault, errors.HfHubHTTPError) else 500
            earlier = huggingface_hub.try_to_load_from_cache(repo, "config.json", revision=revision)
            if status < 500 or not isinstance(earlier, str):
                raise
            return Path(earlier)
        return Path(huggingface_hub.hf_hub_download(repo, "config.json", revision=revision))


def _result(folder: Path, chosen: list[str]) -> Path:
    return folder / chosen[0] if chosen[0].endswith(".gguf") else folder


def _cached(reference: Reference) -> Path | None:
    """What an earlier call fetched, if it is enough."""
    wanted = reference.revision or "main"
    try:
        repos = huggingface_hub.scan_cache_dir().repos
    except errors.CacheNotFound:
        return None
    for repo in repos:
        for revision in repo.revisions if (repo.repo_type, repo.repo_id) == ("model", reference.repo) else ():
            if wanted == revision.commit_hash or wanted in revision.refs:
                folder = revision.snapshot_path
                files = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
                try:
                    return _result(folder, choose(reference, files))
                except Refused:  # something else of it was fetched
                    return None
    return None


def choose(reference: Reference, files: list[str]) -> list[str]:
    """Which of a repository's files to fetch: one .gguf, or the safetensors with what lies beside them."""
    ggufs = [file for file in files if file.endswith(".gguf") and "mmproj" not in file]
    if reference.file:
        return [_one(reference, _matching(reference.file, ggufs), ggufs)]
    top = [file for file in files if "/" not in file]
    weights = [file for file in top if file.endswith(".safetensors") and not file.startswith("consolidated")]
    if weights:
        return [file for file in top if file.endswith(BESIDE)] + weights
    if ggufs:
        return [_one(reference, ggufs, ggufs)]
    raise Refused(
        f"{reference.repo} has no safetensors and no .gguf file",
        hint="weights in other formats can run code and are never opened; look for another copy of the model",
    )


def _matching(wanted: str, ggufs: list[str]) -> list[str]:
    """The file of that name, or else those whose name ends in that quantization."""
    if wanted in ggufs:
        return [wanted]
    form = re.compile(rf"(.*[-._/])?{re.escape(wanted)}(\.gguf)?", re.IGNORECASE)
    return [file for file in ggufs if form.fullmatch(file)]


def _one(reference: Reference, found: list[str], ggufs: list[str]) -> str:
    if len(found) == 1:
        return found[0]
    listed = ", ".join(sorted(ggufs)[:SHOWN]) or "none"
    hint = f"name one of its .gguf files, as in {reference.repo}:Q4_K_M; there are: {listed}"
    if found:
        names = ", ".join(found[:SHOWN])
        raise Refused(f"{reference.repo} has {len(found)} files that would do: {names}", hint=hint)
    raise UnknownName(f"{reference.repo} has no file for {reference.file!r}", hint=hint)


@contextmanager
def _faults(reference: Reference) -> Iterator[None]:
    """The hub's exceptions as ours."""
    repo = reference.repo
    try:
        yield
    except errors.GatedRepoError as fault:
        raise Refused(
            f"{repo} is for those only who have accepted its terms",
            hint=f"accept them at https://huggingface.co/{repo}, then log in with `hf auth login`",
        ) from fault
    except errors.RepositoryNotFoundError as fault:
        raise UnknownName(
            f"the Hugging Face hub has no model {repo!r} that you may see",
            hint="check the spelling; for a private one log in with `hf auth login`",
        ) from fault
    except (errors.RevisionNotFoundError, errors.RemoteEntryNotFoundError, errors.HFValidationError) as fault:
        raise UnknownName(f"{repo}@{reference.revision or 'main'}: {fault}") from fault
    except (HTTPError, OSError) as fault:  # offline, a proxy, an error of the server, a full disk
        raise Unreachable(
            f"{repo} could not be fetched from the Hugging Face hub: {fault}",
            hint="check the network (HF_ENDPOINT names a mirror, HF_HOME the cache), or copy the model's "
            "folder here by hand and give its path",
        ) from fault
