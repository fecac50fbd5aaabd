# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Build a model repository or a Space, verify it in a fresh process, and publish it on the Hub in one commit."""

import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    ModelCardData,
    RepoCard,
    get_token,
)
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import httpx
from jinja2.exceptions import UndefinedError

from hf_methods.checkpoints import atomic_save
from hf_methods.fresh_process import pipeline_records


CHECKOUT = Path(__file__).parents[1]
REQUIREMENTS = ("torch>=2.9,!=2.13.0", "transformers>=5.23,<6")  # of every repository; a recipe may add more
EXTRAS = ("results.json", "*.png")  # carried over from the checkpoint beside what `save` writes
READ_BY_FROM_PRETRAINED = {".py", ".json", ".safetensors"}
NO_RIGHT = (
    "the access token may not write to {} ({}): use a token with the role 'write' of an account that owns it or belongs to "
    "its organisation."
)
TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{30,}\b")


@dataclass(frozen=True)
class RepositoryRecipe:
    """What a method says about its repositories.

    Args:
        method: short name; its card is `model_cards/templates/<method>.md`, its Space `spaces/<method>/`.
        save: writes model, processor and code of a checkpoint (a folder or Hub id) into a folder.
        task: the pipeline that a fresh process runs.
        example: {"args": [...], "kwargs": {...}} for that pipeline, as JSON can hold them.
        card_data: metadata of the card for (results, config), both the dictionaries of the JSON files.
        space_checkpoints: folders of `model_cards/` that the Space shows by default, in its order.
        requirements: what the repository's code needs beside torch and transformers.
    """

    method: str
    save: Callable[[str, Path], None]
    task: str
    example: dict[str, Any]
    card_data: Callable[[dict, dict], ModelCardData]
    space_checkpoints: tuple[str, ...]
    requirements: tuple[str, ...] = ()

    @property
    def all_requirements(self) -> tuple[str, ...]:
        """Lines of the repository's requirements.txt."""
        return (*REQUIREMENTS, *self.requirements)


def render_card(recipe: RepositoryRecipe, folder: Path, repo_id: str) -> str:
    """The card of the repository in `folder`, from its results.json and config.json, and the method's paper.json.

    Args:
        recipe: the method's.
        folder: with results.json and config.json.
        repo_id: the name that the examples of use load.

    Raises:
        ValueError: no results.json, without which a card has no figures, or one that lacks what the card needs.
    """
    if not (folder / "results.json").is_file():
        raise ValueError(
            "the checkpoint has no results.json, which the card's figures come from; train.py writes one."
        )
    results, config = _read_json(folder / "results.json"), _read_json(folder / "config.json")
    template = _in_checkout(f"model_cards/templates/{recipe.method}.md")
    paper = _read_json(_in_checkout(f"training/{recipe.method}/paper.json"))
    try:
        data = recipe.card_data(results, config)
        card = ModelCard.from_template(
            data,
            template_path=str(template),
            results=results,
            paper=paper,
            config=config,
            dataset=(data.eval_results or [])[0].dataset_name,
            repo_id=repo_id,
            task=recipe.task,
            plots=sorted(path.name for path in folder.glob("*.png")),
        )
    except (KeyError, TypeError, UndefinedError) as error:
        raise ValueError(f"results.json lacks what the card needs ({error}): write it with train.py.") from error
    return re.sub(r"\n{3,}", "\n\n", str(card)).rstrip() + "\n"  # Jinja leaves a line where a statement was


def build_repository(recipe: RepositoryRecipe, checkpoint: str, folder: str | Path, repo_id: str) -> None:
    """Write `folder` as the Hub repository of a checkpoint; an existing one is replaced when all has succeeded.

    Args:
        recipe: the method's.
        checkpoint: folder of a trained model, with its results.json and plots.
        folder: where to write.
        repo_id: name on the Hub, for the card.

    Raises:
        ValueError: the checkpoint can't be loaded, has no results.json, or one of its files holds an access token.
    """

    def save(aside: Path) -> None:
        recipe.save(checkpoint, aside)
        for pattern in EXTRAS:
            for path in sorted(Path(checkpoint).glob(pattern)):
                shutil.copyfile(path, aside / path.name)
        (aside / "requirements.txt").write_text("\n".join(recipe.all_requirements) + "\n", "utf-8")
        shutil.copyfile(_in_checkout("LICENSE"), aside / "LICENSE")
        (aside / "README.md").write_text(render_card(recipe, aside, repo_id), "utf-8")
        check_no_token(aside)
        for path in aside.rglob("*.safetensors"):
            path.chmod(0o644)  # written for the owner only

    if not Path(checkpoint, "config.json").is_file():
        raise ValueError(f"--checkpoint {checkpoint} is not a folder with a config.json: give a saved model's folder.")
    atomic_save(folder, save)


