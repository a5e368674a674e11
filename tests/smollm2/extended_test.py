"""The model whose context a committed delta extends: its weights are the sum they should be, and it finds what lies beyond the base's context."""

import json
import os
import pathlib
import struct
import subprocess

import numpy as np

PROGRAM, BASE = os.environ["ENTROPYINFER"], pathlib.Path(os.environ["SMOLLM2"])
ROOT = pathlib.Path(__file__).resolve().parents[2]
DELTA, MODEL = ROOT / "models/smollm2-32k/delta.safetensors", pathlib.Path(os.environ["SMOLLM2_32K"])


class File:
    """A safetensors file in bf16, a tensor at a time."""

    def __init__(self, path):
        self.bytes = np.memmap(path, np.uint8, "r")
        size = struct.unpack("<Q", self.bytes[:8].tobytes())[0]
        self.header, self.begin = json.loads(self.bytes[8:8 + size].tobytes()), 8 + size
        self.metadata = self.header.pop("__metadata__", {})

    def bits(self, name):
        entry = self.header[name]
        assert entry["dtype"] == "BF16"
        first, last = (self.begin + offset for offset in entry["data_offsets"])
        return self.bytes[first:last].view("<u2").reshape(entry["shape"])

    def values(self, name):
        return (self.bits(name).astype("<u4") << 16).view("<f4").astype(np.float64)


def test_weights_are_the_base_and_the_product():
    """To half a step of bf16, which has 8 bits, and what a float32 sum of a few dozen terms is off."""
    base, delta, model = File(BASE / "model.safetensors"), File(DELTA), File(MODEL / "model.safetensors")
    assert base.header.keys() == model.header.keys()
    changed = {name.removesuffix(".A") for name in delta.header if name.endswith(".A")}
    assert len(delta.header) == 2 * len(changed) and len(changed) == 7 * 30
    for name in base.header:
        if name not in changed:
            assert np.array_equal(base.bits(name), model.bits(name)), name
            continue
        product = delta.values(name + ".B") @ delta.values(name + ".A")
        assert np.abs(product).max() > 1e-3, name
        want = base.values(name) + product
        assert np.all(np.abs(model.values(name) - want) <= np.ldexp(1.0, np.frexp(want)[1] - 9) + 1e-6), name


def test_its_configuration_is_the_base_s_but_for_the_context():
    base, config = (json.loads((folder / "config.json").read_text()) for folder in (BASE, MODEL))
    assert config["max_position_embeddings"] == 32768
    assert config["rope_theta"] == float(File(DELTA).metadata["rope_theta"]) > base["rope_theta"]
    changed = {name for name in base if base[name] != config[name]}
    assert config.keys() == base.keys() and changed == {"max_position_embeddings", "rope_theta"}


def test_it_finds_a_number_far_back(tmp_path):
    """In over 12,000 tokens, of which the base reads 8,192; the number stands in the first quarter."""
    text = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("METHOD.md", "DESIGN.md", "HACKING.md", "API.md"))[:45_000]
    at = text.index("\n\n", len(text) // 5)
    file = tmp_path / "text.txt"
    file.write_text(text[:at] + "\n\nOne of the special magic numbers for quiet-harbor is: 4071836.\n\n" + text[at:])
    done = subprocess.run([PROGRAM, "run", str(MODEL), "--file", str(file), "--temp", "0", "-n", "40",
                           "--json", "--prompt", "What is the special magic number for quiet-harbor mentioned in the provided text?"],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["usage"]["prompt_tokens"] > 12_000 and "4071836" in answer["text"], answer
