// What the prompt of a request begins with, by which nginx.conf chooses the server whose prefix cache knows that beginning. It is
// the same for all turns of a conversation, however the client writes them, and for other questions to the same document.

const PAGE = 2048;  // characters, about as many as a page of the servers' prefix caches (512 tokens)

// Of a text, of a list of parts with texts, or of token ids.
function firstPage(content) {
  const texts = Array.isArray(content) ? content.slice(0, PAGE).map(part => (part && part.text) || part) : [content];
  return texts.join().slice(0, PAGE);
}

// A page of what the system says and a page of the first thing that the user says. A long text of the system is shared by all
// conversations of an application: by itself it would send them all to one server.
function prefix(body) {
  if (body.prompt_cache_key) return String(body.prompt_cache_key);  // the client knows better what its requests share
  const texts = [body.system || body.instructions];
  const messages = body.messages || body.input;
  if (Array.isArray(messages) && messages.some(message => message.role)) {  // and no texts to be embedded
    const user = messages.findIndex(message => message.role === 'user');
    messages.slice(0, user + 1).forEach(message => texts.push(message.content));
  } else {
    texts.push(messages || body.prompt);
  }
  return texts.map(firstPage).join('\n');
}

// The client's address where there is no prompt, or none that can be read: the server says what is wrong with it.
function ofRequest(request) {
  try {
    return prefix(JSON.parse(request.requestText));
  } catch (error) {
    return request.remoteAddress;
  }
}

export default {ofRequest};
