"""A real model out of the box: its tokens and prompts are those of other libraries, its answers make sense."""

import json
import os
import pathlib
import random
import subprocess
import unicodedata

import jinja2
import tokenizers

PROGRAM, MODEL = os.environ["ENTROPYINFER"], pathlib.Path(os.environ["SMOLLM2"])
REFERENCE = tokenizers.Tokenizer.from_file(str(MODEL / "tokenizer.json"))
WORDS = ["the", "The", "ing", "'s", "'ll", " ", "  ", "\n", "\t", "123", "4.5", "é", "中文", ".", "!!", "_", "<|im_end|>", "<|im_", "x=1"]
RANGES = [(0, 0x7F), (0x20, 0x7E), (0x80, 0x24F), (0x300, 0x6FF), (0x900, 0xDFF), (0x2000, 0x22FF), (0x3040, 0x30FF), (0x4E00, 0x9FFF),
          (0xAC00, 0xD7A3), (0x1F300, 0x1FAFF), (0x20000, 0x2FA1D)]


def entropyinfer(*arguments, text=None):
    return subprocess.run([PROGRAM, *arguments], input=text, capture_output=True, text=True, check=True).stdout


def tokens(text):
    return json.loads(entropyinfer("tokenize", str(MODEL), "--json", text=text))["tokens"]


def random_text(rng, n_pieces):
    """Without characters that Python's Unicode, as old as the engine's libraries, does not know yet."""
    pieces = (rng.choice(WORDS) if rng.random() < 0.6 else chr(rng.randint(*rng.choice(RANGES))) for _ in range(n_pieces))
    return "".join(piece for piece in pieces if len(piece) > 1 or unicodedata.category(piece) != "Cn")


def test_400_000_tokens_are_those_of_hugging_face():
    rng, n_tokens = random.Random(1), 0
    repository = pathlib.Path(__file__).resolve().parents[2]
    texts = [path.read_text() for folder in ("docs", "tests", "apps") for path in sorted((repository / folder).rglob("*.[chmp][cdy]*")) if path.is_file()]
    texts += [random_text(rng, 20_000) for _ in range(6)]
    for text in ("\n".join(texts[i::8]) for i in range(8)):
        text = text.replace("\r", "")
        expected = REFERENCE.encode(text, add_special_tokens=False).ids
        assert tokens(text) == expected
        n_tokens += len(expected)
    assert n_tokens >= 400_000


def test_a_prompt_is_the_template_of_the_model():
    config = json.loads((MODEL / "tokenizer_config.json").read_text())
    messages = [{"role": "user", "content": "Hello, who are you? 1234"}]
    prompt = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(config["chat_template"]).render(
        messages=messages, add_generation_prompt=True, bos_token=config["bos_token"], eos_token=config["eos_token"])
    ids = json.loads(entropyinfer("tokenize", str(MODEL), "--chat", "--json", messages[0]["content"]))["tokens"]
    assert ids == REFERENCE.encode(prompt, add_special_tokens=False).ids


def test_it_answers():
    answer = entropyinfer("run", str(MODEL), "--prompt", "What is the capital of France? Answer with one word.", "--temp", "0", "-n", "20")
    assert "Paris" in answer
