#!/usr/bin/env python3
"""Writes tests/text/data/*.json: texts with the ids that PyPI's tokenizers and sentencepiece give.

    pip install tokenizers sentencepiece
    tools/make_tokenizer_cases.py --tokenizers DIR

DIR holds qwen2/tokenizer.json and mistral-v1/tokenizer.model; models/needle-8m is taken as well. A
small SentencePiece model that uses what Mistral's does not (replacement rules, user-defined
symbols, trimming) is trained here and written beside the cases, and so is a small tokenizer.json
that uses what Qwen's does not (ignore_merges, flags of added tokens, a BOS template).
"""

import argparse
import io
import json
import pathlib
import random

import sentencepiece
import sentencepiece.sentencepiece_model_pb2
import tokenizers

ROOT = pathlib.Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "text" / "data"

PLAIN = [
    "", " ", "  ", "   ", "\n", "\n\n", " \n ", "\t", "\r\n", "a", " a", "a ", "  a  b  ", "\na\n",
    "Hello, world! It's 3.14; they'll WE'RE y'all'd've 'Tis.", "x" * 200, "=" * 77, " " * 333,
    "\n" * 50, "a\n \n  \n\tb \r\n c", "0123456789 ٠١٢٣ ०१२ Ⅷ ½ ² ① 〇",
    "naïve café cafe\u0301 A\u030a \u212b \u1e9b\u0323 q\u0307\u0323 q\u0323\u0307",
    "\u0958 \u2126 \uf900 \u0344 가 \u1100\u1161\u11a8 \u0fb2\u0f71\u0f80",
    "日本語のテキスト、中文文本。한국어 텍스트", "Ελληνικά Русский עברית العربية हिन्दी ไทย",
    "😀👩‍👩‍👧‍👦🏳️‍🌈 🇩🇪 \U0001f9d1\U0001f3fd‍💻 ✅", "\x00\x01\x1b\x7f\x85\xa0\u200b\u200d\u2028\ufeff\ufffd",
    "a\u180eb\u3000c\u2003d", "don'\u017f '\u017fo \u212a", "\U0010ffff\ue000\ufdd0 \U000e0041",
    "def f(x):\n    return {\n        'a': x**2,  # comment\n    }\n", "https://example.org/?q=%20#frag",
    "▁▁ literal ▁", "abc ab abab",
    "\u3000\u3000中\u3000\u3000\u3000文 \u2003\u2003\u2003x", "<0x41> <s> </s> <unk>", "e" + "\u0301" * 40, "\u0323\u0301\u0323\u0301 start",
]
SPECIAL = [
    "<|user|>hi<|assistant|>yo<|eot|>", "<|im_start|>user\nhi<|im_end|>\n", "<|endoftext|>",
    "a <|im_end|> b<|im_end|><|im_end|>", "<|im_end", "<|im_<|im_end|>", "<<|bos|>>", " <|eot|> \n",
    "cafe\u0301<|im_end|>\u0301x", "<|bos|>", "<|BOS|>",
]
SYLLABLES = ["ka", "lo", "mi", "re", "tu", "ban", "sol", "fi", "x y", "é", "ß"]


def random_texts(seed, count):
    """Characters from everywhere: most of Unicode is unassigned or CJK, so ranges are picked first."""
    rng = random.Random(seed)
    ranges = [(0, 0x7F), (0x20, 0x7E), (0x80, 0x24F), (0x300, 0x36F), (0x370, 0x6FF), (0x900, 0xDFF),
              (0x1100, 0x11FF), (0x1E00, 0x22FF), (0x3040, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3),
              (0xF900, 0xFAFF), (0x1F300, 0x1FAFF), (0x1D100, 0x1D7FF), (0x20000, 0x2FA1D)]
    words = ["the", "The", "ing", "'s", " ", "  ", "\n", "\t", "123", "ab", "é", "中", ".", "!!", "_"]
    for _ in range(count):
        text = ""
        for _ in range(rng.randrange(1, 24)):
            low, high = rng.choice(ranges)
            text += rng.choice(words) if rng.random() < 0.5 else chr(rng.randint(low, high))
        yield text


