# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Publishing on a Hub server on this machine, and loading from it elsewhere."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict, load_dataset
from huggingface_hub import HfApi, ModelCard, snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
from transformers.pipelines import PIPELINE_REGISTRY

import hf_methods
from hf_methods.cli import main
from hf_methods.data import load_text_corpus
from hf_methods.fresh_process import required_distributions
from hf_methods.hub import build_repository, build_space, plan_upload, upload, verify_repository
from hf_methods.softmax1 import Softmax1GPT2LMHeadModel, Softmax1TextGenerationPipeline
from hf_methods.softmax1.publishing_softmax1 import RECIPE


ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "model_cards" / "softmax1-orthoadam"
IDS = torch.arange(12)[None]
REPO = "tester/softmax1"
TAG = f"v{hf_methods.__version__}"


def run_cli(monkeypatch, *arguments):
    """The exit status of `hf-methods ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["hf-methods", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The repository that a publication of the committed checkpoint would send."""
    folder = tmp_path_factory.mktemp("built") / "repository"
    build_repository(RECIPE, str(CHECKPOINT), folder, REPO)
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The command line publishes the committed checkpoint; its output."""
    folder = tmp_path_factory.mktemp("published")
    command = [sys.executable, "-m", "hf_methods.cli", "publish", "softmax1", "--repo-id", REPO]
    command += ["--checkpoint", str(CHECKPOINT), "--out", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    assert result.returncode == 0, result.stderr
    return result


def test_a_publication_is_one_commit_with_a_tag_and_says_what_it_sent(published, built):
    api = HfApi()
    assert "verified" in published.stdout and f"published: {REPO}, version {TAG}" in published.stdout
    for path in built.iterdir():
        assert re.search(rf"^added +[\d.]+ kB  {re.escape(path.name)}$", published.stdout, re.MULTILINE)
    commits = api.list_repo_commits(REPO)
    assert [commit.title for commit in commits] == [f"Publish {TAG}", "initial commit"]
    assert [(tag.name, tag.target_commit) for tag in api.list_repo_refs(REPO).tags] == [(TAG, commits[0].commit_id)]
    assert set(api.list_repo_files(REPO)) == {path.name for path in built.iterdir()} | {".gitattributes"}
    assert os.environ["HF_TOKEN"] not in published.stdout + published.stderr


# What somebody without the package runs: nothing of it is importable, the cache is empty.
ELSEWHERE = """
import sys
sys.modules["hf_methods"] = None
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, pipeline
repo, revision, out = sys.argv[1:]
for flag in ({}, {"trust_remote_code": False}):
    try:
        AutoModelForCausalLM.from_pretrained(repo, **flag)
    except ValueError as error:
        assert "trust_remote_code=True" in str(error), error
    else:
        raise AssertionError("loaded without trust")
