// How questions are asked, in all conversations. What is left empty is the model's or the server's own.

import {$, remembered} from './dom.js';

const form = $('settings').querySelector('form');
const kNumbers = ['temperature', 'top_p', 'max_tokens', 'base_budget', 'budget'];
const fields = [...form.elements].filter(e => e.name);
let values = JSON.parse(remembered.get('settings') ?? '{}');

export const system = () => values.system?.trim() ?? '';
export const thinking = () => values.thinking ?? '';

// The fields of a request. `server`: the names of the server's own policies.
export function request(mode, server) {
  const out = {};
  for (const name of kNumbers.slice(0, 3)) if (values[name]) out[name] = Number(values[name]);
  if (mode === 'dense') return {...out, prefill: 'dense', decode: 'full'};
  const prefill = values.prefill || (server.prefill === 'dense' ? 'entropy' : '');
  const decode = values.decode || (server.decode === 'full' ? 'latent' : '');
  if (prefill) out.prefill = prefill;
  if (decode) out.decode = decode;
  if (values.base_budget) out.base_budget = Number(values.base_budget);
  if (values.budget && decode !== 'full') out.budget = Number(values.budget);
  return out;
}

export function open() {
  for (const field of fields) field.value = values[field.name] ?? '';
  $('settings').showModal();
}

form.addEventListener('change', () => {
  values = Object.fromEntries(fields.filter(f => f.value !== '' && f.validity.valid).map(f => [f.name, f.value]));
  remembered.set('settings', JSON.stringify(values));
});
$('reset').onclick = () => {
  form.reset();
  form.dispatchEvent(new Event('change'));
};
