// The start screen: scenes, prompt, seed, who is in, Play.

import { parseSeed } from './settings.js';

const $ = (id) => document.getElementById(id);
const MAX_SEED = 10 ** 6; // short enough to read out to a friend

// `play(choice)` with {scene, prompt, seed}; `again()` for the session this browser had last.
export class StartScreen {
  constructor(asked, { play, again }) {
    this.asked = asked;
    $('prompt').value = asked.prompt ?? '';
    $('seed').value = asked.seed ?? '';
    $('entry').addEventListener('submit', (event) => { event.preventDefault(); play(this.choice()); });
    $('dice').addEventListener('click', () => { $('seed').value = Math.floor(Math.random() * MAX_SEED); });
    $('continue').addEventListener('click', () => again());
    $('scenes').addEventListener('change', () => this.chosen());
  }

  choice() {
    return {
      scene: $('entry').elements.scene?.value || this.asked.scene,
      prompt: $('prompt').value.trim() || undefined,
      seed: parseSeed($('seed').value) ?? undefined,
    };
  }

  offerAgain(possible) { $('continue').hidden = !possible; }

  note(why) {
    $('codec-note').hidden = !why;
    $('codec-note').textContent = why ?? '';
  }

  // What /world.json said, or null when it could not be had.
  show(world) {
    const text = $('house-text');
    const bar = $('house-progress');
    const full = world && world.players >= world.capacity;
    document.body.dataset.house = !world ? 'gone' : !world.ready ? 'warming' : full ? 'full' : 'open';
    bar.hidden = !world || world.ready;
    if (!world) text.textContent = 'The server does not answer';
    else if (!world.ready) {
      text.textContent = `Waking up: ${world.progress?.stage ?? 'starting'}`;
      bar.value = world.progress?.share ?? 0;
    } else {
      text.textContent = `${world.players} of ${world.capacity} in`
        + (full ? ', every place taken' : world.players === 0 ? ', be the first' : '');
    }
    if (world?.scenes?.length) this.gallery(world.scenes);
  }

  gallery(scenes) {
    const key = JSON.stringify(scenes);
    if (key === this.key) return;
    this.key = key;
    const wanted = $('entry').elements.scene?.value || this.asked.scene;
    $('scenes').replaceChildren(...scenes.map((scene) => this.tile(scene)));
    const inputs = [...$('scenes').querySelectorAll('input')];
    (inputs.find((input) => input.value === wanted) ?? inputs[0]).checked = true;
    this.scenes = scenes;
    this.chosen();
  }

  tile({ id, title, prompt, thumbnail }) {
    const label = document.createElement('label');
    const input = Object.assign(document.createElement('input'), { type: 'radio', name: 'scene', value: id });
    const image = Object.assign(document.createElement('img'), { src: thumbnail, alt: '', draggable: false });
    const name = Object.assign(document.createElement('span'), { textContent: title });
    label.title = prompt;
    label.append(input, image, name);
    return label;
  }

  chosen() {
    const scene = this.scenes?.find(({ id }) => id === $('entry').elements.scene?.value);
    if (!scene) return;
    $('backdrop').src = scene.thumbnail;
    $('prompt').placeholder = scene.prompt || 'a wide green meadow under a clear sky';
  }
}
