// The server, and what it says of an answer while it is read for and written.

import {remembered} from './dom.js';

let key = remembered.get('key') ?? '';
export const hasKey = () => key !== '';
export function useKey(text) {
  key = text;
  remembered.set('key', text);
}

// Of the server or of the way there. `code` is the server's, or 'unreachable' or 'cut'.
export class ServerError extends Error {
  constructor(message, status, code, numbers = {}) {
    super(message);
    Object.assign(this, {status, code, numbers});
  }
  get isTooLong() { return ['context_length_exceeded', 'kv_memory_exceeded'].includes(this.code); }
  get isKey() { return this.status === 401; }
}

function errorOf(json, status) {
  const error = json?.error;
  if (!error) return new ServerError(`The server answered ${status}.`, status, '');
  return new ServerError(error.message, status, error.code, error);
}

async function ask(path, body, signal) {
  const headers = {'Content-Type': 'application/json'};
  if (key) headers.Authorization = 'Bearer ' + key;
  let reply;
  try {
    reply = await fetch(path, body ? {method: 'POST', headers, body: JSON.stringify(body), signal} : {headers, signal});
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new ServerError('The server cannot be reached.', 0, 'unreachable');
  }
  if (!reply.ok) throw errorOf(await reply.json().catch(() => null), reply.status);
  return reply;
}

export const model = async () => (await (await ask('/v1/models')).json()).data[0];

const tokens = async (body, signal) => (await (await ask('/tokenize', body, signal)).json()).tokens;

// A new answer's place. `mode`: entropy or dense.
export const makeAnswer = mode => ({mode, text: '', thoughts: '', state: 'waiting', finish: null, since: Date.now()});

// Fills `answer`, and calls `changed` whenever there is more of it. It ends with a state of 'done' and a reason in
// `finish`: stop, length, tool_calls, stopped (by the signal) or failed, with the error in `error`. What is there
// already is gone on with. Throws nothing.
export async function write(answer, {messages, thinking, settings, fresh}, signal, changed) {
  Object.assign(answer, {state: 'waiting', finish: null, error: null, progress: null, told: 0, since: Date.now()});
  changed();
  try {
    const shared = {...settings, model: 'default', stream: true, return_progress: true};
    if (fresh) shared.cache_prompt = false;
    const template = thinking === '' ? {} : {chat_template_kwargs: {enable_thinking: thinking === 'on'}};
    if (answer.text) {
      // Goes on behind what was written: the conversation as the template writes it, then the text.
      const prompt = await tokens({messages, ...template}, signal);
      prompt.push(...await tokens({content: answer.text, add_special_tokens: false}, signal));
      shared.max_tokens ??= 2048;
      await follow(answer, await ask('/v1/completions', {...shared, prompt}, signal), changed);
    } else {
      answer.thoughts = '';
      await follow(answer, await ask('/v1/chat/completions', {...shared, ...template, messages}, signal), changed);
    }
  } catch (error) {
    if (error.name === 'AbortError') answer.finish = 'stopped';
    else Object.assign(answer, {finish: 'failed', error: asError(error)});
  }
  answer.state = 'done';
  changed();
}

// A plain object, which can be kept with the conversation.
function asError(error) {
  if (!(error instanceof ServerError)) return {message: 'This page failed: ' + error.message, code: 'page'};
  const {message, status, code, isTooLong, isKey, numbers} = error;
  return {message, status, code, isTooLong, isKey, nPrompt: numbers.n_prompt_tokens, nContext: numbers.n_ctx};
}

async function follow(answer, reply, changed) {
  answer.state = 'reading';
  changed();
  const reader = reply.body.getReader(), decoder = new TextDecoder();
  let rest = '';
  for (;;) {
    const {value, done} = await reader.read().catch(error => {
      if (error.name === 'AbortError') throw error;
      return {done: true};
    });
    if (done) break;
    const events = (rest + decoder.decode(value, {stream: true})).split('\n\n');
    rest = events.pop();
    for (const event of events) take(answer, event);
    changed();
  }
  if (!answer.finish) throw new ServerError('The connection ended before the answer did.', 0, 'cut');
}

function take(answer, event) {
  if (!event.startsWith('data: ') || event === 'data: [DONE]') return;
  const chunk = JSON.parse(event.slice(6));
  if (chunk.error) throw errorOf(chunk, 0);
  if (chunk.prompt_progress) answer.progress = chunk.prompt_progress;
  const choice = chunk.choices?.[0];
  const text = choice?.delta?.content ?? choice?.text;
  const thoughts = choice?.delta?.reasoning_content;
  if (text || thoughts) answer.state = 'writing';
  if (text) answer.text += text;
  if (thoughts) answer.thoughts += thoughts;
  if (choice?.finish_reason) answer.finish = choice.finish_reason;
  if (chunk.sparsity) {
    answer.sparsity = chunk.sparsity;
    answer.timings = chunk.timings;
  }
}