model = AutoModelForCausalLM.from_pretrained(repo, revision=revision, trust_remote_code=True, dtype=torch.float32)
assert type(model).__module__.startswith("transformers_modules."), type(model)
generator = pipeline(model=repo, revision=revision, trust_remote_code=True)  # the task is in config.json
assert type(generator).__name__ == "Softmax1TextGenerationPipeline", type(generator)
record = generator("import os", max_new_tokens=4, do_sample=False, return_attention_shares=True)[0]
shares = torch.tensor([record["first_token_share"], record["nothing_share"]])
save_file({"logits": model(torch.arange(12)[None]).logits, "shares": shares}, out)
"""


def test_elsewhere_the_published_model_gives_the_same_numbers(published, tmp_path):
    env = {**os.environ, "HF_HOME": str(tmp_path / "home")}
    out = tmp_path / "out.safetensors"
    command = [sys.executable, "-c", ELSEWHERE, REPO, TAG, str(out)]
    result = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=env, cwd=tmp_path, check=False
    )
    assert result.returncode == 0, result.stderr
    there = load_file(out)
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)
    torch.testing.assert_close(there["logits"], model(IDS).logits, rtol=0, atol=1e-6)
    here = pipeline("softmax1-text-generation", model=REPO, pipeline_class=Softmax1TextGenerationPipeline)
    record = here("import os", max_new_tokens=4, do_sample=False, return_attention_shares=True)[0]
    torch.testing.assert_close(there["shares"], torch.tensor([record["first_token_share"], record["nothing_share"]]))


def test_with_the_package_the_hub_model_is_the_packages_class(published):
    model = AutoModelForCausalLM.from_pretrained(REPO, revision=TAG)
    assert type(model) is Softmax1GPT2LMHeadModel
    assert torch.equal(model(IDS).logits, AutoModelForCausalLM.from_pretrained(CHECKPOINT)(IDS).logits)
    assert pipeline("text-generation", model=REPO)("import os", max_new_tokens=2)[0]["generated_text"]
    assert "softmax1-text-generation" in PIPELINE_REGISTRY.get_supported_tasks()
    with pytest.raises(ValueError, match="trust_remote_code=True"):  # the docs name both ways round it
        pipeline("softmax1-text-generation", model=REPO)


def test_publishing_the_same_again_sends_nothing(built, hub):
    first = upload(built, "tester/again", tag="v1")
    hub.log.clear()
    plans = []
    assert upload(built, "tester/again", tag="v1", show=plans.append) == first
    assert not plans[0].added + plans[0].changed + plans[0].deleted and "model.safetensors" in plans[0].unchanged
    assert not [line for line in hub.log if "commit" in line or "_lfs" in line or "/tag/" in line]


def changed_copy(built, folder):
    """The repository with other weights."""
    shutil.copytree(built, folder)
    weights = load_file(folder / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_a_new_version_leaves_the_old_one_as_it_was(built, hub, tmp_path):
    repo = "tester/versions"
    changed = changed_copy(built, tmp_path / "changed")
    first = upload(built, repo, tag="v1")
    with pytest.raises(ValueError, match="version v1 of tester/versions is published with other files.*--tag"):
        upload(changed, repo, tag="v1")
    assert HfApi().repo_info(repo).sha == first
    second = upload(changed, repo, tag="v2")
    for revision, folder in (("v1", built), (first, built), ("v2", changed), ("main", changed), (second, changed)):
        weights = load_file(Path(snapshot_download(repo, revision=revision), "model.safetensors"))
        expected = load_file(folder / "model.safetensors")
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_a_branch_can_be_published_beside_main(built, hub):
    repo = "tester/branch"
    commit = upload(built, repo, tag="v1-rc", revision="candidate")
    assert HfApi().repo_info(repo, revision="candidate").sha == commit
    assert HfApi().list_repo_files(repo) == [".gitattributes"]


def test_files_that_from_pretrained_would_read_go_when_they_are_of_an_old_version(built, hub):
    repo = "tester/stale"
    api = HfApi()
    api.create_repo(repo)
    for name in ("model-00001-of-00002.safetensors", "old_code.py", "notes.txt"):
        api.upload_file(path_or_fileobj=b"old", path_in_repo=name, repo_id=repo)
    plans = []
    upload(built, repo, tag="v1", show=plans.append)
    assert plans[0].deleted == ["model-00001-of-00002.safetensors", "old_code.py"]
    assert set(api.list_repo_files(repo)) == {path.name for path in built.iterdir()} | {".gitattributes", "notes.txt"}


def test_an_interrupted_upload_publishes_nothing_and_goes_on_when_run_again(built, hub):
    repo = "tester/interrupted"
    hub.cuts = {"/commit/main": 0}  # the weights are sent, the commit's connection breaks
    with pytest.raises(ValueError, match="run the command again"):
        upload(built, repo, tag="v1")
    assert HfApi().list_repo_files(repo) == [".gitattributes"] and not HfApi().list_repo_refs(repo).tags
    hub.log.clear()
    hub.cuts.clear()
    commit = upload(built, repo, tag="v1")
    assert not [line for line in hub.log if "_lfs/upload" in line]  # the weights are there already
    assert HfApi().repo_info(repo, revision="v1").sha == commit
    assert (
        Path(snapshot_download(repo), "model.safetensors").read_bytes() == (built / "model.safetensors").read_bytes()
    )


def test_a_commit_without_its_tag_gets_it_when_run_again(built, hub):
    repo = "tester/untagged"
    hub.cuts = {"/tag/": 0}
    with pytest.raises(ValueError, match="run the command again"):
        upload(built, repo, tag="v1")
    commit = upload(built, repo, tag="v1")
    assert HfApi().repo_info(repo, revision="v1").sha == HfApi().repo_info(repo).sha == commit
    assert len(HfApi().list_repo_commits(repo)) == 2


def test_a_private_repository_needs_the_token(built, hub, tmp_path):
    repo = "tester/private"
    upload(built, repo, tag="v1", private=True)
    assert HfApi().repo_info(repo).private
    with pytest.raises(RepositoryNotFoundError):
        snapshot_download(repo, token=False, cache_dir=tmp_path)
    with pytest.raises(OSError, match="not a valid model identifier|gated|private|token"):
        AutoTokenizer.from_pretrained(repo, token=False, cache_dir=tmp_path)
    assert AutoTokenizer.from_pretrained(repo, cache_dir=tmp_path).vocab_size == 2048


def test_private_is_refused_where_the_repository_is_public(built, hub):
    upload(built, "tester/public", tag="v1")
    with pytest.raises(ValueError, match="tester/public exists and is public.*--private"):
        upload(built, "tester/public", tag="v1", private=True)


def test_without_a_token_or_the_right_there_is_one_sentence(built, hub, monkeypatch):
    bad = "hf_" + "b" * 34
    with pytest.raises(ValueError, match="may not write to tester/x.*HTTP 401") as stop:
        upload(built, "tester/x", tag="v1", token=bad)
    assert bad not in str(stop.value)
    with pytest.raises(ValueError, match="may not write to somebody/x.*user tester"):
        upload(built, "somebody/x", tag="v1")
    monkeypatch.setattr(HfApi, "whoami", lambda self: {"name": "somebody", "orgs": []})  # a token without the right
    with pytest.raises(ValueError, match="may not write to somebody/x.*HTTP 403"):
        upload(built, "somebody/x", tag="v1")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ValueError, match="no access token: run `hf auth login`"):
        upload(built, "tester/x", tag="v1")
    assert not [line for line in hub.log if "_lfs" in line]


def test_a_hub_that_does_not_answer_is_one_sentence(built, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match="http://127.0.0.1:9 can't be reached"):
        upload(built, "tester/x", tag="v1")


def test_a_dry_run_builds_verifies_and_sends_nothing(hub, tmp_path, monkeypatch, capsys):
    status = run_cli(
        monkeypatch, "publish", "softmax1", "--repo-id", "tester/dry", "--checkpoint", CHECKPOINT, "--dry-run",
        "--out", tmp_path,
    )  # fmt: skip
    output = capsys.readouterr().out
    assert status in (0, None) and "verified" in output and "nothing was sent" in output
    assert not [line for line in hub.log if not line.startswith("HEAD") and "dry" in line]
    assert (tmp_path / "tester--dry" / "README.md").read_text().count("tester/dry") == 3


def test_without_the_right_nothing_is_built(tmp_path, monkeypatch, capsys):
    arguments = ("publish", "softmax1", "--repo-id", "somebody/x", "--checkpoint", CHECKPOINT, "--out", tmp_path)
    assert run_cli(monkeypatch, *arguments) == 1
    assert "may not write to somebody/x" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("softmax2", "--repo-id", "a/b", "--checkpoint", "x"), "METHOD must be one of softmax1"),
        (("softmax1", "--repo-id", "b", "--checkpoint", "x"), "--repo-id must be ORG/NAME, got 'b'"),
        (("softmax1", "--repo-id", "a/b"), "either --checkpoint"),
        (("softmax1", "--repo-id", "a/b", "--checkpoint", "x", "--space"), "either --checkpoint"),
        (("softmax1", "--repo-id", "a/b", "--checkpoint", "nowhere"), "not a folder with a config.json"),
        (("softmax1", "--repo-id", "a/b", "--space"), "give --model ORG/NAME"),
    ],
)
def test_wrong_options_are_one_sentence(arguments, message, tmp_path, monkeypatch, capsys):
    assert run_cli(monkeypatch, "publish", *arguments, "--dry-run", "--out", tmp_path) in (1, 2)
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_build_that_fails_leaves_the_old_folder(built, tmp_path):
    checkpoint, folder = tmp_path / "checkpoint", tmp_path / "repository"
    shutil.copytree(CHECKPOINT, checkpoint)
    shutil.copytree(built, folder)
    for broken, message in (
        ('{"arm": "x"}', "lacks what the card needs"),
        ("{", "is no JSON"),
        (None, "has no results.json"),
    ):
        path = checkpoint / "results.json"
        path.unlink() if broken is None else path.write_text(broken)
        with pytest.raises(ValueError, match=message):
            build_repository(RECIPE, str(checkpoint), folder, REPO)
    assert {path.name for path in folder.iterdir()} == {path.name for path in built.iterdir()}


def test_a_token_in_a_file_is_refused_and_not_shown(tmp_path):
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(CHECKPOINT, checkpoint)
    results = json.loads((checkpoint / "results.json").read_text())
    results["command"] = "python train.py --hub_token hf_" + "s" * 34
    (checkpoint / "results.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match=r"(README.md|results.json) holds an access token") as stop:
        build_repository(RECIPE, str(checkpoint), tmp_path / "out", REPO)
    assert "sss" not in str(stop.value) and not (tmp_path / "out").exists()


def test_another_kind_of_model_is_refused(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=1)).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ValueError, match="model_type 'gpt2'; this is for softmax1_gpt2, softmax1_llama"):
        build_repository(RECIPE, str(tmp_path / "gpt2"), tmp_path / "out", REPO)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("import hf_methods", "hf_methods"),
        ("import datasets", "datasets"),
        ("EAGER = FAST = 1 / 0", "division by zero"),
    ],
)
def test_code_that_needs_more_than_its_requirements_is_not_verified(line, message, built, tmp_path):
    folder = tmp_path / "repository"
    shutil.copytree(built, folder)
    with open(folder / "pipeline_softmax1.py", "a") as code:
        code.write(f"\n\n{line}\n")
    with pytest.raises(ValueError, match=message):
        verify_repository(RECIPE, folder)


def test_requirements_bring_what_they_need_and_no_more():
    names = required_distributions(["torch>=2", "transformers"])
    assert {"torch", "transformers", "numpy", "tokenizers", "huggingface-hub", "safetensors"} <= names
    assert not {"hf-methods", "datasets", "accelerate", "evaluate", "matplotlib", "pytest"} & names
    with pytest.raises(ValueError, match="no-such-package, which is not installed"):
        required_distributions(["no_such_package"])


def test_an_upload_plan_tells_new_changed_and_equal_files(tmp_path):
    (tmp_path / "a").write_bytes(b"hello\n")
    (tmp_path / "b").write_bytes(b"hello\n")
    (tmp_path / "c").write_bytes(b"")
    # git hash-object, sha256sum
    git, sha256 = (
        "ce013625030ba8dba906f756967f9e9ca394464a",
        "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
    )
    plan = plan_upload(tmp_path, {"a": git, "b": sha256, "c": git, "old.py": git, "old.txt": git})
    assert (plan.added, plan.changed, plan.unchanged, plan.deleted) == ([], ["c"], ["a", "b"], ["old.py"])
    assert plan_upload(tmp_path, {}).added == ["a", "b", "c"]


# --- Spaces and data sets


def test_a_space_is_published_with_the_models_that_it_shows(hub, tmp_path, monkeypatch, capsys):
    models = ["tester/softmax", "tester/softmax1"]
    options = [option for model in models for option in ("--model", model)]
    status = run_cli(
        monkeypatch, "publish", "softmax1", "--space", "--repo-id", "tester/demo", *options, "--out", tmp_path
    )
    assert status in (0, None), capsys.readouterr().err
    folder = Path(snapshot_download("tester/demo", repo_type="space"))
    header = ModelCard.load(folder / "README.md", ignore_metadata_errors=False).data.to_dict()
    assert header["models"] == models and header["sdk"] == "gradio"
    for name in ("app.py", "requirements.txt"):
        assert (folder / name).read_bytes() == (ROOT / "spaces" / "softmax1" / name).read_bytes()


def test_a_space_without_models_is_refused(tmp_path):
    with pytest.raises(ValueError, match="give --model ORG/NAME"):
        build_space("softmax1", tmp_path / "space", [])
    assert not (tmp_path / "space").exists()


def test_a_corpus_on_the_hub_trains_and_tests_as_a_local_one(hub):
    texts = [f"text {i}" for i in range(40)]
    DatasetDict(train=Dataset.from_dict({"text": texts})).push_to_hub("tester/corpus")
    assert list(load_dataset("tester/corpus", split="train")["text"]) == texts
    assert list(load_dataset("tester/corpus", split="train", streaming=True).take(1)) == [{"text": "text 0"}]
    corpus = load_text_corpus("tester/corpus")
    assert sorted(text for split in corpus.values() for text in split["text"]) == sorted(texts)
