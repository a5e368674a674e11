// Conversations, kept in this browser's IndexedDB: what the list shows of them in one store, all that was said in
// another. Where there is no IndexedDB they last as long as the page.

import {words} from './tree.js';

const HEADS = 'heads', BODIES = 'bodies';
let db = null;
const memory = {[HEADS]: new Map(), [BODIES]: new Map()};

const done = request => new Promise((resolve, reject) => {
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

const committed = change => new Promise((resolve, reject) => {
  change.oncomplete = resolve;
  change.onabort = () => reject(change.error);
});

// Whether conversations outlive the page.
export async function open() {
  try {
    const request = indexedDB.open('entropyinfer', 1);
    request.onupgradeneeded = () => {
      for (const store of [HEADS, BODIES]) request.result.createObjectStore(store, {keyPath: 'id'});
    };
    db = await done(request);
    db.onversionchange = () => {
      db.close();
      db = null;
    };
    db.onclose = () => { db = null; };
  } catch {
    db = null;
  }
  return db !== null;
}

const all = store => db ? done(db.transaction(store).objectStore(store).getAll()) : [...memory[store].values()];

// {id, title, updated}, the latest first.
export async function heads() {
  return (await all(HEADS)).sort((a, b) => b.updated - a.updated);
}

// {id, root}
export async function load(id) {
  return db ? done(db.transaction(BODIES).objectStore(BODIES).get(id)) : memory[BODIES].get(id);
}

export async function save({id, title, updated, root}) {
  const head = {id, title, updated}, body = {id, root};
  if (!db) {
    memory[HEADS].set(id, head);
    memory[BODIES].set(id, body);
    return;
  }
  const change = db.transaction([HEADS, BODIES], 'readwrite');
  change.objectStore(HEADS).put(head);
  change.objectStore(BODIES).put(body);
  await committed(change);
}

export async function remove(id) {
  if (!db) {
    for (const store of [HEADS, BODIES]) memory[store].delete(id);
    return;
  }
  const change = db.transaction([HEADS, BODIES], 'readwrite');
  for (const store of [HEADS, BODIES]) change.objectStore(store).delete(id);
  await committed(change);
}

// The heads of those in which all of the words occur, in a title or in what was said.
export async function search(query) {
  const wanted = query.toLowerCase().split(/\s+/).filter(Boolean);
  const found = [];
  for (const head of await heads()) {
    let text = head.title.toLowerCase();
    if (!wanted.every(word => text.includes(word))) {
      const body = await load(head.id);  // another page may have removed it
      if (body) text += '\n' + words(body.root).toLowerCase();
    }
    if (wanted.every(word => text.includes(word))) found.push(head);
  }
  return found;
}
