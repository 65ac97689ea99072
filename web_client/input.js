// Keyboard, mouse, touch and gamepad -> a ControlStream. Everything is let go of when the page loses sight or focus.

import { ControlStream, SEND_MS, axesOf, isControlKey, stick } from './controls.js';

const DEGREES_PER_PIXEL = 0.14;
const TOUCH_DEGREES_PER_PIXEL = 0.3;
const STICK_RADIUS = 56; // CSS pixels
const GAMEPAD_MS = 16;
const still = () => [0, 0, 0, 0];

// `emit(messages)` gets what is to be sent; `changed(codes, thumb)` what is held, for the glowing keys and the stick.
export class Input {
  constructor(surface, settings, { emit, changed, now = () => performance.now() }) {
    Object.assign(this, { surface, settings, emit, changed, now });
    this.stream = new ControlStream();
    this.codes = new Set();
    this.thumb = null; // {id, x, y, dx, dy} of the touch that is a stick
    this.looker = null; // {id, x, y} of the pointer that looks
    this.pad = still();
    this.active = false;
    this.listen();
  }

  listen() {
    const { surface } = this;
    addEventListener('keydown', (event) => this.key(event, true));
    addEventListener('keyup', (event) => this.key(event, false));
    addEventListener('blur', () => this.release());
    document.addEventListener('visibilitychange', () => { if (document.hidden) this.release(); });
    document.addEventListener('pointerlockchange', () => { this.looker = null; });
    surface.addEventListener('pointerdown', (event) => this.down(event));
    surface.addEventListener('pointermove', (event) => this.move(event));
    for (const type of ['pointerup', 'pointercancel', 'lostpointercapture']) {
      surface.addEventListener(type, (event) => this.up(event));
    }
    surface.addEventListener('contextmenu', (event) => event.preventDefault());
    addEventListener('gamepadconnected', () => this.pollGamepad());
  }

  get locked() { return document.pointerLockElement === this.surface; }

  enable(active) {
    if (this.active === active) return;
    this.active = active;
    if (active) this.pollGamepad();
    else this.release();
  }

  release() {
    this.codes.clear();
    this.thumb = this.looker = null;
    this.pad = still();
    this.update(false, true);
  }

  key(event, pressed) {
    if (!isControlKey(event.code)) return;
    if (pressed) {
      if (!this.active || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault(); // arrows scroll
      if (event.repeat) return;
      this.codes.add(event.code);
    } else if (!this.codes.delete(event.code)) return;
    this.update(false);
  }

  down(event) {
    if (!this.active) return;
    if (event.pointerType === 'mouse') {
      if (event.button !== 0) return;
      this.lock();
    }
    const left = event.clientX < innerWidth / 2;
    if (event.pointerType !== 'mouse' && left && !this.thumb) {
      this.thumb = { id: event.pointerId, x: event.clientX, y: event.clientY, dx: 0, dy: 0 };
    } else if (!this.looker) this.looker = { id: event.pointerId, x: event.clientX, y: event.clientY };
    try { this.surface.setPointerCapture(event.pointerId); } catch { /* a pointer that is gone already */ }
    this.update(true);
  }

  // Dragging looks as well, so a browser that refuses the lock loses nothing but comfort.
  lock() {
    if (this.locked || !this.surface.requestPointerLock) return;
    Promise.resolve(this.surface.requestPointerLock()).catch(() => {});
  }

  unlock() {
    if (this.locked) document.exitPointerLock();
  }

  move(event) {
    if (!this.active) return;
    if (this.locked) this.look(event.movementX, event.movementY, DEGREES_PER_PIXEL);
    else if (event.pointerId === this.thumb?.id) {
      Object.assign(this.thumb, { dx: event.clientX - this.thumb.x, dy: event.clientY - this.thumb.y });
      this.update(true);
    } else if (event.pointerId === this.looker?.id) {
      const gain = event.pointerType === 'mouse' ? DEGREES_PER_PIXEL : TOUCH_DEGREES_PER_PIXEL;
      this.look(event.clientX - this.looker.x, event.clientY - this.looker.y, gain);
      Object.assign(this.looker, { x: event.clientX, y: event.clientY });
    }
  }

  look(x, y, gain) {
    const { sensitivity, invert } = this.settings;
    this.stream.turn(x * gain * sensitivity, -y * gain * sensitivity * (invert ? -1 : 1));
    this.pump();
  }

  up(event) {
    if (event.pointerId === this.thumb?.id) this.thumb = null;
    else if (event.pointerId === this.looker?.id) this.looker = null;
    else return;
    this.update(true);
  }

  pollGamepad() {
    if (!this.active || this.polling) return;
    const pad = navigator.getGamepads?.().find((candidate) => candidate?.connected && candidate.axes.length >= 4);
    if (!pad) return;
    const [right, forward] = stick(pad.axes[0], pad.axes[1], 1);
    const [turn, pitch] = stick(pad.axes[2], pad.axes[3], 1);
    this.pad = [forward, right, turn, this.settings.invert ? -pitch : pitch];
    this.update(true);
    this.polling = setTimeout(() => { this.polling = null; this.pollGamepad(); }, GAMEPAD_MS);
  }

  update(analog, force = false) {
    const [right, forward] = this.thumb ? stick(this.thumb.dx, this.thumb.dy, STICK_RADIUS) : [0, 0];
    this.stream.hold(axesOf(this.codes, [forward, right, 0, 0], this.pad), this.now(), analog);
    this.changed(this.codes, this.thumb);
    this.pump(force);
  }

  pump(force = false) {
    clearTimeout(this.timer);
    const messages = this.stream.take(this.now(), force);
    if (messages.length) this.emit(messages);
    if (this.stream.pending) this.timer = setTimeout(() => this.pump(), SEND_MS);
  }
}
