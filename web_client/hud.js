// Over the picture: the pill, the panel of numbers, badges, glowing keys, the thumb stick, and short notes.

import { Series } from './series.js';

const $ = (id) => document.getElementById(id);
const HISTORY = 60; // seconds of sparkline
const SKILL_MS = 10_000; // of held keys until their picture fades
const TOAST_MS = 4000;
const whole = (value) => (Number.isFinite(value) ? String(Math.round(value)) : '–');

const METERS = [ // key of the snapshot, label, unit
  ['fps', 'Frames shown', 'fps'], ['control_to_picture_ms', 'Control to picture', 'ms'], ['chunk_ms', 'Chunk', 'ms'],
  ['rtt_ms', 'Round trip', 'ms'], ['kbps', 'Network', 'kbit/s'], ['skipped', 'Skipped', 'frames'],
  ['rows', 'Rows in a forward', ''],
];

export class Hud {
  constructor() {
    this.meters = new Map(METERS.map(([key, label, unit]) => [key, this.meter(label, unit)]));
    this.heldMs = 0;
    $('pill').addEventListener('click', () => this.togglePanel());
  }

  meter(label, unit) {
    const term = Object.assign(document.createElement('dt'), { textContent: label });
    const value = document.createElement('dd');
    const number = document.createElement('b');
    const canvas = Object.assign(document.createElement('canvas'), { width: 192, height: 40 });
    canvas.setAttribute('aria-hidden', 'true');
    value.append(canvas, number, unit ? ` ${unit}` : '');
    $('meters').append(term, value);
    return { number, canvas, series: new Series(HISTORY) };
  }

  togglePanel(open = $('panel').hidden) {
    $('panel').hidden = !open;
    $('pill').setAttribute('aria-expanded', String(open));
    document.body.classList.toggle('panel-open', open);
  }

  // Once a second: `stats` by the meters' keys, `facts` as [label, text, copyable].
  sample(stats, facts) {
    for (const [key, { number, canvas, series }] of this.meters) {
      const value = stats[key];
      series.push(value ?? null);
      if ($('panel').hidden) continue;
      number.textContent = key === 'rows' && value != null ? value.toFixed(1) : whole(value);
      sparkline(canvas, series.values);
    }
    this.facts(facts);
  }

  facts(facts) {
    const text = JSON.stringify(facts);
    if (text === this.factsText) return;
    this.factsText = text;
    $('facts').replaceChildren(...facts.flatMap(([label, value, copyable]) => {
      const term = Object.assign(document.createElement('dt'), { textContent: label });
      const fact = document.createElement('dd');
      if (copyable) {
        const button = document.createElement('button');
        Object.assign(button, { type: 'button', textContent: value, title: 'Copy' });
        const copied = () => this.toast(`${label} copied`);
        button.addEventListener('click', () => copy(value).then(copied, () => select(button)));
        fact.append(button);
      } else fact.textContent = value;
      return [term, fact];
    }));
  }

  pill({ fps, control_to_picture_ms: ms }, mood) {
    $('pill-fps').textContent = whole(fps);
    $('pill-ms').textContent = whole(ms);
    $('pill').dataset.mood = mood;
    const spoken = `${whole(fps)} frames a second, ${whole(ms)} milliseconds from control to picture. Numbers`;
    $('pill').setAttribute('aria-label', spoken);
  }

  // [{id, text}] of what is not as it should be.
  badges(badges) {
    const text = JSON.stringify(badges);
    if (text === this.badgesText) return;
    this.badgesText = text;
    $('badges').replaceChildren(...badges.map(({ id, text: words }) => {
      const badge = Object.assign(document.createElement('p'), { className: 'badge', textContent: words });
      badge.dataset.badge = id;
      return badge;
    }));
  }

  held(codes, thumb) {
    for (const cap of document.querySelectorAll('#caps kbd')) {
      cap.classList.toggle('held', cap.dataset.keys.split(' ').some((code) => codes.has(code)));
    }
    const now = performance.now();
    if (this.heldSinceMs !== undefined) this.heldMs += now - this.heldSinceMs;
    this.heldSinceMs = codes.size ? now : undefined;
    $('caps').classList.toggle('skilled', this.heldMs > SKILL_MS);
    $('touch').hidden = !thumb;
    if (!thumb) return;
    const reach = Math.min(1, 56 / (Math.hypot(thumb.dx, thumb.dy) || 1));
    $('rim').style.translate = `${thumb.x}px ${thumb.y}px`;
    $('thumb').style.translate = `${thumb.dx * reach}px ${thumb.dy * reach}px`;
  }

  toast(text) {
    clearTimeout(this.toastTimer);
    $('toast').textContent = text;
    $('toast').hidden = false;
    announce(text);
    this.toastTimer = setTimeout(() => { $('toast').hidden = true; }, TOAST_MS);
  }
}

export function announce(text) {
  $('live').textContent = text;
}

export function copy(text) {
  return navigator.clipboard ? navigator.clipboard.writeText(text) : Promise.reject(new Error('no clipboard here'));
}

// Where there is no clipboard (a page without https) the text is selected, so that the player can copy it.
export function select(element) {
  getSelection().selectAllChildren(element);
}

// A line over the last minute, zero at the bottom edge; gaps stay gaps.
function sparkline(canvas, values) {
  const context = canvas.getContext('2d');
  const { width, height } = canvas;
  const known = values.filter((value) => value !== null);
  const highest = Math.max(...known, 1e-6) * 1.1;
  context.clearRect(0, 0, width, height);
  context.strokeStyle = getComputedStyle(canvas).color;
  context.lineWidth = 2.5;
  context.lineJoin = 'round';
  context.beginPath();
  let pen = false;
  values.forEach((value, i) => {
    if (value === null) { pen = false; return; }
    const x = width - ((values.length - 1 - i) / (HISTORY - 1)) * (width - 4) - 2;
    const y = height - 3 - (value / highest) * (height - 6);
    if (pen) context.lineTo(x, y);
    else context.moveTo(x, y);
    pen = true;
  });
  context.stroke();
}
