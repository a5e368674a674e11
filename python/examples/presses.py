#!/usr/bin/env python3
"""How often a model still finds numbers in a text whose keys and values were compressed, by presses of kvpress and by ours.

    python/examples/presses.py MODEL [--tokens 1024] [--texts 4] [--ratios 0.5,0.75,0.9]

In a venv with kvpress (python/tests/kvpress.txt). All go through kvpress' own pipeline, which its evaluations use, with the
question behind the text that is compressed (their query_aware). The texts are sentences of nonsense with 8 numbers among them, in
the words that needle-8m knows.
"""
import argparse
import os
import random
import re

os.environ.setdefault('OMP_WAIT_POLICY', 'passive')

import kvpress  # noqa: E402
import transformers  # noqa: E402

from entropyinfer.kvpress import EntropyPress, LatentPress  # noqa: E402

PRESSES = {'random': kvpress.RandomPress, 'SnapKV': kvpress.SnapKVPress, 'ExpectedAttention': kvpress.ExpectedAttentionPress,
           'KeyDiff': kvpress.KeyDiffPress, 'LatentPress (ours)': LatentPress, 'EntropyPress (ours)': EntropyPress}
TRAITS = 'quiet golden narrow broken ancient gentle hidden heavy bright wooden'.split()
THINGS = 'lantern wagon letter basket mirror ladder blanket candle hammer bottle'.split()
PLACES = 'harbor village garden forest valley market kitchen chapel bridge meadow'.split()
INTRODUCTION = 'Some special magic numbers are hidden within the following text. Make sure to memorize them. I will quiz you about the numbers afterwards.\n'


def document(rng, n_tokens, count):
    """The text and its numbers by name."""
    names = rng.sample([f'{trait}-{thing}' for trait in TRAITS for thing in THINGS], 8)
    numbers = {name: str(rng.randrange(1000000, 10000000)) for name in names}
    sentences = []
    while count(' '.join(sentences)) < n_tokens:
        sentences += [f'The {rng.choice(TRAITS)} {rng.choice(THINGS)} stood near the {rng.choice(PLACES)}.' for _ in range(8)]
    for name, number in numbers.items():
        sentences.insert(rng.randrange(len(sentences)), f'One of the special magic numbers for {name} is: {number}.')
    return INTRODUCTION + ' '.join(sentences) + '\n', numbers


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('model')
    parser.add_argument('--tokens', type=int, default=1024)
    parser.add_argument('--texts', type=int, default=4)
    parser.add_argument('--ratios', default='0.5,0.75,0.9')
    given = parser.parse_args()
    ask = transformers.pipeline('kv-press-text-generation', model=given.model, device='cpu')
    rng = random.Random(1)
    documents = [document(rng, given.tokens, lambda text: len(ask.tokenizer(text).input_ids)) for _ in range(given.texts)]

    def found(press):
        n = 0
        for text, numbers in documents:
            for name, number in numbers.items():
                what = f'he special magic number for {name} mentioned in the provided text'
                answer = ask(f'{text}What is t{what}?', question='', answer_prefix=f' T{what} is ', press=press, max_new_tokens=10)['answer']
                n += number in re.findall(r'\d+', answer)
        return f'{100 * n / (8 * len(documents)):.0f}%'

    ratios = [float(ratio) for ratio in given.ratios.split(',')]
    print(f'{8 * given.texts} questions on texts of {given.tokens} tokens; with all of the cache {found(None)} are answered', flush=True)
    print('| share of the cache that goes |', ' | '.join(f'{ratio:g}' for ratio in ratios), '|\n|---|' + '--:|' * len(ratios))
    for name, press in PRESSES.items():
        presses = [press(compression_ratio=ratio) for ratio in ratios]
        print(f'| {name} |', ' | '.join(found(each) for each in presses), '|', flush=True)
    print(f'EntropyPress read the last text with {100 * presses[-1].reading.density:.0f}% of its pairs, the others with all')


if __name__ == '__main__':
    main()
