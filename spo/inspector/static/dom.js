// Elements are made from data only as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";

/** h("button", {class: "x", onclick: f}, "text", child…): attributes, listeners, children. */
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && (value ?? null) !== null) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => (child ?? null) !== null));
  return element;
}

/** A number for reading: three significant digits, a true minus sign, "–" for none. */
export function show(x, digits = 3) {
  if (x === null || x === undefined || Number.isNaN(x)) return "–";
  const size = Math.abs(x);
  const tiny = size !== 0 && (size < 1e-3 || size >= 1e5);
  const text = tiny ? x.toExponential(1) : String(Number(x.toPrecision(digits)));
  return text.replace("-", "−");
}

/** The same with an explicit sign. */
export function signed(x, digits = 3) {
  return x > 0 ? `+${show(x, digits)}` : show(x, digits);
}

/** Text with line breaks and control characters made visible, for labels and lists. */
export function visible(text) {
  const lines = text.replace(/\n/g, "↵").replace(/\t/g, "⇥");
  return lines.replace(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]/g, "�");
}

/** One timer: the last call within `delay` ms wins. */
export function debounce(delay, f) {
  let timer;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => f(...values), delay);
  };
}
