// The picture, letterboxed over the whole page and scaled well: a small one deserves better than the browser's blur.

import { FRAGMENT, VERTEX } from './shaders.js';

const MODES = { sharp: 0, plain: 1, pixels: 2 };
const MAX_BUFFER_WIDTH = 2560;
const GLOW_FRAMES = 6; // between two updates of what fills the bars

export class Screen {
  // `renderer` "webgl" or "2d" forces one; otherwise WebGL, unless the CPU would have to do its work.
  // `glow` is a tiny canvas that fills the bars beside the picture with its blurred colours.
  constructor(canvas, glow, mode, renderer) {
    this.canvas = canvas;
    this.glow = glow.getContext('2d', { alpha: false });
    this.frames = 0;
    this.width = 16;
    this.height = 9;
    this.gl = (renderer ? renderer === 'webgl' : hasGpu()) && canvas.getContext('webgl2', {
      alpha: false, antialias: false, depth: false,
      preserveDrawingBuffer: true, // so that what reads the canvas reads what is shown
    });
    this.renderer = this.gl && this.program() ? 'WebGL' : '2D canvas';
    if (!this.gl) this.flat = canvas.getContext('2d', { alpha: false });
    canvas.addEventListener('webglcontextlost', (event) => event.preventDefault());
    canvas.addEventListener('webglcontextrestored', () => this.program());
    new ResizeObserver(() => this.fit()).observe(canvas.parentElement);
    this.setMode(mode);
  }

  program() {
    const { gl } = this;
    const program = gl.createProgram();
    for (const [type, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(type);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) {
      if (!gl.isContextLost()) console.error('shader:', gl.getProgramInfoLog(program));
      return false;
    }
    gl.useProgram(program);
    gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
    for (const axis of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) gl.texParameteri(gl.TEXTURE_2D, axis, gl.CLAMP_TO_EDGE);
    for (const end of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, end, gl.LINEAR);
    this.uniforms = { size: gl.getUniformLocation(program, 'size'), mode: gl.getUniformLocation(program, 'mode') };
    return true;
  }

  setMode(mode) {
    this.mode = mode in MODES ? mode : 'sharp';
    this.canvas.classList.toggle('pixels', this.mode === 'pixels');
    this.redraw();
  }

  // A VideoFrame, an ImageBitmap or an image; the caller closes it.
  draw(picture, width, height) {
    if (width !== this.width || height !== this.height) {
      Object.assign(this, { width, height });
      this.fit();
    }
    if (this.frames++ % GLOW_FRAMES === 0) this.glow.drawImage(picture, 0, 0, 16, 9);
    if (this.flat) { this.flat.drawImage(picture, 0, 0, width, height); return; }
    const { gl } = this;
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, picture);
    this.drawn = true;
    this.redraw();
  }

  redraw() {
    const { gl, canvas } = this;
    if (!gl || !this.drawn || gl.isContextLost()) return;
    gl.viewport(0, 0, canvas.width, canvas.height);
    gl.uniform2f(this.uniforms.size, this.width, this.height);
    gl.uniform1i(this.uniforms.mode, MODES[this.mode]);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
  }

  // The largest box of the picture's shape. Without WebGL the buffer stays small and the compositor scales it.
  fit() {
    const { canvas, width, height } = this;
    const room = canvas.parentElement.getBoundingClientRect();
    const scale = Math.min(room.width / width, room.height / height);
    canvas.style.width = `${Math.round(width * scale)}px`;
    canvas.style.height = `${Math.round(height * scale)}px`;
    const gain = this.flat ? 1 : Math.min(scale * devicePixelRatio, MAX_BUFFER_WIDTH / width);
    const size = [Math.max(1, Math.round(width * gain)), Math.max(1, Math.round(height * gain))];
    if (canvas.width === size[0] && canvas.height === size[1]) return;
    const kept = this.flat && canvas.width > 1 ? this.flat.getImageData(0, 0, canvas.width, canvas.height) : null;
    [canvas.width, canvas.height] = size;
    if (kept) this.flat.putImageData(kept, 0, 0);
    this.redraw();
  }
}

// Whether WebGL is there and is not a program on the CPU: 16 texture reads a pixel would cost it more than the game.
function hasGpu() {
  const gl = document.createElement('canvas').getContext('webgl2', { failIfMajorPerformanceCaveat: true });
  if (!gl) return false;
  const info = gl.getExtension('WEBGL_debug_renderer_info');
  const name = info ? gl.getParameter(info.UNMASKED_RENDERER_WEBGL) : '';
  gl.getExtension('WEBGL_lose_context')?.loseContext();
  return !/swiftshader|llvmpipe|softpipe|software|basic render/i.test(name);
}
