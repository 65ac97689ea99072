// A picture for a place that nobody has drawn yet: hills and a sun that differ by seed, and promise nothing.

// Numbers in 0..1 that follow from a seed (mulberry32).
export function chances(seed) {
  let state = (seed ^ Math.floor(seed / 2 ** 32)) >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

export function sketch(canvas, seed) {
  const { width, height } = canvas;
  const pen = canvas.getContext('2d');
  const next = chances(seed);
  const hue = 190 + 170 * next(); // the skies there are: none is green
  const sky = pen.createLinearGradient(0, 0, 0, height);
  sky.addColorStop(0, `hsl(${hue} 50% 30%)`);
  sky.addColorStop(0.75, `hsl(${hue + 50} 85% 78%)`);
  pen.fillStyle = sky;
  pen.fillRect(0, 0, width, height);
  pen.fillStyle = `hsl(${hue + 60} 90% 88%)`;
  pen.beginPath();
  pen.arc(width * (0.2 + 0.6 * next()), height * (0.25 + 0.3 * next()), height * 0.07, 0, 7);
  pen.fill();
  for (let ridge = 0; ridge < 4; ridge++) {
    const [long, short, from] = [1 + 2 * next(), 4 + 5 * next(), 7 * next()];
    pen.fillStyle = `hsl(${hue + 20 - 20 * ridge} 40% ${52 - 13 * ridge}%)`;
    pen.beginPath();
    pen.moveTo(0, height);
    for (let x = 0; x <= width; x += 2) {
      const at = (x / width) * 2 * Math.PI;
      const rise = 0.07 * Math.sin(long * at + from) + 0.03 * Math.sin(short * at + 3 * from);
      pen.lineTo(x, height * (0.5 + 0.13 * ridge - rise * (1.2 - 0.2 * ridge)));
    }
    pen.lineTo(width, height);
    pen.fill();
  }
}
