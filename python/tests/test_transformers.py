"""Models of transformers with our attention: dense it is SDPA's, sparse it attends to what the engine selects."""
import concurrent.futures
import contextvars

import numpy as np
import pytest

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

import entropyinfer  # noqa: E402
import entropyinfer.transformers  # noqa: E402, F401
from conftest import TOP  # noqa: E402
from entropyinfer import Engine, ops, reference  # noqa: E402

SIZES = dict(vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
             max_position_embeddings=4096, pad_token_id=0, bos_token_id=1, eos_token_id=2)
CONFIGS = {
    'llama': lambda: transformers.LlamaConfig(**SIZES),
    'qwen2': lambda: transformers.Qwen2Config(**SIZES),
    'qwen3': lambda: transformers.Qwen3Config(**SIZES, head_dim=32),
    'mistral': lambda: transformers.MistralConfig(**SIZES, sliding_window=None),
    'phi3': lambda: transformers.Phi3Config(**SIZES),
    'olmo2': lambda: transformers.Olmo2Config(**{**SIZES, 'num_key_value_heads': 4}),
    'qwen3_moe': lambda: transformers.Qwen3MoeConfig(**SIZES, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32,
                                                     decoder_sparse_step=1),
}
# Prompts of some hundred tokens are long enough for these.
PAPER = 'paper:segment=32:block=8:threshold=64:base-budget=64:dense-tail=32'
ENTROPY = 'entropy:threshold=64:dense-tail=32:local=32:mass=0.6'


def tiny(config, dtype=torch.float32, device='cpu'):
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation='sdpa').eval().to(device)
    for name, weight in model.named_parameters():  # so that some keys matter more than others
        if 'q_proj' in name or 'k_proj' in name or 'qkv_proj' in name:
            weight.data *= 6
    return model


def logits(model, attention, **inputs):
    model.set_attn_implementation(attention)
    with torch.inference_mode():
        return model(**inputs).logits


def tokens_of(n, seed=1, batch=1, device='cpu'):
    return torch.randint(3, 300, (batch, n), generator=torch.Generator().manual_seed(seed)).to(device)


DTYPE = {'cpu': torch.float32, 'cuda': torch.bfloat16}
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: .05}


@pytest.mark.parametrize('name', CONFIGS)
def test_dense_is_sdpa(name, place):
    model, tolerance = tiny(CONFIGS[name](), **place), TOLERANCE[place['dtype']]
    ids = tokens_of(333, device=place['device'])
    expected = logits(model, 'sdpa', input_ids=ids).float()
    with entropyinfer.policy('dense') as reading:
        got = logits(model, 'entropyinfer', input_ids=ids).float()
    # bf16: relative to all, as a router's choice may turn on a last bit.
    assert (got - expected).norm() <= tolerance * expected.norm()
    assert reading.density == 1 and len(reading.layers) == 3


@pytest.mark.parametrize('side', ['left', 'right'])
def test_padded_batches(side, device):
    model = tiny(CONFIGS['llama'](), DTYPE[device], device)
    lengths = 200, 77, 131
    ids, mask = (torch.zeros(3, 200, dtype=torch.long, device=device) for _ in range(2))
    places = [slice(200 - n, 200) if side == 'left' else slice(0, n) for n in lengths]
    for i, (n, place) in enumerate(zip(lengths, places)):
        ids[i, place], mask[i, place] = tokens_of(n, i)[0], 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    for policy in 'dense', PAPER:
        with entropyinfer.policy(policy, blocks=True) as reading:
            got = logits(model, 'entropyinfer', input_ids=ids, attention_mask=mask, position_ids=positions)
        together = reading.layers
        for i, (n, place) in enumerate(zip(lengths, places)):
            with entropyinfer.policy(policy, blocks=True) as reading:
                alone = logits(model, 'entropyinfer', input_ids=tokens_of(n, i, device=device))[0]
            if device == 'cpu':
                torch.testing.assert_close(got[i, place], alone, rtol=1e-4, atol=1e-4)
                assert all((together[layer][i].count == reading.layers[layer][0].count).all() for layer in range(3))
            else:  # products of batches round otherwise
                assert (got[i, place] - alone).norm() <= .05 * alone.norm()


