// What reading and writing cost: of one answer, or of two side by side.

import {$, bytes, count, duration, el, iconButton, percent, term} from './dom.js';
import {toggle} from './frame.js';

const kWords = {
  density: 'The share of dense attention\u2019s work that was done while reading: pairs of tokens attended to, of all pairs. Of what this turn read, not of what was known from before.',
  rigid: 'Heads whose attention stayed on few places (low entropy) all along: they read with the least budget.',
  dynamic: 'Heads whose attention spread over the text somewhere (high entropy): their budget grows where it does.',
  latent: 'Latent: the questions that the model asks of the text itself decide which entries of the cache each head keeps, not only your question.',
  kv: 'Keys and values, what the model remembers of the text. Once an answer has begun they are compressed to the entries that it needs.',
};

const groups = [
  ['Reading', [
    ['Attention', a => a.sparsity.prefill],
    [term('Density', kWords.density), a => percent(a.sparsity.density), a => a.sparsity.density],
    ['Tokens read now', a => count(a.timings.prompt_n)],
    ['Known from before', a => count(a.timings.cache_n)],
    [term('Rigid heads', kWords.rigid), a => count(a.sparsity.rigid_heads)],
    [term('Dynamic heads', kWords.dynamic), a => count(a.sparsity.dynamic_heads)],
    ['Blocks seen, mean', a => count(a.sparsity.kept_blocks_mean)]]],
  [term('KV cache', kWords.kv), [
    ['Policy', a => a.sparsity.decode === 'latent' ? term('latent', kWords.latent) : a.sparsity.decode],
    ['Compressed', a => a.sparsity.compressed ? 'yes' : a.sparsity.decode === 'full' ? 'no' : 'not yet'],
    ['Held', a => bytes(a.sparsity.kv_bytes), a => a.sparsity.kv_bytes / (a.sparsity.kv_bytes_full || 1)],
    ['Uncompressed', a => bytes(a.sparsity.kv_bytes_full)]]],
  ['Time', [
    ['First token', a => duration(a.timings.prompt_ms)],
    ['Reading, tokens/s', a => count(a.timings.prompt_per_second)],
    ['Writing, tokens/s', a => a.timings.predicted_per_second.toFixed(1)]]],
];

const modeName = answer => answer.mode === 'dense' ? 'Dense' : 'Entropy';

// The panel, of a turn or of none.
export function show(node) {
  const answers = node?.answers.filter(a => a.sparsity) ?? [];
  const head = el('div', {class: 'bar'}, el('h2', {}, 'This turn'), iconButton('close', 'Close the figures', () => toggle('figures', false), {id: 'close-figures'}));
  if (!answers.length) {
    $('figures').replaceChildren(head, el('p', {class: 'dim'}, 'What reading and writing cost is shown here after an answer.'));
    return;
  }
  const parts = groups.map(([title, rows]) => [el('h3', {}, title), table(answers, rows)]).flat();
  if (answers.some(a => a.mode !== 'dense' && a.sparsity.density === 1))
    parts.unshift(el('p', {class: 'dim'}, 'What this turn read is short, and was read densely.'));
  $('figures').replaceChildren(head, ...parts);
}

function table(answers, rows) {
  const t = el('table', {class: answers.length > 1 && 'pair'});
  if (answers.length > 1) t.append(el('tr', {}, el('td'), ...answers.map(a => el('th', {scope: 'col'}, modeName(a)))));
  for (const [name, value, share] of rows) {
    t.append(el('tr', {}, el('th', {scope: 'row'}, name), ...answers.map(a => el('td', {}, value(a)))));
    if (!share) continue;
    t.append(el('tr', {'aria-hidden': 'true'}, el('td', {colspan: 1 + answers.length}, ...answers.map(a => {
      const fill = el('i');
      fill.style.width = Math.min(100, share(a) * 100) + '%';
      return el('div', {class: 'meter'}, fill);
    }))));
  }
  return t;
}

// Of two answers to one question, what matters, and how many times as much the second takes.
export function comparison(answers) {
  const times = (x, y) => x > 0 && y > 0 ? (y / x).toFixed(1) + '\u00d7' : '';
  const rows = [
    ['First token', a => a.timings.prompt_ms, duration],
    ['Whole answer', a => a.timings.prompt_ms + a.timings.predicted_ms, duration],
    [term('Density', kWords.density), a => a.sparsity.density, percent],
    [term('KV cache', kWords.kv), a => a.sparsity.kv_bytes, bytes],
  ];
  return el('table', {class: 'comparison'}, el('caption', {class: 'unseen'}, 'Both read all of the text for this comparison'),
    el('thead', {}, el('tr', {}, el('td'), ...answers.map(a => el('th', {scope: 'col'}, modeName(a))), el('td'))),
    el('tbody', {}, ...rows.map(([name, value, unit]) => {
      const known = answers.map(a => a.sparsity ? value(a) : null);
      return el('tr', {}, el('th', {scope: 'row'}, name), ...known.map(x => el('td', {}, x === null ? '\u2013' : unit(x))),
        el('td', {class: 'dim'}, known.includes(null) ? '' : times(...known)));
    })));
}
