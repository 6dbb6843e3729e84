"use strict";
// Draws the charts from the numbers in the page, at the width that there is;
// a pointer shows the values of a step, a drag zooms in.
const root = document.documentElement;
const specs = JSON.parse(document.getElementById("data").textContent);
const say = (text) => (typeof text === "string" ? text : text[root.lang]);
const RESET = {en: "whole", ko: "전체"};

function svg(parent, name, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const key in attributes) node.setAttribute(key, attributes[key]);
  if (text !== undefined) node.textContent = text;
  parent.appendChild(node);
  return node;
}

function html(parent, name, className, text) {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  parent.appendChild(node);
  return node;
}

function linearTicks(low, high, count) {
  const rough = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((m) => m * power >= rough * 0.999);
  const ticks = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++)
    ticks.push(n * step);
  return ticks;
}

function logTicks(low, high) {
  const ticks = [];
  const fine = high / low < 300;
  const decades = Math.log10(high / low);
  const every = Math.max(1, Math.ceil(decades / 7));
  const first = Math.floor(Math.log10(low));
  for (let d = first; d <= Math.ceil(Math.log10(high)); d++)
    for (const m of fine ? [1, 2, 5] : (d - first) % every ? [] : [1]) {
      const value = m * 10 ** d;
      if (value >= low * 0.999 && value <= high * 1.001) ticks.push(value);
    }
  return ticks.length > 1 ? ticks : linearTicks(low, high, 4);
}

function short(value, percent) {
  if (percent) return `${+(100 * value).toFixed(2)} %`;
  const size = Math.abs(value);
  if (size >= 1e6 || (size && size < 1e-3)) return value.toExponential(0);
  return size >= 1000 ? value.toLocaleString("en") : `${+value.toPrecision(4)}`;
}

class Chart {
  constructor(box, spec) {
    this.box = box;
    this.spec = spec;
    this.range = null;
    this.svg = svg(box, "svg", {role: "img"});
    this.legend = html(box, "div", "legend");
    this.tip = html(box, "div", "tip");
    this.svg.addEventListener("pointermove", (e) => this.move(e));
    this.svg.addEventListener("pointerdown", (e) => this.press(e));
    this.svg.addEventListener("pointerup", (e) => this.release(e));
    this.svg.addEventListener("pointercancel", () => this.leave());
    this.svg.addEventListener("pointerleave", () => this.leave());
    this.svg.addEventListener("dblclick", () => this.zoom(null));
    new ResizeObserver(() => {
      if (box.clientWidth !== this.width) this.draw();
    }).observe(box);
    this.draw();
  }

  zoom(range) {
    this.range = range;
    this.draw();
  }

  xs() {
    const all = this.spec.series.flatMap((s) => s.points.map((p) => p[0]));
    return [Math.min(...all), Math.max(...all)];
  }

