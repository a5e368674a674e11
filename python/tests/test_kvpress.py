"""Our votes and our reading as presses of kvpress, whose SnapKV is the same with a pool of its own. kvpress wants an older transformers than the
other tests; where it is not installed this is skipped."""
import pytest

torch = pytest.importorskip('torch')
kvpress = pytest.importorskip('kvpress')
transformers = pytest.importorskip('transformers')

import entropyinfer  # noqa: E402
from entropyinfer.kvpress import EntropyPress, LatentPress  # noqa: E402


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(1)
    config = transformers.LlamaConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2,
                                      head_dim=16, vocab_size=128)
    return transformers.LlamaForCausalLM(config).eval()


def scores(press, model, tokens):
    """What a press makes of every layer's keys, and the lengths that its caches have afterwards."""
    found, score = [], press.score
    press.score = lambda *args: found.append(score(*args)) or found[-1]
    cache = transformers.DynamicCache()
    with torch.no_grad(), press(model):
        model(tokens, past_key_values=cache)
    return found, [cache.get_seq_length(layer) for layer in range(2)]


def test_with_its_pool_we_are_snapkv(model):
    tokens = torch.randint(0, 128, (2, 150))
    ours, lengths = scores(LatentPress(compression_ratio=.6, window=32, pooling='avg', kernel=5), model, tokens)
    theirs, same = scores(kvpress.SnapKVPress(compression_ratio=.6, window_size=32, kernel_size=5), model, tokens)
    assert lengths == same == [60, 60]
    for a, b in zip(ours, theirs):
        assert a.shape == b.shape == (2, 2, 150)
        torch.testing.assert_close(a[..., :-32], b[..., :-32], rtol=1e-4, atol=1e-6)  # sums of floats in another order
        assert (a[..., -32:] > a[..., :-32].amax()).all()


def test_ours_keeps_what_stands_beside(model):
    """The mean of 5 of the same votes, or half of the highest such mean within 21; their pool of one is the votes."""
    tokens = torch.randint(0, 128, (1, 90))
    ours, _ = scores(LatentPress(compression_ratio=.5), model, tokens)
    plain, _ = scores(kvpress.SnapKVPress(compression_ratio=.5, window_size=32, kernel_size=1), model, tokens)
    narrow = torch.nn.functional.avg_pool1d(plain[0][..., :-32], 5, stride=1, padding=2)
    wanted = torch.maximum(narrow, torch.nn.functional.max_pool1d(narrow, 21, stride=1, padding=10) / 2)
    torch.testing.assert_close(ours[0][..., :-32], wanted, rtol=1e-4, atol=1e-6)


def test_what_was_read_densely_is_voted_on_alike(model):
    """By our attention with every block as by torch's."""
    tokens = torch.randint(0, 128, (2, 150))
    ours, lengths = scores(EntropyPress(compression_ratio=.6, policy='dense'), model, tokens)
    theirs, same = scores(LatentPress(compression_ratio=.6), model, tokens)
    assert lengths == same
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)  # of the second layer: attention in another order


def test_the_prompt_is_read_by_the_policy(model):
    """The keys that the votes are of are those of the model with our attention, and not those of the dense one."""
    policy = entropyinfer.Policy('entropy', mass=.5, threshold=64, dense_tail=0)
    tokens = torch.randint(0, 128, (1, 600))
    caches = {name: transformers.DynamicCache() for name in ('press', 'attention', 'dense')}
    press = EntropyPress(policy=policy)
    with torch.no_grad():
        with press(model):
            model(tokens, past_key_values=caches['press'])
        assert model.config._attn_implementation == 'sdpa'
        model(tokens, past_key_values=caches['dense'])
        model.set_attn_implementation('entropyinfer')
        with entropyinfer.policy(policy) as reading:
            model(tokens, past_key_values=caches['attention'])
        model.set_attn_implementation('sdpa')
    assert press.reading.density == reading.density < .9
    keys = {name: cache.layers[1].keys for name, cache in caches.items()}
    assert torch.equal(keys['press'], keys['attention'])
    assert not torch.allclose(keys['press'], keys['dense'], rtol=1e-2, atol=1e-3)


def test_an_error_leaves_the_model_as_it_was(model):
    with pytest.raises(ValueError, match='20 tokens'), torch.no_grad(), EntropyPress(compression_ratio=.5)(model):
        model(torch.zeros(1, 20, dtype=torch.long), past_key_values=transformers.DynamicCache())
    assert model.config._attn_implementation == 'sdpa'


@pytest.mark.parametrize('press', [LatentPress, EntropyPress])
def test_a_question_through_its_pipeline(model_dir, press):
    """As kvpress' evaluations ask: the context is compressed before anybody knows the question."""
    ask = transformers.pipeline('kv-press-text-generation', model=str(model_dir), device='cpu')
    answer = ask('The code of Rome is 4711. ' * 20, question='What is the code of Rome?', press=press(compression_ratio=.5), max_new_tokens=8)
    assert answer['answer']


def test_a_short_prompt_is_refused(model):
    with pytest.raises(ValueError, match='20 tokens, expected more than the window, 32'):
        scores(LatentPress(compression_ratio=.5), model, torch.zeros(1, 20, dtype=torch.long))
