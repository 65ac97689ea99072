// The start screen: scenes, a place of one's own, prompt, seed, who is in, Play.

import { announce } from './hud.js';
import { readPicture } from './picture.js';
import { parseSeed } from './settings.js';
import { sketch } from './sketch.js';

const $ = (id) => document.getElementById(id);
const MAX_SEED = 10 ** 6; // short enough to read out to a friend
const NEW = ':new'; // no scene's id has a colon
const OWN = ':own';
const THUMB = { width: 224, height: 128 };
const EXAMPLE = 'a snowy valley at night with red towers';

const randomSeed = () => Math.floor(Math.random() * MAX_SEED);
const make = (tag, fields, ...children) => {
  const element = Object.assign(document.createElement(tag), fields);
  element.append(...children);
  return element;
};

// `play(choice)` with {scene, prompt, seed, image}; `again()` for the session this browser had last; `share(choice)`.
export class StartScreen {
  constructor(asked, { play, again, share }) {
    this.asked = asked;
    this.scenes = [];
    this.rolled = randomSeed();
    $('prompt').value = asked.prompt ?? '';
    $('seed').value = asked.seed ?? '';
    $('entry').addEventListener('submit', (event) => { event.preventDefault(); play(this.choice()); });
    $('dice').addEventListener('click', () => this.roll());
    $('share').addEventListener('click', () => share(this.choice()));
    $('continue').addEventListener('click', () => again());
    $('scenes').addEventListener('change', ({ target }) => {
      if (target.type !== 'file') this.chosen();
      else if (target.files[0]) { this.bring(target.files[0]); target.value = ''; }
    });
    $('prompt').addEventListener('input', () => this.explain());
    $('seed').addEventListener('input', () => this.drawSketch());
    for (const kind of ['dragenter', 'dragover', 'dragleave', 'drop']) {
      addEventListener(kind, (event) => this.dragged(event));
    }
  }

  get chosenId() { return $('entry').elements.scene?.value; }

  choice() {
    const id = this.chosenId;
    const scene = this.scenes.find((each) => each.id === id);
    const words = $('prompt').value.trim();
    return {
      scene: id ? scene?.id : this.asked.scene, prompt: words === scene?.prompt ? undefined : words || undefined,
      seed: parseSeed($('seed').value) ?? (id === NEW ? this.rolled : undefined),
      image: id === OWN ? this.picture.bytes : undefined,
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
    if (world?.scenes?.length) this.gallery(world);
  }

  gallery({ scenes, draws = false, width, height }) {
    const key = JSON.stringify([scenes, draws]);
    if (key === this.key) return;
    const wanted = this.chosenId || this.asked.scene
      || (draws && (this.asked.seed ?? this.asked.prompt) !== undefined ? NEW : '');
    Object.assign(this, { key, scenes, draws, size: { width, height } });
    this.sketch = make('canvas', THUMB);
    const tiles = scenes.map(({ id, title, prompt, thumbnail }) => this.tile(
      id, title, prompt, make('img', { src: thumbnail, alt: '', draggable: false }),
    ));
    if (draws) {
      const place = this.tile(NEW, 'Somewhere new', 'A place that the seed draws for you', this.sketch);
      place.lastChild.append(make('small', { textContent: 'a place that nobody has seen' }));
      tiles.unshift(place);
    }
    $('scenes').replaceChildren(...tiles, this.ownTile());
    const inputs = [...$('scenes').querySelectorAll('[name=scene]')];
    const first = inputs.find((input) => input.value === scenes[0].id);
    (inputs.find((input) => input.value === wanted) ?? first).checked = true;
    this.chosen();
  }

  tile(id, title, hint, picture) {
    const input = make('input', { type: 'radio', name: 'scene', value: id });
    const label = make('label', { className: 'tile', title: hint }, input, picture, make('span', { textContent: title }));
    label.dataset.tile = id;
    return label;
  }

  // A button that opens a file; then that picture's tile, with the button in its corner.
  ownTile() {
    const input = make('input', { type: 'file', id: 'own-file', accept: 'image/*' });
    const words = make('span', { textContent: 'Your own picture' }, make('small', { textContent: 'open or drop one' }));
    const icon = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
    icon.setAttribute('viewBox', '0 0 24 24');
    icon.append(document.createElementNS('http://www.w3.org/2000/svg', 'path'));
    icon.firstChild.setAttribute('d', 'M12 16V5M8 9l4-4 4 4M5 15v4h14v-4');
    return make('div', { id: 'own' }, make('label', { className: 'tile open' }, input, icon, words));
  }

  async bring(file) {
    try {
      this.picture = await readPicture(file, this.size);
    } catch {
      this.say('This browser cannot open that file as a picture.');
      return;
    }
    $('own').querySelector('[data-tile]')?.remove();
    $('own').prepend(this.tile(OWN, 'Your picture', file.name, this.picture.canvas));
    $('own').querySelector('[name=scene]').checked = true;
    this.chosen();
    announce('Your picture is chosen.');
  }

  dragged(event) {
    if (!event.dataTransfer?.types.includes('Files')) return;
    event.preventDefault(); // else the browser leaves the game to show the file
    const over = document.body.dataset.state === 'start' && this.size && event.type !== 'drop'
      && !(event.type === 'dragleave' && !event.relatedTarget);
    document.body.toggleAttribute('data-drop', Boolean(over));
    const [file] = event.dataTransfer.files;
    if (event.type === 'drop' && file && this.size && document.body.dataset.state === 'start') this.bring(file);
  }

  // Another seed into the form.
  roll() {
    this.rolled = randomSeed();
    $('seed').value = this.rolled;
    this.drawSketch();
  }

  drawSketch() {
    if (!this.sketch) return;
    sketch(this.sketch, parseSeed($('seed').value) ?? this.rolled);
    this.explain();
    if (this.chosenId === NEW) this.behind(this.sketch);
  }

  chosen() {
    const id = this.chosenId;
    const scene = this.scenes.find((each) => each.id === id);
    const words = $('prompt').value.trim();
    if (!words || this.scenes.some(({ prompt }) => prompt === words)) $('prompt').value = scene?.prompt ?? '';
    $('prompt').placeholder = id === OWN ? 'what the picture shows' : scene?.prompt || EXAMPLE;
    if (id === NEW && !$('seed').value) $('seed').value = this.rolled;
    else if (id !== NEW && $('seed').value === String(this.rolled)) $('seed').value = ''; // it was for that place
    this.drawSketch();
    const picture = $('scenes').querySelector(':checked ~ img, :checked ~ canvas');
    picture.parentNode.scrollIntoView({ block: 'nearest', inline: 'nearest' });
    if (picture.decode) picture.decode().then(() => { if (id === this.chosenId) this.behind(picture); }, () => {});
    else this.behind(picture);
  }

  // Behind everything, the place that is chosen.
  behind(picture) {
    $('backdrop').getContext('2d').drawImage(picture, 0, 0, $('backdrop').width, $('backdrop').height);
  }

  // Under the words: what becomes of them.
  explain() {
    const { scene, prompt, image } = this.choice();
    this.say(image ? 'The world knows your picture and these words, nothing else.'
      : !this.draws ? 'It starts in this picture; the words say how it goes on.'
        : !scene ? 'The seed draws it, in your words or in its own. The link beside it leads anybody there.'
          : prompt ? 'These words and the seed draw a place of their own.'
            : 'It starts in this picture. Other words draw another place.');
  }

  say(text) {
    if ($('hint').textContent !== text) $('hint').textContent = text;
  }
}
