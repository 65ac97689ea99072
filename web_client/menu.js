// The pause menu: resume, how it looks and feels, and the ways out.

import { QUALITIES } from './settings.js';

const $ = (id) => document.getElementById(id);

// Events: closed(), changed(settings), save(), load(), share(), watch(), fresh(), leave().
export class Menu {
  constructor(settings, events) {
    this.settings = settings;
    this.dialog = $('menu');
    for (const [name, value] of [['quality', settings.quality], ['scaling', settings.scaling]]) {
      const input = this.dialog.querySelector(`input[name=${name}][value=${value}]`);
      (input ?? this.dialog.querySelector(`input[name=${name}]`)).checked = true;
    }
    $('sensitivity').value = settings.sensitivity;
    $('invert').checked = settings.invert;
    this.label();
    this.dialog.addEventListener('input', () => { this.read(); events.changed(settings); });
    this.dialog.addEventListener('close', () => events.closed());
    for (const [id, event] of [['save', events.save], ['load', events.load]]) {
      $(id).addEventListener('click', () => { this.dialog.close(); event(); });
    }
    $('copy-link').addEventListener('click', () => events.share());
    $('watch-link').addEventListener('click', () => events.watch());
    $('new-world').addEventListener('click', () => { this.dialog.close(); events.fresh(); });
    $('leave').addEventListener('click', () => { this.dialog.close(); events.leave(); });
  }

  get open() { return this.dialog.open; }

  show() { if (!this.open) this.dialog.showModal(); }

  close() { if (this.open) this.dialog.close(); }

  read() {
    const checked = (name) => this.dialog.querySelector(`input[name=${name}]:checked`).value;
    const quality = checked('quality');
    Object.assign(this.settings, {
      quality: QUALITIES.includes(quality) ? quality : 'balanced', scaling: checked('scaling'),
      sensitivity: Number($('sensitivity').value), invert: $('invert').checked,
    });
    this.label();
  }

  label() {
    $('sensitivity-text').textContent = `${Number($('sensitivity').value).toFixed(2)}×`;
  }
}
