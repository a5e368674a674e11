// Small things that every part of the page uses.

export const $ = id => document.getElementById(id);

// el('button', {class: 'main', onclick: f}, 'Send', icon('send')): properties that an element has are
// set, all others are attributes; what is null or false is left out.
export function el(tag, properties = {}, ...children) {
  const e = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith('on') || key === 'value' || key === 'hidden') e[key] = value;
    else e.setAttribute(key, value);
  }
  e.append(...children.filter(child => child !== null && child !== undefined && child !== false));
  return e;
}

export function icon(name) {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  const use = document.createElementNS('http://www.w3.org/2000/svg', 'use');
  svg.setAttribute('aria-hidden', 'true');
  use.setAttribute('href', '#i-' + name);
  svg.append(use);
  return svg;
}

export const iconButton = (name, label, onclick, more = {}) =>
  el('button', {type: 'button', class: 'icon', 'aria-label': label, title: label, onclick, ...more}, icon(name));

export const count = n => Math.round(n).toLocaleString('en');
export const plural = (n, word) => count(n) + ' ' + word + (n === 1 ? '' : 's');
export const percent = x => (x * 100).toFixed(x < .1 ? 1 : 0) + '\u202f%';
export const rate = x => (x < 100 ? x.toFixed(1) : count(x)) + ' tokens/s';

export function bytes(n) {
  for (const unit of ['B', 'KiB', 'MiB', 'GiB']) {
    if (n < 1024 || unit === 'GiB') return (n >= 100 || unit === 'B' ? n.toFixed(0) : n.toFixed(1)) + ' ' + unit;
    n /= 1024;
  }
}

export function duration(ms) {
  const s = ms / 1000;
  if (s < 1) return ms.toFixed(0) + ' ms';
  if (s < 60) return s.toFixed(1) + ' s';
  return Math.floor(s / 60) + ':' + String(Math.floor(s % 60)).padStart(2, '0') + ' min';
}

// Without navigator.clipboard, which pages have over HTTPS and on localhost only, the browser copies
// what is selected.
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const box = el('textarea', {class: 'unseen', 'aria-hidden': 'true', value: text});
    const focused = document.activeElement;
    (document.querySelector('dialog[open]') ?? document.body).append(box);
    box.select();
    const ok = document.execCommand('copy');
    box.remove();
    focused?.focus();
    return ok;
  }
}

// A button that says for a while that it did.
export function copyButton(label, text) {
  const button = iconButton('copy', label, async () => {
    const ok = await copyText(text());
    announce(ok ? 'Copied' : 'The browser does not let this page copy');
    button.classList.toggle('done', ok);
    setTimeout(() => button.classList.remove('done'), 1500);
  });
  return button;
}

// For those who listen.
export function announce(text) {
  $('status').textContent = text;
}

export function save(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], {type}));
  el('a', {href: url, download: name}).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

// What can be remembered across visits; some browsers refuse to.
export const remembered = {
  get(key) {
    try { return localStorage.getItem(key); } catch { return null; }
  },
  set(key, value) {
    try {
      if (value) localStorage.setItem(key, value);
      else localStorage.removeItem(key);
    } catch { /* then only for this visit */ }
  },
};

// A word with an explanation, shown when it is hovered, focused or tapped.
export function term(word, explanation) {
  const e = el('button', {type: 'button', class: 'term'}, word);
  const show = () => {
    const tip = $('tip'), box = e.getBoundingClientRect();
    hideTip();
    e.setAttribute('aria-describedby', 'tip');
    tip.textContent = explanation;
    tip.hidden = false;
    const left = Math.max(8, Math.min(box.left, innerWidth - tip.offsetWidth - 8));
    const below = box.bottom + 6;
    tip.style.left = left + 'px';
    tip.style.top = (below + tip.offsetHeight < innerHeight ? below : box.top - tip.offsetHeight - 6) + 'px';
  };
  e.addEventListener('mouseenter', show);
  e.addEventListener('focus', show);
  e.addEventListener('click', show);
  for (const event of ['mouseleave', 'blur']) e.addEventListener(event, hideTip);
  return e;
}
export function hideTip() {
  document.querySelector('[aria-describedby=tip]')?.removeAttribute('aria-describedby');
  $('tip').hidden = true;
}
