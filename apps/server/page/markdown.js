// An answer's Markdown as elements. Whatever it says, it is text, links and tables: tags in it are shown as they are
// written, images are links, and what the parser makes is sanitised before it is part of the page, whose policy runs
// no other scripts than its own in any case.

import {copyButton, el} from './dom.js';

const {marked, DOMPurify} = window;
const kAllowed = {
  ALLOWED_TAGS: ['a', 'blockquote', 'br', 'code', 'del', 'em', 'h1', 'h2', 'h3', 'h4', 'h5', 'h6', 'hr', 'li', 'ol', 'p', 'pre',
    'strong', 'table', 'tbody', 'td', 'th', 'thead', 'tr', 'ul'],
  ALLOWED_ATTR: ['href', 'class', 'start', 'align'],
  ADD_URI_SAFE_ATTR: ['start', 'align'],
  ALLOW_DATA_ATTR: false,
  ALLOWED_URI_REGEXP: /^(?:https?:|mailto:)/i,
  RETURN_DOM_FRAGMENT: true,
};

const escape = text => text.replace(/[&<>"']/g, c => `&#${c.charCodeAt(0)};`);
const renderer = new marked.Renderer();
renderer.html = escape;
renderer.image = (href, title, text) => `<a href="${escape(href)}">${text || escape(href)}</a>`;
renderer.checkbox = checked => checked ? '\u2611 ' : '\u2610 ';
const kOptions = {gfm: true, breaks: true, mangle: false, headerIds: false, langPrefix: 'language-', renderer};

// Shows `text` in `box`. Blocks that have not changed stay as they are, selections and all, so that a long answer can
// be shown while it is written.
export function show(box, text) {
  let at = 0;
  for (const token of marked.lexer(text, kOptions)) {
    if (token.type === 'space' || token.type === 'def') continue;
    const old = box.children[at++];
    if (old?.raw === token.raw) continue;
    const block = el('div');
    block.raw = token.raw;
    block.append(DOMPurify.sanitize(marked.parser([token], kOptions), kAllowed));
    dress(block);
    if (old) old.replaceWith(block);
    else box.append(block);
  }
  while (box.children.length > at) box.lastElementChild.remove();
}

function dress(block) {
  for (const link of block.querySelectorAll('a[href]')) {
    link.target = '_blank';
    link.rel = 'noopener noreferrer nofollow';
  }
  for (const pre of block.querySelectorAll('pre')) {
    const code = pre.firstElementChild;
    const language = code?.className.match(/^language-([\w+#.-]{1,20})$/)?.[1] ?? '';
    frame(pre, 'code', language, () => pre.textContent.replace(/\n$/, ''));
    pre.tabIndex = 0;
  }
  for (const table of block.querySelectorAll('table')) {
    const cells = row => [...row.cells].map(cell => cell.textContent).join('\t');
    frame(table, 'table', 'table', () => [...table.rows].map(cells).join('\n'));
  }
}

// Something wide, which scrolls by itself and can be copied.
function frame(content, kind, label, text) {
  const box = el('div', {class: 'frame ' + kind});
  content.replaceWith(box);
  box.append(el('div', {class: 'bar'}, el('span', {}, label), copyButton(kind === 'code' ? 'Copy code' : 'Copy table', text)),
    el('div', {class: 'scroll'}, content));
}
