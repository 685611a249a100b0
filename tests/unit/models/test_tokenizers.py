"""Tokenizers: the same ids from every form of folder, and the order of places."""

import gzip
import io
import json
import os
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice, product
from pathlib import Path

import pytest

from library.errors import CheckpointError
from library.models.tokenizer_hub import hub_answers
from library.models.tokenizers import hub_folder_name, load_tokenizers, setup_tokenizer_dir
from library.models.vocabulary import open_vocabulary
from tools import make_clip_tokenizer as tool

ROOT = Path(__file__).parents[3]
CAPTIONS = [
    "a photo of a cat",
    "",
    "A  Photo,\tof the\ncat's hat!! (red:1.2) 1234",
    "I'll don't we're THEY'VE",
    "naïve café ﬁne Ünïcödé İstanbul 猫の写真 🐱🐱 …",
    "the cat <|endoftext|> the hat",
    "under_score-dash/slash\\back",
]
MERGES = ["a t</w>", "c at</w>", "t h", "th e</w>", "p h", "ph o", "pho t", "phot o</w>", "o f</w>", "r e", "re d</w>"]


def _write_clip(folder, merges=MERGES):
    symbols = tool._byte_symbols()
    words = [merge.replace(" ", "") for merge in merges]
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols), *words, tool.START, tool.END]
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({token: index for index, token in enumerate(tokens)}, ensure_ascii=False)
    (folder / "vocab.json").write_text(text, encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    return folder


def _write_t5_json(folder, pad="<pad>"):
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import Unigram

    letters = [(letter, -10.0) for letter in "abcdefghijklmnopqrstuvwxyz▁"]
    words = [("▁a", -2.0), ("▁cat", -3.0), ("▁photo", -3.0), ("▁of", -3.0)]
    tokenizer = Tokenizer(Unigram([(pad, 0.0), ("</s>", 0.0), ("<unk>", 0.0), *words, *letters], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=9)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def _sources(tokenizers, root):
    return {name: str(item.vocabulary.source.relative_to(root)) for name, item in tokenizers.items()}


def _ids(tokenizer, length=77):
    return [tokenizer.encode(caption, length)[0] for caption in CAPTIONS]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return _write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def spiece(tmp_path_factory):
    """A small SentencePiece model with T5's special tokens; its normalisation is T5's."""
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    sentences = [
        "a photo of a cat",
        "the red hat of the cat",
        "I'll don't we're naïve café",
        "1234 (red:1.2) 猫の写真",
    ] * 4
    SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=model, vocab_size=70, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("spiece")
    (folder / "spiece.model").write_bytes(model.getvalue())
    return folder


def test_clip_ids_equal_those_of_transformers(clip_folder):
    from transformers import CLIPTokenizerFast

    expected = CLIPTokenizerFast.from_pretrained(clip_folder, model_max_length=77)
    sd2 = {"zero_padded": ("clip",)}
    for name, pad, settings in (
        ("clip_l", tool.END, {}),
        ("clip_g", "!", {}),
        ("clip", tool.END, {}),
        ("clip", "!", sd2),
    ):
        expected.pad_token = pad
        got = load_tokenizers([name], tokenizer_dir=clip_folder, **settings)[name]
        for caption in [*CAPTIONS, "cat " * 100]:
            wanted = expected(caption, padding="max_length", max_length=77, truncation=True)
            assert got.encode(caption, 77) == (wanted["input_ids"], wanted["attention_mask"]), caption


@pytest.mark.parametrize("pad", [tool.END, "!"])  # "!": as a folder of SDXL or SD 2.x has it
def test_clip_ids_are_the_same_from_tokenizer_json(pad, clip_folder, tmp_path):
    from transformers import CLIPTokenizerFast

    CLIPTokenizerFast.from_pretrained(clip_folder, model_max_length=77, pad_token=pad).save_pretrained(
        tmp_path / "saved"
    )
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / "saved" / name).unlink(missing_ok=True)
    ours = load_tokenizers(["clip_l"], tokenizer_dir=clip_folder)
    saved = load_tokenizers(["clip_l"], tokenizer_dir=tmp_path / "saved")
    assert _ids(saved["clip_l"]) == _ids(ours["clip_l"])
    assert saved.identity() == ours.identity()


def test_t5_ids_equal_those_of_sentencepiece(spiece):
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_file=str(spiece / "spiece.model"))
    tokenizer = load_tokenizers(["t5xxl"], tokenizer_dir=spiece)["t5xxl"]
    for caption in CAPTIONS:
        ids = [*processor.encode(caption), 1]
        assert tokenizer.encode(caption, 200) == (ids + [0] * (200 - len(ids)), [1] * len(ids) + [0] * (200 - len(ids)))
        assert tokenizer.encode(caption, len(ids) // 2 + 1)[0] == [*ids[: len(ids) // 2], 1]


def test_limits_stored_in_a_tokenizer_json_are_not_used(tmp_path):
    tokenizer = load_tokenizers(["t5xxl"], tokenizer_dir=_write_t5_json(tmp_path))["t5xxl"]
    ids, mask = tokenizer.encode("a photo of a cat", 8)
    assert ids == [3, 5, 6, 3, 4, 1, 0, 0]
    assert sum(mask) == 6
    assert tokenizer.token_count("a photo of a cat") == 6


def test_token_count_includes_what_is_cut(clip_folder):
    tokenizer = load_tokenizers(["clip_l"], tokenizer_dir=clip_folder)["clip_l"]
    assert tokenizer.token_count("cat " * 100) == 102
    assert tokenizer.encode("cat " * 100, 77)[0][-1] == tokenizer.end


@pytest.mark.parametrize(
    ("clip_l", "clip_g", "t5xxl"),
    [
        ("tokenizer", "tokenizer_2", "tokenizer_3"),
        ("tokenizer", None, "tokenizer_3"),
        ("comfy/sd1_tokenizer", None, "comfy/text_encoders/t5_tokenizer"),
        ("ComfyUI/comfy/sd1_tokenizer", None, "ComfyUI/comfy/text_encoders/t5_tokenizer"),
        (hub_folder_name("clip_l"), hub_folder_name("clip_g"), hub_folder_name("t5xxl")),
        (".", None, "tokenizer_3"),
        ("tokenizer", None, "."),
    ],
)
def test_tokenizer_dir_takes_every_layout(tmp_path, clip_l, clip_g, t5xxl):
    for folder in filter(None, (clip_l, clip_g)):
        _write_clip(tmp_path / folder)
    _write_t5_json(tmp_path / t5xxl)
    found = load_tokenizers(["clip_l", "clip_g", "t5xxl"], tokenizer_dir=tmp_path)
    assert _sources(found, tmp_path) == {"clip_l": clip_l, "clip_g": clip_g or clip_l, "t5xxl": t5xxl}
    assert (found["clip_l"].pad, found["clip_g"].pad, found["t5xxl"].pad) == (found["clip_l"].end, 0, 0)


def test_places_are_tried_in_order(tmp_path, monkeypatch):
    monkeypatch.setenv("EASEL_CACHE_DIR", str(tmp_path / "setup"))
    name = hub_folder_name("clip_l")
    places = ["given/tokenizer", f"cache/{name}", "models/tokenizer", f"setup/tokenizers/{name}"]
    options = {
        "tokenizer_dir": tmp_path / "given",
        "cache_dir": tmp_path / "cache",
        "model_path": tmp_path / "models" / "sd3.safetensors",
    }
    _write_t5_json(tmp_path / "given")  # keeps --tokenizer_dir of use when its CLIP is gone
    for place in places:
        _write_clip(tmp_path / place)
    for place in places:
        found = load_tokenizers(["clip_l", "t5xxl"], **options)
        assert _sources(found, tmp_path) == {"clip_l": place, "t5xxl": "given"}
        (tmp_path / place / "vocab.json").unlink()
    with pytest.raises(CheckpointError, match="No tokenizer for clip_l in "):
        load_tokenizers(["clip_l", "t5xxl"], **options)


def test_the_hub_cache_is_read_without_network(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--openai--clip-vit-large-patch14"
    _write_clip(repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc", encoding="utf-8")
    found = load_tokenizers(["clip_l", "clip_g", "clip"])
    assert {item.vocabulary.source.name for item in found.values()} == {"abc"}


def test_missing_tokenizers_are_one_error_that_says_where_to_get_them(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError) as caught:
        load_tokenizers(["clip_l", "clip_g", "t5xxl"], model_path=tmp_path / "sd3.safetensors")
    message = str(caught.value)
    for part in (
        "clip_l, clip_g, t5xxl",
        "sd3.safetensors",
        "tools.make_clip_tokenizer",
        "spiece.model",
        "--tokenizer_dir",
    ):
        assert part in message
    assert "\n" not in message


def test_a_hub_that_cannot_be_reached_is_the_same_error_at_once(monkeypatch):
    """Tests run behind a proxy that refuses every connection."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert not hub_answers()
    with pytest.raises(CheckpointError, match="No tokenizer for t5xxl"):
        load_tokenizers(["t5xxl"])


@pytest.fixture
def hub(tmp_path, spiece):
    """A server on this machine that answers as the hub does: a function that loads from it, and what it was asked."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(has_body=False)

        def do_GET(self):
            self.answer(has_body=True)

        def answer(self, has_body):
            asked.append(self.path)
            content = (spiece / "spiece.model").read_bytes()
            self.send_response(200 if self.path == "/google/t5-v1_1-xxl/resolve/main/spiece.model" else 404)
            for header, value in (("ETag", '"1"'), ("X-Repo-Commit", "0" * 40), ("Content-Length", len(content))):
                self.send_header(header, str(value))
            self.end_headers()
            if has_body:
                self.wfile.write(content)

        def log_message(self, *args):
            """Nothing on the test's stderr."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def load(name):
        """Load a tokenizer in a process of its own: the hub's client reads its settings once, when it is imported."""
        script = (
            "import sys; from pathlib import Path; from library.models.tokenizers import load_tokenizers\n"
            "print(load_tokenizers([sys.argv[1]], cache_dir=Path(sys.argv[2]))[sys.argv[1]].vocabulary.source)"
        )
        asked.clear()
        settings = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0"}
        return subprocess.run(
            [sys.executable, "-c", script, name, str(tmp_path / "cache")],
            env={**os.environ, **settings, "HF_HOME": str(tmp_path / "hub")}, cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip

    yield load, asked
    server.shutdown()
    server.server_close()


def test_a_download_goes_to_the_tokenizer_cache_dir_and_is_used_from_there(hub, tmp_path, spiece):
    load, asked = hub
    first = load("t5xxl")
    assert str(tmp_path / "hub") in first.stdout, first.stderr
    assert "/google/t5-v1_1-xxl/resolve/main/spiece.model" in asked
    kept = tmp_path / "cache" / "google_t5-v1_1-xxl"
    assert (kept / "spiece.model").read_bytes() == (spiece / "spiece.model").read_bytes()
    assert load("t5xxl").stdout.strip() == str(kept)
    assert asked == []


def test_what_the_hub_does_not_have_is_missing(hub):
    load, asked = hub
    assert "No tokenizer for clip_l in " in load("clip_l").stderr
    assert "/openai/clip-vit-large-patch14/resolve/main/vocab.json" in asked


@pytest.mark.parametrize(
    "make", [lambda folder: None, lambda folder: folder.mkdir(), lambda folder: folder.write_text("")]
)
def test_a_tokenizer_dir_of_no_use_is_an_error(tmp_path, make):
    make(tmp_path / "given")
    with pytest.raises(CheckpointError, match=r"--tokenizer_dir: .*given"):
        load_tokenizers(["clip_l", "t5xxl"], tokenizer_dir=tmp_path / "given")


def test_tokenizers_of_other_models_are_not_taken_for_clip_or_t5(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps({chr(65 + i): i for i in range(20)}), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({"model": {"type": "WordPiece", "vocab": {}}}), encoding="utf-8"
    )
    assert open_vocabulary(tmp_path, "clip") is None
    assert open_vocabulary(tmp_path, "t5") is None


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", b'{"model": {"type": "Uni', "not JSON"),
        ("tokenizer.json", b"[]", "not a tokenizer file"),
        ("tokenizer.json", b"\xff\xfe", "cannot be read"),
        ("spiece.model", b"<!doctype html>", "not a SentencePiece model"),
    ],
)
def test_damaged_files_are_named(tmp_path, file, content, message):
    (tmp_path / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{file}.*{message}"):
        open_vocabulary(tmp_path, "t5")


def test_an_empty_vocabulary_is_refused(tmp_path):
    from tokenizers import Tokenizer
    from tokenizers.models import Unigram

    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    Tokenizer(Unigram(vocabulary, unk_id=2)).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="only 1 words"):
        open_vocabulary(tmp_path, "t5")


def test_merges_of_another_vocabulary_are_refused(tmp_path):
    _write_clip(tmp_path)
    (tmp_path / "merges.txt").write_text("#version: 0.2\nx y\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"1 lines do not fit vocab.json beside it, the first is 'x y'"):
        open_vocabulary(tmp_path, "clip")


@pytest.mark.parametrize(("rows", "fits"), [(525, True), (600, True), (524, False), (49408, False)])
def test_a_tokenizer_must_fit_its_encoder(clip_folder, rows, fits):
    assert load_tokenizers(["clip_l"], tokenizer_dir=clip_folder)["clip_l"].vocabulary.rows == 525
    if fits:
        load_tokenizers(["clip_l"], tokenizer_dir=clip_folder, vocab_rows={"clip_l": rows})
    else:
        with pytest.raises(CheckpointError, match=f"has 525 tokens, clip_l knows {rows}"):
            load_tokenizers(["clip_l"], tokenizer_dir=clip_folder, vocab_rows={"clip_l": rows})


def test_identity_tells_vocabularies_and_paddings_apart(clip_folder, tmp_path):
    both = load_tokenizers(["clip_l", "clip_g"], tokenizer_dir=clip_folder)
    other = load_tokenizers(["clip_l"], tokenizer_dir=_write_clip(tmp_path, [*MERGES, "h at</w>"]))
    identities = {both["clip_l"].identity(), both["clip_g"].identity(), other["clip_l"].identity()}
    assert len(identities) == 3
    assert both.identity() == load_tokenizers(["clip_g", "clip_l"], tokenizer_dir=clip_folder).identity()


def _packed_vocabulary(num_merges=48894 + 300):
    pairs = product(tool._byte_symbols(), repeat=2)
    lines = [
        '"bpe_simple_vocab_16e6.txt#version: 0.2',
        *(f"{left} {right}" for left, right in islice(pairs, num_merges)),
    ]
    return gzip.compress("\n".join(lines).encode("utf-8"), compresslevel=1)


@pytest.mark.parametrize("is_wheel", [True, False])
def test_clip_tokenizer_is_made_from_a_wheel_or_its_vocabulary(tmp_path, monkeypatch, is_wheel):
    monkeypatch.setenv("EASEL_CACHE_DIR", str(tmp_path / "cache"))
    source = tmp_path / "source"
    if is_wheel:
        with zipfile.ZipFile(source, "w") as wheel:
            wheel.writestr("open_clip/bpe_simple_vocab_16e6.txt.gz", _packed_vocabulary())
    else:
        source.write_bytes(_packed_vocabulary())
    assert tool.main(["--source", str(source)]) == 0
    tokenizer = load_tokenizers(["clip_l"], vocab_rows={"clip_l": 49408})["clip_l"]
    assert tokenizer.vocabulary.source == setup_tokenizer_dir() / hub_folder_name("clip_l")
    assert (tokenizer.start, tokenizer.end) == (49406, 49407)
    assert tokenizer.encode("!", 4)[0] == [49406, 256, 49407, 49407]


@pytest.mark.parametrize(
    "content",
    [b"nothing", gzip.compress(b"one line"), _packed_vocabulary(100)],
    ids=["not packed", "one line", "too few lines"],
)
def test_another_file_makes_no_clip_tokenizer(tmp_path, content, capsys):
    (tmp_path / "source").write_bytes(content)
    assert tool.main(["--source", str(tmp_path / "source"), "--output", str(tmp_path / "out")]) == 2
    assert "bpe_simple_vocab_16e6.txt.gz" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_wheel_of_another_package_makes_no_clip_tokenizer(tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "source", "w") as wheel:
        wheel.writestr("readme.txt", "nothing")
    assert tool.main(["--source", str(tmp_path / "source"), "--output", str(tmp_path / "out")]) == 2
    assert "has no bpe_simple_vocab_16e6.txt.gz inside" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["clip", "t5 json", "spiece"])
def test_a_caption_is_cut_where_its_words_no_longer_fit(kind, clip_folder, spiece, tmp_path):
    folder = {"clip": clip_folder, "spiece": spiece}.get(kind) or _write_t5_json(tmp_path / "t5")
    name = "clip_g" if kind == "clip" else "t5xxl"
    tokenizer = load_tokenizers([name], tokenizer_dir=folder)[name]
    caption = "a photo of a cat a cat " * 8
    length = 20
    cut = tokenizer.cut_at(caption, length)
    assert cut is not None and 0 < cut < len(caption)
    assert tokenizer.encode(caption[:cut], length) == tokenizer.encode(caption, length)
    assert tokenizer.token_count(caption[:cut]) == length
    assert tokenizer.cut_at(caption[:cut], length) is None


def test_letters_of_several_bytes_are_one_character_of_a_cut(clip_folder):
    tokenizer = load_tokenizers(["clip_l"], tokenizer_dir=clip_folder)["clip_l"]
    caption = "🐱" * 40
    cut = tokenizer.cut_at(caption, 42)  # four tokens for each cat
    assert cut == 10