def check_no_token(folder: Path) -> None:
    """Raise ValueError where a file of `folder` holds what looks like an access token."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix != ".safetensors" and TOKEN.search(path.read_text("utf-8", errors="ignore")):
            raise ValueError(f"{path.name} holds an access token (hf_...): remove it, and revoke the token.")


def verify_repository(recipe: RepositoryRecipe, folder: str | Path) -> None:
    """Load `folder` here, and in a fresh process with nothing but its requirements.txt, and compare the answers.

    Raises:
        ValueError: the pipeline fails here or in the fresh process, or answers something else there.
    """
    folder = Path(folder).resolve()
    try:
        here = pipeline_records(str(folder), recipe.task, recipe.example, trust_remote_code=True)
    except Exception as error:  # foreign weights and configurations fail in many ways
        raise ValueError(f"the pipeline {recipe.task} fails on the repository: {error}") from error
    with tempfile.TemporaryDirectory() as scratch:
        example, output = Path(scratch, "example.json"), Path(scratch, "output.json")
        example.write_text(json.dumps(recipe.example), "utf-8")
        script = Path(__file__).with_name("fresh_process.py")
        env = {
            **{name: value for name, value in os.environ.items() if name != "HF_TOKEN"},
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": scratch,
            "HF_MODULES_CACHE": str(Path(scratch, "modules")),
        }
        result = subprocess.run(
            [sys.executable, "-I", str(script), str(folder), recipe.task, str(example), str(output)],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, env=env, cwd=scratch, check=False,
        )  # fmt: skip
        if result.returncode:
            last = (result.stderr.strip() or "no message").splitlines()[-1]
            raise ValueError(f"a process with only the packages of requirements.txt can't use the repository: {last}")
        there = json.loads(output.read_text("utf-8"))
    if not _same(json.loads(json.dumps(here)), there):
        raise ValueError(f"with the package the answer is {here}, in a process without it {there}.")


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-7)
    return a == b


def build_space(method: str, folder: str | Path, models: list[str]) -> None:
    """Write `folder` as the Space of `method` that shows `models`.

    Args:
        method: short name of the method.
        folder: where to write.
        models: ids of model repositories, in the order that the Space's README.md gives.

    Raises:
        ValueError: no models, or the Space was tested with another gradio than the one in its header.
    """
    if not models:
        raise ValueError("a Space shows published models: give --model ORG/NAME, once for each.")

    def save(aside: Path) -> None:
        shutil.copytree(_in_checkout(f"spaces/{method}"), aside, dirs_exist_ok=True, ignore=lambda *_: ["__pycache__"])
        card = RepoCard.load(aside / "README.md")
        card.data["models"] = models
        card.save(aside / "README.md")
        compile((aside / "app.py").read_text("utf-8"), "app.py", "exec")
        check_no_token(aside)

    atomic_save(folder, save)


@dataclass
class UploadPlan:
    """What a publication changes: paths in the repository."""

    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)


def plan_upload(folder: Path, remote: dict[str, str]) -> UploadPlan:
    """Compare `folder` with the digests of a repository's files.

    A file that lies in the repository only is deleted if `from_pretrained` would read it (code, JSON, weights): it is
    of an older version. Others stay.
    """
    plan = UploadPlan()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        digests = _digests(path)
        plan_list = plan.added if name not in remote else plan.unchanged if remote[name] in digests else plan.changed
        plan_list.append(name)
    local = {*plan.added, *plan.changed, *plan.unchanged}
    plan.deleted = sorted(
        name for name in remote if name not in local and Path(name).suffix in READ_BY_FROM_PRETRAINED
    )
    return plan


def _digests(path: Path) -> tuple[str, str]:
    """git's blob id and the SHA-256 of a file: the Hub gives the one or the other (LFS)."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(), hashlib.sha256(data).hexdigest()


def remote_digests(api: HfApi, repo_id: str, repo_type: str, revision: str) -> dict[str, str]:
    """Digest of each file of a revision."""
    tree = api.list_repo_tree(repo_id, recursive=True, revision=revision, repo_type=repo_type)
    return {item.path: item.lfs.sha256 if item.lfs else item.blob_id for item in tree if isinstance(item, RepoFile)}


