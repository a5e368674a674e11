// Files that go with a question: their text. PDFs are read by pdf.js, which is loaded when the first one comes.

import {bytes, count, el, iconButton} from './dom.js';

const kMostBytes = 48 << 20;  // the server takes 64 MiB of JSON

export function fileChip(file, onremove) {
  const pages = file.pages ? `, ${count(file.pages)} pages` : '';
  return el('span', {class: 'file'}, el('b', {}, file.name), el('span', {class: 'dim'}, bytes(file.text.length) + pages),
    onremove && iconButton('close', 'Remove ' + file.name, onremove));
}

// {name, text, pages}; throws an Error that says why not.
export async function read(file) {
  if (file.size > kMostBytes) throw new Error(`${file.name} has ${bytes(file.size)}; ${bytes(kMostBytes)} can be read at most.`);
  const data = new Uint8Array(await file.arrayBuffer());
  const isPdf = String.fromCharCode(...data.subarray(0, 5)) === '%PDF-';
  const content = isPdf ? await pdfText(file.name, data) : {text: decode(file.name, data)};
  if (!content.text.trim()) throw new Error(`${file.name} has no text${isPdf ? '; its pages may be pictures' : ''}.`);
  return {name: file.name, ...content};
}

// UTF-8, UTF-16 with its mark, or a text of old that has no control characters.
function decode(name, data) {
  if (data[0] === 0xFF && data[1] === 0xFE) return new TextDecoder('utf-16le').decode(data);
  if (data[0] === 0xFE && data[1] === 0xFF) return new TextDecoder('utf-16be').decode(data);
  const isBinary = data.some(byte => byte < 9 || (byte > 13 && byte < 32 && byte !== 27));
  if (isBinary) throw new Error(`${name} is not text. Text files and PDFs can be attached.`);
  try {
    return new TextDecoder('utf-8', {fatal: true}).decode(data);
  } catch {
    return new TextDecoder('windows-1252').decode(data);
  }
}

let pdfjs = null;
function loadPdfjs() {
  pdfjs ??= new Promise((resolve, reject) => {
    const script = el('script', {src: '/page/pdf.js', onload: () => resolve(window.pdfjsLib), onerror: () => {
      pdfjs = null;
      reject(new Error('The reader of PDFs cannot be loaded from the server.'));
    }});
    document.head.append(script);
  });
  return pdfjs;
}

async function pdfText(name, data) {
  const lib = await loadPdfjs();
  lib.GlobalWorkerOptions.workerSrc = '/page/pdf.worker.js';
  // Fonts of Chinese, Japanese and Korean that do not say what their glyphs mean need tables that pdf.js fetches, and
  // leaves their text out where it cannot: better no text than half of it.
  let missing = null;
  const tables = class { async fetch({name: table}) { throw new Error(missing = table); } };
  const task = lib.getDocument({data, isEvalSupported: false, disableFontFace: true, verbosity: 0, CMapReaderFactory: tables});
  try {
    const pdf = await task.promise, pages = [];
    for (let i = 1; i <= pdf.numPages; ++i) {
      const {items} = await (await pdf.getPage(i)).getTextContent();
      pages.push(items.map(item => item.str + (item.hasEOL ? '\n' : '')).join(''));
    }
    if (!missing) return {text: pages.join('\n\n'), pages: pdf.numPages};
    throw new Error(missing);
  } catch (error) {
    const why = missing ? `has characters by a table that is not here, ${missing}; attach its text instead`
      : error.name === 'PasswordException' ? 'is locked with a password' : 'cannot be read as a PDF';
    throw new Error(`${name} ${why}.`);
  } finally {
    task.destroy();
  }
}
