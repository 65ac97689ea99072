// What the player prefers (kept in this browser) and what the address asks for.

const KEY = 'manyworlds.settings';
const DEFAULTS = { quality: 'balanced', scaling: 'sharp', sensitivity: 1, invert: false };
export const QUALITIES = ['instant', 'balanced', 'smooth'];

export function loadSettings(storage, asked = {}) {
  let kept = {};
  try { kept = JSON.parse(storage.getItem(KEY)) ?? {}; } catch { /* private mode, or not ours */ }
  const settings = { ...DEFAULTS };
  for (const [name, value] of Object.entries(DEFAULTS)) {
    if (typeof kept[name] === typeof value) settings[name] = kept[name];
  }
  if (QUALITIES.includes(asked.quality)) settings.quality = asked.quality;
  return settings;
}

export function saveSettings(storage, settings) {
  try { storage.setItem(KEY, JSON.stringify(settings)); } catch { /* then they last as long as the page */ }
}

// "12" -> 12; null for anything that is not a seed the wire can carry.
export function parseSeed(text) {
  const seed = /^\d{1,16}$/.test(text ?? '') ? Number(text) : null;
  return Number.isSafeInteger(seed) ? seed : null;
}

export function parseAddress(search) {
  const asked = new URLSearchParams(search);
  return {
    scene: asked.get('scene') || undefined, prompt: asked.get('prompt')?.slice(0, 500) || undefined,
    watch: asked.get('watch')?.slice(0, 64) || undefined, seed: parseSeed(asked.get('seed')) ?? undefined, play: asked.get('play') === '1',
    codec: asked.get('codec') ?? undefined, quality: asked.get('quality') ?? undefined,
    renderer: asked.get('renderer') ?? undefined,
  };
}

// The address that shows this world to others.
export function watchLink(base, code) {
  const link = new URL(base);
  link.search = '';
  link.hash = '';
  link.searchParams.set('watch', code);
  return link.href;
}

// The address that grows the same world again.
export function linkTo(base, { scene, prompt, seed }) {
  const link = new URL(base);
  link.search = '';
  link.hash = '';
  if (scene) link.searchParams.set('scene', scene);
  if (seed !== undefined) link.searchParams.set('seed', seed);
  if (prompt) link.searchParams.set('prompt', prompt);
  return link.href;
}
