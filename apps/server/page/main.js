// The page: which conversation is open, what is asked, what becomes of it.

import * as api from './api.js';
import * as chat from './chat.js';
import * as composer from './composer.js';
import {$, announce, count, plural, save as saveFile} from './dom.js';
import * as figures from './figures.js';
import * as frame from './frame.js';
import * as list from './list.js';
import * as settings from './settings.js';
import * as store from './store.js';
import * as tree from './tree.js';

let server = {prefill: 'entropy', decode: 'latent'};  // what it does by default
let conversation = null;                              // {id, title, updated, root}; the open one
let run = null;                                       // {controller, conversation, node} of the turn that is on its way
const notice = composer.notice;

// Conversations.

function newConversation() {
  const id = Date.now().toString(36) + Math.random().toString(36).slice(2, 8);
  open({id, title: '', updated: Date.now(), root: tree.makeRoot()});
}

let opening = 0;  // what was asked for last is opened
function open(it) {
  ++opening;
  conversation = it;
  const isKept = it.root.children.length > 0;
  history.replaceState(null, '', isKept ? '#' + it.id : location.pathname);
  chat.toEnd();
  show();
  list.show(it.id);
  frame.uncover();
}

async function openHead(head) {
  if (run?.conversation.id === head.id) return open(run.conversation);
  const mine = ++opening;
  const body = await store.load(head.id);
  if (mine !== opening) return;
  if (run?.conversation.id === head.id) return open(run.conversation);
  if (!body) return newConversation();
  forEachAnswer(body.root, answer => {
    if (answer.state === 'done') return;
    answer.state = 'done';
    answer.finish = answer.text ? 'lost' : 'failed';
    if (!answer.text) answer.error = {message: 'The page was closed before the answer began.'};
  });
  open({...head, root: body.root});
}

function forEachAnswer(node, f) {
  node.answers?.forEach(f);
  node.children.forEach(child => forEachAnswer(child, f));
}

async function keep(it) {
  if (it.isDeleted) return;
  it.updated = Date.now();
  it.title ||= tree.title(it.root);
  await store.save(it).catch(error => notice('This conversation is not kept: ' + error.message));
  if (it === conversation) history.replaceState(null, '', '#' + it.id);
}

async function remove(head) {
  const body = await store.load(head.id);
  if (run?.conversation.id === head.id) {
    run.conversation.isDeleted = true;
    run.controller.abort();
  }
  await store.remove(head.id);
  if (conversation.id === head.id) newConversation();
  else await list.show();
  notice(`\u201c${head.title}\u201d is deleted.`, 'Undo', async () => {
    await store.save({...head, root: body.root});
    await openHead(head);
  });
}

list.use({
  open: openHead,
  remove,
  async rename(head, title) {
    const held = [conversation, run?.conversation].find(it => it?.id === head.id);
    if (held) held.title = title;
    const body = held ?? await store.load(head.id);
    if (body) await store.save({...head, title, root: body.root});
    show();
  },
  async exportIt(head) {
    const name = head.title.replace(/[^\p{L}\p{N} _-]+/gu, '').trim().slice(0, 60) || 'conversation';
    saveFile(name + '.md', 'text/markdown', tree.markdown(head.title, (await store.load(head.id)).root));
  },
});

// What is shown.

function show() {
  const nodes = tree.path(conversation.root);
  const busy = run !== null;
  $('title').textContent = conversation.title || tree.title(conversation.root);
  document.title = nodes.length > 1 ? $('title').textContent + ' \u2013 entropyinfer' : 'entropyinfer';
  chat.show(nodes, busy);
  figures.show(nodes.findLast(node => node.answers));
  $('send').hidden = busy;
  $('stop').hidden = !busy;
  $('chat').setAttribute('aria-busy', busy);
}

// Questions and answers.

function askAbout(parent, text, files) {
  if (run) return false;
  answerTo(tree.add(parent, {role: 'user', text, files}), true);
  return true;
}

function answerTo(question, isNew = false) {
  const node = tree.add(question, {role: 'assistant', answers: composer.modes().map(api.makeAnswer), kept: 0});
  chat.toEnd();
  perform(question, node, node.answers, isNew);
}

// Has answers of a turn written, one after the other. `isNew`: so is the question, which is asked again from the
// composer if nothing comes of it.
async function perform(question, node, answers, isNew = false) {
  const it = conversation, controller = new AbortController();
  run = {controller, conversation: it, node};
  const nodes = tree.path(it.root);
  const messages = tree.messages(nodes.slice(0, nodes.indexOf(question) + 1), settings.system());
  for (const answer of answers) Object.assign(answer, {state: 'queued', finish: null, error: null});
  show();
  if (frame.isWide()) $('input').focus();
  notice('');
  announce('Reading');
  await keep(it);
  list.show();
  // Kept every two seconds if there is more of it: attachments are written again as well.
  const size = () => answers.reduce((n, answer) => n + answer.text.length + answer.thoughts.length, 0);
  let savedAt = Date.now(), savedSize = size(), isSaving = false;
  const changed = () => {
    if (it === conversation) chat.update(node);
    if (isSaving || size() === savedSize || Date.now() - savedAt < 2000) return;
    savedSize = size();
    isSaving = true;
    keep(it).finally(() => {
      isSaving = false;
      savedAt = Date.now();
    });
  };
  const clock = setInterval(changed, 250);  // until the first progress comes
  for (const answer of answers) {
    const options = {messages, thinking: settings.thinking(), settings: settings.request(answer.mode, server), fresh: node.answers.length > 1};
    await api.write(answer, options, controller.signal, changed);
    if (controller.signal.aborted) break;
  }
  clearInterval(clock);
  for (const answer of answers)
    if (answer.state !== 'done') Object.assign(answer, {state: 'done', finish: 'stopped'});
  run = null;
  await settle(it, question, node, isNew);
}

