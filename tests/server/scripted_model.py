"""A checkpoint whose answers are written beforehand: after the token that a conversation's template ends with, each token is
followed by the one that the script has next. All that it computes is that table, in its output matrix."""
import json
import struct

# The characters that byte-level vocabularies write bytes as.
PRINTED = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTES = [chr(b) if b in PRINTED else chr(256 + sum(c not in PRINTED for c in range(b))) for b in range(256)]


def write_scripted_model(folder, answers, form=''):
    """answers[i], a list of pieces of text, each a token, is what is said after i messages of the assistant. `form`: how its
    template says that tools are called."""
    tokens, follows = [*BYTES, '<|end|>'], {}
    end = len(tokens) - 1
    for i, answer in enumerate(answers):
        for piece in [f'<|turn {i}|>', *answer]:
            follows[len(tokens)] = len(tokens) + 1
            tokens.append(piece)
        follows[len(tokens) - 1] = end
    added = [{'id': i, 'content': tokens[i], 'single_word': False, 'lstrip': False, 'rstrip': False, 'normalized': False,
              'special': tokens[i].startswith('<|')} for i in range(256, len(tokens))]
    size = -(-len(tokens) // 32) * 32

    def write(name, content):
        (folder / name).write_text(json.dumps(content))
    write('config.json', {
        'architectures': ['LlamaForCausalLM'], 'model_type': 'llama', 'torch_dtype': 'bfloat16', 'vocab_size': size, 'hidden_size': size,
        'intermediate_size': 32, 'num_hidden_layers': 1, 'num_attention_heads': 1, 'num_key_value_heads': 1, 'head_dim': 32,
        'hidden_act': 'silu', 'max_position_embeddings': 8192, 'rms_norm_eps': 1e-5, 'rope_theta': 10000.0,
        'tie_word_embeddings': False, 'eos_token_id': end})
    write('tokenizer.json', {
        'version': '1.0', 'truncation': None, 'padding': None, 'added_tokens': added, 'normalizer': None,
        'pre_tokenizer': {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True, 'use_regex': True},
        'post_processor': None, 'decoder': {'type': 'ByteLevel', 'add_prefix_space': True, 'trim_offsets': True, 'use_regex': True},
        'model': {'type': 'BPE', 'dropout': None, 'unk_token': None, 'continuing_subword_prefix': None, 'end_of_word_suffix': None,
                  'fuse_unk': False, 'byte_fallback': False, 'vocab': {token: i for i, token in enumerate(tokens[:256])}, 'merges': []}})
    write('tokenizer_config.json', {
        'tokenizer_class': 'PreTrainedTokenizerFast', 'eos_token': '<|end|>',
        'chat_template': '{% if tools %}' + form + '{% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}'
                         '{% for m in messages %}{{ m.role }}: {{ m.content or "" }}\n{% endfor %}{% if add_generation_prompt %}'
                         '<|turn {{ messages | selectattr("role", "equalto", "assistant") | list | length }}|>{% endif %}'})

    def matrix(rows, cols, ones=()):
        data = bytearray(rows * cols * 2)
        for row, col in ones:
            data[(row * cols + col) * 2:(row * cols + col) * 2 + 2] = b'\x80\x3f'  # 1 in bf16
        return [rows, cols], data
    layer = 'model.layers.0.'
    tensors = {
        'model.embed_tokens.weight': matrix(size, size, [(i, i) for i in range(size)]),
        'lm_head.weight': matrix(size, size, [(follows.get(i, end), i) for i in range(size)]),
        **{layer + f'self_attn.{name}_proj.weight': matrix(32, size) for name in 'qkv'},
        layer + 'self_attn.o_proj.weight': matrix(size, 32), layer + 'mlp.down_proj.weight': matrix(size, 32),
        **{layer + f'mlp.{name}_proj.weight': matrix(32, size) for name in ('gate', 'up')},
        **{name: ([size], b'\x80\x3f' * size) for name in (layer + 'input_layernorm.weight', layer + 'post_attention_layernorm.weight', 'model.norm.weight')}}
    header, offset = {}, 0
    for name, (shape, data) in tensors.items():
        header[name] = {'dtype': 'BF16', 'shape': shape, 'data_offsets': [offset, offset + len(data)]}
        offset += len(data)
    head = json.dumps(header).encode()
    (folder / 'model.safetensors').write_bytes(struct.pack('<Q', len(head)) + head + b''.join(data for _, data in tensors.values()))
    return folder