def write(name, cases):
    path = DATA / f"{name}.json"
    lines = ",\n".join(json.dumps(case) for case in cases)
    path.write_text(f"[\n{lines}\n]\n")
    print(path, path.stat().st_size, "bytes")


def hugging_face(path, seed, texts=()):
    """Each case: text, its ids, and what random ids decode to."""
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    rng = random.Random(seed)
    for text in [*PLAIN, *SPECIAL, *texts, *random_texts(seed, 150)]:
        some = [rng.randrange(tokenizer.get_vocab_size()) for _ in range(rng.randrange(0, 12))]
        yield {
            "text": text,
            "ids": tokenizer.encode(text, add_special_tokens=True).ids,
            "some_ids": some,
            "decoded": tokenizer.decode(some, skip_special_tokens=False),
        }


def sentence_piece(model, seed, texts=()):
    """The same; to SentencePiece, the added tokens of a tokenizer_config.json are plain text."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    rng = random.Random(seed)
    # What SentencePiece shows of an unknown token differs from Hugging Face; the tests use the latter.
    usable = [i for i in range(processor.vocab_size()) if not processor.is_unknown(i)]
    n_bytes = sum(processor.is_byte(i) for i in usable)
    for text in [*PLAIN, *texts, *random_texts(seed, 150)]:
        some = [rng.choice(usable[: n_bytes + 8] if rng.random() < 0.4 else usable)
                for _ in range(rng.randrange(0, 12))]
        if n_bytes and rng.random() < 0.1:
            some.insert(0, processor.piece_to_id("<0x20>"))  # a space that is no dummy
        yield {
            "text": text,
            "ids": processor.encode(text),
            "some_ids": some,
            "decoded": processor.decode(some),
        }


def train_small_json():
    """Llama 3's kind, with NFC and added tokens that use every flag."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=True))
    tokenizer.normalizer = tokenizers.normalizers.NFC()
    split = tokenizers.pre_tokenizers.Split(
        tokenizers.Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|\s+(?!\S)|\s+"), "isolated")
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [split, tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320, show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(SYLLABLES, trainer)
    # No merges lead to this token: only ignore_merges can find it.
    state = json.loads(tokenizer.to_str())
    state["model"]["vocab"]["\u0120whole"] = tokenizer.get_vocab_size()
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(state))
    added = tokenizers.AddedToken
    tokenizer.add_special_tokens([
        added("<s>", special=True), added("<left>", lstrip=True, special=True),
        added("<right>", rstrip=True, special=True),
        added("<both>", lstrip=True, rstrip=True, special=True), added("<lef", special=True)])
    tokenizer.add_tokens([
        added("word", single_word=True, normalized=False), added("cafe\u0301", normalized=True),
        added("raw\u0301", normalized=False), added("two words", normalized=True)])
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))])
    path = DATA / "small.tokenizer.json"
    path.write_text(tokenizer.to_str(pretty=False) + "\n")
    return path


def pre_tokenizers():
    """By name: what a tokenizer.json may cut by, each with ByteLevel at the end."""
    pre, regex = tokenizers.pre_tokenizers, tokenizers.Regex
    byte_level = pre.ByteLevel(add_prefix_space=False, use_regex=False)
    words = pre.ByteLevel(add_prefix_space=False, use_regex=True)
    yield "words", [words]
    yield "each digit, words", [pre.Digits(individual_digits=True), words]
    yield "digits", [pre.Digits(individual_digits=False), byte_level]
    for behavior in ("removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous"):
        for invert in (False, True):
            yield f"{behavior} {invert}", [pre.Split(regex(r"\s|[a.]"), behavior, invert), byte_level]
    yield "text", [pre.Split(".*", "merged_with_next"), pre.Split(" ", "removed"), words]


