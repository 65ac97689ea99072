"""A prompt's rows: the published umT5 to the last digits, a byte encoder that takes any text, and a bounded cache."""

from __future__ import annotations

import importlib
import shutil
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from tests.tiny_checkpoints import Tiny, write
from world.checkpoint import TEXT_FILE, TOKENIZER_DIRECTORY
from world.chunk import Prompt, WorldError
from world.nn.text import PADDING, START, ByteTextConfig, ByteTextEncoder, byte_ids
from world.text import ByteText, PromptCache, UMT5Text, clean, load_umt5, umt5_case, umt5_rows
from world.weights import load_pickle

CPU = torch.device("cpu")
GOLDEN = Path(__file__).parent.parent / "golden" / "umt5"


def silent(stage: str, share: float) -> None:
    pass


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("text") / "ckpt", Tiny("v1"))


@pytest.fixture(scope="module")
def umt5_text(checkpoint: Path) -> UMT5Text:
    return load_umt5(checkpoint, 24, torch.float32, CPU, silent)


@pytest.fixture(scope="module")
def byte_text() -> ByteText:
    torch.manual_seed(0)
    return ByteText(
        ByteTextEncoder(ByteTextConfig(text_dim=40, dim=32, num_heads=4, num_layers=2, max_bytes=50)).eval()
    )


def test_golden_rows():
    with safe_open(GOLDEN / "cases.safetensors", "pt") as case:
        mask, reference = case.get_tensor("mask").bool(), case.get_tensor("out")
    out = umt5_case(GOLDEN)["out"]
    assert out.shape == reference.shape
    assert (out - reference)[mask].norm() <= 1e-5 * reference[mask].norm()


def test_golden_rows_need_no_reference(tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copy(GOLDEN / "models_t5.safetensors", tmp_path)
    inputs = load_file(GOLDEN / "cases.safetensors")
    save_file({"ids": inputs["ids"], "mask": inputs["mask"]}, tmp_path / "cases.safetensors")
    assert torch.equal(umt5_case(tmp_path)["out"], umt5_case(GOLDEN)["out"])


def test_padding_behind_a_mask_changes_nothing(umt5_text):
    """The published code pads every prompt to text_len; ours leaves the padding away."""
    rows = umt5_text.encode("a snow castle")
    ids = torch.zeros(1, 24, dtype=torch.int64)
    real = torch.zeros_like(ids)
    ids[0, : len(rows)] = torch.tensor(umt5_text.tokenizer("a snow castle")["input_ids"])
    real[0, : len(rows)] = 1
    with torch.inference_mode():
        padded = umt5_text.network(input_ids=ids, attention_mask=real).last_hidden_state[0, : len(rows)]
    assert (padded - rows).norm() <= 1e-5 * rows.norm()


def test_a_prompt_is_cleaned_ended_and_cut(umt5_text):
    assert torch.equal(umt5_text.encode("  a\n\tsnow  castle "), umt5_text.encode("a snow castle"))
    assert umt5_text.encode("a snow castle").shape == (4, 64)  # three words and </s>
    assert umt5_text.encode("").shape == (1, 64)
    assert umt5_text.encode("snow " * 300).shape == (24, 64)
    assert not torch.equal(umt5_text.encode("a snow castle"), umt5_text.encode("a red castle"))
    with torch.inference_mode():
        ids = torch.tensor(umt5_text.tokenizer("snow " * 300, truncation=True, max_length=24)["input_ids"])
        assert ids[-1] == 1  # the end is kept when the prompt is cut
        assert torch.equal(umt5_rows(umt5_text.network, ids), umt5_text.encode("snow " * 300))


def test_cleaning():
    assert clean("caf\u00c3\u00a9 &amp;amp;  bar\u00a0\n") == "caf\u00e9 & bar"


def test_a_checkpoint_loads_in_the_dtype_served(checkpoint):
    shares: list[float] = []
    text = load_umt5(checkpoint, 24, torch.bfloat16, CPU, lambda stage, share: shares.append(share))
    assert text.encode("a snow castle").dtype == torch.bfloat16 and text.text_dim == 64
    assert shares == sorted(shares) and shares[-1] == 1.0
    assert not any(p.is_meta or p.requires_grad for p in text.network.parameters())


def lacks_a_bias(ckpt: Path) -> list[str]:
    return edit(ckpt, "blocks.1.pos_embedding.embedding.weight", None)


def lacks_the_table(ckpt: Path) -> list[str]:
    return edit(ckpt, "token_embedding.weight", None)


def has_a_decoder(ckpt: Path) -> list[str]:
    return edit(ckpt, "decoder.norm.weight", torch.zeros(64))


def has_a_wrong_shape(ckpt: Path) -> list[str]:
    return edit(ckpt, "blocks.1.ffn.fc2.weight", torch.zeros(64, 95))


def has_a_flat_bias(ckpt: Path) -> list[str]:
    return edit(ckpt, "blocks.0.pos_embedding.embedding.weight", torch.zeros(128))


def has_heads_that_do_not_divide(ckpt: Path) -> list[str]:
    edit(ckpt, "blocks.0.pos_embedding.embedding.weight", torch.zeros(32, 5))
    return [TEXT_FILE, "blocks.0.attn.q.weight"]


def has_fewer_rows_than_tokens(ckpt: Path) -> list[str]:
    edit(ckpt, "token_embedding.weight", torch.zeros(50, 64))
    return [TEXT_FILE, "token_embedding.weight", TOKENIZER_DIRECTORY]


def has_no_tokenizer(ckpt: Path) -> list[str]:
    shutil.rmtree(ckpt / TOKENIZER_DIRECTORY)
    return [TOKENIZER_DIRECTORY]


def has_a_torn_tokenizer(ckpt: Path) -> list[str]:
    path = ckpt / TOKENIZER_DIRECTORY / "tokenizer.json"
    path.write_text(path.read_text()[:300])
    return [TOKENIZER_DIRECTORY]


def has_an_empty_tokenizer(ckpt: Path) -> list[str]:
    for path in (ckpt / TOKENIZER_DIRECTORY).iterdir():
        path.unlink()
    return [TOKENIZER_DIRECTORY]


def edit(ckpt: Path, key: str, tensor: torch.Tensor | None) -> list[str]:
    tensors = {k: t.clone() for k, t in load_pickle(ckpt / TEXT_FILE).items()}
    tensors.pop(key, None)
    if tensor is not None:
        tensors[key] = tensor
    (ckpt / TEXT_FILE).unlink()
    torch.save(tensors, ckpt / TEXT_FILE)
    return [TEXT_FILE, key]


@pytest.mark.parametrize(
    "damage",
    [lacks_a_bias, lacks_the_table, has_a_decoder, has_a_wrong_shape, has_a_flat_bias, has_heads_that_do_not_divide,
     has_fewer_rows_than_tokens, has_no_tokenizer, has_a_torn_tokenizer, has_an_empty_tokenizer],
)  # fmt: skip
def test_damage_is_named(checkpoint, tmp_path, damage):
    ckpt = Path(shutil.copytree(checkpoint, tmp_path / "ckpt"))
    parts = damage(ckpt)
    with pytest.raises(WorldError) as caught:
        load_umt5(ckpt, 24, torch.float32, CPU, silent)
    sentence = str(caught.value)
    assert "\n" not in sentence and all(part in sentence for part in parts), sentence


@pytest.mark.parametrize("package", ["transformers", "ftfy"])
def test_without_the_extra_one_sentence_says_what_to_install(checkpoint, monkeypatch, package):
    found = importlib.import_module

    def absent(name: str, *rest: object) -> object:
        if name == package:
            raise ImportError(name)
        return found(name, *rest)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(WorldError, match=rf"{package}.*manyworlds\[text\]"):
        load_umt5(checkpoint, 24, torch.float32, CPU, silent)


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=80))
def test_any_text_has_byte_rows(byte_text, text):
    ids = byte_ids(text, 50)
    assert ids[0] == START and len(ids) <= 51 and all(PADDING < i < 258 for i in ids)
    rows = byte_text.encode(text)
    assert rows.shape == (len(ids), byte_text.text_dim) and rows.isfinite().all()
    bytes(i - 2 for i in ids[1:]).decode("utf-8")  # cut between characters