  draw() {
    const {spec} = this;
    this.leave();
    this.width = this.box.clientWidth || 380;
    this.height = Math.round(Math.min(280, Math.max(200, this.width * 0.6)));
    const {width, height} = this;
    this.svg.replaceChildren();
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.setAttribute("aria-label", say(spec.title));
    let [x0, x1] = this.range || spec.xRange || this.xs();
    if (x0 === x1) [x0, x1] = [x0 - 1, x1 + 1];
    const seen = [];
    for (const s of spec.series) {
      for (const p of s.points)
        if (p[0] >= x0 && p[0] <= x1 && p[1] !== null) seen.push(p[1]);
      for (const b of s.band || [])
        if (b[0] >= x0 && b[0] <= x1) seen.push(b[1], b[2]);
    }
    const log = spec.log && seen.some((v) => v > 0);
    const usable = log ? seen.filter((v) => v > 0) : seen;
    let y0 = Math.min(...usable), y1 = Math.max(...usable);
    if (!usable.length) [y0, y1] = [0, 1];
    if (spec.yRange && !this.range) [y0, y1] = spec.yRange;
    if (spec.zero && !this.range) y0 = Math.min(0, y0);
    if (log) {
      [y0, y1] = y0 === y1 ? [y0 / 2, y1 * 2] : [y0 * 0.93, y1 * 1.07];
    } else if (!spec.yRange) {
      const margin = y1 > y0 ? 0.05 * (y1 - y0) : 0.1 * (Math.abs(y0) || 1);
      [y0, y1] = [spec.zero && y0 === 0 ? 0 : y0 - margin, y1 + margin];
      if (spec.percent) [y0, y1] = [Math.max(0, y0), Math.min(1.002, y1)];
    }
    const ticks = log ? logTicks(y0, y1) : linearTicks(y0, y1, 5);
    const labels = ticks.map((t) => short(t, spec.percent));
    const left = 14 + 6.4 * Math.max(2, ...labels.map((l) => l.length));
    const [right, top, bottom] = [width - 20, 8, height - 34];
    const scaleY = log ? Math.log : (v) => v;
    this.x = (v) => left + ((v - x0) / (x1 - x0)) * (right - left);
    this.toX = (px) => x0 + ((px - left) / (right - left)) * (x1 - x0);
    this.y = (v) => bottom -
      ((scaleY(v) - scaleY(y0)) / (scaleY(y1) - scaleY(y0))) * (bottom - top);
    this.frame = {left, right, top, bottom, x0, x1};

    ticks.forEach((t, i) => {
      svg(this.svg, "line", {class: "axis", x1: left, x2: right, y1: this.y(t),
        y2: this.y(t)});
      svg(this.svg, "text", {x: left - 6, y: this.y(t) + 4,
        "text-anchor": "end"}, labels[i]);
    });
    const xTicks = linearTicks(x0, x1, Math.min(8, width / 75));
    for (const t of xTicks) {
      if (spec.integers && t % 1) continue;
      svg(this.svg, "text", {x: this.x(t), y: bottom + 15,
        "text-anchor": "middle"}, short(t, spec.xPercent));
    }
    svg(this.svg, "text", {x: (left + right) / 2, y: height - 5,
      "text-anchor": "middle"}, say(spec.xLabel));
    const id = `clip-${spec.id}`;
    svg(svg(this.svg, "clipPath", {id}), "rect", {x: left - 5, y: top - 4,
      width: right - left + 10, height: bottom - top + 8});
    const plot = svg(this.svg, "g", {"clip-path": `url(#${id})`});
    if (spec.diagonal)
      svg(plot, "line", {x1: this.x(0), y1: this.y(0), x2: this.x(1),
        y2: this.y(1), stroke: "var(--soft)", "stroke-dasharray": "2 4"});
    if (spec.level !== undefined)
      svg(plot, "line", {x1: left, x2: right, y1: this.y(spec.level),
        y2: this.y(spec.level), stroke: "var(--soft)",
        "stroke-dasharray": "2 4"});
    const drawn = (v) => v !== null && (!log || v > 0);
    for (const s of spec.series) {
      const color = `var(--c${s.color})`;
      if (s.band && s.band.length > 1) {
        const edge = (k) => s.band.filter((b) => drawn(b[k])).map((b) =>
          `${this.x(b[0])},${this.y(b[k])}`);
        svg(plot, "polygon", {points: [...edge(1), ...edge(2).reverse()].join(" "),
          fill: color, opacity: 0.18});
      }
      let path = "", pen = "M";
      for (const [x, y] of s.points) {
        if (drawn(y)) path += `${pen}${this.x(x)},${this.y(y)}`;
        pen = drawn(y) ? "L" : "M";
      }
      svg(plot, "path", {d: path || "M0,0", fill: "none", stroke: color,
        "stroke-width": 1.8, "stroke-linejoin": "round",
        ...(s.dash ? {"stroke-dasharray": "5 4"} : {})});
      if (s.points.length <= 40)
        for (const [x, y] of s.points)
          if (drawn(y)) svg(plot, "circle", {cx: this.x(x), cy: this.y(y),
            r: s.points.length > 25 ? 2 : 2.8, fill: color});
    }
    this.over = svg(this.svg, "g", {});
    this.legend.replaceChildren();
    for (const s of spec.series) {
      const item = html(this.legend, "span");
      const mark = html(item, "i", s.dash ? "dash" : "");
      mark.style.borderTopColor = `var(--c${s.color})`;
      item.append(say(s.name));
    }
    if (this.range) {
      const button = html(this.legend, "button", "", say(RESET));
      button.addEventListener("click", () => this.zoom(null));
    }
  }

