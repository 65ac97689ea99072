// How long to wait before the next attempt to connect.

const FIRST_MS = 500;
const LONGEST_MS = 8000;

// attempt 0, 1, 2... -> ms; `random` in [0, 1) spreads a crowd that lost its server at the same moment.
export function delayMs(attempt, random) {
  return Math.min(LONGEST_MS, FIRST_MS * 2 ** attempt) * (0.8 + 0.4 * random);
}
