// The wire, as PROTOCOL.md describes it: one MessagePack map a WebSocket message, `type` names it.

import { Real, decode, encode } from './msgpack.js';

export const VERSION = 1;
export const MAX_PROMPT_CHARS = 500;
export const MAX_IMAGE_BYTES = 192 * 1024;
export const MAX_SLACK_MS = 60_000;

const real = (value) => new Real(value);
const clamp = (value, limit) => Math.min(limit, Math.max(-limit, value));

// Each returns the bytes of one message; fields that are undefined stay away.
export const hello = ({ codecs, name, scene, prompt, seed, token, image, watch }) => encode({
  type: 'hello', version: VERSION, name, codecs, scene: scene || undefined, prompt, seed, token, image, watch,
});
export const control = ({ seq, t_ms, axes, look = [0, 0] }) => encode({
  type: 'control', seq, t_ms: real(t_ms), axes: axes.map((axis) => real(clamp(axis, 1))),
  look: look[0] || look[1] ? look.map((degrees) => real(clamp(degrees, 360))) : undefined,
});
export const prompt = (words) => encode({ type: 'prompt', text: words });
export const ack = ({ packet, hidden, slack_ms }) => encode({
  type: 'ack', packet, hidden: hidden || undefined,
  slack_ms: slack_ms == null ? undefined : real(clamp(slack_ms, MAX_SLACK_MS)),
});
export const keyframe = () => encode({ type: 'keyframe' });
export const ping = (t_ms) => encode({ type: 'ping', t_ms: real(t_ms) });
export const share = () => encode({ type: 'share' });
export const save = () => encode({ type: 'save' });
export const load = (id) => encode({ type: 'load', save: id });
export const bye = () => encode({ type: 'bye' });

// Bytes of one server message -> an object with its `type`. Throws on anything that is not a typed map.
export function parse(buffer) {
  const message = decode(buffer);
  if (message === null || typeof message !== 'object' || typeof message.type !== 'string') {
    throw new TypeError('not a message of the protocol');
  }
  return message;
}
