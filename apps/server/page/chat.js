// The conversation as it is shown: questions, and turns of the model with one answer or two side by side.

import {$, announce, copyButton, count, duration, el, icon, iconButton, plural, rate} from './dom.js';
import {comparison} from './figures.js';
import {show as showMarkdown} from './markdown.js';
import {fileChip} from './attach.js';

const log = $('log');
let stuck = true;        // to the end of the text, until somebody scrolls up
let views = new Map();   // node -> what shows it

// `actions`: what the buttons do, as functions of a node; see main.js.
let actions = {};
export function use(functions) {
  actions = functions;
}

// Shows the nodes of a path, the root first. `busy`: an answer is on its way, and nothing may be changed.
export function show(nodes, busy) {
  views = new Map();
  const parts = nodes.slice(1).map((node, i) => {
    const view = node.role === 'user' ? question(node, nodes[i], busy) : turn(node, nodes[i], nodes, busy);
    views.set(node, view);
    return view.element;
  });
  const focused = place(document.activeElement);
  log.replaceChildren(...(parts.length ? parts : [welcome()]));
  focused?.();
  log.classList.toggle('compares', nodes.some(node => node.answers?.length > 1));
  stick();
}

// What finds the button again that was in the same place of the conversation.
function place(button) {
  const label = button.ariaLabel, i = [...log.children].findIndex(article => article.contains(button));
  if (i < 0 || !label) return null;
  return () => {
    const buttons = [...log.children[i]?.querySelectorAll('button:enabled') ?? []];
    (buttons.find(b => b.ariaLabel === label) ?? buttons[0])?.focus({preventScroll: true});
  };
}

function welcome() {
  return el('div', {class: 'welcome'}, el('p', {}, el('b', {}, 'Attach a long text and ask about it.')),
    el('p', {}, '\u201cEntropy\u201d reads what the model looks at, \u201cDense\u201d reads everything; \u201cCompare\u201d asks both.'));
}

// What has changed of a turn is shown once per frame, or less often if that takes long.
let due = 0, notBefore = 0;
export function update(node) {
  due ||= requestAnimationFrame(function draw(now) {
    if (now < notBefore) return void (due = requestAnimationFrame(draw));
    due = 0;
    const begun = performance.now();
    views.get(node)?.update?.();
    stick();
    notBefore = performance.now() + 4 * (performance.now() - begun);
  });
}

const atEnd = () => log.scrollHeight - log.scrollTop - log.clientHeight < 40;
function stick() {
  if (stuck) log.scrollTop = log.scrollHeight;
  $('latest').hidden = atEnd();
}
export function toEnd() {
  stuck = true;
  stick();
}
// Only people scroll up: text that is added makes the end go away, but does not scroll.
let top = 0;
log.addEventListener('scroll', () => {
  if (atEnd()) stuck = true;
  else if (log.scrollTop < top) stuck = false;
  top = log.scrollTop;
  $('latest').hidden = atEnd();
});
$('latest').onclick = toEnd;
new ResizeObserver(stick).observe(log);

function versions(node, parent, busy) {
  const n = parent.children.length, i = parent.children.indexOf(node);
  if (n < 2) return null;
  const go = (name, label, to) => iconButton(name, label, () => actions.choose(parent, to), {disabled: busy || to < 0 || to >= n});
  return el('span', {class: 'versions', role: 'group', 'aria-label': 'Versions'},
    go('prev', 'Version before', i - 1), el('span', {}, `${i + 1} / ${n}`), go('next', 'Next version', i + 1));
}

function question(node, parent, busy) {
  const text = el('div', {class: 'text'}, node.text);
  const foot = el('div', {class: 'foot'}, versions(node, parent, busy),
    iconButton('edit', 'Edit and ask again', () => edit(), {disabled: busy}), copyButton('Copy', () => node.text));
  const element = el('article', {class: 'message user', 'aria-label': 'You'}, el('div', {class: 'files'}, ...node.files.map(f => fileChip(f))),
    node.text && text, foot);

  function edit() {
    const box = el('textarea', {'aria-label': 'Edit the question', value: node.text, rows: Math.min(12, node.text.split('\n').length + 1)});
    const send = () => actions.edit(node, box.value.trim());
    const cancel = () => {
      editor.replaceWith(...shown);
      foot.querySelector('button[aria-label^=Edit]').focus();
    };
    box.onkeydown = event => {
      if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
      if (event.key === 'Escape') { event.stopPropagation(); cancel(); }
    };
    const editor = el('div', {class: 'editor'}, box, el('div', {class: 'row end'},
      el('button', {type: 'button', onclick: cancel}, 'Cancel'), el('button', {type: 'button', class: 'main', onclick: send}, 'Ask')));
    const shown = [text, foot].filter(e => e.isConnected);
    shown[0].before(editor);
    shown.forEach(e => e.remove());
    box.focus();
  }
  return {element};
}