def test_padded_batches_are_written_as_sdpa_does(device):
    """How likely each token is, as the answer was written and as SDPA reads it."""
    model = tiny(CONFIGS['qwen2'](), DTYPE[device], device)
    ids, mask = tokens_of(90, batch=2, device=device), torch.ones(2, 90, dtype=torch.long, device=device)
    mask[1, :40] = 0
    model.set_attn_implementation('entropyinfer')
    with torch.inference_mode(), entropyinfer.policy('dense'):
        out = model.generate(ids, attention_mask=mask, max_new_tokens=12, min_new_tokens=12, do_sample=False, output_logits=True,
                             return_dict_in_generate=True)
    mask = torch.cat([mask, mask.new_ones(2, 12)], 1)
    expected = logits(model, 'sdpa', input_ids=out.sequences, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0))
    got, expected = torch.stack(out.logits, 1).float(), expected[:, 89:-1].float()
    assert (got - expected).norm() <= TOLERANCE[DTYPE[device]] * expected.norm()


def test_what_is_written_is_what_sdpa_writes():
    model = tiny(CONFIGS['qwen2']())
    ids, mask = tokens_of(90, batch=2), torch.ones(2, 90, dtype=torch.long)
    mask[1, :40] = 0
    outs = {}
    for attention in 'sdpa', 'entropyinfer':
        model.set_attn_implementation(attention)
        with torch.inference_mode(), entropyinfer.policy('dense'):
            outs[attention] = model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False)
    assert (outs['sdpa'] == outs['entropyinfer']).all()


def test_a_text_in_parts_is_the_text():
    """What follows a prompt sees all of it."""
    model = tiny(CONFIGS['llama']())
    ids = tokens_of(150)
    expected = logits(model, 'sdpa', input_ids=ids)
    with torch.inference_mode(), entropyinfer.policy('dense'):
        model.set_attn_implementation('entropyinfer')
        first = model(input_ids=ids[:, :70], use_cache=True)
        second = model(input_ids=ids[:, 70:], cache=first.cache)
    torch.testing.assert_close(torch.cat([first.logits, second.logits], 1), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('policy', [PAPER, ENTROPY])
def test_sparse_is_what_is_selected(policy, device):
    """Layer by layer against the same selection as a mask in double."""
    model = tiny(CONFIGS['llama'](), DTYPE[device], device)
    ids = tokens_of(500, device=device)
    seen = []

    def watch(module, query, key, value, mask, **kwargs):
        out, _ = entropyinfer.transformers.attention(module, query, key, value, mask, **kwargs)
        seen.append((query[0], key[0], value[0], out[0].transpose(0, 1)))
        return out, None
    transformers.AttentionInterface.register('watched', watch)
    transformers.AttentionMaskInterface.register('watched', lambda *args, **kwargs: None)
    with entropyinfer.policy(policy, blocks=True) as reading:
        logits(model, 'watched', input_ids=ids)
    assert 0 < reading.density < .9
    for layer, (q, k, v, out) in enumerate(seen):
        selection = reading.layers[layer][0]
        expected = reference.sparse_attention(q, k, v, selection)
        if device == 'cpu':
            torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)
        else:
            assert (out.double() - expected).norm() <= 5e-3 * expected.norm()
        if layer > 0:
            alone = ops.select_blocks(q, k, policy)
            assert (alone.count == selection.count).all() and (alone.index == selection.index).all()


def pretrained(model_dir, device):
    return transformers.AutoModelForCausalLM.from_pretrained(model_dir, dtype=DTYPE[device], attn_implementation='entropyinfer').eval().to(device)


@pytest.mark.parametrize('policy', ['paper:segment=64:block=8:threshold=256:base-budget=128', 'dense'])
def test_it_is_the_engines_own_reading(model_dir, policy, device):
    engine = Engine(model_dir, device=device, **({'kv_type': 'f32', 'math': 'f32'} if device == 'cpu' else {}))
    ids = engine.tokenize((TOP / 'LICENSE').read_text(encoding='utf-8'))[:1000]
    profile, score = engine.profile(ids, policy), engine.score(ids, policy)
    model = pretrained(model_dir, device)
    with torch.inference_mode(), entropyinfer.policy(policy) as reading:
        out = model(input_ids=torch.from_numpy(ids.astype(np.int64))[None].to(device)).logits[0].double().cpu()
    logprobs = out.log_softmax(-1)[:-1].gather(1, torch.from_numpy(ids[1:].astype(np.int64))[:, None])[:, 0]
    # Activations of a GPU are bf16, and transformers rounds others of them.
    near = {'cpu': 1e-3, 'cuda': .05}[device]
    assert reading.density == pytest.approx(score.density, rel=near)
    assert (logprobs - torch.from_numpy(score.logprobs[1:])).abs().median() < near
    for layer in range(1, 8 if policy != 'dense' else 1):
        counts = reading.layers[layer][0].count.cpu()
        counts = torch.where(counts < 0, torch.arange(16) * 8, counts).numpy()
        if device == 'cpu':
            assert (counts == profile.blocks[layer]).mean() > .97
        else:
            assert np.abs(counts - profile.blocks[layer]).sum() <= near * profile.blocks[layer].sum()


