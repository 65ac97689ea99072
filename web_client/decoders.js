// Two ways from bytes to something drawable: H.264 through WebCodecs, and JPEG where that does not exist.

import { codecString } from './h264.js';

const JPEG = 'You get JPEG pictures, which need a faster network.';
const BASELINE = 'avc1.42e01f'; // what any H.264 decoder can do

// {codecs, why}: what to offer the server, preferred first, and a sentence where H.264 is not among them.
export async function offer(forced) {
  if (forced === 'jpeg') return { codecs: ['jpeg'], why: 'The address asks for JPEG pictures.' };
  if (!globalThis.isSecureContext) {
    return {
      codecs: ['jpeg'],
      why: 'This page did not come over https or from localhost, so the browser keeps its video decoder to itself. '
        + JPEG,
    };
  }
  if (!('VideoDecoder' in globalThis)) {
    return { codecs: ['jpeg'], why: `This browser has no WebCodecs. ${JPEG}` };
  }
  const { supported } = await VideoDecoder.isConfigSupported({ codec: BASELINE });
  if (!supported) {
    return { codecs: ['jpeg'], why: `This browser cannot decode H.264. ${JPEG}` };
  }
  return { codecs: ['h264', 'jpeg'], why: null };
}

// Both have name, decode(frame message), close(), and call shown(message, picture, close) and broken(fault).
export class H264Decoder {
  name = 'H.264, WebCodecs';

  constructor(fps, { shown, broken }) {
    Object.assign(this, { fps, shown, broken });
    this.decoding = new Map(); // timestamp, us -> message
    this.codec = null;
  }

  decode(message) {
    if (message.key) this.configure(codecString(message.data));
    if (!this.decoder) { this.broken(new Error('a stream that does not start with a keyframe')); return; }
    const timestamp = Math.round((message.frame * 1e6) / this.fps);
    this.decoding.set(timestamp, message);
    try {
      this.decoder.decode(new EncodedVideoChunk({
        type: message.key ? 'key' : 'delta', timestamp, duration: Math.round(1e6 / this.fps), data: message.data,
      }));
    } catch (fault) { // thrown at once for a delta where a key is due, and for a closed decoder
      this.decoding.delete(timestamp);
      this.broken(fault);
    }
  }

  configure(codec) {
    if (codec === null || (this.decoder && codec === this.codec)) return;
    this.close();
    this.codec = codec;
    this.name = `H.264, WebCodecs, ${codec}`;
    const decoder = new VideoDecoder({
      output: (picture) => {
        const message = this.decoding.get(picture.timestamp);
        this.decoding.delete(picture.timestamp);
        if (message) this.shown(message, picture, () => picture.close());
        else picture.close();
      },
      error: (fault) => {
        if (decoder !== this.decoder) return;
        this.close();
        this.broken(fault);
      },
    });
    decoder.configure({ codec, optimizeForLatency: true, hardwareAcceleration: 'no-preference' });
    this.decoder = decoder;
  }

  close() {
    if (this.decoder && this.decoder.state !== 'closed') this.decoder.close();
    this.decoder = null;
    this.codec = null;
    this.decoding.clear();
  }
}

export class JpegDecoder {
  name = 'JPEG, createImageBitmap';

  constructor(_fps, { shown, broken }) {
    Object.assign(this, { shown, broken });
    this.last = Promise.resolve(); // pictures come out in the order they went in
    this.closed = false;
  }

  decode(message) {
    const picture = createImageBitmap(new Blob([message.data], { type: 'image/jpeg' }));
    this.last = Promise.allSettled([picture, this.last]).then(([{ value, reason }]) => {
      if (this.closed) value?.close();
      else if (value) this.shown(message, value, () => value.close());
      else this.broken(reason);
    });
  }

  close() { this.closed = true; }
}
