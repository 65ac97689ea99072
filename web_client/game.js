// One player's way through the states: asking for a place, playing, losing the line and coming back.

import { Connection } from './connection.js';
import { Health } from './health.js';
import { MARGIN_MS } from './pacing.js';
import { Player } from './player.js';
import * as wire from './protocol.js';
import { errorText } from './texts.js';

const POLL_MS = 2000;

// `view` gets state(name, detail), welcomed(message, surprising), painted(), prompted(message), saved(message),
// loaded(message), shared(message), note(text).
export class Game {
  constructor({ screen, settings, offer, fetchWorld, socketUrl, view }) {
    Object.assign(this, { screen, settings, offer, fetchWorld, socketUrl, view });
    this.state = 'start';
    this.reset();
  }

  reset() {
    this.connection?.end();
    this.player?.close();
    clearTimeout(this.poll);
    this.connection = this.player = this.welcome = this.stats = this.painted = this.retryAtMs = this.saveId = null;
    this.health = new Health();
  }

  to(state, detail = {}) {
    this.state = state;
    this.view.state(state, detail);
  }

  // `choice` is {scene, prompt, seed}, with `token` to continue a session; or {watch}, to see somebody else's.
  enter(choice) {
    this.reset();
    this.choice = choice;
    this.to('connecting');
    this.knock();
  }

  // Ask whether the world is up and has room before taking up its time; the server has the last word.
  async knock() {
    clearTimeout(this.poll);
    const { state } = this;
    if (state !== 'connecting' && state !== 'warming' && state !== 'full') return;
    const world = await this.fetchWorld();
    if (this.state !== state || (this.connection?.socket ?? null)) return;
    if (world && !world.ready) {
      if (state !== 'warming') this.to('warming');
      this.view.warming(world.progress);
    } else if (world && state === 'full' && !this.choice.watch && world.players >= world.capacity) this.view.house(world);
    else { this.connect(); return; }
    this.poll = setTimeout(() => this.knock(), POLL_MS);
  }

  connect() {
    clearTimeout(this.poll);
    if (this.connection) { this.connection.retryNow(); return; }
    this.connection = new Connection(this.socketUrl, { codecs: this.offer.codecs, ...this.choice }, {
      trying: () => { this.retryAtMs = null; },
      waiting: ({ atMs }) => this.broke(atMs),
      welcome: (message) => this.welcomed(message),
      message: (message) => this.receive(message),
      lost: () => { this.player?.close(); this.player = null; },
      refused: (error) => this.refused(error),
    });
  }

  welcomed(message) {
    const surprising = this.welcome !== null && !message.resumed && !message.watching;
    this.player?.close();
    this.welcome = message;
    this.health = new Health();
    this.player = new Player(this.screen, {
      fps: message.fps, codec: message.codec, marginMs: MARGIN_MS[this.settings.quality],
    }, {
      ack: (ack) => this.connection.send(wire.ack({ ...ack, hidden: document.hidden })),
      wantKeyframe: () => this.connection.send(wire.keyframe()),
      painted: (frame) => this.shown(frame),
    });
    this.view.welcomed(message, surprising);
  }

  shown(frame) {
    this.painted = { frame: frame.frame, chunk: frame.chunk, packet: frame.packet, control_seq: frame.control_seq };
    if (this.state !== 'playing') this.to('playing');
  }

  receive(message) {
    if (message.type === 'frame') this.player.take(message);
    else if (message.type === 'stats') {
      this.stats = message;
      this.health.add(message, document.hidden);
      this.player.pacer.setSpeed(message.speed);
    } else if (message.type === 'prompted') {
      this.welcome = { ...this.welcome, prompt: message.text };
      this.view.prompted(message);
    } else if (message.type === 'saved') {
      this.saveId = message.save;
      this.view.saved(message);
    } else if (message.type === 'loaded') {
      this.welcome = { ...this.welcome, prompt: message.prompt };
      this.view.loaded(message);
    } else if (message.type === 'shared') this.view.shared(message);
    else if (message.type === 'error') this.view.note(errorText(message.code).toast ?? message.message);
  }

  broke(atMs) {
    this.retryAtMs = atMs;
    const state = this.state === 'going_down' ? 'going_down' : 'reconnecting';
    if (this.state !== state) this.to(state, { known: this.welcome !== null });
  }

  refused(error) {
    const { state = 'error' } = errorText(error.code);
    this.to(state, { error });
    if (state === 'going_down') this.connection.retryLater();
    else if (state === 'full' || state === 'warming') this.poll = setTimeout(() => this.knock(), POLL_MS);
  }

  // Every card's main button: ask now, try now, play here instead, play again.
  again() {
    if (this.state === 'ended') {
      this.enter({ ...this.choice, token: undefined, ...this.last });
    } else if (this.connection) {
      this.to('connecting');
      this.connect();
    } else this.enter(this.choice);
  }

  leave(state = 'ended') {
    const { seed, scene } = this.welcome ?? {};
    this.last = seed === undefined ? {} : { seed, scene: scene || this.choice.scene };
    this.reset();
    this.to(state);
  }

  control(messages) {
    if (this.watching) return;
    for (const message of messages) {
      if (this.connection?.send(wire.control(message))) this.player.controlSent(message.seq);
    }
  }

  get watching() { return this.welcome?.watching === true; }

  share() {
    return this.connection?.send(wire.share()) ?? false;
  }

  // Keep this moment; the server answers with `saved`.
  save() {
    return this.connection?.send(wire.save()) ?? false;
  }

  // Go back to the moment that was kept last.
  load() {
    return this.saveId !== null && (this.connection?.send(wire.load(this.saveId)) ?? false);
  }

  say(text) {
    return this.connection?.send(wire.prompt(text)) ?? false;
  }

  // Everything that the numbers show; null where nothing is known yet.
  measure(nowMs) {
    const { player, connection, stats } = this;
    if (!player) return {};
    return {
      fps: player.paints.perSecond(nowMs),
      control_to_picture_ms: player.latencyMs,
      chunk_ms: stats?.chunk_ms ?? null,
      rtt_ms: connection.rttMs,
      kbps: (connection.received.perSecond(nowMs) * 8) / 1000,
      skipped: (stats?.skipped ?? 0) + player.counts.late + player.counts.lost,
      rows: stats?.rows ?? null,
      speed: stats?.speed ?? null,
      players: stats?.players ?? this.welcome.players,
      capacity: this.welcome.capacity,
      margin_ms: player.pacer.marginMs,
      decoding: player.decoding.length,
      ...player.counts,
    };
  }
}
