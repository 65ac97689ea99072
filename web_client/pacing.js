// When each frame is shown. Frames arrive a chunk at a time; the clock spreads them evenly, and shifts rather than
// hurries.

import { Series, quantile } from './series.js';

export const DECODE_AHEAD_MS = 40;
export const MARGIN_MS = { instant: 8, balanced: 30, smooth: 120 };
const MAX_MARGIN_MS = 400;
const MAX_AHEAD_MS = 2500; // a frame due later than this belongs to a clock that no longer means anything
const REMEMBERED_CHUNKS = 40;
const MIN_SPEED = 0.2;

export class Pacer {
  constructor({ fps, marginMs = MARGIN_MS.balanced }) {
    this.frameMs = 1000 / fps;
    this.baseMarginMs = marginMs;
    this.lateness = new Series(REMEMBERED_CHUNKS); // ms that each chunk's first frame came after it was due
    this.speed = 1;
    this.restart();
  }

  // Forget the clock, not what is known of the line: after a pause, a reconnect, a hidden page.
  restart() {
    this.last = null; // {frame, chunk, dueMs} of the frame that arrived last
    this.chunks = 0; // whose first frame has been seen since the restart
  }

  get intervalMs() { return this.frameMs / this.speed; }

  get marginMs() {
    return Math.max(this.baseMarginMs, Math.min(quantile(this.lateness.values, 0.95) ?? 0, MAX_MARGIN_MS));
  }

  // A world slower than real time is shown slower, not in bursts.
  setSpeed(speed) {
    this.speed = speed < 0.95 ? Math.max(speed, MIN_SPEED) : 1;
  }

  // A frame came in: {dueMs, slackMs}. `slackMs` says how early a chunk's first frame came, null for the others and
  // until the clock runs: a first chunk is shorter than the rest, so the clock starts at the second.
  arrive({ frame, chunk }, nowMs) {
    const { last } = this;
    const first = last === null || chunk !== last.chunk;
    if (first) this.chunks += 1;
    let dueMs = last === null ? nowMs : last.dueMs + Math.max(1, frame - last.frame) * this.intervalMs;
    let slackMs = null;
    if (first && this.chunks === 2) dueMs = Math.max(dueMs, nowMs + this.marginMs);
    else if (first && this.chunks > 2) {
      slackMs = dueMs - nowMs;
      this.lateness.push(Math.max(0, -slackMs));
      if (slackMs < 0) dueMs = nowMs + this.marginMs;
    }
    dueMs = Math.max(dueMs, nowMs);
    if (dueMs > nowMs + MAX_AHEAD_MS) dueMs = nowMs + this.marginMs;
    this.last = { frame, chunk, dueMs };
    return { dueMs, slackMs };
  }
}