  at(event) {
    const bounds = this.svg.getBoundingClientRect();
    return (event.clientX - bounds.left) * (this.width / bounds.width);
  }

  press(event) {
    this.start = this.at(event);
    if (event.pointerType === "mouse") this.svg.setPointerCapture(event.pointerId);
    this.move(event);
  }

  move(event) {
    const {left, right, top, bottom, x0, x1} = this.frame;
    const px = Math.min(right, Math.max(left, this.at(event)));
    this.over.replaceChildren();
    if (this.start !== undefined && Math.abs(px - this.start) > 6) {
      const from = Math.min(right, Math.max(left, this.start));
      svg(this.over, "rect", {x: Math.min(px, from), y: top,
        width: Math.abs(px - from), height: bottom - top, fill: "var(--c2)",
        opacity: 0.15});
    }
    let near = null;
    for (const s of this.spec.series)
      for (const p of s.points)
        if (p[0] >= x0 && p[0] <= x1 && (near === null ||
            Math.abs(this.x(p[0]) - px) < Math.abs(this.x(near) - px)))
          near = p[0];
    if (near === null) return;
    svg(this.over, "line", {x1: this.x(near), x2: this.x(near), y1: top,
      y2: bottom, stroke: "var(--soft)"});
    this.tip.replaceChildren();
    html(this.tip, "div", "soft",
      `${say(this.spec.xLabel)} ${this.spec.xPercent ? short(near, true) : near}`);
    for (const s of this.spec.series)
      s.points.forEach((p, i) => {
        if (p[0] !== near) return;
        const row = html(this.tip, "div");
        const name = html(row, "span", "", `${say(s.name)} `);
        name.style.color = `var(--c${s.color})`;
        // As it stands in metrics.jsonl: every digit.
        html(row, "b", "", p[1] === null ? "–" : String(p[1]));
        if (s.notes) row.append(` ${say(s.notes[i])}`);
        if (p[1] !== null && !(this.spec.log && p[1] <= 0))
          svg(this.over, "circle", {cx: this.x(near), cy: this.y(p[1]), r: 4.5,
            fill: "var(--paper)", stroke: `var(--c${s.color})`,
            "stroke-width": 2});
      });
    this.tip.style.display = "block";
    const scale = this.box.clientWidth / this.width;
    const room = this.box.clientWidth - this.tip.offsetWidth;
    const beside = this.x(near) * scale + 12;
    this.tip.style.left = `${Math.max(0, beside <= room ? beside
      : this.x(near) * scale - this.tip.offsetWidth - 12)}px`;
    this.tip.style.top = `${top}px`;
  }

  release(event) {
    const {left, right} = this.frame;
    const from = this.start, to = this.at(event);
    this.start = undefined;
    if (from === undefined || Math.abs(to - from) <= 6) return;
    const inside = (px) => this.toX(Math.min(right, Math.max(left, px)));
    const range = [inside(Math.min(from, to)), inside(Math.max(from, to))];
    if (range[1] > range[0]) this.zoom(range);
  }

  leave() {
    this.start = undefined;
    if (this.over) this.over.replaceChildren();
    this.tip.style.display = "none";
  }
}

const charts = specs.map((spec) =>
  new Chart(document.getElementById(spec.id), spec));

document.getElementById("language").addEventListener("click", () => {
  root.lang = root.lang === "en" ? "ko" : "en";
  charts.forEach((chart) => chart.draw());
});
document.getElementById("theme").addEventListener("click", () => {
  const dark = getComputedStyle(root).colorScheme === "dark";
  root.dataset.theme = dark ? "light" : "dark";
});
addEventListener("beforeprint", () => {
  for (const more of document.querySelectorAll("details")) more.open = true;
});
