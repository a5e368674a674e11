// The list of conversations: search, rename, export, delete.

import {$, el, iconButton} from './dom.js';
import * as store from './store.js';

let actions = {};     // open, rename, exportIt, remove: functions of a head
let shown = '';       // the id of the conversation that is open
let renaming = null;  // the id of the one whose title is being written

export function use(functions) {
  actions = functions;
}

export async function show(id = shown) {
  shown = id;
  const query = $('search').value.trim();
  const heads = query ? await store.search(query) : await store.heads();
  if (query !== $('search').value.trim()) return;  // somebody typed on
  const now = Date.now(), items = [];
  let day = '';
  for (const head of heads) {
    const its = dayOf(head.updated, now);
    if (its !== day && !query) items.push(el('li', {class: 'day', role: 'presentation'}, day = its));
    items.push(item(head));
  }
  if (renaming !== null && $('list').querySelector('input')) return;  // shown again when the title is there
  if (!items.length) items.push(el('li', {class: 'dim'}, query ? 'Nothing found' : 'No conversations yet'));
  $('list').replaceChildren(...items);
  $('list').querySelector('input')?.select();
}

function dayOf(time, now) {
  const day = t => new Date(t).setHours(0, 0, 0, 0);
  const days = Math.round((day(now) - day(time)) / 86400000);
  return days < 1 ? 'Today' : days < 2 ? 'Yesterday' : days < 7 ? 'This week' : new Date(time).toLocaleDateString('en', {month: 'long', year: 'numeric'});
}

function item(head) {
  if (renaming === head.id) return el('li', {}, titleBox(head));
  const isOpen = head.id === shown;
  return el('li', {class: isOpen ? 'open' : ''},
    el('button', {type: 'button', class: 'name', title: head.title, 'aria-current': isOpen && 'true', onclick: () => actions.open(head)}, head.title),
    el('span', {class: 'tools'},
      iconButton('edit', 'Rename ' + head.title, () => { renaming = head.id; show(); }),
      iconButton('export', 'Export ' + head.title, () => actions.exportIt(head)),
      iconButton('delete', 'Delete ' + head.title, () => actions.remove(head))));
}

function titleBox(head) {
  let over = false;
  const box = el('input', {value: head.title, 'aria-label': 'Title', maxlength: 200});
  const end = async keep => {
    if (over) return;
    over = true;
    renaming = null;
    if (keep && box.value.trim()) await actions.rename(head, box.value.trim());
    await show();
    $('list').querySelector('[aria-current]')?.focus();
  };
  box.onkeydown = event => {
    if (event.key === 'Enter') end(true);
    if (event.key === 'Escape') { event.stopPropagation(); end(false); }
  };
  box.onblur = () => end(true);
  return box;
}

$('search').addEventListener('input', () => show());