def pre_tokenizer_cases():
    """Vocabularies that lack bytes, without an unknown token, with one, and with one for each run."""
    texts = [*PLAIN, "a.b. .c", "1.5 22 a", "...aa  bb", ".*x.*.*", "a", " ", *random_texts(9, 25)]
    for number, (name, steps) in enumerate(pre_tokenizers()):
        unknown, fuse = ((None, False), ("<unk>", False), ("<unk>", True))[number % 3]
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=unknown, fuse_unk=fuse))
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(steps)
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=330, show_progress=False, special_tokens=["<unk>"],
            initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())[:200])
        tokenizer.train_from_iterator([*SYLLABLES, "a.b.c. 1.5 22 aa..bb"], trainer)
        yield {"name": name, "tokenizer": json.loads(tokenizer.to_str()),
               "texts": texts, "ids": [tokenizer.encode(text).ids for text in texts]}


def flagged_texts():
    rng = random.Random(11)
    parts = ["<left>", "<right>", "<both>", "<lef", "<s>", "word", "caf\u00e9", "cafe\u0301", "raw\u0301",
             "two words", " ", "\n", "\u3000", "\x85", "\u180e", "a", "_", "\u0301", "-", "9", "é", " whole",
             "whole"]
    for _ in range(200):
        yield "".join(rng.choice(parts) for _ in range(rng.randrange(1, 9)))


def syllable_texts():
    rng = random.Random(12)
    for _ in range(60):
        yield "".join(rng.choice([*SYLLABLES, "k", "l", "o", " "]) for _ in range(rng.randrange(1, 9)))


def train(**options):
    rng = random.Random(7)
    sentences = ["".join(rng.choice(SYLLABLES) + rng.choice(["", "", " "]) for _ in range(12))
                 for _ in range(400)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=model, model_type="bpe",
        character_coverage=0.98, minloglevel=2, **options)
    return model.getvalue()


def train_small_model():
    """256 bytes, some merges, two user-defined symbols, replacement rules, spaces trimmed."""
    rules = DATA / "rules.tsv"
    rules.write_text("41\t61\nFB01\t66 69\n61 62\t7A\n61 62 63\t78 20 79\n200B\t\nA0\t20\n65 301\tE9\n")
    model = train(vocab_size=360, byte_fallback=True, user_defined_symbols=["<sep>", "mi"],
                  normalization_rule_tsv=str(rules))
    rules.unlink()
    (DATA / "small.model").write_bytes(model)
    return model


def train_odd_model():
    """Unknown characters, pieces that are unused, and a character that occurs in pieces alone."""
    model = sentencepiece.sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(train(vocab_size=60, remove_extra_whitespaces=False))
    for piece in model.pieces:
        if piece.piece in ("ka", "tu", "▁re"):
            piece.type = model.SentencePiece.UNUSED
    del model.pieces[[piece.piece for piece in model.pieces].index("l")]
    (DATA / "odd.model").write_bytes(model.SerializeToString())
    return model.SerializeToString()


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizers", type=pathlib.Path, required=True)
    folder = parser.parse_args().tokenizers
    DATA.mkdir(parents=True, exist_ok=True)
    write("needle-8m", hugging_face(ROOT / "models" / "needle-8m" / "tokenizer.json", seed=1))
    write("qwen2", hugging_face(folder / "qwen2" / "tokenizer.json", seed=2))
    write("mistral-v1",
          sentence_piece((folder / "mistral-v1" / "tokenizer.model").read_bytes(), seed=3))
    write("small.tokenizer.cases", hugging_face(train_small_json(), 5, flagged_texts()))
    write("pre_tokenizers", pre_tokenizer_cases())
    write("odd.model.cases", sentence_piece(train_odd_model(), seed=6, texts=syllable_texts()))
    write("small.model.cases", sentence_piece(train_small_model(), seed=4))


if __name__ == "__main__":
    main()
