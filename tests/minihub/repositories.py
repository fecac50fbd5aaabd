# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Repositories with their commits, and the Hub that holds them: storage and rules."""

import base64
import hashlib
import json
import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import yaml


LFS_SUFFIXES = {
    ".7z", ".arrow", ".bin", ".bz2", ".ckpt", ".ftz", ".gz", ".h5", ".joblib", ".msgpack", ".npy", ".npz", ".onnx",
    ".ot", ".parquet", ".pb", ".pickle", ".pkl", ".pt", ".pth", ".rar", ".safetensors", ".tar", ".tflite", ".tgz",
    ".wasm", ".xz", ".zip", ".zst",
}  # fmt: skip
LARGEST_REGULAR_FILE = 10 * 1024 * 1024
GIT_ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in sorted(LFS_SUFFIXES))


class HubError(Exception):
    """An answer with an error status; `code` is what the client tells errors apart by (header X-Error-Code)."""

    def __init__(self, status: int, message: str, code: str | None = None, **body):
        super().__init__(message)
        self.status, self.message, self.code, self.body = status, message, code, {"error": message, **body}


# --- repositories


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())


def git_blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class File(NamedTuple):
    """A file of a commit; one in LFS has a `sha256`, and git only sees a pointer to it."""

    blob_id: str
    size: int
    sha256: str | None = None
    pointer_size: int = 0

    @property
    def key(self) -> str:
        """Name of the content in the store, and its ETag."""
        return self.sha256 or self.blob_id


def lfs_file(sha256: str, size: int) -> File:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    return File(git_blob_id(pointer), size, sha256, len(pointer))


class Commit(NamedTuple):
    """All files at a point of a repository's history."""

    files: dict[str, File]
    parent: str | None
    title: str
    message: str
    date: str


@dataclass
class Repository:
    """Commits by their id, and the names that stand for some of them. `type` is "model", "dataset" or "space"."""

    type: str
    id: str
    private: bool
    sdk: str | None = None
    created: str = field(default_factory=now)
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def namespace(self) -> str:
        return self.id.partition("/")[0]

    @property
    def url_path(self) -> str:
        return self.id if self.type == "model" else f"{self.type}s/{self.id}"

    def commit_id(self, revision: str) -> str:
        """The commit that a branch, a tag, a full reference or the front of a commit's id stands for."""
        references = {f"refs/tags/{name}": commit for name, commit in self.tags.items()}
        references |= {f"refs/heads/{name}": commit for name, commit in self.branches.items()}
        references |= self.tags | self.branches
        if revision in references:
            return references[revision]
        if re.fullmatch("[0-9a-f]{7,40}", revision):
            for commit in self.commits:
                if commit.startswith(revision):
                    return commit
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def files(self, revision: str) -> dict[str, File]:
        return self.commits[self.commit_id(revision)].files

    def add_commit(self, files: dict[str, File], parent: str | None, title: str, message: str = "") -> str:
        """A new commit, which no name stands for yet; its id."""
        content = json.dumps([self.type, self.id, files, parent, title, message, time.time_ns()], sort_keys=True)
        commit = hashlib.sha1(content.encode()).hexdigest()
        self.commits[commit] = Commit(files, parent, title, message, now())
        return commit


# --- the Hub


