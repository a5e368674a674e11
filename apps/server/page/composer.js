// Where questions are written: the text, the files that go with it, and how it is asked.

import {fileChip, read} from './attach.js';
import {$, announce, el, iconButton, remembered} from './dom.js';

const input = $('input');
let files = [];
let ask = () => false;  // takes a text and files; whether they were asked

export function use(f) {
  ask = f;
}

// The kinds of attention that are asked for: one, or two that are compared.
export function modes() {
  const mode = document.querySelector('#mode input:checked').value;
  return mode === 'compare' ? ['entropy', 'dense'] : [mode];
}
export function choose(mode) {
  for (const radio of $('mode').querySelectorAll('input')) radio.checked = radio.value === mode;
}
// The last choice of whoever uses this browser.
export const chosen = () => remembered.get('mode');
$('mode').onchange = () => remembered.set('mode', document.querySelector('#mode input:checked').value);

export function notice(text, label, action) {
  const hide = () => { $('notice').hidden = true; };
  $('notice').replaceChildren(el('span', {}, text),
    label ? el('button', {type: 'button', class: 'small', onclick: () => { hide(); action(); }}, label) : '',
    iconButton('close', 'Dismiss', hide));
  $('notice').hidden = !text;
}

// A question that was asked in vain, to be changed. What has been written meanwhile comes after it.
export function giveBack(question) {
  input.value = [question.text, input.value].filter(Boolean).join('\n');
  files = [...question.files, ...files];
  show();
}

// The longest file goes; null: there is none.
export function dropLongest() {
  if (!files.length) return null;
  const longest = files.reduce((a, b) => a.text.length >= b.text.length ? a : b);
  files = files.filter(f => f !== longest);
  show();
  return longest;
}

function show() {
  $('files').replaceChildren(...files.map(file => fileChip(file, () => {
    files = files.filter(f => f !== file);
    show();
    input.focus();
  })));
  input.style.height = 'auto';
  input.style.height = input.scrollHeight + 'px';
}

async function attach(list) {
  const errors = [];
  $('attach').setAttribute('aria-busy', 'true');
  for (const file of list) {
    try {
      const content = await read(file);  // `files` may be another list by now
      files.push(content);
      announce(file.name + ' is attached');
    } catch (error) {
      errors.push(error.message);
    }
  }
  $('attach').removeAttribute('aria-busy');
  notice(errors.join(' '));
  show();
  input.focus();
}

$('form').addEventListener('submit', event => {
  event.preventDefault();
  const text = input.value.trim(), attached = files;
  if ((!text && !attached.length) || !ask(text, attached)) return;
  files = [];
  input.value = '';
  show();
});
input.addEventListener('input', show);
input.addEventListener('keydown', event => {
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $('form').requestSubmit();
});
$('attach').onclick = () => $('picker').click();
$('picker').onchange = async event => {
  await attach([...event.target.files]);
  event.target.value = '';
};
document.addEventListener('dragover', event => event.preventDefault());
document.addEventListener('drop', event => {
  event.preventDefault();
  attach([...event.dataTransfer.files]);
});
