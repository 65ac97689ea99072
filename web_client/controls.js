// From what is held to control messages: axes, and when the next message goes out. No DOM, no clock.

export const SEND_MS = 1000 / 60;
const MAX_WAITING = 8; // edges inside one send interval; more is a machine, and the last one wins

const KEY_AXES = { // event.code -> [axis, sign]; axes are forward, right, turn (right +), pitch (up +)
  KeyW: [0, 1], ArrowUp: [0, 1], KeyS: [0, -1], ArrowDown: [0, -1],
  KeyD: [1, 1], ArrowRight: [1, 1], KeyA: [1, -1], ArrowLeft: [1, -1],
  KeyL: [2, 1], KeyJ: [2, -1], KeyI: [3, 1], KeyK: [3, -1],
};

export const isControlKey = (code) => code in KEY_AXES;

// Every device's axes added up, each sum in -1..1. Two keys of one direction are one.
export function axesOf(codes, ...sticks) {
  const axes = [0, 0, 0, 0];
  const pressed = new Set([...codes].filter(isControlKey).map((code) => KEY_AXES[code].join()));
  for (const key of pressed) {
    const [axis, sign] = key.split(',').map(Number);
    axes[axis] += sign;
  }
  for (const stick of sticks) stick.forEach((value, i) => { axes[i] += value; });
  return axes.map((value) => Math.max(-1, Math.min(1, value)));
}

// A thumb's offset from the stick's centre -> [right, forward], with a dead zone, full at the rim.
export function stick(x, y, radius, dead = 0.15) {
  const length = Math.hypot(x, y) / radius;
  if (length < dead) return [0, 0];
  const gain = Math.min(1, (length - dead) / (1 - dead)) / (length * radius);
  return [x * gain || 0, -y * gain || 0];
}

// Control messages at no more than 60 a second; an edge keeps the time it happened at, so that a tap keeps its length.
export class ControlStream {
  constructor() {
    this.held = [0, 0, 0, 0];
    this.waiting = []; // [{t_ms, axes, analog}]
    this.look = [0, 0]; // degrees not yet sent
    this.sentMs = -Infinity;
    this.seq = 0;
  }

  // What is held from now on. An analog change replaces the one before it, a key's edge never does.
  hold(axes, nowMs, analog = false) {
    if (axes.every((value, i) => value === this.held[i])) return;
    this.held = axes;
    const last = this.waiting.at(-1);
    if (last && ((last.analog && analog) || this.waiting.length >= MAX_WAITING)) this.waiting.pop();
    this.waiting.push({ t_ms: nowMs, axes, analog });
  }

  turn(right, up) {
    this.look = [this.look[0] + right, this.look[1] + up];
  }

  get pending() { return this.waiting.length > 0 || this.look.some((degrees) => degrees !== 0); }

  // The messages to send now: none inside the interval, unless `force`.
  take(nowMs, force = false) {
    if (!this.pending || (!force && nowMs - this.sentMs < SEND_MS)) return [];
    if (!this.waiting.length) this.waiting.push({ t_ms: nowMs, axes: this.held });
    const messages = this.waiting.map(({ t_ms, axes }) => ({ seq: ++this.seq, t_ms, axes, look: [0, 0] }));
    messages.at(-1).look = this.look;
    this.waiting = [];
    this.look = [0, 0];
    this.sentMs = nowMs;
    return messages;
  }

  // A connection that was lost knows nothing of what is held: say it again.
  repeat(nowMs) {
    this.waiting = [{ t_ms: nowMs, axes: this.held }];
    this.look = [0, 0];
  }
}
