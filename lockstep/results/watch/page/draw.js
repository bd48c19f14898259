// A field to draw a digit in, by mouse, finger or pen.

const SIZE = 280, PIXELS = 28;

export class Pad {
  constructor(canvas, onDrawn) {
    this.canvas = canvas;
    this.ctx = canvas.getContext("2d", { willReadFrequently: true });
    this.onDrawn = onDrawn;
    this.clear();
    canvas.addEventListener("pointerdown", (event) => this.begin(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel", "pointerleave"]) canvas.addEventListener(name, () => { this.last = null; });
    canvas.addEventListener("keydown", (event) => { if (event.key === "Escape" || event.key === "Delete") this.clear(); });
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return [((event.clientX - box.left) * SIZE) / box.width, ((event.clientY - box.top) * SIZE) / box.height];
  }

  begin(event) {
    event.preventDefault();
    this.canvas.setPointerCapture(event.pointerId);
    this.last = this.place(event);
    this.move(event);
  }

  move(event) {
    if (!this.last) return;
    const to = this.place(event);
    const { ctx } = this;
    ctx.strokeStyle = "#ffffff";
    ctx.lineWidth = 20;
    ctx.lineCap = ctx.lineJoin = "round";
    ctx.beginPath();
    ctx.moveTo(...this.last);
    ctx.lineTo(to[0] + 0.01, to[1]);
    ctx.stroke();
    this.last = to;
    this.isEmpty = false;
    this.onDrawn();
  }

  clear() {
    this.ctx.fillStyle = "#000000";
    this.ctx.fillRect(0, 0, SIZE, SIZE);
    this.last = null;
    this.isEmpty = true;
    this.onDrawn();
  }

  // Gray values of 28 by 28 pixels: the means of squares of ten by ten.
  pixels() {
    const { data } = this.ctx.getImageData(0, 0, SIZE, SIZE);
    const block = SIZE / PIXELS, out = new Uint8Array(PIXELS * PIXELS);
    for (let row = 0; row < PIXELS; row++) {
      for (let column = 0; column < PIXELS; column++) {
        let sum = 0;
        for (let i = 0; i < block; i++) for (let j = 0; j < block; j++) sum += data[4 * ((row * block + i) * SIZE + column * block + j)];
        out[row * PIXELS + column] = Math.round(sum / (block * block));
      }
    }
    return out;
  }
}
