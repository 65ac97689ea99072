// Scaling up on the GPU. `sharp` is a Catmull-Rom bicubic with a light unsharp mask, held to its neighbours' range so
// that edges do not ring.

export const VERTEX = `#version 300 es
out vec2 at;
void main() {
  vec2 corner = vec2(gl_VertexID == 1 ? 3.0 : -1.0, gl_VertexID == 2 ? 3.0 : -1.0);
  at = vec2(corner.x * 0.5 + 0.5, 0.5 - corner.y * 0.5);
  gl_Position = vec4(corner, 0.0, 1.0);
}`;

export const FRAGMENT = `#version 300 es
precision highp float;
uniform sampler2D picture;
uniform vec2 size;
uniform int mode;
in vec2 at;
out vec4 colour;

vec3 texel(vec2 centre) { return texture(picture, centre / size).rgb; }

vec4 weights(float t) {
  float t2 = t * t, t3 = t2 * t;
  return 0.5 * vec4(-t3 + 2.0 * t2 - t, 3.0 * t3 - 5.0 * t2 + 2.0, -3.0 * t3 + 4.0 * t2 + t, t3 - t2);
}

void main() {
  vec2 p = at * size;
  if (mode == 1) { colour = vec4(texture(picture, at).rgb, 1.0); return; }
  if (mode == 2) { colour = vec4(texel(floor(p) + 0.5), 1.0); return; }
  vec2 base = floor(p - 0.5) + 0.5;
  vec2 t = p - base;
  vec4 wx = weights(t.x), wy = weights(t.y);
  vec3 sum = vec3(0.0), lowest = vec3(1.0), highest = vec3(0.0), around = vec3(0.0);
  for (int j = 0; j < 4; j++) {
    for (int i = 0; i < 4; i++) {
      vec3 c = texel(base + vec2(float(i) - 1.0, float(j) - 1.0));
      sum += wx[i] * wy[j] * c;
      around += c;
      if ((i == 1 || i == 2) && (j == 1 || j == 2)) { lowest = min(lowest, c); highest = max(highest, c); }
    }
  }
  vec3 sharpened = sum + 0.25 * (sum - around / 16.0);
  vec3 spare = 0.06 * (highest - lowest) + 0.008;
  colour = vec4(clamp(sharpened, lowest - spare, highest + spare), 1.0);
}`;
