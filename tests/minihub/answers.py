# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""JSON that the client reads."""

import hashlib
from typing import Any

from minihub.repositories import File, Hub, HubError, Repository


def file_json(path: str, file: File) -> dict[str, Any]:
    """A file in a tree."""
    row: dict[str, Any] = {"type": "file", "path": path, "oid": file.blob_id, "size": file.size}
    if file.sha256:
        row["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": file.pointer_size}
    return row


def folder_json(path: str, commit: str) -> dict[str, Any]:
    """A folder in a tree. Its id only differs from that of others: no client looks into git's trees."""
    return {"type": "directory", "path": path, "oid": hashlib.sha1(f"{commit}{path}".encode()).hexdigest(), "size": 0}


def tree_json(files: dict[str, File], commit: str, folder: str, recursive: bool) -> list[dict[str, Any]]:
    """What lies in `folder`, "" for the whole: each folder in front of its files."""
    prefix = f"{folder}/" if folder else ""
    rows: dict[str, dict[str, Any]] = {}
    for path in sorted(path for path in files if path.startswith(prefix)):
        parts = path.removeprefix(prefix).split("/")
        for depth in range(1, len(parts) if recursive else min(2, len(parts))):
            parent = prefix + "/".join(parts[:depth])
            rows.setdefault(parent, folder_json(parent, commit))
        if recursive or len(parts) == 1:
            rows[path] = file_json(path, files[path])
    if folder and not rows:
        raise HubError(404, f"{folder} does not exist on this revision", "EntryNotFound")
    return list(rows.values())


def sibling_json(path: str, file: File, with_blobs: bool) -> dict[str, Any]:
    """A file in a repository's description."""
    row: dict[str, Any] = {"rfilename": path}
    if with_blobs:
        row |= {"size": file.size, "blobId": file.blob_id}
        if file.sha256:
            row["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": file.pointer_size}
    return row


def info_json(hub: Hub, repository: Repository, revision: str, with_blobs: bool) -> dict[str, Any]:
    """A repository's description."""
    commit_id = repository.commit_id(revision)
    commit = repository.commits[commit_id]
    card = hub.card_data(commit.files)
    info: dict[str, Any] = {
        "_id": hashlib.md5(repository.id.encode()).hexdigest()[:24],
        "id": repository.id,
        "author": repository.namespace,
        "sha": commit_id,
        "createdAt": repository.created,
        "lastModified": commit.date,
        "private": repository.private,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": list(card.get("tags") or []),
        "cardData": card,
        "siblings": [sibling_json(path, file, with_blobs) for path, file in sorted(commit.files.items())],
        "usedStorage": sum(file.size for file in commit.files.values()),
    }
    if repository.type == "model":
        info |= {name: card.get(name) for name in ("library_name", "pipeline_tag")}
    if repository.type == "space":
        info |= {"sdk": repository.sdk, "models": card.get("models") or [], "datasets": card.get("datasets") or []}
    return info