def test_byte_ids_are_cut_between_characters_and_white_space_counts_once():
    assert byte_ids("aé", 2) == [START, ord("a") + 2]
    assert byte_ids("  a \n b ", 9) == byte_ids("a b", 9) == [START, *(byte + 2 for byte in b"a b")]


def test_every_byte_of_a_prompt_reaches_every_row(byte_text):
    one, other = byte_text.encode("green hills at noon"), byte_text.encode("green hills at moon")
    assert ((one - other).abs().amax(dim=1) > 0).all()


def test_a_padded_batch_trains_what_is_served_alone(byte_text):
    prompts = [byte_ids(text, 50) for text in ("snow", "", "a red tower in the forest")]
    batch = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in prompts], batch_first=True)
    with torch.inference_mode():
        together = byte_text.network(batch)
        for ids, rows in zip(prompts, together, strict=True):
            alone = byte_text.network(torch.tensor([ids]))[0]
            torch.testing.assert_close(rows[: len(ids)], alone, rtol=1e-5, atol=1e-6)
            assert not rows[len(ids) :].any()


def test_byte_encoder_learns_from_the_first_byte_to_the_last(byte_text):
    network = ByteTextEncoder(byte_text.network.cfg)
    network(torch.tensor([byte_ids("a tower", 50)])).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@settings(max_examples=60, deadline=None)
@given(capacity=st.integers(1, 4), texts=st.lists(st.sampled_from("abcdef"), max_size=40))
def test_the_cache_keeps_the_prompts_used_last(capacity, texts):
    cache, encoded = PromptCache(capacity), []

    def encode(text: str) -> Prompt:
        encoded.append(text)
        return Prompt(text, len(encoded))

    recent: list[str] = []  # a model of the cache: most recent last
    misses = 0
    for text in texts:
        misses += text not in recent
        assert cache.fetch(text, encode).text == text
        recent = [*(t for t in recent if t != text), text][-capacity:]
        assert len(cache) == len(recent) and len(encoded) == cache.misses == misses
    assert cache.hits == len(texts) - misses and cache.evictions == misses - len(cache)


def test_threads_share_one_prompt_and_do_not_wait_for_each_other():
    cache, together = PromptCache(4), threading.Barrier(2, timeout=30)
    got: list[Prompt] = []

    def encode(text: str) -> Prompt:
        together.wait()  # passes only when both threads are encoding at once
        return Prompt(text, object())

    threads = [threading.Thread(target=lambda: got.append(cache.fetch("snow", encode))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 2 and got[0] is got[1] and len(cache) == 1


def test_a_prompt_that_fails_is_not_kept():
    cache = PromptCache(2)

    def encode(text: str) -> Prompt:
        raise ValueError(text)

    for _ in range(2):
        with pytest.raises(ValueError):
            cache.fetch("snow", encode)
    assert len(cache) == 0 and cache.misses == 2
