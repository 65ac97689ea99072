// Small statistics over the last few values.

// The value below which `share` of them lie; null of nothing.
export function quantile(values, share) {
  if (!values.length) return null;
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
}

export const median = (values) => quantile(values, 0.5);

// The last `size` values, oldest first.
export class Series {
  constructor(size) {
    this.size = size;
    this.values = [];
  }

  push(value) {
    this.values.push(value);
    if (this.values.length > this.size) this.values.shift();
  }

  clear() { this.values.length = 0; }
}

// Events and what they amounted to over a sliding window: frames a second, bits a second.
export class Rate {
  constructor(windowMs = 2000) {
    this.windowMs = windowMs;
    this.events = [];
  }

  add(nowMs, amount = 1) {
    this.events.push([nowMs, amount]);
    this.trim(nowMs);
  }

  perSecond(nowMs) {
    this.trim(nowMs);
    const sum = this.events.reduce((total, [, amount]) => total + amount, 0);
    return (sum * 1000) / this.windowMs;
  }

  trim(nowMs) {
    while (this.events.length && this.events[0][0] <= nowMs - this.windowMs) this.events.shift();
  }
}
