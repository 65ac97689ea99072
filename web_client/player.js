// Frames in, pictures on the screen when they are due: gaps, decoding a little ahead, painting, and what was learned.

import { H264Decoder, JpegDecoder } from './decoders.js';
import { DECODE_AHEAD_MS, Pacer } from './pacing.js';
import { Rate, Series, median } from './series.js';

const MAX_WAITING = 120; // encoded frames; more than any chunk
const MAX_BACKLOG = 8; // frames inside the decoder before their acks are held back
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
    this.dues = new Map(); // packet -> ms, of what is in the decoder
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
    this.acknowledge(message.packet, slackMs);
    this.feed();
  }

  // Acknowledged when taken in, since waiting to be due is not the network's doing; but not ahead of a slow decoder.
  acknowledge(packet, slackMs) {
    const held = this.held;
    this.held = { packet, slack_ms: slackMs ?? held?.slack_ms ?? null };
    if (this.decoder.backlog <= MAX_BACKLOG) this.releaseAck();
  }

  releaseAck() {
    if (!this.held) return;
    this.events.ack(this.held);
    this.held = null;
  }

  // Hand the decoder what is due soon; a hidden page paints nothing and must not fall behind its throttled timers.
  feed() {
    clearTimeout(this.timer);
    const horizonMs = document.hidden ? Infinity : this.now() + DECODE_AHEAD_MS;
    while (this.waiting.length && this.waiting[0].dueMs <= horizonMs) {
      const { message, dueMs } = this.waiting.shift();
      this.dues.set(message.packet, dueMs);
      this.decoder.decode(message);
    }
    if (this.waiting.length) this.timer = setTimeout(() => this.feed(), this.waiting[0].dueMs - horizonMs);
  }

  decoded(message, picture, close) {
    const dueMs = this.dues.get(message.packet) ?? this.now();
    for (const packet of this.dues.keys()) if (packet <= message.packet) this.dues.delete(packet);
    this.releaseAck();
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
    this.dues.clear();
    if (this.everyFrameIsKey) return;
    this.needsKey = true;
    while (this.waiting.length && !this.waiting[0].message.key) this.waiting.shift();
    if (this.waiting.length) this.needsKey = false;
    else this.askForKeyframe();
  }

  startOver() {
    this.waiting = [];
    this.pacer.restart();
    if (!this.everyFrameIsKey) { this.needsKey = true; this.askForKeyframe(); }
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
