// What the decoder must be told of an H.264 stream, read from its first access unit.

const SPS = 7;

// Annex B bytes -> "avc1.PPCCLL" (profile, constraints, level of the sequence parameter set), or null without one.
export function codecString(bytes) {
  for (let i = 0; i + 6 < bytes.length; i++) {
    if (bytes[i] || bytes[i + 1] || bytes[i + 2] !== 1 || (bytes[i + 3] & 0x1f) !== SPS) continue;
    return 'avc1.' + [bytes[i + 4], bytes[i + 5], bytes[i + 6]].map((b) => b.toString(16).padStart(2, '0')).join('');
  }
  return null;
}