async function settle(it, question, node, isNew) {
  const [first] = node.answers, error = node.answers.find(a => a.error)?.error;
  const isEmpty = node.answers.every(a => !a.text && !a.thoughts);
  if (isEmpty && (first.finish === 'stopped' || error?.isTooLong)) {
    tree.remove(question, node);
    const isBack = isNew && it === conversation;
    if (isBack) {
      tree.remove(tree.parentOf(it.root, question), question);
      composer.giveBack(question);
    }
    if (error) tooLong(error, isBack ? composer.dropLongest() : null);
  }
  await keep(it);
  if (!it.root.children.length) {
    await store.remove(it.id).catch(() => {});
    it.title = '';
  }
  show();
  list.show();
  if (error?.isKey) askKey(() => it === conversation && actions.retry(node));
  if (error?.code === 'unreachable') connect();
  announce(error ? error.message : first.finish === 'stopped' ? 'Stopped' : 'Answer: ' + first.text.slice(0, 600));
}

// Without the longest file, if there was one, the question may be short enough.
function tooLong(error, file) {
  const size = error.nPrompt && error.nContext
    ? `With it there are ${plural(error.nPrompt, 'token')}; the model reads ${count(error.nContext)}.` : error.message;
  notice(file ? `${file.name} is too long and was removed. ${size}` : `This is too long. ${size}`);
}

const questionOf = node => tree.parentOf(conversation.root, node);
const actions = {
  edit: (node, text) => askAbout(tree.parentOf(conversation.root, node), text, node.files),
  again: node => node.answers.some(a => a.finish === 'failed') ? actions.retry(node) : answerTo(questionOf(node)),
  goOn: node => perform(questionOf(node), node, node.answers),
  retry(node) {
    if (!run) perform(questionOf(node), node, node.answers.filter(a => a.finish === 'failed'));
  },
  choose(parent, i) {
    parent.chosen = i;
    keep(conversation);
    show();
  },
  keep(node, i) {
    node.kept = i;
    keep(conversation);
    show();
  },
  figures(node) {
    figures.show(node);
    frame.toggle('figures', true);
  },
};
chat.use(actions);

composer.use((text, files) => askAbout(tree.path(conversation.root).at(-1), text, files));

function startChat() {
  newConversation();
  notice('');
  $('input').focus();
}
function stop() {
  run?.controller.abort();
}
$('stop').onclick = () => {
  stop();
  $('input').focus();
};
$('open-settings').onclick = () => {
  $('forget-key').hidden = !api.hasKey();
  settings.open();
};
$('forget-key').onclick = () => {
  api.useKey('');
  $('settings').close();
  connect();
};

// The server.

let thenRetry = null;
function askKey(then) {
  thenRetry = then;
  if ($('ask-key').open) return;
  $('key-why').textContent = api.hasKey() ? 'That key is wrong: the server does not accept it.' : 'This server wants a key. It is kept in this browser.';
  $('key-why').classList.toggle('error', api.hasKey());
  $('key').value = $('ask-key').returnValue = '';
  $('ask-key').showModal();
}
$('ask-key').addEventListener('close', async () => {
  if ($('ask-key').returnValue !== 'use' || !$('key').value) return void ($('model').textContent = 'No key');
  api.useKey($('key').value);
  if (!await connect()) return;
  thenRetry?.();
  thenRetry = null;
});

let trying = null;
async function connect() {
  clearTimeout(trying);
  try {
    const model = await api.model();
    server = model.meta;
    $('model').textContent = `${model.id}, ${plural(model.max_model_len, 'token')}, ${model.meta.device}`;
    return true;
  } catch (error) {
    if (error.isKey) {
      $('model').textContent = 'No key';
      askKey(thenRetry);
      return false;
    }
    $('model').textContent = error.code === 'unreachable' ? 'The server cannot be reached' : 'The model is being loaded';
    trying = setTimeout(connect, 1500);
    return false;
  }
}

async function start() {
  frame.start({startChat, stop});
  composer.choose(composer.chosen() ?? 'entropy');
  const isKept = await store.open();
  const id = location.hash.slice(1);
  newConversation();
  try {
    const head = id && (await store.heads()).find(h => h.id === id);
    if (head) await openHead(head);
  } catch (error) {
    notice('The conversations in this browser cannot be read: ' + error.message);
  }
  if (!isKept) notice('This browser keeps no conversations: they are gone when the page is.');
  if (await connect() && !composer.chosen() && server.prefill === 'dense') composer.choose('dense');
}
start();
