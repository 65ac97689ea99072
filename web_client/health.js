// What of the stream is not as it should be, in words a player understands.

import { Series } from './series.js';

const REMEMBERED = 5; // seconds
const SLOW_WORLD = 0.95; // of real time
const LOWERED = 0.8; // of the best bitrate seen

export class Health {
  constructor() {
    this.skips = new Series(REMEMBERED);
    this.skipped = null; // the server's count, last time
    this.bestKbps = 0;
  }

  // One stats message; `hidden` pages are sent less on purpose.
  add({ speed, skipped, bitrate_kbps: bitrate }, hidden) {
    this.speed = speed;
    this.skips.push(hidden || this.skipped === null ? 0 : Math.max(0, skipped - this.skipped));
    this.skipped = skipped;
    this.bitrate = bitrate;
    this.bestKbps = Math.max(this.bestKbps, bitrate);
  }

  get badges() {
    const badges = [];
    if (this.speed > 0 && this.speed < SLOW_WORLD) {
      badges.push({ id: 'busy', text: `The world runs at ${Math.round(this.speed * 100)} %` });
    }
    const skips = this.skips.values.reduce((sum, count) => sum + count, 0);
    const lowered = this.bitrate > 0 && this.bitrate < this.bestKbps * LOWERED;
    if (skips || lowered) {
      const measures = [lowered && `picture at ${this.bitrate} kbit/s`, skips && `${skips} frames skipped`];
      badges.push({ id: 'slow', text: `Slow network: ${measures.filter(Boolean).join(', ')}` });
    }
    return badges;
  }
}
