// Frames in, pictures on the screen when they are due: gaps, decoding a little ahead, painting, and what was learned.

import { H264Decoder, JpegDecoder } from './decoders.js';
import { DECODE_AHEAD_MS, Pacer } from './pacing.js';
import { Rate, Series, median } from './series.js';

const MAX_WAITING = 120; // encoded frames; more than any chunk
const MAX_DECODING = 8; // frames inside the decoder before acks are held back
const KEYFRAME_MS = 500; // between two requests
const MAX_CONTROLS = 512; // whose sending time is remembered

// Events: ack({packet, slack_ms}), wantKeyframe(), painted(message).
export class Player {
  constructor(screen, { fps, codec, marginMs }, events, now = () => performance.now()) {
    Object.assign(this, { screen, events, now });
    this.pacer = new Pacer({ fps, marginMs });
    const decoders = { shown: (...args) => this.decoded(...args), broken: (fault) => this.broken(fault) };
    this.decoder = codec === 'jpeg' ? new JpegDecoder(fps, decoders) : new H264Decoder(fps, decoders);
    this.everyFrameIsKey = codec === 'jpeg';
    this.waiting = []; // [{message, dueMs}] encoded, in order
    this.decoding = []; // the same, in the decoder
    this.unacked = null; // {packet, slack_ms} of the newest packet that was not acknowledged
    this.ready = []; // [{message, dueMs, picture, close}] decoded, in order
    this.expected = null; // the next packet
    this.needsKey = true;
    this.keyframeAskedMs = -Infinity;
    this.paints = new Rate();
    this.controlToPicture = new Series(48);
    this.controlsSent = new Map(); // seq -> ms
    this.counts = { received: 0, painted: 0, lost: 0, late: 0, undecodable: 0 };
    this.onVisible = () => this.visibility();
    document.addEventListener('visibilitychange', this.onVisible);
  }

  get latencyMs() { return median(this.controlToPicture.values); }

  controlSent(seq) {
    this.controlsSent.set(seq, this.now());
    if (this.controlsSent.size > MAX_CONTROLS) this.controlsSent.delete(this.controlsSent.keys().next().value);
  }

  take(message) {
    const { dueMs, slackMs } = this.pacer.arrive(message, this.now());
    this.counts.received += 1;
    if (this.expected !== null && message.packet !== this.expected) {
      this.counts.lost += Math.max(0, message.packet - this.expected);
      this.needsKey = !this.everyFrameIsKey;
    }
    this.expected = message.packet + 1;
    if (message.key || this.everyFrameIsKey) this.needsKey = false;
    if (this.needsKey) this.askForKeyframe();
    else this.waiting.push({ message, dueMs });
    if (this.waiting.length > MAX_WAITING) this.startOver();
    this.feed();
    this.unacked = { packet: message.packet, slack_ms: slackMs ?? this.unacked?.slack_ms ?? null };
    this.acknowledge();
  }

  // A frame counts as taken in before it is due, but not while the decoder is behind: it may be what is slow.
  acknowledge() {
    if (!this.unacked || this.decoding.length > MAX_DECODING) return;
    this.events.ack(this.unacked);
    this.unacked = null;
  }

  // Hand the decoder what is due soon; a hidden page paints nothing and must not fall behind its throttled timers.
  feed() {
    clearTimeout(this.timer);
    const horizonMs = document.hidden ? Infinity : this.now() + DECODE_AHEAD_MS;
    while (this.waiting.length && this.waiting[0].dueMs <= horizonMs) {
      const next = this.waiting.shift();
      this.decoding.push(next);
      this.decoder.decode(next.message);
    }
    if (this.waiting.length) this.timer = setTimeout(() => this.feed(), this.waiting[0].dueMs - horizonMs);
  }

  // The decoder gives back in order, so what was before this one was lost inside.
  decoded(message, picture, close) {
    let dueMs = this.now();
    while (this.decoding.length && this.decoding[0].message.packet <= message.packet) {
      ({ dueMs } = this.decoding.shift());
    }
    this.acknowledge();
    if (document.hidden) { close(); return; }
    this.ready.push({ message, dueMs, picture, close });
    this.animation ??= requestAnimationFrame((atMs) => this.animate(atMs));
  }

  animate(atMs) {
    this.animation = null;
    const horizonMs = Math.max(atMs, this.now()) + 4; // the screen shows it a few ms from here
    while (this.ready.length > 1 && this.ready[1].dueMs <= horizonMs) {
      this.ready.shift().close();
      this.counts.late += 1;
    }
    if (this.ready.length && this.ready[0].dueMs <= horizonMs) this.paint(this.ready.shift());
    if (this.ready.length) this.animation = requestAnimationFrame((nextMs) => this.animate(nextMs));
  }

  paint({ message, picture, close }) {
    this.screen.draw(picture, picture.displayWidth ?? picture.width, picture.displayHeight ?? picture.height);
    close();
    const now = this.now();
    this.counts.painted += 1;
    this.paints.add(now);
    for (const [seq, sentMs] of this.controlsSent) {
      if (seq > message.control_seq) break;
      this.controlToPicture.push(now - sentMs);
      this.controlsSent.delete(seq);
    }
    this.events.painted(message);
  }

  broken(fault) {
    console.warn('picture lost:', fault?.message ?? fault);
    this.counts.undecodable += 1;
    if (this.everyFrameIsKey) { this.decoding.shift(); return; }
    const nextKey = this.waiting.findIndex(({ message }) => message.key);
    this.decoding = [];
    this.waiting.splice(0, nextKey < 0 ? this.waiting.length : nextKey);
    this.needsKey = nextKey < 0;
    if (this.needsKey) this.askForKeyframe();
    this.acknowledge();
  }

  startOver() {
    this.pacer.restart();
    this.waiting = [];
    this.needsKey = !this.everyFrameIsKey;
    if (this.needsKey) this.askForKeyframe();
  }

  askForKeyframe() {
    if (this.now() - this.keyframeAskedMs < KEYFRAME_MS) return;
    this.keyframeAskedMs = this.now();
    this.events.wantKeyframe();
  }

  visibility() {
    this.pacer.restart();
    if (document.hidden) {
      for (const { close } of this.ready.splice(0)) close();
      this.controlsSent.clear();
    }
    this.feed();
  }

  close() {
    document.removeEventListener('visibilitychange', this.onVisible);
    clearTimeout(this.timer);
    cancelAnimationFrame(this.animation);
    this.decoder.close();
    for (const { close } of this.ready.splice(0)) close();
    this.waiting = [];
  }
}
