// What is around the conversation: the list and the figures at its sides, which lie over it where there is no room
// beside it, and the keyboard.

import {$, hideTip, remembered} from './dom.js';

export const isWide = () => matchMedia('(min-width: 761px)').matches;
const kPanels = {side: {button: $('open-side'), first: () => $('new')}, figures: {button: $('open-figures'), first: () => $('close-figures')}};
const kRoomFor = {side: '(min-width: 761px)', figures: '(min-width: 1100px)'};
const isOpen = name => document.body.classList.contains(name);

export function toggle(name, on = !isOpen(name)) {
  const {button, first} = kPanels[name];
  document.body.classList.toggle(name, on);
  button.setAttribute('aria-expanded', on);
  if (matchMedia(kRoomFor[name]).matches) remembered.set(name, on ? '' : 'hidden');
  else (on ? first() : button).focus();
}

// What lies over the conversation goes.
export function uncover() {
  for (const name of Object.keys(kPanels))
    if (isOpen(name) && !matchMedia(kRoomFor[name]).matches) toggle(name, false);
}

// `startChat` and `stop`: what keys do.
export function start({startChat, stop}) {
  for (const [name, {button}] of Object.entries(kPanels)) {
    const on = matchMedia(kRoomFor[name]).matches && !remembered.get(name);
    document.body.classList.toggle(name, on);
    button.setAttribute('aria-expanded', on);
    button.onclick = () => toggle(name);
  }
  $('close-side').onclick = () => toggle('side', false);
  $('shade').onclick = uncover;
  $('new').onclick = $('new-here').onclick = startChat;
  document.addEventListener('keydown', event => {
    if (event.key === 'Escape' && !document.querySelector('dialog[open]') && event.target !== $('search')) {
      const covered = Object.keys(kPanels).some(name => isOpen(name) && !matchMedia(kRoomFor[name]).matches);
      if (!$('tip').hidden) hideTip();
      else if (covered) uncover();
      else stop();
    } else if (event.key === 'k' && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      if (!isOpen('side')) toggle('side', true);
      $('search').focus();
    } else if (event.key === 'n' && event.altKey) {
      event.preventDefault();
      startChat();
    }
  });
}
