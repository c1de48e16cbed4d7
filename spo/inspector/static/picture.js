// A completion as SVG or PNG, for a paper or an issue: laid out here, so that it needs no style
// sheet and shows what the arrays say, not what the screen happens to show.

import { startsSegment, tokenText } from "./data.js";
import { show, svg, visible } from "./dom.js";
import { colourClass } from "./scale.js";

const FONT = "13px ui-monospace, Menlo, Consolas, monospace";
const WIDTH = 760;
const LINE = 21;
const PAD = 16;

/** The colour of a class on white: orange below 7, blue above. */
function paper(quantised) {
  const strength = Math.abs(quantised - 7) / 7;
  const [r, g, b] = quantised < 7 ? [232, 119, 34] : [46, 116, 230];
  const mix = (x) => Math.round(255 - (255 - x) * 0.62 * strength);
  return `rgb(${mix(r)},${mix(g)},${mix(b)})`;
}

/** @returns an <svg> element; `numbers` are coloured on `scale`, `label` says what they are. */
export function completionPicture(title, label, completion, credit, numbers, scale) {
  const pen = document.createElement("canvas").getContext("2d");
  pen.font = FONT;
  const shapes = svg("g");
  const letters = svg("g");
  let x = PAD;
  let y = 58;
  for (let at = 0; at < completion.length; at++) {
    const text = tokenText(completion, at);
    const pieces = text.split("\n");
    pieces.forEach((piece, i) => {
      if (i > 0) [x, y] = [PAD, y + LINE];
      const width = pen.measureText(piece).width;
      if (x + width > WIDTH - PAD && x > PAD) [x, y] = [PAD, y + LINE];
      const fill = paper(colourClass(numbers[at], scale));
      shapes.append(svg("rect", { x, y: y - 14, width: Math.max(width, 3), height: 18, fill }));
      if (i === 0 && startsSegment(credit.segmentIds, at)) {
        shapes.append(svg("rect", { x: x - 1, y: y - 15, width: 2, height: 20, fill: "#1d1f23" }));
      }
      const word = svg("text", { x, y, "xml:space": "preserve" });
      word.textContent = visible(piece);
      letters.append(word);
      x += width;
    });
  }
  const height = y + 40;
  const picture = svg("svg", {
    xmlns: "http://www.w3.org/2000/svg",
    width: WIDTH,
    height,
    viewBox: `0 0 ${WIDTH} ${height}`,
    style: `font:${FONT};fill:#1d1f23`,
  });
  const range = `${label} ${show(scale.low)} … ${show(scale.high)}; a bar starts a segment`;
  picture.append(
    svg("rect", { width: WIDTH, height, fill: "#ffffff" }),
    svg("text", { x: PAD, y: 22, "font-weight": "bold" }, visible(title)),
    svg("text", { x: PAD, y: 40, fill: "#5c5f66" }, range),
    shapes,
    letters,
  );
  return picture;
}

export function svgBlob(picture) {
  return new Blob([new XMLSerializer().serializeToString(picture)], { type: "image/svg+xml" });
}

/** Twice the size, for sharp print. */
export async function pngBlob(picture) {
  const image = new Image();
  const address = URL.createObjectURL(svgBlob(picture));
  try {
    image.src = address;
    await image.decode();
  } finally {
    URL.revokeObjectURL(address);
  }
  const canvas = document.createElement("canvas");
  canvas.width = 2 * image.width;
  canvas.height = 2 * image.height;
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

/** Offers a blob as a file. */
export function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name.replace(/[^\w.-]+/g, "_");
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