@pytest.mark.parametrize('decode', ['latent:budget=96', 'snapkv:budget=64:window=16', 'latent:budget=96:regrow=16:decode-gap=4'])
def test_a_compressed_cache_is_the_engines(model_dir, decode, device):
    """How likely every token is that follows a prompt, whatever is kept of that."""
    n, n_prompt = 440, 400
    engine = Engine(model_dir, device='cpu', kv_type='f32', math='f32')
    tokens = engine.tokenize((TOP / 'LICENSE').read_text(encoding='utf-8'))[:n]
    expected = engine.score(tokens, 'dense+' + decode, n_prefill=n_prompt).logprobs[n_prompt:]
    full = engine.score(tokens, 'dense+full', n_prefill=n_prompt).logprobs[n_prompt:]
    model = pretrained(model_dir, device)
    cache = entropyinfer.transformers.CompressedCache('dense+' + decode)
    ids = torch.from_numpy(tokens.astype(np.int64))[None].to(device)
    rows = []
    with torch.inference_mode(), entropyinfer.policy('dense'):
        for begin, end in [(0, n_prompt), *((i, i + 1) for i in range(n_prompt, n - 1))]:
            rows.append(model(input_ids=ids[:, begin:end], cache=cache, logits_to_keep=1).logits[0, -1].double().log_softmax(-1))
    got = np.array([row[token].item() for row, token in zip(rows, tokens[n_prompt:])])
    if device == 'cpu':
        assert np.abs(got - expected).max() < 2e-3 < np.abs(full - expected).max()
    else:  # bf16: a few other rows are kept
        assert np.abs(got - expected).mean() < .5 * np.abs(full - expected).mean()
    assert all(layer.compressed and layer.keys.shape[2] < 150 for layer in cache.layers) and cache.get_seq_length() == n - 1


def test_caches_that_are_not_made():
    for policy, message in ('dense+full', 'fixed number'), ('dense+adakv', 'split is adaptive, expected even'), ('dense+streaming', 'split'), ('dense+expected', 'voter is expected, expected window'):
        with pytest.raises(ValueError, match=message):
            entropyinfer.transformers.CompressedCache(policy)
    layer = torch.zeros(2, 1, 1, 8)
    with pytest.raises(ValueError, match='a batch of 2'):
        entropyinfer.transformers.CompressedCache().update(layer, layer, 0)


def test_a_cache_of_a_fixed_size_is_refused():
    model = tiny(CONFIGS['llama']())
    model.set_attn_implementation('entropyinfer')
    with torch.inference_mode(), pytest.raises(ValueError, match='room for 64 tokens of which 20 are there'):
        model(input_ids=tokens_of(20), cache=transformers.StaticCache(config=model.config, max_cache_len=64))


