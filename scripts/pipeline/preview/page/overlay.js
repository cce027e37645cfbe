// Safe area and sizes over the picture, in the frame's own units: 8 units high, y up.

const SVG = "http://www.w3.org/2000/svg";
const HALF = [64 / 9, 4];
const MARGIN = 0.5; // at both sides
const BAND_EDGE = 3.8; // the header and the captions have bands of their own above and below the stage
const STAGE = [3.05, -2.95]; // between the header band and the caption band
const SMALLEST = 0.16; // height of a capital letter that is legible in a GIF 640 px wide
const SIZES = [[0.27, "title"], [0.2, "label"], [SMALLEST, "smallest"]];
const ARTICLE_HEIGHT = 360; // pixels of a GIF 640 px wide

export class Overlay {
  constructor(svg) {
    this.svg = svg;
  }

  /** Draw the areas, a ruler of sizes, and the texts of the still if their places are known. */
  show(texts) {
    const [width, height] = [HALF[0] - MARGIN, BAND_EDGE];
    const outside = `M${-HALF[0]} ${-HALF[1]}H${HALF[0]}V${HALF[1]}H${-HALF[0]}z M${-width} ${-height}v${2 * height}h${2 * width}v${-2 * height}z`;
    const parts = [
      this.part("path", { d: outside, class: "outside" }),
      this.part("rect", { x: -width, y: -height, width: 2 * width, height: 2 * height, class: "line" }),
      ...STAGE.map((y) => this.part("line", { x1: -width, x2: width, y1: -y, y2: -y, class: "line" })),
      this.words("caption band", -width + 0.1, height - 0.12),
      this.words("header", width - 0.85, -STAGE[0] - 0.12),
    ];
    let x = width - 4.3;
    for (const [size, name] of SIZES) {
      parts.push(this.part("rect", { x, y: height - 0.12 - size, width: 0.06, height: size, class: "box" }));
      parts.push(this.words(`${name} ${this.pixels(size)}`, x + 0.14, height - 0.12));
      x += 1.4;
    }
    for (const [left, bottom, right, top, size] of texts ?? []) {
      const isOut = left < -width || right > width || bottom < -height || top > height;
      const isBad = size < SMALLEST - 1e-3 || isOut;
      const kind = isBad ? "bad" : "";
      parts.push(this.part("rect", { x: left, y: -top, width: right - left, height: top - bottom, class: `box ${kind}` }));
      if (isBad) parts.push(this.words(isOut ? "outside" : this.pixels(size), left, -top - 0.05, kind));
    }
    this.svg.replaceChildren(...parts);
  }

  pixels(size) {
    return `${((size / (2 * HALF[1])) * ARTICLE_HEIGHT).toFixed(0)} px`;
  }

  words(text, x, y, kind = "") {
    const made = this.part("text", { x, y, class: kind });
    made.textContent = text;
    return made;
  }

  part(name, attributes) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  }
}
