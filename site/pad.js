"use strict";
// The paper: strokes by mouse, pen, finger or keyboard; undo and clear.

const PEN = 30; // width of a stroke, of the pad's 400 pixels: about 2 of the 20 pixels of a digit
const INK = 102; // opacity (of 255) from which a pixel counts as ink: 40 %, as in notebook 15

class Pad {
  /** Strokes are lists of points [x, y] in pixels of the canvas; `changed(finished)` is told of each. */
  constructor(canvas, pen, changed) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { willReadFrequently: true });
    this.pen = pen;
    this.changed = changed;
    this.strokes = [];
    this.undone = []; // what clear took away, to bring it back
    this.example = false; // strokes that the next one of the reader's own replaces
    this.pointer = null;
    this.cursor = { x: canvas.width / 2, y: canvas.height / 4, down: false };
    canvas.addEventListener("pointerdown", (event) => this.begin(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) {
      canvas.addEventListener(name, (event) => this.end(event));
    }
    // touch-action: none does it; this is for browsers that do not know it
    canvas.addEventListener("touchmove", (event) => event.preventDefault(), { passive: false });
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("blur", () => this.showPen(false));
  }

  place(event) {
    const frame = this.canvas.getBoundingClientRect();
    const scale = this.canvas.width / frame.width;
    return [(event.clientX - frame.left) * scale, (event.clientY - frame.top) * scale];
  }

  begin(event) {
    if (this.pointer !== null || event.button !== 0) return; // a second finger draws nothing
    event.preventDefault();
    this.canvas.focus({ preventScroll: true });
    this.showPen(false);
    this.pointer = event.pointerId;
    this.canvas.setPointerCapture(event.pointerId);
    this.start(this.place(event));
  }

  move(event) {
    if (event.pointerId !== this.pointer) return;
    const all = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
    for (const one of all.length ? all : [event]) this.extend(this.place(one));
    this.changed(false);
  }

  end(event) {
    if (event.pointerId !== this.pointer) return;
    this.pointer = null;
    this.changed(true);
  }

  start(point) {
    if (this.example) this.strokes = [];
    if (this.example || !this.strokes.length) this.wipe();
    this.example = false;
    this.undone = [];
    this.strokes.push([point]);
    this.line(point, point);
    this.changed(false);
  }

  extend(point) {
    const stroke = this.strokes[this.strokes.length - 1];
    this.line(stroke[stroke.length - 1], point);
    stroke.push(point);
  }

  /** One piece of a stroke, with round ends. */
  line([x0, y0], [x1, y1]) {
    const c = this.context;
    c.lineWidth = PEN;
    c.lineCap = "round";
    c.strokeStyle = "#000"; // pure: only its opacity counts
    c.beginPath();
    c.moveTo(x0, y0);
    c.lineTo(x1 + (x0 === x1 && y0 === y1 ? 0.01 : 0), y1); // a point is a line, too
    c.stroke();
  }

  wipe() {
    this.context.clearRect(0, 0, this.canvas.width, this.canvas.height);
  }

  /** Draw these strokes instead of what is there. */
  show(strokes, example = false) {
    this.strokes = strokes.map((stroke) => [...stroke]);
    this.example = example;
    this.wipe();
    for (const stroke of this.strokes) {
      this.line(stroke[0], stroke[0]);
      for (let i = 1; i < stroke.length; i++) this.line(stroke[i - 1], stroke[i]);
    }
    this.changed(true);
  }

  undo() {
    if (this.strokes.length) this.show(this.strokes.slice(0, -1));
    else if (this.undone.length) this.show(this.undone);
  }

  clear() {
    if (this.strokes.length && !this.example) this.undone = this.strokes;
    this.cursor.down = false;
    this.showPen(!this.pen.hidden);
    this.show([]);
  }

  get canUndo() {
    return this.strokes.length > 0 || this.undone.length > 0;
  }

  key(event) {
    const step = event.shiftKey ? 4 : 16;
    const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const cursor = this.cursor;
    if (event.key in ways && !event.ctrlKey && !event.metaKey && !event.altKey) {
      const inside = (value) => Math.min(this.canvas.width - 1, Math.max(0, value));
      cursor.x = inside(cursor.x + step * ways[event.key][0]);
      cursor.y = inside(cursor.y + step * ways[event.key][1]);
      if (cursor.down) {
        this.extend([cursor.x, cursor.y]);
        this.changed(false);
      }
    } else if (event.key === " ") {
      cursor.down = !cursor.down;
      if (cursor.down) this.start([cursor.x, cursor.y]);
      else this.changed(true);
    } else if (event.key === "Delete" || event.key === "Backspace") {
      this.clear();
    } else if (event.key === "z" && (event.ctrlKey || event.metaKey)) {
      cursor.down = false;
      this.undo();
    } else {
      return;
    }
    event.preventDefault();
    this.showPen(true);
  }

  /** The ring that shows where the keyboard's pen is. */
  showPen(visible) {
    const { x, y, down } = this.cursor;
    if (!visible && down) {
      this.cursor.down = false;
      this.changed(true);
    }
    this.pen.hidden = !visible;
    this.pen.classList.toggle("down", this.cursor.down);
    this.pen.style.left = `${(100 * x) / this.canvas.width}%`;
    this.pen.style.top = `${(100 * y) / this.canvas.height}%`;
  }

  /** Black and white: 1 where there is ink. */
  ink() {
    const { width, height } = this.canvas;
    const pixels = this.context.getImageData(0, 0, width, height).data;
    const ink = new Uint8Array(width * height);
    for (let i = 0; i < ink.length; i++) ink[i] = pixels[4 * i + 3] > INK ? 1 : 0;
    return ink;
  }
}
