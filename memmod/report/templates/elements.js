"use strict";
// Elements and figures. Text is only ever set as text: no name becomes markup.

const NOTHING = "–";

/** An element with attributes, listeners (on...) and children; children are nodes or text. */
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child != null));
  return node;
}

/** As Python writes it: a tie goes to the even digit. */
function fixed(value, digits) {
  const scaled = value * 10 ** digits, low = Math.floor(scaled);
  if (scaled - low === 0.5 && low % 2 === 0) return (low / 10 ** digits).toFixed(digits);
  return value.toFixed(digits);
}

function percent(value, digits = 1) {
  return value == null ? NOTHING : `${fixed(100 * value, digits).replace(/^-(?=0\.?0*$)/, "").replace("-", "−")}\u00a0%`;
}

function signed(value, digits) {
  const text = fixed(Math.abs(value), digits);
  return Number(text) === 0 ? text : (value < 0 ? "−" : "+") + text;
}

function points(value) {
  return value == null ? NOTHING : signed(100 * value, 1);
}

function figure(value, digits = 3) {
  return value == null ? NOTHING : fixed(value, digits).replace("-", "−");
}

/** 26500 as 26,500. */
function counted(value) {
  return value.toLocaleString("en-US");
}

/** "a", "a and b", "a, b and c". */
function listed(names) {
  return names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;
}

/** A word as a shell reads it whole. */
function quoted(word) {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\"'\"'")}'`;
}

/** What is missing, and the command that makes it. */
function missing(text, ...command) {
  const code = command.length ? [" ", el("code", {}, command.join(" "))] : [];
  return el("p", { class: "missing" }, text, ...code);
}

function table(headings, rows, label) {
  const head = el("tr", {}, headings.map((heading) => el("th", { scope: "col" }, heading)));
  const body = rows.map(([first, ...rest]) =>
    el("tr", {}, el("th", { scope: "row" }, first), rest.map((cell) => el("td", {}, cell))));
  return el("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": label },
    el("table", {}, el("thead", {}, head), el("tbody", {}, body)));
}

function same(a, b) {
  return a.length === b.length && a.every((value, place) => value === b[place]);
}
