// One sheet for every state that is not playing: title, sentence, progress or countdown, at most two buttons.

import { announce } from './hud.js';

const $ = (id) => document.getElementById(id);

export class Card {
  constructor({ primary, secondary }) {
    $('card-primary').addEventListener('click', () => primary());
    $('card-secondary').addEventListener('click', () => secondary());
  }

  show({ title, text, primary, secondary, operator }, said = '') {
    $('card').hidden = false;
    $('card-title').textContent = title;
    $('card-text').textContent = text;
    for (const [id, label] of [['card-primary', primary], ['card-secondary', secondary]]) {
      $(id).textContent = label ?? '';
      $(id).hidden = !label;
    }
    $('card-details').hidden = !operator;
    $('card-details').open = false;
    $('card-operator').textContent = operator ? `${operator}${said ? ` The server said: ${said}` : ''}` : '';
    this.progress(null);
    this.countdown(null);
    announce(`${title}. ${text}`);
    $(primary ? 'card-primary' : 'card-secondary').focus();
  }

  hide() { $('card').hidden = true; }

  // {stage, share} while the server warms up.
  progress(progress) {
    $('card-progress').hidden = !progress;
    if (!progress) return;
    $('card-progress').value = progress.share;
    $('card-text').textContent = `${progress.stage}, ${Math.round(progress.share * 100)} %`;
  }

  countdown(text) {
    $('card-countdown').hidden = text === null;
    $('card-countdown').textContent = text ?? '';
  }
}