function turn(node, parent, nodes, busy) {
  const isLast = node === nodes.at(-1), pair = node.answers.length > 1;
  const parts = node.answers.map((answer, i) => answerView(answer, node, i, pair));
  const table = el('div');
  const foot = el('div', {class: 'foot'});
  const element = el('article', {class: 'message assistant' + (pair ? ' pair' : ''), 'aria-label': 'Model'},
    el('div', {class: 'answers'}, ...parts.map(p => p.element)), table, foot);
  let compared = -1;
  const update = () => {
    parts.forEach(p => p.update());
    const known = node.answers.filter(a => a.sparsity).length;
    if (pair && known !== compared) table.replaceChildren(comparison(node.answers));
    compared = known;
    const done = node.answers.every(a => a.state === 'done');
    foot.hidden = !done || (busy && isLast);
    if (foot.hidden) return;
    const [answer] = node.answers, t = answer.timings;
    const failed = node.answers.some(a => a.finish === 'failed');
    foot.replaceChildren(...[versions(node, parent, busy),
      !pair && answer.text && copyButton('Copy the answer', () => answer.text),
      iconButton('again', failed ? 'Retry' : 'Answer again', () => actions.again(node), {disabled: busy}),
      iconButton('figures', 'Figures of this answer', () => actions.figures(node)),
      isLast && !pair && canGoOn(answer) && el('button', {type: 'button', class: 'small', onclick: () => actions.goOn(node), disabled: busy}, icon('on'), 'Continue'),
      !pair && t && el('span', {class: 'dim'}, `${plural(t.predicted_n, 'token')}, ${rate(t.predicted_per_second)}`),
    ].filter(Boolean));
  };
  update();
  return {element, update};
}

const canGoOn = answer => answer.text && answer.finish in kCut;
const kCut = {
  length: t => `Cut after ${t ? plural(t.predicted_n, 'token') : 'its last token'}, the most that was asked for.`,
  stopped: () => 'Stopped.',
  lost: () => 'The page was closed before this answer ended.',
};

function answerView(answer, node, i, pair) {
  const reading = el('div', {class: 'reading'});
  const thoughts = el('div', {class: 'text'}), aside = el('details', {class: 'thoughts'}, el('summary', {}, 'Thoughts'), thoughts);
  const text = el('div', {class: 'md'}), note = el('p', {class: 'note'}), error = el('div', {class: 'error'});
  const keep = el('button', {type: 'button', class: 'small', onclick: () => actions.keep(node, i)}, 'Go on with this one');
  const who = el('div', {class: 'who'}, `${answer.mode === 'dense' ? 'Dense' : 'Entropy'}`);
  if (pair) who.append(copyButton('Copy this answer', () => answer.text), keep);
  const element = el('section', {class: 'answer', 'aria-label': answer.mode + ' attention'}, who, reading, aside, text, note, error);
  const update = () => {
    const done = answer.state === 'done';
    reading.hidden = done || answer.state === 'writing';
    if (!reading.hidden) showReading(reading, answer);
    aside.hidden = !answer.thoughts;
    thoughts.textContent = answer.thoughts;
    aside.open = aside.open || (!done && !answer.text && !!answer.thoughts);
    showMarkdown(text, answer.text);
    text.classList.toggle('writing', answer.state === 'writing');
    note.hidden = !done || !kCut[answer.finish];
    if (!note.hidden) note.textContent = kCut[answer.finish](answer.timings);
    keep.hidden = !pair || node.kept === i || !node.answers.every(a => a.state === 'done');
    element.classList.toggle('kept', pair && node.kept === i);
    error.hidden = !done || !answer.error;
    if (!error.hidden) showError(error, answer.error, node);
  };
  update();
  return {element, update};
}

function showError(box, error, node) {
  box.replaceChildren(el('p', {}, error.message),
    el('button', {type: 'button', class: 'small', onclick: () => actions.retry(node)}, icon('again'), 'Retry'));
}

// From the moment the question is sent.
function showReading(box, answer) {
  const p = answer.progress, passed = Date.now() - answer.since;
  if (!box.firstChild) box.append(el('span'), el('progress', {'aria-label': 'Reading'}));
  let text = answer.state === 'queued' ? 'Waits for the other answer' : answer.state === 'waiting' ? 'Sending' : 'Reading';
  const bar = box.lastChild;
  if (p) {
    text += ` ${count(p.processed)} of ${plural(p.total, 'token')}`;
    if (p.cache) text += `, ${count(p.cache)} known from before`;
    const read = p.processed - p.cache, left = p.total - p.processed;
    if (read > 0 && left > 0) text += `, ${duration(p.time_ms / read * left)} left`;
    bar.max = p.total;
    bar.value = p.processed;
    const quarter = Math.floor(4 * p.processed / p.total);
    if (quarter > answer.told && quarter < 4) announce(`Reading, ${25 * (answer.told = quarter)} percent`);
  } else if (passed > 1000 && answer.state !== 'queued') {
    text += `, ${duration(passed)}`;
  }
  box.firstChild.textContent = text;
}
