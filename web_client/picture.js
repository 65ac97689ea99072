// A player's own picture: the part of it that fits the world's proportions, no larger than the world's, as a JPEG.

import { MAX_IMAGE_BYTES } from './protocol.js';

const QUALITIES = [0.92, 0.8, 0.6, 0.4]; // the finest that is small enough

// The largest middle part of a picture with the proportions of `limit`, and the size to draw it at: never larger.
export function fit(size, limit) {
  const scale = Math.min(size.width / limit.width, size.height / limit.height);
  const part = { width: limit.width * scale, height: limit.height * scale };
  return {
    x: (size.width - part.width) / 2, y: (size.height - part.height) / 2, ...part,
    across: Math.max(1, Math.round(limit.width * Math.min(1, scale))),
    down: Math.max(1, Math.round(limit.height * Math.min(1, scale))),
  };
}

// {bytes, canvas} of a File. Rejects where the browser cannot open it as a picture.
export async function readPicture(file, limit) {
  const bitmap = await createImageBitmap(file); // upright, as a camera's notes say
  const { x, y, width, height, across, down } = fit(bitmap, limit);
  const canvas = Object.assign(document.createElement('canvas'), { width: across, height: down });
  const pen = canvas.getContext('2d', { alpha: false });
  pen.imageSmoothingQuality = 'high';
  pen.drawImage(bitmap, x, y, width, height, 0, 0, across, down);
  bitmap.close();
  for (const quality of QUALITIES) {
    const blob = await new Promise((done) => { canvas.toBlob(done, 'image/jpeg', quality); });
    if (blob && blob.size <= MAX_IMAGE_BYTES) return { bytes: new Uint8Array(await blob.arrayBuffer()), canvas };
  }
  throw new RangeError('the picture stays too large');
}
