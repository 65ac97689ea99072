// One session's line to the server: opens, says hello, measures the round trip, comes back by itself when it breaks.

import { delayMs } from './backoff.js';
import * as wire from './protocol.js';
import { Rate, Series, median } from './series.js';

const PING_MS = 1000;
const SILENCE_MS = 5000; // a server that plays sends frames, one that idles answers pings
const ANSWER_MS = 10_000; // from opening the socket to the welcome
const FLUSHED_BYTES = 256 * 1024; // more than this waiting to be sent: drop what is stale anyway

// Events, each a callback: welcome(message), message(message), waiting({atMs, attempt}), trying(), refused(error),
// lost() when a connection that had been welcomed ends.
export class Connection {
  constructor(url, hello, events, { now = () => performance.now(), random = Math.random } = {}) {
    Object.assign(this, { url, hello, events, now, random });
    this.roundTrips = new Series(20);
    this.received = new Rate();
    this.attempt = 0;
    this.open();
  }

  get rttMs() { return median(this.roundTrips.values); }

  open() {
    this.cancelTimers();
    this.welcomed = false;
    this.refusal = null;
    const socket = new WebSocket(this.url);
    this.socket = socket;
    socket.binaryType = 'arraybuffer';
    socket.onopen = () => socket.send(wire.hello(this.hello));
    socket.onmessage = ({ data }) => { if (socket === this.socket) this.receive(data); };
    socket.onclose = () => { if (socket === this.socket) this.closed(); };
    this.heardMs = this.now();
    this.watch = setInterval(() => this.check(), PING_MS);
    this.events.trying(this.attempt);
  }

  receive(data) {
    this.heardMs = this.now();
    let message;
    try {
      message = wire.parse(data);
    } catch (fault) {
      console.error('unreadable message', fault);
      this.socket.close();
      return;
    }
    this.received.add(this.heardMs, data.byteLength);
    if (message.type === 'welcome') {
      this.welcomed = true;
      this.attempt = 0;
      const scene = message.scene || this.hello.scene; // a seed without a scene would ask for a new place
      this.hello = { ...this.hello, token: message.token || undefined, seed: message.seed, scene };
      this.events.welcome(message);
      this.send(wire.ping(this.now()));
    } else if (message.type === 'pong') this.roundTrips.push(this.now() - message.t_ms);
    else if (message.type === 'error' && message.fatal) this.refusal = message;
    else this.events.message(message);
  }

  check() {
    const silentMs = this.now() - this.heardMs;
    if (silentMs > (this.welcomed ? SILENCE_MS : ANSWER_MS)) {
      const { socket } = this;
      socket.onclose = null; // a dead line may take minutes to say that it closed
      socket.close();
      this.closed();
    } else if (this.welcomed) this.send(wire.ping(this.now()));
  }

  closed() {
    this.cancelTimers();
    this.socket = null;
    const { refusal, welcomed } = this;
    if (welcomed) this.events.lost();
    if (refusal) this.events.refused(refusal);
    else this.retryLater();
  }

  retryLater() {
    const waitMs = delayMs(this.attempt, this.random());
    this.attempt += 1;
    this.retry = setTimeout(() => this.open(), waitMs);
    this.events.waiting({ atMs: this.now() + waitMs, attempt: this.attempt });
  }

  retryNow() {
    if (!this.socket) this.open();
  }

  // True if it went out; nothing is kept for later, since old input is worth nothing.
  send(bytes) {
    if (!this.welcomed || this.socket?.readyState !== WebSocket.OPEN) return false;
    if (this.socket.bufferedAmount > FLUSHED_BYTES) return false;
    this.socket.send(bytes);
    return true;
  }

  // Leave for good.
  end() {
    this.cancelTimers();
    const { socket } = this;
    this.socket = null;
    if (!socket) return;
    if (this.welcomed && socket.readyState === WebSocket.OPEN) socket.send(wire.bye());
    socket.onclose = null;
    socket.close();
  }

  cancelTimers() {
    clearInterval(this.watch);
    clearTimeout(this.retry);
  }
}