def test_a_stage_of_ones_own():
    model = tiny(CONFIGS['llama']())
    ids = tokens_of(256)
    calls = []

    def newest(q, k, layer):
        calls.append(layer)
        n_segments = q.shape[1] // 64
        count = torch.tensor([[min(s, 1) * 8 for s in range(n_segments)]] * k.shape[0])
        index = torch.stack([torch.arange(8) + max(0, s - 1) * 8 for s in range(n_segments)]).expand(k.shape[0], -1, -1)
        return ops.Selection(count, index, 64, 8)
    with entropyinfer.policy('paper', select=newest) as reading:
        windowed = logits(model, 'entropyinfer', input_ids=ids)
    assert calls == [0, 1, 2] and len(reading.layers) == 3
    assert reading.density == pytest.approx(reading.layers[0][0].mask(256).sum().item() / (256 * 257 // 2 * 2))
    whole = logits(model, 'sdpa', input_ids=ids)
    torch.testing.assert_close(windowed[:, :128], whole[:, :128], rtol=1e-4, atol=1e-4)  # two segments see everything
    assert (windowed[:, -1] - whole[:, -1]).abs().max() > 1e-3


def written(model, cache, ids, **options):
    model.set_attn_implementation('entropyinfer')
    with torch.inference_mode(), entropyinfer.policy('dense'):
        return model.generate(ids, cache=cache, max_new_tokens=40, min_new_tokens=40, do_sample=False, **options)


def test_a_compressed_cache_begins_again():
    model, ids = tiny(CONFIGS['llama']()), tokens_of(200)
    cache = entropyinfer.transformers.CompressedCache('dense+latent', budget=64)
    first = written(model, cache, ids)
    cache.reset()
    assert (written(model, cache, ids) == first).all() and cache.get_seq_length() == 239 and cache.layers[0].keys.shape[2] < 100
    assert written(model, entropyinfer.transformers.CompressedCache(), ids[:, :1]).shape == (1, 41)


def test_what_a_compressed_cache_cannot_do_is_said():
    model, ids = tiny(CONFIGS['llama']()), tokens_of(200)
    cache = entropyinfer.transformers.CompressedCache('dense+latent', budget=64)
    mask = torch.ones_like(ids)
    mask[:, :9] = 0
    with pytest.raises(ValueError, match='has padding, expected none'):
        written(model, cache, ids, attention_mask=mask)
    cache.reset()
    with pytest.raises(ValueError, match='cannot take tokens back'):
        written(model, cache, ids, prompt_lookup_num_tokens=3)
    cache.reset()
    model.set_attn_implementation('sdpa')
    with pytest.raises(ValueError, match='has not seen the queries'):
        model.generate(ids, cache=cache, max_new_tokens=40, min_new_tokens=40)


def test_layers_without_attention_stand_between():
    config = transformers.Lfm2Config(**{**SIZES, 'num_hidden_layers': 4}, layer_types=['conv', 'full_attention'] * 2)
    model = tiny(config)
    with entropyinfer.policy(PAPER) as reading:
        for n in 300, 200:  # a prompt after the other
            logits(model, 'entropyinfer', input_ids=tokens_of(n))
            assert [[selection.n for selection in layer] for layer in reading.layers] == [[], [n], [], [n]]


def test_threads_of_one_context_read_their_own():
    """asyncio.to_thread, for one, takes the context along."""
    model = tiny(CONFIGS['llama']())
    lengths = 300, 400

    def read(n):
        return logits(model, 'entropyinfer', input_ids=tokens_of(n))
    with entropyinfer.policy(PAPER):
        expected = {n: read(n) for n in lengths}
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            got = [(n, pool.submit(contextvars.copy_context().run, read, n)) for n in lengths * 10]
    for n, logit in got:
        torch.testing.assert_close(logit.result(), expected[n], rtol=1e-4, atol=1e-4)


CHUNKED = dict(head_dim=16, intermediate_size_mlp=96, num_local_experts=2, attention_chunk_size=64)


@pytest.mark.parametrize('message, config, change', [
    ('see later ones', lambda: transformers.BertConfig(**SIZES), {}),
    ('sees 36 of them', lambda: transformers.Llama4TextConfig(**SIZES, **CHUNKED), {}),
    ('sees 16 of them', lambda: transformers.MistralConfig(**SIZES, sliding_window=16), {}),
    ('sees 40 of them', CONFIGS['llama'], {'position_ids': torch.arange(100)[None] % 60, 'use_cache': False}),
    (r'is \[1, 1, 100, 100\], expected \[batch, tokens\]', CONFIGS['llama'], {'attention_mask': torch.ones(1, 1, 100, 100, dtype=torch.bool).tril()}),
])
def test_attention_that_is_not_causal_is_refused(message, config, change):
    model = transformers.AutoModel.from_config(config(), attn_implementation='entropyinfer').eval()
    with torch.inference_mode(), pytest.raises(ValueError, match=message):
        model(input_ids=tokens_of(100), **change)


def test_a_chunk_that_holds_the_text_is_causal():
    model = tiny(transformers.Llama4TextConfig(**SIZES, **CHUNKED))
    ids, mask = tokens_of(60, batch=2), torch.ones(2, 60, dtype=torch.long)
    mask[1, :20] = 0
    expected = logits(model, 'sdpa', input_ids=ids, attention_mask=mask)
    with entropyinfer.policy('dense'):
        got = logits(model, 'entropyinfer', input_ids=ids, attention_mask=mask)
    torch.testing.assert_close(got[mask > 0], expected[mask > 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('error, message, change', [
    (RuntimeError, 'no gradients', {'grad': True}),
    (ValueError, 'window of 16 tokens, expected none or at least the 40', {'sliding_window': 16}),
    (ValueError, 'no padding between tokens', {'mask': [1] * 10 + [0] + [1] * 29}),
    (ValueError, 'softcap', {'softcap': 30.}),
    (ValueError, 'dropout is 0.1', {'dropout': .1}),
    (ValueError, 'LlamaAttention lets tokens see later ones', {'is_causal': False}),
])
def test_what_is_not_computed_is_refused(error, message, change):
    module = tiny(CONFIGS['llama']()).model.layers[0].self_attn
    q, kv = torch.randn(1, 4, 40, 16), torch.randn(1, 2, 40, 16)
    mask = torch.tensor([change.pop('mask')]) if 'mask' in change else None
    q.requires_grad = change.pop('grad', False)
    with pytest.raises(error, match=message):
        entropyinfer.transformers.attention(module, q, kv, kv, mask, **change)
