// Charts: drawn as SVG, which prints sharply and takes its colours from the style sheet.

const EMBEDDING = { actions: false, renderer: "svg", ast: true, tooltip: { theme: "custom" } };

/** Draw a specification into a box; `rows` are the data of one that has none of its own. */
async function draw(box, spec, rows) {
  const narrow = box.clientWidth < 480;
  const axis = { ...spec.config.axis, labelLimit: Math.max(90, 0.4 * box.clientWidth) };
  const legend = { ...spec.config.legend, ...(narrow && { columns: 1 }) };
  const whole = { ...spec, config: { ...spec.config, axis, legend } };
  if (rows) {
    whole.datasets = { rows };
    whole.height = spec.usermeta.row * new Set(rows.map((row) => row.class ?? row.layer)).size;
  }
  // the box is an image with a name of its own, and what is inside of it no list of marks to be read out
  const inside = el("div", { "aria-hidden": "true" });
  box.replaceChildren(inside);
  await vegaEmbed(inside, whole, EMBEDDING);
}

/** Every chart that the page holds; one in closed details when they are opened, since it has no width before. */
function drawAll(root, data) {
  return Promise.all([...root.querySelectorAll("[data-chart]")].map((box) => {
    const drawn = () => draw(box, data.charts[box.dataset.chart]);
    const closed = box.closest("details:not([open])");
    if (!closed) return drawn();
    closed.addEventListener("toggle", drawn, { once: true });
  }));
}