class Hub:
    """The repositories, the store of file contents, and who may do what.

    Args:
        root: folder for the contents of files; the rest is kept in memory.
        user: name of the only user.
        token: the user's access token; None lets everybody do everything.
        multipart: LFS files above this many bytes are uploaded in parts of this size.
        lfs: False stores all files as regular ones, which are sent inside the commit.
    """

    def __init__(
        self,
        root: str | Path,
        user: str = "tester",
        token: str | None = None,
        multipart: int | None = None,
        lfs: bool = True,
    ):
        self.user, self.token, self.multipart, self.lfs = user, token, multipart, lfs
        self.organizations: set[str] = set()
        self.repos: dict[tuple[str, str], Repository] = {}
        self.log: list[str] = []
        self.cuts: dict[str, int] = {}
        self.lock = threading.RLock()
        self.store = Path(root, "blobs")
        self.store.mkdir(parents=True, exist_ok=True)

    # Rules.

    def is_own(self, namespace: str) -> bool:
        """Whether the user may write under `namespace`, and read what is private there."""
        return namespace == self.user or namespace in self.organizations

    def check_writable(self, namespace: str, is_user: bool, refusal: str = "Authorization error.") -> None:
        """Raise HubError unless the sender may write under `namespace`."""
        if not is_user:
            raise HubError(401, "Invalid username or password.")
        if not self.is_own(namespace):
            raise HubError(403, refusal)

    def repository(self, repo_type: str, repo_id: str, is_user: bool) -> Repository:
        """A repository that the sender may read; others are as if they were not there."""
        repository = self.repos.get((repo_type, repo_id))
        if not is_user and (repository is None or repository.private):
            raise HubError(401, "Invalid username or password.", "RepoNotFound")
        if repository is None or repository.private and not self.is_own(repository.namespace):
            raise HubError(404, "Repository not found", "RepoNotFound")
        return repository

    # Changes.

    def create(self, repo_type: str, repo_id: str, private: bool, sdk: str | None) -> Repository:
        """A new repository with the first commit that the Hub makes by itself."""
        repository = Repository(repo_type, repo_id, private, sdk)
        if (repo_type, repo_id) in self.repos:
            raise HubError(409, "You already created this repo", url=repository.url_path)
        files = {".gitattributes": self.add_content(GIT_ATTRIBUTES.encode())}
        if repo_type == "space":
            card = f"---\ntitle: {repo_id.partition('/')[2]}\nsdk: {sdk}\napp_file: app.py\n---\n"
            files["README.md"] = self.add_content(card.encode())
        repository.branches["main"] = repository.add_commit(files, None, "initial commit")
        self.repos[repo_type, repo_id] = repository
        return repository

    def commit(self, repository: Repository, branch: str, header: dict, operations: list[dict]) -> str:
        """Carry out all operations, or none, on the last commit of `branch`; the new commit's id."""
        parent = repository.commit_id(branch)
        if not parent.startswith(header.get("parentCommit") or ""):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repository.commits[parent].files)
        for operation in operations:
            self._apply(files, operation["key"], operation["value"])
        commit = repository.add_commit(files, parent, header["summary"], header.get("description", ""))
        repository.branches[branch] = commit
        return commit

    def _apply(self, files: dict[str, File], kind: str, value: dict) -> None:
        path = value["path"]
        if kind == "file":
            files[path] = self.add_content(base64.b64decode(value["content"]))
        elif kind == "lfsFile":
            if not self.path_of(value["oid"]).exists():
                raise HubError(400, f"LFS object {value['oid']} was not uploaded")
            files[path] = lfs_file(value["oid"], self.path_of(value["oid"]).stat().st_size)
        elif kind == "deletedFile":
            if files.pop(path, None) is None:
                raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
        elif kind == "deletedFolder":
            for name in [name for name in files if PurePosixPath(name).is_relative_to(path)]:
                del files[name]
        else:
            raise HubError(400, f"no such operation: {kind}")

    # Contents.

    def path_of(self, key: str) -> Path:
        return self.store / key

    def add_content(self, data: bytes) -> File:
        """Store a regular file."""
        file = File(git_blob_id(data), len(data))
        self.path_of(file.key).write_bytes(data)
        return file

    def add_lfs_content(self, sha256: str, data: bytes) -> None:
        """Store an LFS file, if it is what its name says."""
        if hashlib.sha256(data).hexdigest() != sha256:
            raise HubError(400, "sha256 mismatch")
        self.path_of(sha256).write_bytes(data)

    def has_lfs_content(self, sha256: str, size: int) -> bool:
        return self.path_of(sha256).exists() and self.path_of(sha256).stat().st_size == size

    def card_data(self, files: dict[str, File]) -> dict[str, Any]:
        """The header of README.md."""
        if "README.md" not in files:
            return {}
        text = self.path_of(files["README.md"].key).read_text("utf-8")
        header = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
        try:
            return (yaml.safe_load(header[1]) or {}) if header else {}
        except yaml.YAMLError:
            return {}
