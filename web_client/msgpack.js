// MessagePack, as much of it as the protocol uses: nil, booleans, numbers, strings, bytes, arrays, maps.

const utf8 = new TextEncoder();
const text = new TextDecoder('utf-8', { fatal: true });
const MAX_DEPTH = 16;

// A number that goes on the wire as a float even when it is whole.
export class Real {
  constructor(value) { this.value = value; }
}

export function encode(value) {
  const bytes = [];
  write(value, bytes);
  return Uint8Array.from(bytes);
}

function write(value, out) {
  if (value === null) out.push(0xc0);
  else if (value === false) out.push(0xc2);
  else if (value === true) out.push(0xc3);
  else if (value instanceof Real) writeView(0xcb, 8, (view) => view.setFloat64(0, value.value), out);
  else if (Number.isSafeInteger(value)) writeInteger(value, out);
  else if (typeof value === 'number') write(new Real(value), out);
  else if (typeof value === 'string') {
    const bytes = utf8.encode(value);
    writeLength(bytes.length, [[32, 0xa0], [0x100, 0xd9, 1], [0x10000, 0xda, 2], [2 ** 32, 0xdb, 4]], out);
    append(bytes, out);
  } else if (value instanceof Uint8Array) {
    writeLength(value.length, [[0x100, 0xc4, 1], [0x10000, 0xc5, 2], [2 ** 32, 0xc6, 4]], out);
    append(value, out);
  } else if (Array.isArray(value)) {
    writeLength(value.length, [[16, 0x90], [0x10000, 0xdc, 2]], out);
    for (const item of value) write(item, out);
  } else if (typeof value === 'object') {
    const entries = Object.entries(value).filter(([, item]) => item !== undefined);
    writeLength(entries.length, [[16, 0x80], [0x10000, 0xde, 2]], out);
    for (const [key, item] of entries) { write(key, out); write(item, out); }
  } else throw new TypeError(`MessagePack has no ${typeof value}`);
}

function writeInteger(value, out) {
  if (value >= 0) {
    if (value < 0x80) out.push(value);
    else writeLength(value, [[0x100, 0xcc, 1], [0x10000, 0xcd, 2], [2 ** 32, 0xce, 4], [2 ** 53, 0xcf, 8]], out);
  } else if (value >= -32) out.push(value & 0xff);
  else if (value >= -0x80) writeView(0xd0, 1, (view) => view.setInt8(0, value), out);
  else if (value >= -0x8000) writeView(0xd1, 2, (view) => view.setInt16(0, value), out);
  else if (value >= -(2 ** 31)) writeView(0xd2, 4, (view) => view.setInt32(0, value), out);
  else writeView(0xd3, 8, (view) => view.setBigInt64(0, BigInt(value)), out);
}

// The smallest form whose limit is above `length`: [limit, tag] holds it in the tag, [limit, tag, bytes] after it.
function writeLength(length, forms, out) {
  const form = forms.find(([limit]) => length < limit);
  if (!form) throw new RangeError('too long for MessagePack');
  const [, tag, bytes] = form;
  if (!bytes) { out.push(tag | length); return; }
  out.push(tag);
  for (let shift = bytes - 1; shift >= 0; shift--) out.push(Math.floor(length / 2 ** (8 * shift)) % 256);
}

function writeView(tag, bytes, set, out) {
  const view = new DataView(new ArrayBuffer(bytes));
  set(view);
  out.push(tag);
  append(new Uint8Array(view.buffer), out);
}

function append(bytes, out) {
  for (const byte of bytes) out.push(byte);
}

// Bytes in the result are views of `buffer`, not copies. Throws RangeError or TypeError on anything malformed.
export function decode(buffer) {
  const reader = new Reader(buffer);
  const value = reader.value(0);
  if (reader.at !== reader.view.byteLength) throw new RangeError('bytes after the message');
  return value;
}

class Reader {
  constructor(buffer) {
    this.view = ArrayBuffer.isView(buffer)
      ? new DataView(buffer.buffer, buffer.byteOffset, buffer.byteLength) : new DataView(buffer);
    this.at = 0;
  }

  skip(bytes) {
    const at = this.at;
    this.at += bytes;
    return at;
  }

  length(bytes) {
    const at = this.skip(bytes);
    return bytes === 1 ? this.view.getUint8(at) : bytes === 2 ? this.view.getUint16(at) : this.view.getUint32(at);
  }

  bytes(length) {
    if (length > this.view.byteLength - this.at) throw new RangeError('the message is cut off');
    return new Uint8Array(this.view.buffer, this.view.byteOffset + this.skip(length), length);
  }

  string(length) { return text.decode(this.bytes(length)); }

  array(length, depth) {
    const items = [];
    for (let i = 0; i < length; i++) items.push(this.value(depth + 1));
    return items;
  }

  map(length, depth) {
    const entries = {};
    for (let i = 0; i < length; i++) {
      const key = this.value(depth + 1);
      if (typeof key !== 'string') throw new TypeError('a map key that is not a string');
      entries[key] = this.value(depth + 1);
    }
    return entries;
  }

  value(depth) {
    if (depth > MAX_DEPTH) throw new RangeError('nested too deeply');
    const tag = this.view.getUint8(this.skip(1));
    if (tag < 0x80) return tag;
    if (tag < 0x90) return this.map(tag & 0x0f, depth);
    if (tag < 0xa0) return this.array(tag & 0x0f, depth);
    if (tag < 0xc0) return this.string(tag & 0x1f);
    if (tag >= 0xe0) return tag - 0x100;
    switch (tag) {
      case 0xc0: return null;
      case 0xc2: return false;
      case 0xc3: return true;
      case 0xc4: return this.bytes(this.length(1));
      case 0xc5: return this.bytes(this.length(2));
      case 0xc6: return this.bytes(this.length(4));
      case 0xca: return this.view.getFloat32(this.skip(4));
      case 0xcb: return this.view.getFloat64(this.skip(8));
      case 0xcc: return this.view.getUint8(this.skip(1));
      case 0xcd: return this.view.getUint16(this.skip(2));
      case 0xce: return this.view.getUint32(this.skip(4));
      case 0xcf: return Number(this.view.getBigUint64(this.skip(8)));
      case 0xd0: return this.view.getInt8(this.skip(1));
      case 0xd1: return this.view.getInt16(this.skip(2));
      case 0xd2: return this.view.getInt32(this.skip(4));
      case 0xd3: return Number(this.view.getBigInt64(this.skip(8)));
      case 0xd9: return this.string(this.length(1));
      case 0xda: return this.string(this.length(2));
      case 0xdb: return this.string(this.length(4));
      case 0xdc: return this.array(this.length(2), depth);
      case 0xdd: return this.array(this.length(4), depth);
      case 0xde: return this.map(this.length(2), depth);
      case 0xdf: return this.map(this.length(4), depth);
      default: throw new TypeError(`MessagePack type 0x${tag.toString(16)} is not part of the protocol`);
    }
  }
}