def upload(
    folder: str | Path,
    repo_id: str,
    *,
    tag: str,
    repo_type: str = "model",
    private: bool = False,
    revision: str = "main",
    token: str | None = None,
    show: Callable[[UploadPlan], None] = lambda plan: None,
) -> str:
    """Put `folder` on the Hub in one commit, and tag it.

    Weights go up first and become visible with the commit only: an upload that is cut off changes nothing there, and
    running it again sends what is missing.

    Args:
        folder: a folder of `build_repository` or `build_space`.
        repo_id: ORG/NAME; made if it is not there.
        tag: name of the version; an existing one must hold the same files.
        repo_type: "model" or "space".
        private: whether a repository that is made here is private.
        revision: branch to commit to; made if it is not there.
        token: access token with the right to write; the logged-in user's by default.
        show: called with what will change, before anything is sent.

    Returns:
        The commit that `tag` stands for.

    Raises:
        ValueError: no token, no right to write, a public repository where a private one was asked for, a tag of other
            files, or an unreachable Hub.
    """
    api = check_access(repo_id, repo_type=repo_type, private=private, token=token)
    with _one_sentence(api, repo_id):
        return _upload(api, Path(folder), repo_id, tag, repo_type, private, revision, show)


def check_access(repo_id: str, *, repo_type: str = "model", private: bool = False, token: str | None = None) -> HfApi:
    """See that there is a Hub, a token, and a repository that it may write to, before anything is built.

    Args:
        repo_id, repo_type, private, token: as for `upload`.

    Returns:
        A client with the token.

    Raises:
        ValueError: what `upload` raises, as far as it can be known before.
    """
    if token is None and get_token() is None:
        raise ValueError("no access token: run `hf auth login`, or set HF_TOKEN, with a token that may write.")
    api = HfApi(token=token)
    with _one_sentence(api, repo_id):
        user = api.whoami()
        if repo_id.split("/")[0] not in {user["name"], *(organization["name"] for organization in user["orgs"])}:
            raise ValueError(NO_RIGHT.format(repo_id, f"user {user['name']}"))
        try:
            exists_public = not api.repo_info(repo_id, repo_type=repo_type).private
        except RepositoryNotFoundError:
            exists_public = False
        if private and exists_public:
            raise ValueError(
                f"{repo_id} exists and is public: make it private in its settings, or leave out --private."
            )
    return api


@contextmanager
def _one_sentence(api: HfApi, repo_id: str):
    """Errors of the Hub and of the way to it as a ValueError of one sentence, which shows no token."""
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            raise ValueError(NO_RIGHT.format(repo_id, f"HTTP {status}")) from None
        raise ValueError(f"the Hub refused {repo_id}: {error.server_message or error}") from error
    except httpx.HTTPError as error:
        raise ValueError(
            f"{api.endpoint} can't be reached ({type(error).__name__}): run the command again."
        ) from error


def _upload(api, folder, repo_id, tag, repo_type, private, revision, show) -> str:
    kwargs = {"repo_id": repo_id, "repo_type": repo_type}
    sdk = {"space_sdk": "gradio"} if repo_type == "space" else {}
    api.create_repo(**kwargs, private=private, exist_ok=True, **sdk)
    if revision != "main":
        api.create_branch(**kwargs, branch=revision, exist_ok=True)
    try:
        tagged = plan_upload(folder, remote_digests(api, repo_id, repo_type, f"refs/tags/{tag}"))
    except RevisionNotFoundError:
        tagged = None
    if tagged and (tagged.added or tagged.changed or tagged.deleted):
        raise ValueError(f"version {tag} of {repo_id} is published with other files: give this one another --tag.")
    head = api.repo_info(**kwargs, revision=revision).sha
    plan = plan_upload(folder, remote_digests(api, repo_id, repo_type, head))
    show(plan)
    if plan.added or plan.changed or plan.deleted:
        additions = [CommitOperationAdd(name, str(folder / name)) for name in (*plan.added, *plan.changed)]
        deletions = [CommitOperationDelete(name) for name in plan.deleted]
        commit = api.create_commit(
            **kwargs,
            operations=[*additions, *deletions],
            commit_message=f"Publish {tag}",
            revision=revision,
            parent_commit=head,
        )
        head = commit.oid
    if tagged is None:
        api.create_tag(**kwargs, tag=tag, revision=head)
    return head


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name} is no JSON: {error}") from error


def _in_checkout(name: str) -> Path:
    if not (CHECKOUT / name).exists():
        raise ValueError(
            f"{name} is part of a checkout of hf_methods, not of the installed package: work in a checkout."
        )
    return CHECKOUT / name
