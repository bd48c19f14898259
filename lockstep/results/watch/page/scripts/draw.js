// A digit that somebody draws, by mouse, finger or pen, and what the run's model sees in it.

import { element, setText } from "./dom.js";
import { percent } from "./figures.js";
import { weightsName } from "./evaluation.js";

const SIZE = 280, PIXELS = 28;
const ASK_MS = 60;

export class Drawing {
  // `names` are those of the classes.
  constructor(page, names) {
    this.page = page;
    this.names = names;
    this.pad = new Pad(page, () => this.recognise());
    page.on(page.$("clear"), "click", () => this.pad.clear());
    this.recognise();
  }

  async recognise() {
    this.isStale = true;
    if (this.pad.isEmpty) {
      this.page.$("bars").replaceChildren();
      setText(this.page.$("drawn"), "with a mouse, a finger or a pen");
    }
    if (this.isAsking) return;
    this.isAsking = true;
    while (this.isStale && !this.pad.isEmpty) {
      this.isStale = false;
      await this.ask();
      await this.page.pause(ASK_MS);
    }
    this.isAsking = false;
  }

  async ask() {
    try {
      const answer = await this.page.ask(`${this.page.base}/answer`, { method: "POST", body: this.pad.pixels() });
      if (this.pad.isEmpty) return;
      showBars(this.page.$("bars"), answer.probabilities, this.names);
      setText(this.page.$("drawn"), `by the ${weightsName(answer.weights)}`);
    } catch (error) {
      setText(this.page.$("drawn"), error.message);
    }
  }
}

function showBars(box, probabilities, names) {
  if (box.children.length !== probabilities.length) {
    box.replaceChildren(...probabilities.map((_, label) => {
      const line = element("div", undefined, "bar");
      line.append(element("span", names[label] ?? `${label}`), element("i"), element("span"));
      return line;
    }));
  }
  const best = probabilities.indexOf(Math.max(...probabilities));
  box.setAttribute("aria-label", `most probable: ${names[best] ?? best}, ${percent(probabilities[best])}`);
  probabilities.forEach((value, label) => {
    const line = box.children[label];
    line.classList.toggle("best", label === best);
    line.children[1].style.width = `${100 * value}%`;
    setText(line.children[2], percent(value));
  });
}

class Pad {
  constructor(page, onDrawn) {
    this.canvas = page.$("pad");
    this.ctx = this.canvas.getContext("2d", { willReadFrequently: true });
    this.onDrawn = onDrawn;
    page.on(this.canvas, "pointerdown", (event) => this.begin(event));
    page.on(this.canvas, "pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel", "pointerleave"]) page.on(this.canvas, name, () => { this.last = null; });
    page.on(this.canvas, "keydown", (event) => { if (event.key === "Escape" || event.key === "Delete") this.clear(); });
    this.blacken();
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
    this.blacken();
    this.onDrawn();
  }

  blacken() {
    this.ctx.fillStyle = "#000000";
    this.ctx.fillRect(0, 0, SIZE, SIZE);
    this.last = null;
    this.isEmpty = true;
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
