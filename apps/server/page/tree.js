// What a conversation is: a tree, so that an edited question and a second answer leave the first ones where they are.
// Below the root, which says nothing, questions {role: 'user', text, files} and turns of the model {role: 'assistant',
// answers, kept} alternate; of each one's children the chosen one is shown. A turn has an answer, or two that are
// compared, of which the kept one is what the conversation goes on with.

export const makeRoot = () => ({role: 'root', children: [], chosen: 0});

export function add(parent, node) {
  Object.assign(node, {children: [], chosen: 0});
  parent.chosen = parent.children.push(node) - 1;
  return node;
}

export function remove(parent, node) {
  parent.children.splice(parent.children.indexOf(node), 1);
  parent.chosen = Math.max(0, parent.children.length - 1);
}

// The root and what is shown below it.
export function path(root) {
  const nodes = [root];
  for (let at = root; (at = at.children[at.chosen]);) nodes.push(at);
  return nodes;
}

export function parentOf(root, node) {
  const nodes = path(root);
  return nodes[nodes.indexOf(node) - 1];
}

// All that was said in any version, but not what was attached.
export function words(node) {
  const own = node.role === 'user' ? [node.text, ...node.files.map(f => f.name)] : (node.answers ?? []).map(a => a.text);
  return [...own, ...node.children.map(words)].join('\n');
}

// As the API wants it. What has no answer is asked together with the next question, as templates want turns.
export function messages(nodes, system) {
  const out = system ? [{role: 'system', content: system}] : [];
  for (const node of nodes) {
    if (node.role === 'user') {
      const parts = [...node.files.map(f => f.text), node.text].filter(Boolean).map(text => ({type: 'text', text}));
      if (out.at(-1)?.role === 'user') out.at(-1).content.push(...parts);
      else out.push({role: 'user', content: parts});
    } else if (node.role === 'assistant' && node.answers[node.kept].text) {
      out.push({role: 'assistant', content: node.answers[node.kept].text});
    }
  }
  return out;
}

export function title(root) {
  const first = path(root)[1];
  if (!first) return 'New chat';
  const text = (first.text || first.files[0]?.name || '').replace(/\s+/g, ' ').trim();
  return text.length > 60 ? text.slice(0, 59) + '…' : text;
}

// What is shown, as Markdown.
export function markdown(name, root) {
  let out = `# ${name}\n`;
  for (const node of path(root).slice(1)) {
    if (node.role === 'user') {
      out += `\n## You\n\n${node.files.map(f => `[${f.name}]\n\n`).join('')}${node.text}\n`;
    } else {
      for (const answer of node.answers) out += `\n## Model, ${answer.mode} attention\n\n${answer.text}\n`;
    }
  }
  return out;
}
