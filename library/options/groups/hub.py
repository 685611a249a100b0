"""Options about copies of saved files on the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from library.options.spec import OptionGroup, opt

_REPO_ID = re.compile(r"\w([\w.-]*\w)?/\w([\w.-]*\w)?", re.ASCII)
REPO_TYPES = ("model", "dataset", "space")
_VISIBILITIES = ("public", "private")
_LONGEST_REPO_ID = 96  # what the hub accepts


@dataclass(frozen=True, kw_only=True)
class HubOptions(OptionGroup):
    """Copies of saved files on the Hugging Face hub."""

    title: ClassVar[str] = "Upload"

    huggingface_repo_id: str | None = opt(
        None, "Upload every saved file to this repository, owner/name; it is made if it is missing."
    )
    huggingface_repo_type: str | None = opt(
        None, "Type of the repository: model, dataset or space. Not set means model."
    )
    huggingface_path_in_repo: str | None = opt(None, "Folder in the repository. Not set means its root.")
    huggingface_token: str | None = opt(
        None, "Access token. Not set means the login of the hub's own client (HF_TOKEN, hf auth login).", secret=True
    )
    huggingface_repo_visibility: str | None = opt(
        None, "Who sees a repository that is made: public or private. Not set means private."
    )
    save_state_to_huggingface: bool = opt(False, "Upload saved states too.")
    resume_from_huggingface: bool = opt(False, "--resume names a state on the hub: owner/repo/path[:revision[:type]].")
    async_upload: bool = opt(False, "Upload while training goes on.", no_effect="uploads always run in the background")

    def check(self) -> Iterator[str]:
        repo, folder = self.huggingface_repo_id, self.huggingface_path_in_repo
        if repo is not None and not _is_repo_id(repo):
            yield f"--huggingface_repo_id is owner/name, got {repo!r}. Letters, digits, - _ and . are allowed."
        for name, known in (("huggingface_repo_type", REPO_TYPES), ("huggingface_repo_visibility", _VISIBILITIES)):
            value = getattr(self, name)
            if value is not None and value not in known:
                yield f"--{name} is one of {', '.join(known)}, got {value!r}."
        if repo is None and self.save_state_to_huggingface:
            yield "--save_state_to_huggingface needs --huggingface_repo_id to say where to."
        if folder is not None and ("\\" in folder or ".." in folder.split("/")):
            yield f"--huggingface_path_in_repo is a folder in the repository such as loras/cat, got {folder!r}."

    def without_effect(self) -> Iterator[tuple[str, str]]:
        if self.huggingface_repo_id is not None:
            return
        names = ("huggingface_repo_type", "huggingface_path_in_repo", "huggingface_repo_visibility")
        for name in names:
            yield name, "nothing is uploaded without --huggingface_repo_id"
        if not self.resume_from_huggingface:
            yield "huggingface_token", "nothing is uploaded without --huggingface_repo_id"


def _is_repo_id(text: str) -> bool:
    """Whether the hub would accept it: its rules, so that a mistyped name is found before training."""
    is_forbidden = "--" in text or ".." in text or text.endswith(".git")
    return len(text) <= _LONGEST_REPO_ID and bool(_REPO_ID.fullmatch(text)) and not is_forbidden
